"""The rules of Chinese regulated verse, as far as they can be checked: form, rhyme, repetition, title, originality.

Pure functions of strings. A poem is one line of text; a couplet is two verse lines, parted by ， and
closed by 。 (or ？ ！).
"""

import hashlib
import re
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np

# form: (verse lines, characters in each)
FORMS: dict[str, tuple[int, int]] = {"五言绝句": (4, 5), "七言绝句": (4, 7), "五言律诗": (8, 5), "七言律诗": (8, 7)}

HAN = r"\u3007\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U000323af"
_SHAPES = {
    name: re.compile(f"(?:[{HAN}]{{{width}}}，[{HAN}]{{{width}}}[。？！]){{{count // 2}}}")
    for name, (count, width) in FORMS.items()
}
_STOPS = re.compile(r"[，。？！；、：,.?!;:\s]+")
_LINE = re.compile(r"[^，。？！；、：,.?!;:\s]+")
_HAN_CHARACTER = re.compile(f"[{HAN}]")
_STUTTER = re.compile(r"(.)\1\1")

# Words of a title that name no subject: ordinals, particles, and what says only that this is a poem.
_TITLE_STOPS = frozenset("其之与和于以而及有为作题次韵诗首绝句咏赋一二三四五六七八九十百千○〇上下")

# The finals of 中华新韵 (2005), with ü and er apart from i as in 中华通韵 (2019), and eng apart from ong.
_CLASSES = {
    "a": "a ia ua",
    "o": "o uo e",
    "ie": "ie ve",
    "ai": "ai uai",
    "ei": "ei uei",
    "ao": "ao iao",
    "ou": "ou iou",
    "an": "an ian uan van",
    "en": "en in uen vn",
    "ang": "ang iang uang",
    "eng": "eng ing",
    "ong": "ong iong ueng",
    "i": "i",
    "u": "u",
    "v": "v",
    "er": "er",
}
_CLASS_OF = {final: name for name, finals in _CLASSES.items() for final in finals.split()}


@dataclass(frozen=True)
class Look:
    """What the rules say of one answer."""

    form: bool  # it has exactly the form asked for
    rhyme: bool  # the ends of all even lines rhyme
    rhyme_share: float  # [0, 1], partial credit for rhyme
    repeats: bool  # a line, a run of four characters or a stutter comes twice
    title_share: float  # [0, 1], share of the title's words that the poem takes up
    copied: bool  # half of its lines or more stand in the corpus


def lines(text: str) -> list[str]:
    """The verse lines, without punctuation and white space."""
    return [line for line in _STOPS.split(text) if line]


def form_of(text: str) -> str | None:
    """The form whose every rule of lines, lengths and punctuation the text keeps; None when there is none."""
    return next((name for name, shape in _SHAPES.items() if shape.fullmatch(text)), None)


# Where verse keeps to a reading that today's speech has not, or has second.
_READINGS = {"还": "an", "斜": "a", "车": "a", "赊": "a"}
_APICAL = frozenset("zh ch sh r z c s".split())
_LABIAL = frozenset("b p m f".split())


@cache
def rhyme_class(character: str) -> str:
    """The rhyme class of a Han character by its commonest reading in verse; "" for anything else."""
    from pypinyin import Style, pinyin  # here, for its dictionaries cost time that other users need not pay

    if not _HAN_CHARACTER.fullmatch(character):
        return ""
    if character in _READINGS:
        return _READINGS[character]
    final = pinyin(character, style=Style.FINALS, strict=True)[0][0]
    initial = pinyin(character, style=Style.INITIALS, strict=True)[0][0]
    if final == "i" and initial in _APICAL:
        return "-i"  # the vowel of zhi and si, not that of qi
    if final == "eng" and initial in _LABIAL:
        return "ong"  # 风 峰 蓬 rhyme with 东 and 空 in every verse of the period
    return _CLASS_OF.get(final, "")


def rhyme_share(text: str) -> float:
    """How far the even lines rhyme: 0 no two of them, 1 all of them.

    Of `n` even lines `m` end in different characters of one class: (m - 1) / (n - 1). The same character again is no
    rhyme.
    """
    even = len(lines(text)) // 2
    return len(rhyme_places(text)) / (even - 1) if even > 1 else 0.0


def rhyme_places(text: str) -> list[int]:
    """Where in the text the characters stand that rhyme with the end of an earlier even line, in the largest class."""
    ends = [found.end() - 1 for found in _LINE.finditer(text)][1::2]
    families: dict[str, dict[str, int]] = defaultdict(dict)
    for place in ends:
        if name := rhyme_class(text[place]):
            families[name].setdefault(text[place], place)
    largest = max(families.values(), key=len, default={})
    return list(largest.values())[1:]


def rhymes(text: str) -> bool:
    """Whether all even lines end in one class, each in a character of its own."""
    return rhyme_share(text) == 1.0


def repeats(text: str) -> bool:
    """Whether a line comes twice, or a run of four characters within lines, or one character three times in a row."""
    parts = lines(text)
    runs = [line[i : i + 4] for line in parts for i in range(len(line) - 3)]
    return len(set(parts)) < len(parts) or len(set(runs)) < len(runs) or bool(_STUTTER.search("".join(parts)))


def title_words(title: str) -> set[str]:
    """The Han characters of a title that name its subject; all of them when none would be left."""
    characters = set(_HAN_CHARACTER.findall(title))
    return characters - _TITLE_STOPS or characters


def title_share(text: str, title: str) -> float:
    """The share of the title's words that the text takes up; 0 for a title without Han characters."""
    words = title_words(title)
    return len(words & set(text)) / len(words) if words else 0.0


class Copies:
    """Which verse lines stand in a corpus: 8 bytes a line, the sorted 64-bit hashes."""

    LEAST = 5  # characters; a shorter line recurs by chance

    def __init__(self, hashes: np.ndarray) -> None:
        self._hashes = hashes  # uint64, sorted, each once

    @classmethod
    def of(cls, texts: Iterable[str]) -> "Copies":
        hashes = (_hash(line) for text in texts for line in lines(text) if len(line) >= cls.LEAST)
        return cls(np.unique(np.fromiter(hashes, dtype=np.uint64)))

    @classmethod
    def load(cls, path: Path) -> "Copies":
        return cls(np.load(path, allow_pickle=False))

    def save(self, path: Path) -> None:
        """Write an .npy file."""
        with path.open("wb") as file:
            np.save(file, self._hashes, allow_pickle=False)

    def __len__(self) -> int:
        return len(self._hashes)

    def known(self, line: str) -> bool:
        if not len(self._hashes):
            return False
        value = np.uint64(_hash(line))
        place = int(np.searchsorted(self._hashes, value))
        return place < len(self._hashes) and bool(self._hashes[place] == value)

    def copied(self, text: str) -> bool:
        """Whether at least half of the text's lines stand in the corpus."""
        parts = [line for line in lines(text) if len(line) >= self.LEAST]
        return bool(parts) and 2 * sum(map(self.known, parts)) >= len(parts)


def _hash(line: str) -> int:
    return int.from_bytes(hashlib.blake2b(line.encode(), digest_size=8).digest(), "little")


def look(text: str, form: str, *, title: str = "", copies: Copies | None = None) -> Look:
    """The rules on an answer to "a poem in `form` on `title`". Without `copies` nothing counts as copied."""
    return Look(
        form=form_of(text) == form,
        rhyme=rhymes(text),
        rhyme_share=rhyme_share(text),
        repeats=repeats(text),
        title_share=title_share(text, title),
        copied=copies is not None and copies.copied(text),
    )


def shape_share(text: str, form: str) -> float:
    """How near a text comes to `form`, in [0, 1]: 1 for the form itself, else below 1 by line lengths and count.

    The larger of what was asked and what was written is the whole: too many lines cost as much as too few.
    """
    if form_of(text) == form:
        return 1.0
    count, width = FORMS[form]
    parts = lines(text)
    right = sum(len(line) == width and bool(_HAN_CHARACTER.match(line)) for line in parts[:count])
    # Right lines and yet not the form: only the punctuation is wrong, which still must not look like success.
    return min(right / max(count, len(parts)), 0.95)
