"""The rule: its posterior against draws, what a vote counts for, and how often it is wrong."""

from typing import Any

import numpy as np
import pytest

from cluster.feedback import Vote
from serving.canary.trial import Trial
from serving.canary.verdict import Counts, Looks, counted, looks, worse

TRIAL = Trial("m", "new", "old", share=0.5, votes=80, confidence=0.95, tolerance=0.05, asked=0.0)


@pytest.mark.parametrize(
    ("candidate", "incumbent", "tolerance"),
    [((0, 0), (0, 0), 0.0), ((7, 13), (14, 6), 0.05), ((0, 9), (9, 0), 0.0), ((140, 60), (150, 50), 0.1)],
)
def test_the_probability_is_that_of_draws(
    candidate: tuple[int, int], incumbent: tuple[int, int], tolerance: float
) -> None:
    dice = np.random.default_rng(0)
    mine, other = (dice.beta(good + 0.5, bad + 0.5, 1_000_000) for good, bad in (candidate, incumbent))
    found = worse(Counts(*candidate), Counts(*incumbent), tolerance)
    assert found == pytest.approx(float((mine + tolerance < other).mean()), abs=2e-3)


def test_equal_feedback_is_a_fair_coin() -> None:
    assert worse(Counts(30, 12), Counts(30, 12), 0.0) == pytest.approx(0.5, abs=1e-6)


def vote(conversation: str, kind: str, *versions: str, at: float = 1.0, **more: Any) -> Vote:
    said = {"kind": kind, "answers": [{"text": str(n), "version": v} for n, v in enumerate(versions)], **more}
    return Vote("", f"{conversation}-{kind}-{at}", conversation, True, said, at)


def test_a_conversation_counts_once_by_its_newest_vote() -> None:
    votes = [
        vote("a", "down", "new", at=2.0),
        vote("a", "up", "new", at=3.0),
        vote("b", "correction", "new"),
        vote("c", "up", "old"),
        vote("d", "comment", "new"),
        vote("e", "better", "new", "old", better=0),
        vote("f", "better", "new", "new", better=0),
        vote("g", "up", "new", at=0.5),  # before the trial
    ]
    assert counted(votes, "new", since=1.0) == Counts(good=2, bad=1)
    assert counted(votes, "old", since=1.0) == Counts(good=1, bad=1)
    assert counted(votes, "other", since=1.0) == Counts()


def decided(dice: np.random.Generator, candidate: float, incumbent: float) -> str:
    look, good, seen = Looks(TRIAL), [0, 0], 0
    while True:
        seen += 1
        good = [g + int(dice.random() < p) for g, p in zip(good, (candidate, incumbent), strict=True)]
        verdict = look.verdict(*(Counts(g, seen - g) for g in good))
        if verdict.state != "serving":
            return verdict.state


def test_bad_candidates_are_taken_back_and_good_ones_promoted() -> None:
    dice = np.random.default_rng(1)
    shares = {mine: np.mean([decided(dice, mine, 0.7) == "promoted" for _ in range(60)]) for mine in (0.4, 0.7, 0.85)}
    assert shares[0.4] <= 0.02 and shares[0.85] >= 0.95
    assert shares[0.7] >= 0.6  # no worse, which is enough


def test_it_is_looked_at_a_few_times_and_not_before_there_are_votes() -> None:
    assert [list(looks(votes)) for votes in (80, 100, 3, 1)] == [[10, 20, 40, 80], [12, 25, 50, 100], [3], [1]]
    look = Looks(TRIAL)
    assert look.verdict(Counts(0, 9), Counts(900, 0)).state == "serving"  # nine are chance
    assert look.verdict(Counts(0, 10), Counts(900, 0)).state == "rolled back"
    look = Looks(TRIAL)
    assert look.verdict(Counts(8, 2), Counts(7, 3)).state == "serving"
    assert look.verdict(Counts(0, 19), Counts(19, 0)).state == "serving"  # not due yet
    assert look.verdict(Counts(60, 20), Counts(56, 24)).state == "promoted"
    assert Looks(TRIAL).verdict(Counts(30, 50), Counts(60, 20)).state == "rolled back"


PLANTED = [  # promise, file, right code, bug, test (None: this whole file)
    (
        "the newest vote on a conversation counts",
        "serving/canary/verdict.py",
        "newest[vote.owner, vote.conversation] = good",
        "newest.setdefault((vote.owner, vote.conversation), good)",
        None,
    ),
    (
        "a candidate that people like less is taken back",
        "serving/canary/verdict.py",
        'Verdict("promoted" if q < 0.5 else "rolled back", told)',
        'Verdict("promoted" if q < 1.5 else "rolled back", told)',
        None,
    ),
]
