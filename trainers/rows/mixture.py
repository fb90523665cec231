"""Which row is trained on when: a pure function of the seed and the position in the run.

A course draws from several sets of rows in shares that may change along the way: a curriculum's stages, or new text
beside a replay of old. A run's cursor is one integer, and any worker can ask for any part of the order.
"""

from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from pathlib import Path

import numpy as np

from conf.errors import InputError
from trainers.rows.rows import Rows, order

_BLOCK = 256  # positions over which the sets' shares are kept, as nearly as whole rows allow


@dataclass(frozen=True)
class Phase:
    """A part of the way: rows of the sets in these shares."""

    until: int  # the position at which it ends; 0: it does not
    shares: tuple[float, ...]  # of each set; they sum to 1


@dataclass(frozen=True)
class Course:
    """Every set is gone through in a shuffled order of its own, epoch after epoch, however its share changes."""

    sets: tuple[Path, ...]
    phases: tuple[Phase, ...]

    @classmethod
    def of(cls, rows: Path) -> "Course":
        """One set, shuffled."""
        return cls((rows,), (Phase(0, (1.0,)),))

    def check(self) -> None:
        """Raise `InputError` naming a set that is empty though it has a share, or that does not go with the first."""
        ends = [phase.until for phase in self.phases]
        assert ends[-1] == 0 and all(a < b for a, b in pairwise(ends[:-1])), "phases in order"
        first = opened(self.sets[0])
        for number, folder in enumerate(self.sets):
            rows = opened(folder)
            if not len(rows) and any(phase.shares[number] for phase in self.phases):
                raise InputError(f"{folder}: no row to train on")
            if rows.tokenizer != first.tokenizer:
                raise InputError(f"{folder}: made with another tokenizer than {first.folder}")
            if rows.columns != first.columns:
                raise InputError(f"{folder}: has columns {', '.join(rows.columns)}, {first.folder} others")

    @property
    def row_length(self) -> int:
        return max(opened(folder).row_length for folder in self.sets)

    def phase(self, position: int) -> int:
        """The number of the phase that a position lies in."""
        return sum(0 < phase.until <= position for phase in self.phases)

    def places(self, seed: int, start: int, stop: int) -> np.ndarray:
        """[stop - start, 2] int64: the set and the row within it of each position."""
        numbers, before, begin = [], np.zeros(len(self.sets), dtype=np.int64), 0
        for at, phase in enumerate(self.phases):
            end = phase.until or max(stop, begin)
            first, last = max(start, begin), min(stop, end)
            if first < last:
                numbers.append(_drawn(phase.shares, seed, at, first - begin, last - begin))
            before += _counts(phase.shares, seed, at, min(max(start - begin, 0), end - begin))
            begin = end
        chosen = np.concatenate(numbers) if numbers else np.empty(0, dtype=np.int64)
        rows = np.empty_like(chosen)
        for number, came in enumerate(before.tolist()):  # rows of the set before `start`
            here = chosen == number
            if here.any():
                size = len(opened(self.sets[number]))
                rows[here] = order(size, seed + number, came, came + int(here.sum()))
        return np.stack([chosen, rows], axis=1)

    def drawn(self, seed: int, stop: int) -> np.ndarray:
        """[sets] int64: how many of the positions before `stop` are each set's."""
        found, begin = np.zeros(len(self.sets), dtype=np.int64), 0
        for at, phase in enumerate(self.phases):
            end = min(phase.until or stop, stop)
            found += _counts(phase.shares, seed, at, max(0, end - begin))
            begin = max(begin, end)
        return found

    def fetch(self, places: np.ndarray) -> dict[str, np.ndarray]:
        """The rows at these places [n, 2], in their order; shorter ones are padded. As `Rows.fetch`."""
        kinds = opened(self.sets[0]).columns
        found = {name: np.zeros((len(places), self.row_length), kind) for name, kind in kinds.items()}
        for number in np.unique(places[:, 0]):
            here = places[:, 0] == number
            for name, values in opened(self.sets[number]).fetch(places[here, 1]).items():
                found[name][here, : values.shape[1]] = values
        return found

    def documents(self, places: np.ndarray) -> list[list[int]]:
        """The numbers of the documents in each of the rows at these places."""
        found: list[list[int]] = [[]] * len(places)
        for number in np.unique(places[:, 0]):
            here = np.flatnonzero(places[:, 0] == number)
            for place, documents in zip(here, opened(self.sets[number]).documents(places[here, 1]), strict=True):
                found[place] = documents
        return found


@lru_cache(maxsize=64)
def opened(folder: Path) -> Rows:
    """The rows of a folder, decoded once per process."""
    return Rows(folder)


def quotas(shares: tuple[float, ...]) -> np.ndarray:
    """[sets] rows of each set in a block: the shares to the nearest whole rows, by largest remainder."""
    exact = np.array(shares) * _BLOCK / sum(shares)
    whole = np.floor(exact + 1e-9).astype(np.int64)
    for number in np.argsort(whole - exact, kind="stable")[: _BLOCK - whole.sum()]:
        whole[number] += 1
    return whole


def _drawn(shares: tuple[float, ...], seed: int, phase: int, start: int, stop: int) -> np.ndarray:
    """[stop - start] the sets of positions counted from the phase's begin."""
    first = start // _BLOCK
    blocks = [_block(shares, seed, phase, block) for block in range(first, -(-stop // _BLOCK))]
    return np.concatenate(blocks)[start - first * _BLOCK : stop - first * _BLOCK]


def _counts(shares: tuple[float, ...], seed: int, phase: int, length: int) -> np.ndarray:
    """[sets] how often each set comes in the first `length` positions of a phase."""
    block, rest = divmod(length, _BLOCK)
    return block * quotas(shares) + np.bincount(_block(shares, seed, phase, block)[:rest], minlength=len(shares))


@lru_cache(maxsize=64)
def _block(shares: tuple[float, ...], seed: int, phase: int, block: int) -> np.ndarray:
    numbers = np.repeat(np.arange(len(shares)), quotas(shares))
    keys = np.random.Philox(key=np.array([seed, (phase << 32) + block], dtype=np.uint64)).random_raw(_BLOCK)
    shuffled = numbers[np.argsort(keys, kind="stable")]
    shuffled.setflags(write=False)
    return shuffled
