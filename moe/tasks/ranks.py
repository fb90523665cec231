"""Scores of several answers to one query as ranks and pairs."""

from collections.abc import Collection, Mapping, Sequence


def total(scores: Mapping[str, float], principles: Collection[str]) -> float:
    """The mean over the chosen principles."""
    return sum(scores[principle] for principle in principles) / len(principles)


def rank(totals: Sequence[float], margin: float) -> list[int]:
    """Each answer's rank, 0 the best: how many answers beat it by `margin` or more. Near answers tie."""
    return [sum(_beats(other, own, margin) for other in totals) for own in totals]


def pairs(totals: Sequence[float], margin: float) -> list[tuple[int, int]]:
    """(preferred, rejected) places of all answers that differ by `margin` or more."""
    places = range(len(totals))
    return [(a, b) for a in places for b in places if a != b and _beats(totals[a], totals[b], margin)]


def _beats(a: float, b: float, margin: float) -> bool:
    return a > b and a - b >= margin - 1e-9  # sums of thirds and tenths miss a margin by rounding
