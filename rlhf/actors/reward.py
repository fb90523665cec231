"""The reward actor: what the domain's rules say of an answer, what the reward model does, and what both come to.
Stateless."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from cluster import fault
from conf.knobs.alignment import Tasks
from moe.formats import hugging_face
from moe.tasks.domain import Domain
from moe.tasks.task import Sample, Verdict
from moe.text.tokenizer import Tokenizer
from rlhf.forward import answer_scores, slices
from rlhf.messages import Batch, Response
from rlhf.rewards import Judged, Scale, total

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
    ) -> None:
        """`tasks` is the folder of the stage; without a `model` only rules judge."""
        torch.set_num_threads(threads)
        self.domain_judge = Domain.of(cfg).judge(tasks)
        self.tokenizer = Tokenizer.load(tokenizer)
        self.model = hugging_face.load(model).to(device) if model else None
        self.scale = scale

    def judge(self, queries: Sequence[Sample], responses: Sequence[Response]) -> list[Verdict]:
        """The rules' verdict on each answer."""
        fault.at("reward.judge")
        return [
            self.domain_judge(query, self.tokenizer.decode(response.answer), response.finished)
            for query, response in zip(queries, responses, strict=True)
        ]

    @torch.inference_mode()
    def score(self, batch: Batch) -> Tensor:
        """The reward model's scores [B], in standard deviations of those of the rankings."""
        fault.at("reward.score")
        assert self.model is not None and self.scale is not None, "this reward actor has no model"
        scores = torch.cat([answer_scores(self.model, part) for part in slices(batch)]).cpu()
        return ((scores - self.scale.mean) / self.scale.std).clamp(-FARTHEST, FARTHEST)

    def earn(self, judged: Judged, weights: Mapping[str, float]) -> tuple[Tensor, dict[str, Tensor], dict[str, float]]:
        """`rlhf.rewards.total`."""
        fault.at("reward.earn")
        return total(judged, weights)
