"""What the server does for a candidate: begins its trial, counts votes, promotes it or takes it back.

One step at a time and each written down before the next, so that a server that is started again goes on from there.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

from cluster.feedback import FILE, for_training
from conf.errors import InputError
from serving.canary import trial as trials
from serving.canary.trial import Trial
from serving.canary.verdict import Looks, counted


class Fleet(Protocol):
    """The models that answer."""

    def begin(self, folder: Path) -> None:
        """Let a candidate be asked, beside the incumbent. Raises `InputError` where it cannot answer."""

    def switch(self, folder: Path) -> None:
        """Make it the incumbent; returns once it answers."""

    def end(self) -> None:
        """Let the candidate end what it has begun, and go."""


@dataclass
class Rollout:
    run: Path
    fleet: Fleet
    version: str  # of the incumbent
    name: str  # that clients know it by
    seen: float = 1.0  # seconds in which every proxy has read the file
    every: float = 5.0  # seconds between two counts of the votes
    clock: Callable[[], float] = time.time  # unix seconds
    wait: Callable[[float], None] = time.sleep
    _looks: Looks | None = field(default=None, init=False)
    _began: bool = field(default=False, init=False)  # by this process
    _counted: float = field(default=0.0, init=False)

    def look(self) -> Trial | None:
        """Take the trial one step on, where there is one that is not over -> the trial as it is now."""
        trial = trials.read(self.run)
        if trial is None or trial.over:
            if self._began:  # somebody has taken it back
                self._end()
            return trial
        if not self._began:
            return self._begin(trial)
        if self.clock() < self._counted + self.every:
            return trial
        self._counted = self.clock()
        return self._judge(trial)

    def _begin(self, trial: Trial) -> Trial:
        if trial.version == self.version:  # a server that ended while it switched, or a candidate that is no other
            return self._write(trial, state="promoted", why=trial.why or "it is what is served", name=self.name)
        try:
            self.fleet.begin(Path(trial.model))
        except InputError as error:
            return self._write(trial, state="rolled back", why=str(error))
        self._began, self._looks = True, Looks(trial)
        began = trial.began or self.clock()
        return self._write(trial, state="serving", why="", incumbent=self.version, name=self.name, began=began)

    def _judge(self, trial: Trial) -> Trial:
        assert self._looks is not None
        votes = for_training(self.run / FILE) if (self.run / FILE).is_file() else []
        mine, other = (counted(votes, version, trial.began) for version in (trial.version, self.version))
        verdict = self._looks.verdict(mine, other)
        if verdict.state == "serving":
            return self._write(trial, why=verdict.why) if verdict.why != trial.why else trial
        if verdict.state == "promoted":
            trial = self._write(trial, state="switching", why=verdict.why)  # all conversations are the candidate's
            self.wait(self.seen)
            self.fleet.switch(Path(trial.model))
            self.version = trial.version
        trial = self._write(trial, state=verdict.state, why=verdict.why)
        self._end()
        return trial

    def _end(self) -> None:
        self.wait(self.seen)
        self.fleet.end()
        self._began = False

    def _write(self, trial: Trial, **changes: Any) -> Trial:
        trial = replace(trial, **changes)
        trials.write(self.run, trial)
        return trial
