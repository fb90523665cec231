"""Documents that are about what no model should learn to offer: found by words that are graded, in zh and en.

A word of grade 3 stands in an offer and nowhere else (sale of drugs, gambling sites, pornography), one of grade 2 is
crude by itself, one of grade 1 belongs to history, medicine and law as much. Exceptions are phrases in which a word
means something else ("breast cancer", 鸦片战争). Where a text has words of these fields, grade 1 counts for nothing and
grade 2 little. The words are in data/words: graded.json, and as grade 2 and 1 the lists of LDNOOBW.
"""

import json
from collections import defaultdict
from collections.abc import Iterator, Mapping
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple

from ahocorasick_rs import AhoCorasick, MatchKind

from conf.errors import InputError
from moe.tasks.sensitive import EVERYDAY, WORDS
from trainers.clean.document import Block, Step

WEIGHTS = {1: 0.5, 2: 2.0, 3: 4.0}
IN_CONTEXT = {1: 0.0, 2: 0.5, 3: 4.0}  # where the text is about history, medicine or law
MOST_OF_GRADE_1 = 2.0  # weight that all words of grade 1 have together
AGAIN = 3  # times that one word counts
CONTEXTS = 2  # different words of those fields that make a text one of theirs
PER = 1000  # characters to which the weight is related; a shorter text counts as so many


class _Words(NamedTuple):
    """A lexicon: what each entry is. Grade 0 is an exception, -1 a word of the fields."""

    entries: list[tuple[str, int]]
    found: AhoCorasick
    version: str


def sensitive(most: float, lexicon: str) -> Step:
    """The step that rejects documents whose words weigh more than `most` per 1,000 characters. `lexicon`: a file of
    one's own beside the lists, as graded.json is. Raises `InputError` for one that is not so."""
    known = words(lexicon)

    def step(block: Block) -> Block:
        for document in block:
            weight, worst = weighed(document.text, known)
            if weight > most:
                document.reject("sensitive words", weight, most, worst)
        return block

    return step


def weighed(text: str, known: _Words) -> tuple[float, str]:
    """(weight of a text's words per `PER` characters, the one that weighs most)."""
    lower = text.lower()
    if len(lower) != len(text):  # of few scripts: places would not fit
        lower = text
    times: dict[str, int] = defaultdict(int)
    grades: dict[str, int] = {}
    fields = set()
    for number, start, end in known.found.find_matches_as_indexes(lower):
        entry, grade = known.entries[number]
        if entry.isascii() and not _alone(lower, start, end):
            continue
        if grade < 0:
            fields.add(entry)
        elif grade:
            times[entry] += 1
            grades[entry] = grade
    weights = IN_CONTEXT if len(fields) >= CONTEXTS else WEIGHTS
    weight = {entry: min(count, AGAIN) * weights[grades[entry]] for entry, count in times.items()}
    # words that belong to other subjects as much reject nothing by themselves
    common = sum(weight[entry] for entry in weight if grades[entry] == 1)
    worst = max(weight, key=lambda entry: (weight[entry], entry), default="")
    total = sum(weight.values()) - max(0.0, common - MOST_OF_GRADE_1)
    return total * PER / max(PER, len(text)), worst


def _alone(text: str, start: int, end: int) -> bool:
    """Whether an entry in Latin letters is a word of its own there."""
    before, after = text[start - 1 : start] if start else "", text[end : end + 1]
    return not (before.isascii() and before.isalnum()) and not (after.isascii() and after.isalnum())


def words(lexicon: str = "") -> _Words:
    """The lists, and those of a file of one's own. Raises `InputError`."""
    return _words(lexicon, Path(lexicon).stat().st_mtime_ns if lexicon and Path(lexicon).exists() else 0)


@cache
def _words(lexicon: str, changed: int) -> _Words:
    grade: dict[str, int] = {}
    for name in ("en", "zh"):
        for entry in json.loads((WORDS / f"{name}.json").read_text(encoding="utf-8")):
            grade[entry.lower()] = 1 if entry.lower() in EVERYDAY else 2
    grade |= dict(_entries(json.loads((WORDS / "graded.json").read_text(encoding="utf-8"))))
    if lexicon:
        grade |= dict(_own(lexicon))
    entries = sorted(grade.items())
    version = sha256(json.dumps(entries, ensure_ascii=False).encode()).hexdigest()[:16]
    # the longest of those that begin at one place: so an exception takes the word that it holds along
    found = AhoCorasick([entry for entry, _ in entries], matchkind=MatchKind.LeftmostLongest)
    return _Words(entries, found, version)


def _own(lexicon: str) -> Iterator[tuple[str, int]]:
    try:
        yield from _entries(json.loads(Path(lexicon).read_text(encoding="utf-8")))
    except OSError as error:
        raise InputError(f"corpus.lexicon={lexicon}: {error.strerror or error}") from None
    except (ValueError, AttributeError, TypeError) as error:
        raise InputError(
            f"corpus.lexicon={lexicon}: must be JSON as in data/words/graded.json: "
            f'{{"1": [words], "2": [...], "3": [...], "exceptions": [...], "fields": [...]}} ({error})'
        ) from None


def _entries(given: Mapping[str, Any]) -> Iterator[tuple[str, int]]:
    grades = {"1": 1, "2": 2, "3": 3, "exceptions": 0, "fields": -1}
    if unknown := set(given) - set(grades):
        raise ValueError(f"no such list: {', '.join(sorted(unknown))}")
    for name, entries in given.items():
        for entry in entries:
            if not isinstance(entry, str) or not entry.strip():
                raise ValueError(f"an entry of {name} must be a word, not {entry!r}")
            yield entry.strip().lower(), grades[name]
