"""The learner actor: the policy and its optimizer.

Beside each minibatch it learns a few instruction samples again: PPO-ptx (Ouyang et al. 2022, eq. 2) with the chat
stage's data in the place of pretraining's.
"""

from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from cluster import fault
from conf.errors import InputError
from conf.knobs.model import Precision
from conf.knobs.reinforcement import Advantages, Ppo
from conf.knobs.running import Cluster
from moe.formats import hugging_face
from moe.text.defaults import Defaults
from moe.text.tokenizer import Tokenizer
from moe.training.objectives import Objective
from rlhf.actors.gate import diagnosis
from rlhf.actors.ranks import together
from rlhf.actors.rehearsal import Replay
from rlhf.actors.trained import Columns, Trained
from rlhf.forward import slices, spread, token_logprobs
from rlhf.messages import Batch, Weights
from rlhf.objectives import policy_objective


class Learner(Trained):
    def __init__(
        self,
        folder: Path,
        cfg: Ppo,
        precision: Precision,
        seed: int,
        threads: int,
        replay: Path | None = None,
        device: str = "cpu",
        cluster: Cluster | None = None,
    ) -> None:
        super().__init__(hugging_face.load(folder), cfg.lr, cfg, precision, seed, threads, device, cluster)
        self.tokenizer = Tokenizer.load(folder)
        self.replay = Replay(replay, self.tokenizer, seed, cfg.replay_tasks) if replay and cfg.replay else None

    def weights(self) -> Weights:
        """The policy as it is, for the rollout actors."""
        fault.at("learner.weights")
        return Weights.of(self.version, hugging_face.to_disk(self.model, self.whole()))

    def publish(self) -> tuple[int, Weights]:
        """(version, weights): who only asks whether they are there need not fetch them."""
        return self.version, self.weights()

    @together
    def update(self, batch: Batch, advantages: Tensor, reference: Tensor) -> dict[str, float]:
        """One iteration of the policy; `advantages` and the chat model's log-probs are [B, T]. In the critic's warm-up
        only time passes."""
        self._begin(batch)
        if batch.behind:
            batch, advantages, stats = self._corrected(batch, advantages)
        else:
            stats = {"train/rollout_logprob_abs_diff": self._disagreement(batch, reference)}
        if self.cfg.advantages is not Advantages.gae or self.version >= self.cfg.critic_warmup:
            columns: Columns = {"advantages": advantages, "reference": reference}
            stats |= self._learn("actor", batch, columns, self._objective)
        self.version += 1
        return stats

    def export(self, path: Path) -> None:
        """The policy as a model folder."""
        fault.at("learner.export")
        hugging_face.save(self.model, path, Defaults.of(self.tokenizer, chat=True), self.whole())

    @torch.no_grad()
    def _corrected(self, batch: Batch, advantages: Tensor) -> tuple[Batch, Tensor, dict[str, float]]:
        """A batch of an older policy as if this one had answered: by its log-probs, each token weighed by how much
        likelier it has become, `ppo.importance_cap` times at most (truncated importance sampling, Espeholt et al. 2018;
        apart from the clipped ratio, as Hilton et al. 2022 have it)."""
        self.model.eval()
        said = self._of_each(slices(batch), lambda part: token_logprobs(self.model, part, routed=True)[0])
        now = spread(torch.cat(said), batch.mask)
        self.model.train()
        apart = ((now - batch.logprobs) * batch.mask).exp()
        weights, count = apart.clamp(max=self.cfg.importance_cap), batch.mask.sum()
        told = {
            "rl/importance/mean": float((weights * batch.mask).sum() / count),
            "rl/importance/capped": float(((apart > self.cfg.importance_cap) * batch.mask).sum() / count),
            "rl/staleness": float(batch.behind),
        }
        return replace(batch, logprobs=now), advantages * weights, told

    def _objective(self, number: int) -> Objective:
        steps = self.cfg.epochs * self.cfg.minibatches
        again = self.replay.draw(self.version * steps + number, self.cfg.replay) if self.replay else None
        return policy_objective(self.cfg, again)

    @torch.no_grad()
    def _disagreement(self, batch: Batch, reference: Tensor) -> float:
        """The largest difference, over the first rows, between the policy's log-probs and those of the rollout, which
        has the same weights. Raises `InputError` with a diagnosis where they are further apart in the mean than
        `ppo.max_disagreement`: what is learnt from them would be about another policy."""
        rows = torch.arange(min(_LOOKED_AT, len(batch.tokens)))
        part = batch.rows(rows)
        self.model.eval()
        new = token_logprobs(self.model, part, routed=True)[0].cpu()
        self.model.train()
        old = part.logprobs[part.mask.bool()]
        if 0 < self.cfg.max_disagreement < float((new - old).abs().mean()):
            first = reference[rows, : part.mask.shape[1]][part.mask.bool()]
            raise InputError(
                f"ppo.max_disagreement={self.cfg.max_disagreement:g}: in iteration {self.version} rollout and learner "
                f"differ about the same tokens by {diagnosis(new, old, first)}"
            )
        return float((new - old).abs().max())


_LOOKED_AT = 16  # rows
