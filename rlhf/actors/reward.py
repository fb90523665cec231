"""The reward actor: what the domain's rules say of an answer, what the reward model does, and what both come to.
Stateless."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from cluster import fault
from conf.knobs.alignment import Tasks
from moe.formats import hugging_face
from moe.tasks.domain import Domain
from moe.tasks.task import Sample, Verdict
from moe.text.tokenizer import Tokenizer
from rlhf.forward import answer_scores, slices
from rlhf.messages import Batch, Response, Scored
from rlhf.rewards import Earned, Judged, Running, Scale, total

FARTHEST = 3.0  # standard deviations: beyond what the rankings held, the reward model only guesses


class Reward:
    def __init__(
        self,
        tasks: Path,
        cfg: Tasks,
        tokenizer: Path,
        threads: int,
        model: Path | None = None,
        scale: Scale | None = None,
        device: str = "cpu",
        others: Sequence[tuple[Path, Scale]] = (),
    ) -> None:
        """`tasks` is the folder of the stage; without a `model` only rules judge, with `others` several models do."""
        torch.set_num_threads(threads)
        self.domain_judge = Domain.of(cfg).judge(tasks)
        self.tokenizer = Tokenizer.load(tokenizer)
        models = [(model, scale), *others] if model and scale else []
        self.models = [(hugging_face.load(folder).to(device), of) for folder, of in models]

    def judge(self, queries: Sequence[Sample], responses: Sequence[Response]) -> list[Verdict]:
        """The rules' verdict on each answer."""
        fault.at("reward.judge")
        return [
            self.domain_judge(query, self.tokenizer.decode(response.whole), response.finished)
            for query, response in zip(queries, responses, strict=True)
        ]

    @torch.inference_mode()
    def score(self, batch: Batch) -> Scored:
        """What the reward models say of each answer."""
        fault.at("reward.score")
        assert self.models, "this reward actor has no model"
        said = []
        for model, scale in self.models:
            scores = torch.cat([answer_scores(model, part) for part in slices(batch)]).cpu()
            said.append(((scores - scale.mean) / scale.std).clamp(-FARTHEST, FARTHEST))
        together = torch.stack(said)
        return Scored(together.mean(0), together.std(0, correction=0))

    def earn(
        self,
        judged: Judged,
        weights: Mapping[str, float],
        own: Mapping[str, str],
        running: Mapping[str, Running] | None,
    ) -> Earned:
        """`rlhf.rewards.total`."""
        fault.at("reward.earn")
        return total(judged, weights, own, running)
