"""The reward actor: what the domain's rules say of an answer, and what the reward model does. Stateless."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from conf.knobs.alignment import Tasks
from moe.formats import hugging_face
from moe.tasks.domain import Domain
from moe.tasks.task import Sample, Verdict
from moe.text.tokenizer import Tokenizer
from rlhf.forward import answer_scores, slices
from rlhf.messages import Batch, Response

FARTHEST = 3.0  # standard deviations: beyond what the rankings held, the reward model only guesses


@dataclass(frozen=True)
class Scale:
    """The reward model's scores of the answers in the rankings."""

    mean: float
    std: float


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
        return [
            self.domain_judge(query, self.tokenizer.decode(response.answer), response.finished)
            for query, response in zip(queries, responses, strict=True)
        ]

    @torch.inference_mode()
    def score(self, batch: Batch) -> Tensor:
        """The reward model's scores [B], in standard deviations of those of the rankings."""
        assert self.model is not None and self.scale is not None, "this reward actor has no model"
        scores = torch.cat([answer_scores(self.model, part) for part in slices(batch)]).cpu()
        return ((scores - self.scale.mean) / self.scale.std).clamp(-FARTHEST, FARTHEST)
