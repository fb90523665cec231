"""What a stage's training had cost by each of its steps, read from its metrics.jsonl alone."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any


@dataclass(frozen=True)
class Costs:
    """Columns over the steps that were logged."""

    losses: list[float]
    tokens: list[float]  # up to the step
    flops: list[float]  # that the model needed (see trainers.loop.meter)
    seconds: list[float]  # evaluations, and steps that were lost and taken again, left out
    held_out: list[tuple[float, float]]  # (seconds, held-out loss) of each evaluation

    @classmethod
    def of(cls, lines: Sequence[Mapping[str, Any]]) -> "Costs | None":
        """None if the lines do not tell."""
        measured = [line for line in lines if "flops" in line and "loss" in line]
        if not measured:
            return None
        steps = [float(line["step"]) for line in measured]
        seconds, spent = [], 0.0
        for before, line in zip([0.0, *steps], measured, strict=False):
            spent += line["time/step"] * (line["step"] - before)
            seconds.append(spent)
        evaluated = [(line["step"], line["val/loss"]) for line in lines if "val/loss" in line]
        return cls(
            losses=[line["loss"] for line in measured],
            tokens=[line["tokens"] for line in measured],
            flops=[line["flops"] for line in measured],
            seconds=seconds,
            held_out=[(_between([0.0, *steps], [0.0, *seconds], step), loss) for step, loss in evaluated],
        )

    @property
    def tokens_per_second(self) -> float:
        return self.tokens[-1] / self.seconds[-1]

    def until(self, loss: float) -> float | None:
        """Seconds until the held-out loss was as low as `loss`, a straight line from one evaluation to the next."""
        if self.held_out and self.held_out[0][1] <= loss:
            return self.held_out[0][0]
        for (start, above), (end, below) in pairwise(self.held_out):
            if below <= loss < above:
                return start + (end - start) * (above - loss) / (above - below)
        return None


def _between(xs: Sequence[float], ys: Sequence[float], x: float) -> float:
    """The value at x of the line through the points; xs ascend."""
    for (left, low), (right, high) in pairwise(zip(xs, ys, strict=True)):
        if left <= x <= right:
            return low + (high - low) * (x - left) / (right - left)
    return ys[-1]
