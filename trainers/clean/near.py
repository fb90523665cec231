"""Near copies: what two documents share of their runs of five, estimated by MinHash, found by bands of hashes.

Of a short text the runs have three units: one changed character takes five runs of five along, which of a poem of
twenty are a third.

Broder 1997 (MinHash), Leskovec et al. (Mining of Massive Datasets, chapter 3: bands). Chinese and every script but
English is cut into characters, English into words; blanks, punctuation and case do not count.
"""

import re
from hashlib import blake2b
from zlib import crc32

import numpy as np
from numpy.typing import NDArray

from trainers.clean.document import WORD
from trainers.clean.repeats import codes, grams

SIZE = 5  # units of a run
SHORT, SHORT_SIZE = 64, 3  # units from which on a text is no short one; units of a run of one that is
HASHES = 128  # numbers of a signature: the estimate's standard deviation is at most 0.045
CAUGHT = 0.85  # share of the pairs that are just as like as the knob says which must meet in a band
_CHUNK = 16384  # runs that are hashed at a time
_SOLID = re.compile(r"[\W_]+")
Signatures = NDArray[np.uint32]


def _constants() -> tuple[NDArray[np.uint32], NDArray[np.uint32]]:
    """Odd factors and summands, the same everywhere and always."""
    drawn = b"".join(blake2b(number.to_bytes(4, "little"), digest_size=8).digest() for number in range(HASHES))
    pairs = np.frombuffer(drawn, "<u4").reshape(HASHES, 2)
    return pairs[:, 0] | np.uint32(1), pairs[:, 1].copy()


_FACTORS, _SUMMANDS = _constants()


def units(text: str, language: str) -> NDArray[np.uint32]:
    """A number for each word of an English text, for each letter of another; the same in every text."""
    if language == "en":
        words = WORD.findall(text.lower())
        return np.fromiter((crc32(word.encode()) for word in words), np.uint32, len(words))
    return codes(_SOLID.sub("", text).lower())


def runs(text: str, language: str) -> NDArray[np.uint64]:
    """The hashes of a text's runs, each once; of a text that is shorter than one that of the whole."""
    found = units(text, language)
    size = SIZE if len(found) >= SHORT else SHORT_SIZE
    return np.unique(grams(found, min(size, len(found)))) if len(found) else np.empty(0, np.uint64)


def signature(text: str, language: str) -> Signatures:
    """[HASHES] the MinHash of a text."""
    hashes = (runs(text, language) >> np.uint64(32)).astype(np.uint32)
    least = np.full(HASHES, 2**32 - 1, np.uint32)
    for start in range(0, len(hashes), _CHUNK):
        part = hashes[start : start + _CHUNK]
        np.minimum(least, (part[:, None] * _FACTORS + _SUMMANDS).min(0), out=least)
    return least


def shape(threshold: float) -> tuple[int, int]:
    """(bands, hashes of a band): as many hashes as still let `CAUGHT` of the pairs just at the threshold meet."""
    return max(
        ((HASHES // rows, rows) for rows in range(1, 17) if caught(threshold, HASHES // rows, rows) >= CAUGHT),
        key=lambda both: both[1],
        default=(HASHES, 1),
    )


def caught(likeness: float, bands: int, rows: int) -> float:
    """The probability that two documents so like meet in a band."""
    return 1 - (1 - likeness**rows) ** bands


def band_keys(signatures: Signatures, threshold: float) -> NDArray[np.uint64]:
    """[bands, documents] what documents that meet in a band have in common there."""
    bands, rows = shape(threshold)
    keys = np.empty((bands, len(signatures)), np.uint64)
    for band in range(bands):
        part = signatures[:, band * rows : (band + 1) * rows].astype(np.uint64)
        mixed = np.zeros(len(signatures), np.uint64)
        for row in range(rows):
            mixed = (mixed ^ part[:, row]) * np.uint64(0x9E3779B97F4A7C15)
            mixed ^= mixed >> np.uint64(29)
        keys[band] = mixed
    return keys


def likeness(one: Signatures, other: Signatures) -> NDArray[np.float32]:
    """[documents] the estimated share of the runs of both that each pair has in common."""
    return (one == other).mean(1, dtype=np.float32)
