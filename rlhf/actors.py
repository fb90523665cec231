"""The actors of the PPO graph. Rollout, Judge and Reference are stateless; Critic and Learner alone hold state.

Each is an ordinary class, testable without Ray; `rlhf.graph` puts them on Ray.
"""

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from conf.schema import Optim, Optimizer, Ppo
from moe import checkpoint, folder
from moe.allocator import keep_buffers
from moe.decoder import Decoder
from moe.engine import Sampling, generate
from moe.optimizer import new_optimizer
from moe.tokenizer import Tokenizer
from moe.verse import Copies
from rlhf.forward import answer_scores, spread, token_logprobs, token_values
from rlhf.losses import at_the_end, explained_variance, policy_loss, value_loss
from rlhf.messages import Batch, Request, Sample, pad
from rlhf.principles import Query, rhyme_rewards, rule_reward
from rlhf.replay import Replay

SLICE = 32  # rows of one forward pass without gradient


def flat_weights(model: Decoder) -> np.ndarray:
    """All parameters as one float32 array: one message, one copy."""
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()]).numpy()


def set_flat_weights(model: Decoder, flat: np.ndarray) -> None:
    parts = torch.from_numpy(flat.copy()).split([parameter.numel() for parameter in model.parameters()])
    with torch.no_grad():
        for parameter, part in zip(model.parameters(), parts, strict=True):
            parameter.copy_(part.view_as(parameter))


class Rollout:
    """Answers queries with the policy of one version."""

    def __init__(self, model: Path, threads: int) -> None:
        torch.set_num_threads(threads)
        self.model = folder.load(model)
        self.tokenizer = Tokenizer.load(model)
        self.version = 0

    def load_weights(self, version: int, flat: np.ndarray) -> int:
        set_flat_weights(self.model, flat)
        self.version = version
        return version

    def generate(self, requests: Sequence[Request], sampling: Sampling) -> list[Sample]:
        """Answers in the order of the requests. Refuses a request for another version than the one loaded."""
        for request in requests:
            assert request.key.version == self.version, f"{request.key}: this rollout holds version {self.version}"
        asked = [
            Sampling(sampling.max_new_tokens, sampling.temperature, sampling.top_p, sampling.top_k, request.seed)
            for request in requests
        ]
        stop = (self.tokenizer.im_end, self.tokenizer.eos)
        prompts = [request.prompt for request in requests]
        answers = generate(self.model, prompts, asked, stop=stop, slots=128)
        return [
            Sample(request.key, request.prompt, answer.tokens, answer.logprobs, answer.finish == "stop")
            for request, answer in zip(requests, answers, strict=True)
        ]


@dataclass(frozen=True)
class Scores:
    earned: Tensor  # [B, T] what PPO maximises: a rhyme where it falls, all else at the answer's last token
    model: Tensor  # [B] the reward model's, in standard deviations of the rankings' scores
    rules: Tensor  # [B] in [-1, 1]


class Judge:
    """The reward: the reward model's normalised score plus the rules'."""

    def __init__(self, model: Path, copies: Path, mean: float, std: float, cfg: Ppo, threads: int) -> None:
        torch.set_num_threads(threads)
        self.model = folder.load(model)
        self.tokenizer = Tokenizer.load(model)
        self.copies = Copies.load(copies)
        self.mean, self.std, self.cfg = mean, std, cfg

    def rules(self, queries: Sequence[Query], samples: Sequence[Sample]) -> list[float]:
        """The rules' verdict on each answer, in [-1, 1]: it needs no model."""
        return [
            rule_reward(query, self.tokenizer.decode(sample.answer), sample.finished, copies=self.copies)
            for query, sample in zip(queries, samples, strict=True)
        ]

    @torch.inference_mode()
    def score(self, queries: Sequence[Query], samples: Sequence[Sample]) -> Scores:
        batch = pad(samples)
        scores = torch.cat([answer_scores(self.model, part) for part in _slices(batch)])
        model = ((scores - self.mean) / self.std).clamp(-3, 3)  # beyond what the rankings held, it only guesses
        texts = [self.tokenizer.decode(sample.answer) for sample in samples]
        rules = torch.tensor(self.rules(queries, samples))
        placed = torch.zeros_like(batch.mask)
        for row, (query, text, sample) in enumerate(zip(queries, texts, samples, strict=True)):
            written = self.tokenizer.written(sample.answer)
            for place, amount in rhyme_rewards(query, text):
                placed[row, len(sample.prompt) + bisect_right(written, place)] += amount
        rest = self.cfg.model_weight * model + self.cfg.rule_weight * (rules - placed.sum(1))
        return Scores(self.cfg.rule_weight * placed + at_the_end(rest, batch.mask), model, rules)


class Reference:
    """The chat model as it was: what the KL tether is tied to."""

    def __init__(self, model: Path, threads: int) -> None:
        torch.set_num_threads(threads)
        self.model = folder.load(model)

    @torch.inference_mode()
    def logprobs(self, batch: Batch) -> Tensor:
        """[B, T]"""
        parts = [token_logprobs(self.model, part)[0] for part in _slices(batch)]
        return spread(torch.cat(parts), batch.mask)


class _Trained:
    """A model with its optimizer, at a version. An update is applied once, to the version it was made for."""

    def __init__(self, model: Decoder, lr: float, cfg: Ppo, seed: int, threads: int) -> None:
        torch.set_num_threads(threads)
        keep_buffers()
        self.model = model.train()
        self.optimizer = new_optimizer(model, Optim(kind=Optimizer.adamw, weight_decay=0.0, lr=lr))
        self.cfg, self.seed, self.version = cfg, seed, 0

    def save(self, path: Path) -> None:
        checkpoint.save(path, self.model, self.optimizer)

    def load(self, path: Path, version: int) -> int:
        checkpoint.load(path, self.model, self.optimizer)
        self.version = version
        return version

    def _begin(self, batch: Batch) -> None:
        assert batch.version == self.version, f"update for version {batch.version}, but this is version {self.version}"

    def _minibatches(self, rows: int) -> list[Tensor]:
        """Row numbers of every minibatch of every epoch: a function of (seed, version)."""
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.version)
        shuffled = [torch.randperm(rows, generator=generator) for _ in range(self.cfg.epochs)]
        return [part for epoch in shuffled for part in epoch.chunk(self.cfg.minibatches)]

    def _step(self, loss: Tensor) -> float:
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.cfg.grad_clip)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return float(norm)


class Critic(_Trained):
    def __init__(self, model: Path, cfg: Ppo, seed: int, threads: int) -> None:
        scalar = folder.load_scalar(model, seed=seed)
        with torch.no_grad():
            scalar.score.weight.zero_()  # it starts by expecting nothing
        super().__init__(scalar, cfg.critic_lr, cfg, seed, threads)

    @torch.inference_mode()
    def values(self, batch: Batch) -> Tensor:
        """[B, T]"""
        return spread(torch.cat([token_values(self.model, part) for part in _slices(batch)]), batch.mask)

    def update(self, batch: Batch, values: Tensor, returns: Tensor) -> dict[str, float]:
        """One PPO iteration of the value model; `values` are those before it."""
        self._begin(batch)
        losses, norms = [], []
        for index in self._minibatches(len(batch.tokens)):
            part = batch.rows(index)
            chosen = part.mask.bool()
            width = part.mask.shape[1]
            new = token_values(self.model, part)
            old, wanted = values[index, :width][chosen], returns[index, :width][chosen]
            loss = value_loss(new, old, wanted, self.cfg.value_clip)
            norms.append(self._step(loss))
            losses.append(float(loss.detach()))
        self.version += 1
        chosen = batch.mask.bool()
        return {
            "critic/vf_loss": float(np.mean(losses)),
            "critic/vf_explained_var": explained_variance(values[chosen], returns[chosen]),
            "critic/grad_norm": float(np.mean(norms)),
        }


class Learner(_Trained):
    """The policy. Beside each minibatch it learns a few instruction samples again: PPO-ptx (Ouyang et al. 2022, eq. 2)
    with the chat stage's data in the place of pretraining's."""

    def __init__(self, model: Path, cfg: Ppo, seed: int, threads: int, replay: Path | None = None) -> None:
        super().__init__(folder.load(model), cfg.lr, cfg, seed, threads)
        tokenizer = Tokenizer.load(model)
        self.replay = Replay(replay, tokenizer, seed, cfg.replay_tasks) if replay and cfg.replay else None

    def weights(self) -> np.ndarray:
        return flat_weights(self.model)

    def update(self, batch: Batch, advantages: Tensor) -> dict[str, float]:
        """One PPO iteration of the policy, `advantages` [B, T] whitened. In the critic's warm-up only time passes."""
        self._begin(batch)
        stats: defaultdict[str, list[float]] = defaultdict(list)
        parts = self._minibatches(len(batch.tokens))
        for number, index in enumerate(parts):
            part = batch.rows(index)
            chosen = part.mask.bool()
            new, entropy, hidden = token_logprobs(self.model, part)
            old = part.logprobs[chosen]
            if number == 0:  # nothing has moved yet: rollout and learner must agree
                stats["train/rollout_logprob_abs_diff"].append(float((new - old).detach().abs().max()))
            if self.version < self.cfg.critic_warmup:
                break
            made = policy_loss(new, old, advantages[index, : part.mask.shape[1]][chosen], self.cfg.clip)
            loss = made.loss + hidden.auxiliary
            if self.replay:
                drawn = self.replay.draw(self.version * len(parts) + number, self.cfg.replay)
                again = -token_logprobs(self.model, drawn)[0].mean()
                stats["actor/replay_loss"].append(float(again.detach()))
                loss = loss + self.cfg.replay_weight * again
            stats["actor/grad_norm"].append(self._step(loss))
            stats["actor/pg_loss"].append(float(made.loss.detach()))
            stats["actor/pg_clipfrac"].append(float(made.clip_fraction))
            stats["actor/ppo_kl"].append(float(made.kl))
            stats["actor/entropy"].append(float(entropy.detach().mean()))
        self.version += 1
        return {name: float(np.mean(values)) for name, values in stats.items()}

    def export(self, path: Path) -> None:
        """The policy as a model folder, with the tokenizer to be put beside it."""
        folder.save(self.model, path)


def _slices(batch: Batch) -> list[Batch]:
    return [batch.rows(index) for index in torch.arange(len(batch.tokens)).split(SLICE)]
