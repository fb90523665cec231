"""When a stage that gets no better ends early."""

from dataclasses import dataclass
from math import isnan
from typing import Any


@dataclass
class Stopper:
    """Counts the evaluations since the lowest held-out loss; the fields are its whole state."""

    patience: int  # evaluations without a lower loss after which to stop; 0: never
    best: float | None = None
    since: int = 0

    def see(self, loss: float) -> bool:
        """Take in an evaluation's loss; whether to stop. What is not a number is no better than anything."""
        if not isnan(loss) and (self.best is None or loss < self.best):
            self.best, self.since = loss, 0
        else:
            self.since += 1
        return self.over

    @property
    def over(self) -> bool:
        return 0 < self.patience <= self.since

    def state(self) -> dict[str, Any]:
        """As JSON takes it."""
        return {"best": self.best, "since": self.since}

    def load(self, state: dict[str, Any]) -> None:
        self.best, self.since = state["best"], state["since"]
