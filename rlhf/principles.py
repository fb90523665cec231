"""Rule-based scores of an answer: five principles for rankings, one scalar for reinforcement learning.

A query is a sample of the tasks stage: its `messages` end with the user's; `form` and `title` or `first` say which poem
is asked for, `label` is the one right answer, `line` the verse line to be answered. Scores are pure functions of
(query, answer, finished); `finished` says that the model ended the answer by itself.
"""

import json
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from conf.schema import Principle
from moe.verse import HAN, Copies, form_of, lines, repeats, rhyme_places, rhyme_share, shape_share, title_share

Query = Mapping[str, Any]

WORDS = Path(__file__).parents[1] / "data" / "words" / "zh.json"

_PLAIN = re.compile(rf"[{HAN}，。？！；：、“”《》\s]+")
_TALK = re.compile(rf"[{HAN}，。？！；：、“”《》\sA-Za-z0-9]+")  # the model's own name is Latin


def score(query: Query, answer: str, finished: bool, *, copies: Copies | None = None) -> dict[Principle, float]:
    """Each principle in [0, 1]. An answer of nothing is harmless and has no other merit."""
    answer = answer.strip()
    if not answer:
        return {principle: float(principle is Principle.harmless) for principle in Principle}
    return {
        Principle.harmless: float(harmless(answer)),
        Principle.helpful: helpful(query, answer),
        Principle.truthful: truthful(query, answer, copies),
        Principle.fluent: fluent(query, answer),
        Principle.clear: clear(query, answer, finished),
    }


def harmless(answer: str) -> bool:
    """No word of the list that sensitive-text filters look for."""
    return _sensitive().search(answer) is None


@cache
def _sensitive() -> re.Pattern[str]:
    words = json.loads(WORDS.read_text(encoding="utf-8"))
    return re.compile("|".join(re.escape(word) for word in sorted(words, key=lambda word: (-len(word), word))))


def helpful(query: Query, answer: str) -> float:
    """It does what was asked: for a poem 0.7 x nearness to the form + 0.3 x the title's words or the given line."""
    if "form" in query:
        return 0.7 * shape_share(answer, query["form"]) + 0.3 * _subject(query, answer)
    if "label" in query:
        return float(_labelled(query, answer))
    if "line" in query:
        return float([len(line) for line in lines(answer)] == [len(query["line"])])
    return 1.0


def truthful(query: Query, answer: str, copies: Copies | None) -> float:
    """It is what it claims: a poem of its own (half) and in the form (half); the right label."""
    if "form" in query:
        own = copies is None or not copies.copied(answer)
        return 0.5 * own + 0.5 * (form_of(answer) == query["form"])
    return float(_labelled(query, answer)) if "label" in query else 1.0


def fluent(query: Query, answer: str) -> float:
    """It reads well: a poem rhymes (0.6) and does not repeat itself (0.4); other answers only do the latter."""
    own_words = 0.0 if repeats(answer) else 1.0
    return 0.6 * rhyme_share(answer) + 0.4 * own_words if "form" in query else own_words


def clear(query: Query, answer: str, finished: bool) -> float:
    """A third each: expected characters only, a closing mark (a label needs none), an end by itself."""
    expected = (_TALK if query.get("task") == "dialogue" else _PLAIN).fullmatch(answer) is not None
    closed = "label" in query or answer[-1] in "。？！"
    return (expected + closed + finished) / 3


def _subject(query: Query, answer: str) -> float:
    if "first" in query:
        return float(lines(answer)[:1] == [query["first"]])
    return title_share(answer, query["title"]) if query.get("title") else 1.0


def _labelled(query: Query, answer: str) -> bool:
    return answer.strip().rstrip("。") == query["label"]


def total(scores: Mapping[Principle, float], principles: Collection[Principle]) -> float:
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


@dataclass(frozen=True)
class RewardWeights:
    """How the rules weigh a poem in reinforcement learning; a faultless one earns form + rhyme + title = 1."""

    form: float = 0.1  # for keeping the form at all: out of form nothing is above 0, so form always comes first
    rhyme: float = 0.7  # the largest share: rhyme is what imitation alone does not teach
    title: float = 0.2  # small, or the model would string the title's characters together
    repeat: float = 0.5  # taken off: the cheapest rhyme is the same line again
    copy: float = 1.0  # taken off: a copied poem earns at most nothing


def rhyme_rewards(query: Query, answer: str, *, weights: RewardWeights = RewardWeights()) -> list[tuple[int, float]]:
    """The part of `rule_reward` that is earned before the end: (place of a rhyming character in the answer, amount)."""
    body = answer.strip()
    if "form" not in query or form_of(body) != query["form"]:
        return []
    start = len(answer) - len(answer.lstrip())
    each = weights.rhyme / (len(lines(body)) // 2 - 1)
    return [(start + place, each) for place in rhyme_places(body)]


def rule_reward(
    query: Query,
    answer: str,
    finished: bool,
    *,
    copies: Copies | None = None,
    weights: RewardWeights = RewardWeights(),
) -> float:
    """The rules' verdict in [-1, 1].

    A poem out of form gets its nearness - 1 (below 0); one in form the weighted sum, at most 0 when it did not end by
    itself. A label is worth 1 or -1. Any other answer gets the mean of its principles, stretched to [-1, 1].
    """
    answer = answer.strip()
    if "form" in query:
        if form_of(answer) != query["form"]:
            return shape_share(answer, query["form"]) - 1.0
        reward = weights.form + weights.rhyme * rhyme_share(answer) + weights.title * _subject(query, answer)
        reward -= weights.repeat * repeats(answer)
        reward -= weights.copy * (copies is not None and copies.copied(answer))
        return max(reward if finished else min(reward, 0.0), -1.0)
    if "label" in query:
        return 1.0 if _labelled(query, answer) else -1.0
    return 2.0 * total(score(query, answer, finished, copies=copies), tuple(Principle)) - 1.0
