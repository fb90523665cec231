"""How often training comes through its rows: the steps that so many epochs take, the epochs that so many steps are."""

from dataclasses import dataclass, replace
from typing import TypeVar

from conf.knobs.training import Fit
from trainers.rows.feed import rows_before, step_rows
from trainers.rows.mixture import Course, opened

FILE = "seen.json"  # of a stage: its epochs and what was left out, for its metrics
MANY = 4  # epochs; more of them teach a language model little that is new (Muennighoff et al. 2023)

Kind = TypeVar("Kind", bound=Fit)


def in_steps(fit: Kind, rows: int, row_length: int, *, share: float = 1.0) -> Kind:
    """`fit` with its `epochs` in steps, the fewest that come so often through `rows`, which are this share of all rows
    that are trained on; as it is where `epochs` is 0."""
    if not fit.epochs:
        return fit
    wanted = fit.epochs * rows / share
    full = step_rows(replace(fit, ramp=0.0), row_length, 0)
    made = replace(fit, steps=max(1, int(wanted // full)))
    # a rest takes one more, and while the batch grows steps hold less
    while (short := wanted - rows_before(made, row_length, made.steps)) > 1e-6:
        made = replace(made, steps=made.steps + max(1, int(short // full)))
    return made


@dataclass(frozen=True)
class Seen:
    """How often a run comes through its own rows, those of the course's first sets."""

    stage: str
    steps: int
    rows: int  # of a full step
    each: tuple[float, ...]  # times, by set
    sizes: tuple[int, ...]  # rows of each set

    @classmethod
    def of(cls, stage: str, fit: Fit, course: Course, *, own: int, seed: int) -> "Seen":
        """`own`: so many of the course's sets are the run's own; what comes after them is replayed."""
        drawn = course.drawn(seed, rows_before(fit, course.row_length, fit.steps))[:own].tolist()
        sizes = tuple(len(opened(folder)) for folder in course.sets[:own])
        each = tuple(count / max(1, size) for count, size in zip(drawn, sizes, strict=True))
        return cls(stage, fit.steps, step_rows(fit, course.row_length, fit.steps), each, sizes)

    @property
    def epochs(self) -> float:
        """On average over the rows."""
        return sum(n * size for n, size in zip(self.each, self.sizes, strict=True)) / max(1, sum(self.sizes))

    def told(self, count: int, what: str, *, remedy: str = "") -> str:
        """A line before training, and a second one with the `remedy` where it is more than about `MANY` times."""
        ends = sorted(self.each)
        apart = f", by difficulty {_times(ends[0])} to {_times(ends[-1])}" if len(ends) > 1 else ""
        line = (
            f"{self.stage}: {self.steps} steps of {self.rows} rows: each of {count} {what} is seen "
            f"{_times(self.epochs)} times{apart}"
        )
        if not remedy or self.epochs <= MANY:
            return line
        return f"{line}\n{self.stage}: seen more than about {MANY} times they are learnt by heart; try {remedy}"


def _times(number: float) -> str:
    return f"{number:.0f}" if number >= 100 else f"{number:.3g}"
