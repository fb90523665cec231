"""What is asked about a query's answers so that no order is favoured, and what the replies decide.

Two answers at a time are shown, or all of them (`judge.compare`), in one order and in the reversed one; `judge.votes`
times. For each two answers a vote is for the one that is called better in both orders, else it is a tie, for who goes
by the place has said nothing. More than half of the votes decide. An answer's score is the share of the others that it
is better than, a tie counting half; the same text twice is a tie that nobody is asked about.

Letters: K answers of a query.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

from conf.knobs.alignment import Compare, Judge

Unit = tuple[int, str]  # (number of a query, principle): what there is a verdict on, or none


@dataclass(frozen=True)
class Comparison:
    """Some of a query's different texts, in the order in which one question shows them."""

    unit: Unit
    shown: tuple[int, ...]  # numbers of the texts
    vote: int


@dataclass(frozen=True)
class Vote:
    """On two different texts of a query."""

    first: int
    second: int
    says: int  # 1: the first is better, -1: the second, 0: a tie
    contradicted: bool  # the other order gave another reply


def comparisons(unit: Unit, texts: int, cfg: Judge) -> Iterator[tuple[Comparison, Comparison]]:
    """Whatever is asked about so many different texts: the same in one order and in the other."""
    listed = [tuple(range(texts))] if texts > 1 else []
    for shown in listed if cfg.compare is Compare.listwise else combinations(range(texts), 2):
        for vote in range(cfg.votes):
            yield Comparison(unit, shown, vote), Comparison(unit, shown[::-1], vote)


def votes(one: Comparison, swapped: Comparison, told: Mapping[Comparison, Sequence[int]]) -> Iterator[Vote]:
    """On each two of the texts shown, by the places (the best the lowest) that were told of each order."""
    places, again = (dict(zip(each.shown, told[each], strict=True)) for each in (one, swapped))
    for a, b in combinations(one.shown, 2):
        says, says_again = _sign(places[b] - places[a]), _sign(again[b] - again[a])
        yield Vote(a, b, says if says == says_again else 0, says != says_again)


def scores(texts: Sequence[int], cast: Sequence[Vote]) -> list[float]:
    """[K] in [0, 1]: of K answers, each with the number of its text, the share of the others that it is better than."""
    won = {pair: _won(pair, cast) for pair in combinations(sorted(set(texts)), 2)}
    won |= {(b, a): 1 - share for (a, b), share in won.items()} | {(text, text): 0.5 for text in texts}
    return [(sum(won[own, other] for other in texts) - 0.5) / (len(texts) - 1) for own in texts]


def counted(text: int, cast: Sequence[Vote]) -> dict[str, int]:
    """What one text got: {"better", "tied", "worse"}, and how many of the ties were contradictions."""
    says = [(vote.says if vote.first == text else -vote.says) for vote in cast if text in (vote.first, vote.second)]
    contradicted = sum(vote.contradicted for vote in cast if text in (vote.first, vote.second))
    return {"better": says.count(1), "tied": says.count(0), "worse": says.count(-1), "contradicted": contradicted}


def _won(pair: tuple[int, int], cast: Sequence[Vote]) -> float:
    """1 where more than half of the votes on the pair are for its first, 0 for its second, 0.5 else."""
    says = [vote.says for vote in cast if (vote.first, vote.second) == pair]
    return 0.5 + 0.5 * ((says.count(1) > len(says) / 2) - (says.count(-1) > len(says) / 2))


def _sign(difference: int) -> int:
    return (difference > 0) - (difference < 0)
