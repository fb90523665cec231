"""One job of a sweep: what it has measured, how it ended, and whether it is hopeless beside the others."""

import json
import math
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from cluster.run import read_manifest
from cluster.tracking.tracker import read_metrics, to_json

OTHERS = 2  # that must have measured at a step before a job can be worse than their median


@dataclass(frozen=True)
class Measure:
    """What the jobs of a sweep are compared by."""

    curve: str  # in metrics.jsonl while a job runs
    final: str  # in its manifest; "reward": the mean of those in answers.json
    length: str  # the knob that says how many steps a job has
    higher: bool = False  # whether more is better


MEASURES = {  # stage: ...
    "base": Measure("val/loss", "loss", "pretrain.steps"),
    "chat": Measure("val/loss", "loss", "sft.steps"),
    "reward": Measure("val/loss", "loss", "reward.steps"),
    "hfft": Measure("val/loss", "loss", "hfft.steps"),
    "cohft": Measure("val/loss", "loss", "cohft.steps"),
    "rl": Measure("rl/rules/mean", "reward", "ppo.iterations", higher=True),
}


@dataclass(kw_only=True)
class Trial:
    number: int
    words: list[str]  # that set it apart from the others
    steps: int = 0  # 0: not known, for its length is given in epochs
    state: str = "waiting"  # waiting, running, done, stopped (by the others' median), failed
    curve: list[tuple[int, float]] = field(default_factory=list)  # (step, what the measure's curve had there)
    metric: float | None = None  # of a job that is done
    seconds: float = 0.0
    error: str = ""
    process: int = 0  # its id while it runs
    began: float = 0.0  # when this attempt did, in seconds since 1970; 0 while none runs

    @property
    def name(self) -> str:
        return " ".join(self.words)

    def pause(self) -> None:
        """Its process has ended."""
        self.seconds, self.process, self.began = self.elapsed, 0, 0.0

    @property
    def elapsed(self) -> float:
        """Seconds of all attempts."""
        return round(self.seconds + (time.time() - self.began if self.began else 0.0), 1)

    def told(self) -> dict[str, Any]:
        """As sweep.json has it, where a number that is none is a text."""
        points = [[step, to_json({"": value})[""]] for step, value in self.curve]
        return to_json({**asdict(self), "seconds": self.elapsed}) | {"curve": points}

    @property
    def last(self) -> float | None:
        return self.curve[-1][1] if self.curve else None


def curve(folder: Path, measure: Measure) -> list[tuple[int, float]]:
    """What a stage's folder has measured until now; the steps that were taken again count as they were last."""
    return sorted(
        {line["step"]: float(line[measure.curve]) for line in read_metrics(folder) if measure.curve in line}.items()
    )


def final(folder: Path, measure: Measure) -> float:
    """What a finished stage is judged by."""
    if measure.final == "reward":
        answers = json.loads((folder / "answers.json").read_text("utf-8"))
        return math.fsum(answer["reward"] for answer in answers) / max(1, len(answers))
    return float(read_manifest(folder)["metrics"][measure.final])


def better(one: float, other: float, measure: Measure) -> bool:
    """Whether `one` is; what is no number never is."""
    if math.isnan(one) or math.isnan(other):
        return not math.isnan(one)
    return one > other if measure.higher else one < other


def hopeless(trial: Trial, others: Sequence[Trial], measure: Measure, *, grace: float) -> tuple[int, float] | None:
    """(step, median of the others there) if `trial`, past its `grace` and with steps left, is worse than that at the
    step it measured last (the median rule of Golovin et al. 2017, Google Vizier, at one step)."""
    if not trial.curve:
        return None
    step, value = trial.curve[-1]
    if not grace * trial.steps <= step < (trial.steps or math.inf):
        return None
    there = [found for other in others if not math.isnan(found := dict(other.curve).get(step, math.nan))]
    if len(there) < OTHERS:
        return None
    middle = median(there)
    return (step, middle) if better(middle, value, measure) else None


def best(trials: Sequence[Trial], measure: Measure) -> Trial | None:
    """The best of those that are done; of equals the first."""
    found: Trial | None = None
    for trial in trials:
        if trial.state != "done" or trial.metric is None or math.isnan(trial.metric):
            continue
        if found is None or better(trial.metric, found.metric or 0.0, measure):
            found = trial
    return found
