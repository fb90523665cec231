"""What a step of the corpus is given and gives back: documents in a block, each with what was decided about it."""

import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

HAN = re.compile(r"[\u3400-\u9fff\uf900-\ufaff\U00020000-\U000323af]")
KANA = re.compile(r"[\u3041-\u30ff]")
LATIN = re.compile(r"[A-Za-z][A-Za-z'’-]*")  # a word, which says about as much as a Chinese character
WORD = re.compile(r"[^\W_]+(?:['’-][^\W_]+)*")
# So common that hardly any English sentence is without one; in no other language do they make so many of the words.
COMMON = frozenset(
    "the of and to a in is was that it for with as his on be at by i this had not are but from or have an they which "
    "you were her all she there would their we him been has when who will no more if out so what can do".split()
)
_LOOKED_AT = 1024  # characters; the language of a text does not hang on its end
_ENGLISH = 0.15  # share of the words that are `COMMON`, from which a text in Latin letters is English


@dataclass(frozen=True, slots=True)
class Verdict:
    """Why a document goes: the step, its rule, the number that decided and the bound that it broke."""

    step: str
    rule: str
    value: float = 0.0
    limit: float = 0.0
    note: str = ""  # what was found where: the evaluation sample that it has, the document that it copies


@dataclass(slots=True)
class Document:
    """One record on its way. A step calls `reject` or `change`, or looks only."""

    text: str
    record: dict[str, Any] = field(default_factory=dict)
    language: str = ""  # zh, en, or "" for any other
    score: float = 0.0  # of two near copies the one with the higher stays
    verdict: Verdict | None = None
    changes: Counter[str] = field(default_factory=Counter)  # rule: how often it changed the text

    def reject(self, rule: str, value: float = 0.0, limit: float = 0.0, note: str = "", *, step: str = "") -> None:
        """Say that the document goes; the first reason counts."""
        if self.verdict is None:
            self.verdict = Verdict(step, rule, float(value), float(limit), note)

    def change(self, text: str, rule: str, times: int = 1) -> None:
        """Give it another text, and say by which rule."""
        self.text = text
        self.changes[rule] += times


Block = list[Document]
Step = Callable[[Block], Block]  # one that it leaves out is rejected, as one is on which it calls `reject`


def language_of(text: str) -> str:
    """zh, en, or "" for what is neither, by its script and, in Latin letters, by the commonest English words."""
    start = text[:_LOOKED_AT]
    han, latin = len(HAN.findall(start)), len(LATIN.findall(start))
    if han and han >= latin and len(KANA.findall(start)) * 10 < han:
        return "zh"
    if sum(map(len, LATIN.findall(start))) * 2 > sum(map(str.isalpha, start)):
        words = [word.lower() for word in WORD.findall(start)]
        if sum(word in COMMON for word in words) >= _ENGLISH * len(words):
            return "en"
    return ""
