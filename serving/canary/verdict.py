"""Whether people like a candidate's answers less than the incumbent's, by their votes: a rule of statistics, stated.

A conversation is one trial and counts once, by its newest vote: good is a thumb up, or an answer that was picked before
another model's; bad a thumb down, a correction, or an answer that another model's was preferred to. A conversation has
one model (`serving.canary.route`), so that trials are independent. With k good of n, the share of good conversations
has Jeffreys' posterior Beta(k + 1/2, n - k + 1/2). q is the posterior probability that the candidate's share is less
than the incumbent's by more than the tolerance.

It is looked at a few times, not after every vote, or an unlucky beginning would condemn every model in the end: once
both models have `votes` / 8, / 4, / 2 conversations, and `votes`. Before the last look q >= confidence rolls the
candidate back; at the last one q < 1/2 promotes it, anything else rolls it back.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from cluster.feedback import Vote
from serving.canary.trial import Trial

_STEPS = 4000  # of the integral over a share
LEAST = 5  # conversations of each at the first look


@dataclass(frozen=True)
class Counts:
    """Conversations that people have judged."""

    good: int = 0
    bad: int = 0

    @property
    def all(self) -> int:
        return self.good + self.bad

    def __str__(self) -> str:
        return f"{self.good} of {self.all} liked"


@dataclass(frozen=True)
class Verdict:
    state: Literal["serving", "promoted", "rolled back"]
    why: str


def counted(votes: Iterable[Vote], version: str, since: float) -> Counts:
    """What people said of answers of one model version, of votes that came later than `since` (unix seconds)."""
    newest: dict[tuple[str, str], bool] = {}
    for vote in sorted(votes, key=lambda vote: vote.created):
        good = liked(vote, version)
        if vote.created >= since and good is not None:
            newest[vote.owner, vote.conversation] = good
    return Counts(sum(newest.values()), len(newest) - sum(newest.values()))


def liked(vote: Vote, version: str) -> bool | None:
    """Whether a vote is for that version's answer or against it; None: neither."""
    said = vote.said
    versions = [answer.get("version") for answer in said["answers"]]
    if version not in versions:
        return None
    if said["kind"] == "better":
        return None if versions[0] == versions[1] else versions[said["better"]] == version
    return {"up": True, "down": False, "correction": False}.get(said["kind"])


def worse(candidate: Counts, incumbent: Counts, tolerance: float) -> float:
    """P(the candidate's share + tolerance < the incumbent's), by Jeffreys' posteriors, to about 1e-6."""
    edges = np.linspace(0.0, 1.0, _STEPS + 1)
    # A share is the square of a sine, so that the posterior has no poles at 0 and 1.
    angles = edges * np.pi / 2
    below = _cumulative(candidate, angles)
    middle = (angles[1:] + angles[:-1]) / 2
    mass = np.diff(_cumulative(incumbent, angles))
    least = np.arcsin(np.sqrt(np.clip(np.sin(middle) ** 2 - tolerance, 0.0, 1.0)))
    return float((mass * np.interp(least, angles, below)).sum())


def _cumulative(counts: Counts, angles: np.ndarray) -> np.ndarray:
    """The posterior's distribution at shares sin(angle)^2: of the angle its density is sin^2k cos^2(n-k)."""
    middle = (angles[1:] + angles[:-1]) / 2
    log = 2 * counts.good * np.log(np.sin(middle)) + 2 * counts.bad * np.log(np.cos(middle))
    density = np.exp(log - log.max())
    return np.concatenate([[0.0], density.cumsum() / density.sum()])


def looks(votes: int) -> Sequence[int]:
    """At how many conversations of each model somebody looks."""
    return sorted({max(min(LEAST, votes), votes // part) for part in (8, 4, 2)} | {votes})


class Looks:
    """Says what is to become of a candidate, each time that the votes are counted."""

    def __init__(self, trial: Trial) -> None:
        self._trial = trial
        self._left = list(looks(trial.votes))

    def verdict(self, candidate: Counts, incumbent: Counts) -> Verdict:
        trial, least = self._trial, min(candidate.all, incumbent.all)
        told = f"candidate {candidate}, incumbent {incumbent}"
        if self._left and least < self._left[0]:
            return Verdict("serving", told)
        while self._left and least >= self._left[0]:
            self._left.pop(0)
        q = worse(candidate, incumbent, trial.tolerance)
        told += f"; worse by more than {trial.tolerance:g} with probability {q:.3f}"
        if not self._left:
            return Verdict("promoted" if q < 0.5 else "rolled back", told)
        return Verdict("rolled back" if q >= trial.confidence else "serving", told)
