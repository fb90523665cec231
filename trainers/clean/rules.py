"""Rule packs: what an ordinary text of a language is, as numbers with bounds, each of which a knob can move.

English has the rules and bounds of Rae et al. 2021 (Gopher, section A1.1 and table A1), and of FineWeb (Penedo et al.
2024) those on lines; Chinese has rules of its own, in characters: of words it has none that a blank ends, and its
punctuation, its short sentences and its verse are no sign of a bad text. Any other language has what holds for all.
"""

import re
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from conf.errors import InputError
from trainers.clean.document import HAN, WORD, Block, Document, Step
from trainers.clean.repeats import codes, copied_grams, copied_lines, numbered, top_gram

STOP_WORDS = ("the", "be", "to", "of", "and", "that", "have", "with")
LONG_ENOUGH = 100  # characters from which a Chinese text that repeats itself does so too much; verse has refrains
_BULLETS = ("•", "‣", "▪", "●", "○", "- ", "* ", "– ")
_ENDS = tuple(".!?\"'”’。！？…:;")
_SHORT_LINE = 30  # characters, FineWeb
_BLANK = re.compile(r"\s+")
_DIGIT = re.compile(r"\d")
# Neither letters, digits nor blanks, nor what sentences are made of in English and in Chinese.
_SYMBOL = re.compile(r"[^\w\s.,;:!?'\"()\[\]/%…—–\-·、。，；：！？「」『』《》〈〉（）【】〔〕“”‘’～﹏○]|_")


_OTHERS = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.'/-]*|[^\W\d_A-Za-z\u3400-\u9fff\uf900-\ufaff\U00020000-\U000323af]")


class Measured:
    """A document's numbers, each counted once, when a rule asks for it."""

    def __init__(self, text: str) -> None:
        self.text = text

    @cached_property
    def solid(self) -> str:
        """The text without blanks."""
        return _BLANK.sub("", self.text)

    @cached_property
    def characters(self) -> int:
        return len(self.solid)

    @cached_property
    def words(self) -> list[str]:
        """What blanks part."""
        return self.text.split()

    @cached_property
    def lines(self) -> list[str]:
        return [line.strip() for line in self.text.split("\n") if line.strip()]

    @cached_property
    def paragraphs(self) -> list[str]:
        return [part.strip() for part in self.text.split("\n\n") if part.strip()]

    @cached_property
    def copied_lines(self) -> tuple[float, float]:
        return copied_lines(self.lines)

    @cached_property
    def copied_paragraphs(self) -> tuple[float, float]:
        return copied_lines(self.paragraphs)

    @cached_property
    def units(self) -> tuple[NDArray[np.uint32], NDArray[np.int64]]:
        """(numbers of the words, their lengths)."""
        words = WORD.findall(self.text.lower())
        return numbered(words), np.fromiter(map(len, words), np.int64, len(words))

    @cached_property
    def letters(self) -> tuple[NDArray[np.uint32], NDArray[np.int64]]:
        """(code points without blanks, a one for each)."""
        return codes(self.solid), np.ones(self.characters, np.int64)

    def share(self, count: int) -> float:
        return count / self.characters if self.characters else 0.0

    def of_words(self, count: int) -> float:
        return count / len(self.words) if self.words else 0.0

    def of_lines(self, count: int) -> float:
        return count / len(self.lines) if self.lines else 0.0


@dataclass(frozen=True)
class Rule:
    """A number of a text, and the bound that it must keep: at least `limit`, or at most."""

    measure: Callable[[Measured], float]
    limit: float
    at_least: bool = False


def _repeats(measure: Callable[[Measured], float]) -> Callable[[Measured], float]:
    return lambda text: measure(text) if text.characters >= LONG_ENOUGH else 0.0


def _most_frequent(text: Measured) -> float:
    """Share of the most frequent character; of a short text nothing, for there one makes much."""
    return max(Counter(text.solid).values()) / text.characters if text.characters >= LONG_ENOUGH else 0.0


def _han(text: Measured) -> float:
    """Share of Han characters among them and all else that says something: words and numbers in Latin script, symbols,
    letters of other scripts."""
    han, others = len(HAN.findall(text.solid)), len(_OTHERS.findall(text.text)) + len(_SYMBOL.findall(text.solid))
    return han / max(1, han + others)


def _top(size: int) -> Callable[[Measured], float]:
    return lambda text: top_gram(*text.units, size)


def _copied(size: int) -> Callable[[Measured], float]:
    return lambda text: copied_grams(*text.units, size)


_ANY = {
    "symbols": Rule(lambda text: text.share(len(_SYMBOL.findall(text.solid))), 0.2),
    "digits": Rule(lambda text: text.share(len(_DIGIT.findall(text.solid))), 0.4),
    "one_character": Rule(_most_frequent, 0.25),
    "copied_lines": Rule(_repeats(lambda text: text.copied_lines[1]), 0.4),
    "top_4_gram": Rule(_repeats(lambda text: top_gram(*text.letters, 4)), 0.2),
    "copied_20_grams": Rule(_repeats(lambda text: copied_grams(*text.letters, 20)), 0.4),
}
_GOPHER_TOP = {2: 0.20, 3: 0.18, 4: 0.16}
_GOPHER_COPIED = {5: 0.15, 6: 0.14, 7: 0.13, 8: 0.12, 9: 0.11, 10: 0.10}
PACKS: dict[str, dict[str, Rule]] = {  # by language; "" is any other
    "zh": {
        "characters": Rule(lambda text: text.characters, 16, at_least=True),
        "han": Rule(_han, 0.3, at_least=True),
        **_ANY,
    },
    "en": {
        "words": Rule(lambda text: len(text.words), 50, at_least=True),
        "most_words": Rule(lambda text: len(text.words), 100_000),
        "word_length": Rule(lambda text: text.of_words(sum(map(len, text.words))), 3, at_least=True),
        "most_word_length": Rule(lambda text: text.of_words(sum(map(len, text.words))), 10),
        "marks": Rule(lambda text: text.of_words(text.text.count("#")), 0.1),
        "ellipses": Rule(lambda text: text.of_words(text.text.count("...") + text.text.count("…")), 0.1),
        "bullet_lines": Rule(lambda text: text.of_lines(sum(line.startswith(_BULLETS) for line in text.lines)), 0.9),
        "ellipsis_lines": Rule(
            lambda text: text.of_lines(sum(line.endswith(("...", "…")) for line in text.lines)), 0.3
        ),
        "letters": Rule(
            lambda text: text.of_words(sum(any(map(str.isalpha, word)) for word in text.words)), 0.8, at_least=True
        ),
        "stop_words": Rule(
            lambda text: sum(word in STOP_WORDS for word in {word.lower() for word in text.words}), 2, at_least=True
        ),
        "ended_lines": Rule(
            lambda text: text.of_lines(sum(line.endswith(_ENDS) for line in text.lines)), 0.12, at_least=True
        ),
        "short_lines": Rule(lambda text: text.of_lines(sum(len(line) <= _SHORT_LINE for line in text.lines)), 0.67),
        "copied_lines": Rule(lambda text: text.copied_lines[0], 0.3),
        "copied_line_characters": Rule(lambda text: text.copied_lines[1], 0.2),
        "copied_paragraphs": Rule(lambda text: text.copied_paragraphs[0], 0.3),
        "copied_paragraph_characters": Rule(lambda text: text.copied_paragraphs[1], 0.2),
        **{f"top_{size}_gram": Rule(_top(size), most) for size, most in _GOPHER_TOP.items()},
        **{f"copied_{size}_grams": Rule(_copied(size), most) for size, most in _GOPHER_COPIED.items()},
    },
    "code": {  # Kocetkov et al. 2022 (The Stack)
        "characters": Rule(lambda text: text.characters, 32, at_least=True),
        "longest_line": Rule(lambda text: max(map(len, text.lines), default=0), 1000),
        "line_length": Rule(lambda text: sum(map(len, text.lines)) / max(1, len(text.lines)), 100),
        "letters_and_digits": Rule(lambda text: text.share(sum(map(str.isalnum, text.solid))), 0.25, at_least=True),
        "copied_lines": Rule(_repeats(lambda text: text.copied_lines[1]), 0.6),
    },
    "": {"characters": Rule(lambda text: text.characters, 16, at_least=True), **_ANY},
}
_NAMED = {"zh": "zh", "en": "en", "code": "code", "": "other"}  # how a pack begins a knob: corpus.limits.zh_han


def limits() -> dict[str, float]:
    """Every bound by its name in `corpus.limits`, with its default."""
    return {f"{_NAMED[pack]}_{name}": rule.limit for pack, rules in PACKS.items() for name, rule in rules.items()}


def rules(moved: Mapping[str, float]) -> Step:
    """The step that holds each document to the pack of its language, its bounds `moved` by name. Raises `InputError`
    for a name that no rule has."""
    known = limits()
    for name in moved:
        if name not in known:
            raise InputError(f"corpus.limits.{name}: no such rule; there are {', '.join(sorted(known))}")
    bounds = known | dict(moved)
    packs = {
        language: [(name, rule, bounds[f"{_NAMED[language]}_{name}"]) for name, rule in pack.items()]
        for language, pack in PACKS.items()
    }

    def judge(document: Document) -> None:
        text = Measured(document.text)
        for name, rule, limit in packs.get(document.language, packs[""]):
            value = rule.measure(text)
            if value < limit if rule.at_least else value > limit:
                return document.reject(name, value, limit)

    def step(block: Block) -> Block:
        for document in block:
            judge(document)
        return block

    return step
