"""How much of a text repeats itself, in lines, words and characters: numbers in [0, 1] that rules are made of.

Lines, paragraphs and n-grams of words as in Rae et al. 2021 (Gopher), table A1; for scripts without blanks the same
of characters.
"""

from collections import Counter
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

_PRIME = np.uint64(0x9E3779B97F4A7C15)
_SHIFT = np.uint64(29)


def codes(text: str) -> NDArray[np.uint32]:
    """The code points of a text."""
    return np.frombuffer(text.encode("utf-32-le"), np.uint32)


def grams(units: NDArray[np.uint32], size: int) -> NDArray[np.uint64]:
    """[len - size + 1] a hash of 64 bits for each run of `size` units; the same run has the same everywhere."""
    count = len(units) - size + 1
    if count <= 0:
        return np.empty(0, np.uint64)
    with np.errstate(over="ignore"):
        mixed = np.zeros(count, np.uint64)
        for at in range(size):
            mixed = (mixed + units[at : at + count] + np.uint64(1)) * _PRIME
            mixed ^= mixed >> _SHIFT
    return mixed


def numbered(words: Sequence[str]) -> NDArray[np.uint32]:
    """A number for each word, the same for the same word of this text only."""
    numbers: dict[str, int] = {}
    return np.fromiter((numbers.setdefault(word, len(numbers)) for word in words), np.uint32, len(words))


def copied_lines(lines: Sequence[str]) -> tuple[float, float]:
    """(share of the lines, share of the characters) that stand in lines seen before."""
    if len(lines) < 2:
        return 0.0, 0.0
    counts = Counter(lines)
    copied = {line: count - 1 for line, count in counts.items() if count > 1}
    characters = sum(len(line) * count for line, count in copied.items())
    return sum(copied.values()) / len(lines), characters / max(1, sum(map(len, lines)))


def top_gram(units: NDArray[np.uint32], lengths: NDArray[np.int64], size: int) -> float:
    """Share of the characters that the most frequent run of `size` units makes up, if it comes twice."""
    hashes = grams(units, size)
    if not len(hashes):
        return 0.0
    _, first, counts = np.unique(hashes, return_index=True, return_counts=True)
    most = int(counts.argmax())
    if counts[most] < 2:
        return 0.0
    return float(counts[most] * lengths[first[most] : first[most] + size].sum() / max(1, lengths.sum()))


def copied_grams(units: NDArray[np.uint32], lengths: NDArray[np.int64], size: int) -> float:
    """Share of the characters that lie in a run of `size` units that the text had before."""
    hashes = grams(units, size)
    if len(hashes) < 2:
        return 0.0
    order = np.argsort(hashes, kind="stable")
    again = np.zeros(len(hashes), bool)
    again[order[1:]] = hashes[order[1:]] == hashes[order[:-1]]
    if not again.any():
        return 0.0
    edges = np.zeros(len(units) + 1, np.int64)
    starts = np.flatnonzero(again)
    np.add.at(edges, starts, 1)
    np.add.at(edges, starts + size, -1)
    return float(lengths[edges[:-1].cumsum() > 0].sum() / max(1, lengths.sum()))
