"""What a teacher is asked about a passage, and what of its reply counts: a JSON list in the form that was asked for, or
nothing. Nothing in the passage can change what is asked: it stands between two marks that it does not hold."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from moe.tasks.writing import main_writing

_LONGEST = 100_000  # characters of a reply that are looked at
FIELDS = ("question", "answer", "difficulty")
LEVELS = 5  # of difficulty

_EN = """Between two lines with the mark {mark} is a passage. Write {count} questions that somebody who has not seen it
could ask, and answer each from the passage alone, in its language, in whole sentences. Do not speak of "the passage" or
"the text". Say how hard each question is, from 1 (one look) to {levels} (several steps of thought).

{mark}
{passage}
{mark}

Reply with a JSON list and nothing else: [{{"question": "...", "answer": "...", "difficulty": 1}}, ...]"""
_ZH = """下面两行标记 {mark} 之间是一段文字。请提出 {count} 个没有见过它的人也可能问的问题，
并只根据它、用同一种语言、以完整的句子回答。不要提到“这段文字”或“文中”。
说明每个问题的难度，从 1（一看便知）到 {levels}（要想几步）。

{mark}
{passage}
{mark}

只回复一个 JSON 列表：[{{"question": "……", "answer": "……", "difficulty": 1}}, ……]"""


@dataclass(frozen=True)
class Pair:
    """A question and its answer, as the teacher gave them."""

    question: str
    answer: str
    difficulty: int


def question(passage: str, count: int) -> str:
    """The whole prompt, in Chinese for a Chinese passage."""
    form = _ZH if main_writing(passage) == "han" else _EN
    return form.format(mark=_mark(passage), count=count, passage=passage, levels=LEVELS)


def parsed(reply: str, most: int) -> list[Pair] | None:
    """The pairs of a reply; None for one in another form. Nothing is guessed at: a list that holds one wrong thing is
    no list, for who writes that cannot be trusted with the rest."""
    text = reply.strip()
    if text.startswith("```") and text.endswith("```"):
        text = text.removeprefix("```json").removeprefix("```").removesuffix("```").strip()
    try:
        told = json.loads(text if len(text) <= _LONGEST else "", object_pairs_hook=_once)
    except (ValueError, RecursionError):
        return None
    if not isinstance(told, list) or not 1 <= len(told) <= most:
        return None
    pairs = [_pair(one) for one in told]
    return [pair for pair in pairs if pair] if all(pairs) else None


def _pair(told: Any) -> Pair | None:
    if not isinstance(told, Mapping) or sorted(told) != sorted(FIELDS):
        return None
    asked, answer, difficulty = (told[name] for name in FIELDS)
    texts = isinstance(asked, str) and isinstance(answer, str) and _is_text(asked) and _is_text(answer)
    if not texts or type(difficulty) is not int or not 1 <= difficulty <= LEVELS:
        return None
    return Pair(asked.strip(), answer.strip(), difficulty)


def _is_text(text: str) -> bool:
    """Whether it says something, and has no half of a surrogate pair, which no file could hold."""
    return bool(text.strip()) and not any("\ud800" <= letter <= "\udfff" for letter in text)


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(dict(pairs)) < len(pairs):
        raise ValueError("a field twice")
    return dict(pairs)


def _mark(passage: str) -> str:
    number = 0
    while (mark := hashlib.sha256(f"{number}\n{passage}".encode()).hexdigest()[:8]) in passage:
        number += 1
    return mark
