"""Documents that hold what a model will be measured on: found by runs of words or characters, and named.

Brown et al. 2020 (GPT-3), appendix C: runs of 13 words; in Chinese, of 13 characters. A shorter sample counts whole,
from 8 on; a run that many samples share is a phrase of the questions and counts for none.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trainers.clean.document import Block, Document, Step, language_of
from trainers.clean.near import units
from trainers.clean.repeats import grams
from trainers.files.readers import at, read_records

RUN, SHORTEST = 13, 8
SHARED = 10  # samples that have a run from which on it is a phrase


class Index:
    """The runs of evaluation samples, by language and length, and which sample has each."""

    def __init__(self, files: Sequence[str]) -> None:
        self.places: list[str] = []
        found: dict[tuple[bool, int], list[tuple[NDArray[np.uint64], int]]] = defaultdict(list)
        for file in files:
            for line, record in read_records(file):
                text = "\n".join(_texts(record))
                language = language_of(text)
                of_sample = units(text, language)
                size = min(RUN, len(of_sample))
                if size >= SHORTEST:
                    runs = np.unique(grams(of_sample, size))
                    found[language == "en", size].append((runs, len(self.places)))
                    self.places.append(at(file, line))
        self._runs = {key: _sorted(parts) for key, parts in found.items()}

    def hits(self, document: Document) -> tuple[int, str]:
        """(how many of its runs samples have, the place of the sample that has the most of them)."""
        of_document = units(document.text, document.language)
        by_sample: dict[int, int] = defaultdict(int)
        total = 0
        for (english, size), (runs, samples) in self._runs.items():
            if english is not (document.language == "en") or len(of_document) < size:
                continue
            hashes = np.unique(grams(of_document, size))
            places = np.searchsorted(runs, hashes).clip(max=len(runs) - 1)
            same = runs[places] == hashes
            total += int(same.sum())
            for sample in samples[places[same]].tolist():
                by_sample[sample] += 1
        if not total:
            return 0, ""
        return total, self.places[max(by_sample, key=lambda sample: (by_sample[sample], -sample))]


def _sorted(parts: Sequence[tuple[NDArray[np.uint64], int]]) -> tuple[NDArray[np.uint64], NDArray[np.int64]]:
    """(runs in order, the first sample that has each); those that many share are left out."""
    runs = np.concatenate([part for part, _ in parts])
    samples = np.concatenate([np.full(len(part), sample, np.int64) for part, sample in parts])
    order = np.lexsort((samples, runs))
    runs, firsts, counts = np.unique(runs[order], return_index=True, return_counts=True)
    kept = counts < SHARED
    if not kept.any():  # a run that no text has, so that a look-up finds nothing
        return np.zeros(1, np.uint64), np.zeros(1, np.int64)
    return runs[kept], samples[order][firsts][kept]


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping | list):
        for inner in value.values() if isinstance(value, Mapping) else value:
            yield from _texts(inner)


def against(files: Sequence[str]) -> Step:
    """The step that rejects what evaluation samples have a run of; the verdict names the sample. The samples are read
    when the first block comes. Raises `InputError` then for files that cannot be read."""
    index: Callable[[], Index] = _once(lambda: Index(files))

    def step(block: Block) -> Block:
        for document in block:
            count, place = index().hits(document)
            if count:
                document.reject("overlap", count, 0, place)
        return block

    return step


def _once(make: Callable[[], Index]) -> Callable[[], Index]:
    made: list[Index] = []

    def get() -> Index:
        if not made:
            made.append(make())
        return made[0]

    return get
