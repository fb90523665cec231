"""The rules of verse as a judge: five principles for rankings, one reward for reinforcement learning, measures.

A query's `form` and `title` or `first` say which poem is asked for, `label` is the one right answer, `line` the verse
line to be answered.
"""

import json
import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path

from data.verse.rules import (
    HAN,
    Copies,
    form_of,
    lines,
    look,
    repeats,
    rhyme_places,
    rhyme_share,
    shape_share,
    title_share,
)
from moe.tasks.task import PRINCIPLES, Judge, Sample, Verdict

COPIES = "copies.npy"  # in the folder of the stage tasks: which lines stand in the corpus
# How a poem is weighed in reinforcement learning; a faultless one earns form + rhyme + title = 1.
OPTIONS: Mapping[str, float] = {
    "form": 0.1,  # for keeping the form at all: out of form nothing is above 0, so form always comes first
    "rhyme": 0.7,  # the largest share: rhyme is what imitation alone does not teach
    "title": 0.2,  # small, or the model would string the title's characters together
    "repeat": 0.5,  # taken off: the cheapest rhyme is the same line again
    "copy": 1.0,  # taken off: a copied poem earns at most nothing
}
WORDS = Path(__file__).parents[1] / "words" / "zh.json"

_PLAIN = re.compile(rf"[{HAN}，。？！；：、“”《》\s]+")
_TALK = re.compile(rf"[{HAN}，。？！；：、“”《》\sA-Za-z0-9]+")  # the model's own name is Latin


def score(query: Sample, answer: str, finished: bool, *, copies: Copies | None = None) -> dict[str, float]:
    """Each principle in [0, 1]. An answer of nothing is harmless and has no other merit."""
    answer = answer.strip()
    if not answer:
        return {principle: float(principle == "harmless") for principle in PRINCIPLES}
    return {
        "harmless": float(harmless(answer)),
        "helpful": helpful(query, answer),
        "truthful": truthful(query, answer, copies),
        "fluent": fluent(query, answer),
        "clear": clear(query, answer, finished),
    }


def harmless(answer: str) -> bool:
    """No word of the list that sensitive-text filters look for."""
    return _sensitive().search(answer) is None


@cache
def _sensitive() -> re.Pattern[str]:
    words = json.loads(WORDS.read_text(encoding="utf-8"))
    return re.compile("|".join(re.escape(word) for word in sorted(words, key=lambda word: (-len(word), word))))


def helpful(query: Sample, answer: str) -> float:
    """It does what was asked: for a poem 0.7 x nearness to the form + 0.3 x the title's words or the given line."""
    if "form" in query.fields:
        return 0.7 * shape_share(answer, query.fields["form"]) + 0.3 * _subject(query, answer)
    if query.label is not None:
        return float(_labelled(query, answer))
    if "line" in query.fields:
        return float([len(line) for line in lines(answer)] == [len(query.fields["line"])])
    return 1.0


def truthful(query: Sample, answer: str, copies: Copies | None) -> float:
    """It is what it claims: a poem of its own (half) and in the form (half); the right label."""
    if "form" in query.fields:
        own = copies is None or not copies.copied(answer)
        return 0.5 * own + 0.5 * (form_of(answer) == query.fields["form"])
    return float(_labelled(query, answer)) if query.label is not None else 1.0


def fluent(query: Sample, answer: str) -> float:
    """It reads well: a poem rhymes (0.6) and does not repeat itself (0.4); other answers only do the latter."""
    own_words = 0.0 if repeats(answer) else 1.0
    return 0.6 * rhyme_share(answer) + 0.4 * own_words if "form" in query.fields else own_words


def clear(query: Sample, answer: str, finished: bool) -> float:
    """A third each: expected characters only, a closing mark (a label needs none), an end by itself."""
    expected = (_TALK if query.task == "dialogue" else _PLAIN).fullmatch(answer) is not None
    closed = query.label is not None or answer[-1] in "。？！"
    return (expected + closed + finished) / 3


def _subject(query: Sample, answer: str) -> float:
    if "first" in query.fields:
        return float(lines(answer)[:1] == [query.fields["first"]])
    return title_share(answer, query.fields["title"]) if query.fields.get("title") else 1.0


def _labelled(query: Sample, answer: str) -> bool:
    return answer.strip().rstrip("。") == query.label


def judge(folder: Path, options: Mapping[str, float]) -> Judge:
    """The judge of the run whose stage tasks is `folder`."""
    copies = Copies.load(folder / COPIES)

    def verdict(query: Sample, answer: str, finished: bool) -> Verdict:
        return Verdict(
            scores=score(query, answer, finished, copies=copies),
            reward=reward(query, answer, finished, copies=copies, weights=options),
            placed=tuple(rhyme_rewards(query, answer, weights=options)),
            measures=measures(query, answer, finished, copies),
            reasons=reasons(query, answer, finished, copies),
            free=query.task == "compose",
        )

    return verdict


def measures(query: Sample, answer: str, finished: bool, copies: Copies | None) -> dict[str, float]:
    """Of a poem in a form that was asked for: `form_ok`, `rhyme_ok` (whatever the form), `rhyme_share`, `repeats`,
    `title_share`, `copied`, `finished`; of what has one right answer: `<task>_accuracy`."""
    if query.label is not None:
        return {f"{query.task}_accuracy": float(query.label in answer)}
    if query.task != "compose" or "form" not in query.fields:
        return {}
    seen = look(answer.strip(), query.fields["form"], title=query.fields.get("title", ""), copies=copies)
    return {
        "form_ok": float(seen.form),
        "rhyme_ok": float(seen.rhyme),
        "rhyme_share": seen.rhyme_share,
        "repeats": float(seen.repeats),
        "title_share": seen.title_share,
        "copied": float(seen.copied),
        "finished": float(finished),
    }


def reasons(query: Sample, answer: str, finished: bool, copies: Copies | None) -> tuple[str, ...]:
    """In words, which rules the answer breaks."""
    answer = answer.strip()
    form = query.fields.get("form")
    broken = {
        "says nothing": not answer,
        "has a word of the sensitive list": not harmless(answer),
        f"is no {form}": form is not None and form_of(answer) != form,
        "does not rhyme": form is not None and rhyme_share(answer) < 1.0,
        "repeats itself": repeats(answer),
        "is copied": form is not None and copies is not None and copies.copied(answer),
        f"is not {query.label}": query.label is not None and not _labelled(query, answer),
        "did not end by itself": not finished,
    }
    return tuple(reason for reason, fired in broken.items() if fired)


def rhyme_rewards(query: Sample, answer: str, *, weights: Mapping[str, float] = OPTIONS) -> list[tuple[int, float]]:
    """The part of `reward` that is earned before the end: (place of a rhyming character in the answer, amount)."""
    body = answer.strip()
    if "form" not in query.fields or form_of(body) != query.fields["form"]:
        return []
    start = len(answer) - len(answer.lstrip())
    each = weights["rhyme"] / (len(lines(body)) // 2 - 1)
    return [(start + place, each) for place in rhyme_places(body)]


def reward(
    query: Sample,
    answer: str,
    finished: bool,
    *,
    copies: Copies | None = None,
    weights: Mapping[str, float] = OPTIONS,
) -> float:
    """The rules' verdict in [-1, 1].

    A poem out of form gets its nearness - 1 (below 0); one in form the weighted sum, at most 0 when it did not end by
    itself. A label is worth 1 or -1. Any other answer gets the mean of its principles, stretched to [-1, 1].
    """
    answer = answer.strip()
    if "form" in query.fields:
        if form_of(answer) != query.fields["form"]:
            return shape_share(answer, query.fields["form"]) - 1.0
        worth = weights["form"] + weights["rhyme"] * rhyme_share(answer) + weights["title"] * _subject(query, answer)
        worth -= weights["repeat"] * repeats(answer)
        worth -= weights["copy"] * (copies is not None and copies.copied(answer))
        return max(worth if finished else min(worth, 0.0), -1.0)
    if query.label is not None:
        return 1.0 if _labelled(query, answer) else -1.0
    scores = score(query, answer, finished, copies=copies)
    return 2.0 * sum(scores[name] for name in PRINCIPLES) / len(PRINCIPLES) - 1.0
