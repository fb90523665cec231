"""How far judges agree about the order of answers: 1 in everything, 0 as by chance, -1 on the contrary.

Letters: J judges, K answers to a query.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations, permutations
from math import isfinite, nan, sqrt
from typing import Any

Ranks = Sequence[Sequence[int]]  # [J][K]: of the answers to one query under one principle, equal where they tie


def tau_b(ranks: Iterable[tuple[Sequence[int], Sequence[int]]]) -> float:
    """Kendall's tau-b (1945) of two judges over all pairs of answers to the same query; NaN where one of them tells no
    two answers apart."""
    agreed = first = second = 0
    for ours, theirs in ranks:
        for a, b in combinations(range(len(ours)), 2):
            x, y = _sign(ours[a] - ours[b]), _sign(theirs[a] - theirs[b])
            agreed, first, second = agreed + x * y, first + x * x, second + y * y
    return agreed / sqrt(first * second) if first and second else nan


def alpha(units: Iterable[Sequence[int]]) -> float:
    """Krippendorff's alpha for ordinal values (Content Analysis, 2004, chapter 11): a unit is one thing, with the
    values of all judges who gave it one. NaN where all values are the same."""
    pairs: dict[tuple[int, int], float] = defaultdict(float)  # how often judges gave these two, shared out by unit
    for values in units:
        for pair in permutations(values, 2):
            pairs[pair] += 1 / (len(values) - 1)
    count: dict[int, float] = defaultdict(float)
    for (value, _), share in pairs.items():
        count[value] += share
    whole = sum(count.values())

    def distance(a: int, b: int) -> float:
        between = sum(share for value, share in count.items() if min(a, b) <= value <= max(a, b))
        return (between - (count[a] + count[b]) / 2) ** 2

    observed = sum(share * distance(*pair) for pair, share in pairs.items())
    expected = sum(count[a] * count[b] * distance(a, b) for a in count for b in count)
    return 1 - (whole - 1) * observed / expected if expected else nan


def agreement(rankings: Sequence[Mapping[str, Any]], principles: Sequence[str]) -> dict[str, float]:
    """{"agreement/tau/<principle>", "agreement/alpha/<principle>"} of lines of rankings.jsonl, and without a principle
    over all; tau is the mean over every two judges. What is not defined is left out."""
    by_principle = {name: [ranks for line in rankings if (ranks := _ranks(line, name))] for name in principles}
    everything = [ranks for under in by_principle.values() for ranks in under]
    found = {}
    for name, under in [*((f"/{name}", under) for name, under in by_principle.items()), ("", everything)]:
        judges = sorted({judge for ranks in under for judge in ranks})
        taus = [
            tau_b((ranks[a], ranks[b]) for ranks in under if a in ranks and b in ranks)
            for a, b in combinations(judges, 2)
        ]
        told = [tau for tau in taus if isfinite(tau)]
        found[f"agreement/tau{name}"] = sum(told) / len(told) if told else nan
        found[f"agreement/alpha{name}"] = alpha(
            values for ranks in under for values in zip(*ranks.values(), strict=True) if len(values) > 1
        )
    return {name: value for name, value in found.items() if isfinite(value)}


def _ranks(line: Mapping[str, Any], principle: str) -> dict[str, list[int]]:
    """{judge: [K]} of those that have a verdict."""
    judges = [answer["judges"] for answer in line["answers"]]
    return {
        name: [one[name]["ranks"][principle] for one in judges]
        for name in judges[0]
        if principle in judges[0][name]["ranks"]
    }


def _sign(difference: int) -> int:
    return (difference > 0) - (difference < 0)
