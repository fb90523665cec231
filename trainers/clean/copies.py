"""Which documents are copies of others, exact or near: by ranges of keys, so that none of it needs all in memory.

A document's id is its record's number in the order of the files. Of exact copies the lowest id stays, of near ones the
best score and then the lowest id, and whoever goes is a near copy of one that stays. It hangs on nobody who finds it.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trainers.clean import near, shards

KEYS_PER_RANGE = 4 * 2**20  # documents whose keys a task holds: some 24 bytes for each
MEMBERS = 2**15  # signatures that a task holds, 512 bytes each
LEADERS = 16  # documents of a group that the others are compared with
GONE = np.dtype([("id", "<i8"), ("twin", "<i8"), ("likeness", "<f4"), ("near", "?")])  # sorted by id
NONE = np.empty(0, GONE)
_PAIR = np.dtype([("worse", "<i8"), ("better", "<i8"), ("likeness", "<f4"), ("score", "<f4")])  # `score`: the worse's
Array = NDArray[Any]
# `spread(work, common, items)` gives what work(folder, {**common, **item}) returns, wherever it is done, in order.
Work = Callable[[Path, Mapping[str, Any]], Any]
Spread = Callable[[Work, Mapping[str, Any], Iterable[Mapping[str, Any]]], Iterator[Any]]


@dataclass(frozen=True)
class Shards:
    """The working shards that count, in order, with the id of each one's first record."""

    folder: Path
    names: list[str]
    firsts: list[int]
    end: int  # the id from which no record counts

    def common(self, **more: Any) -> dict[str, Any]:
        """What every task is told of them."""
        return {"names": self.names, "firsts": self.firsts, "end": self.end, **more}


def exact_copies(there: Shards, documents: int, spread: Spread) -> Array:
    """What goes as an exact copy, as `GONE`; it lies in exact.npy too. `documents`: about how many pass the steps."""
    common = there.common(ranges=_ranges(documents))
    items = [{"range": number} for number in range(common["ranges"])]
    gone = _sorted(np.concatenate([NONE, *(_load(there.folder / name) for name in spread(exact, common, items))]))
    shards.save(there.folder / "exact.npy", gone)
    return gone


def near_copies(there: Shards, documents: int, threshold: float, spread: Spread) -> Array:
    """What goes as a near copy of what no exact copy is, as `GONE`."""
    common = there.common(ranges=_ranges(documents), threshold=threshold)
    bands, _ = near.shape(threshold)
    items = [{"band": band, "range": number} for band in range(bands) for number in range(common["ranges"])]
    return survivors(np.concatenate([_load(there.folder / name) for name in spread(meeting, common, items)]))


def together(*gone: Array) -> Array:
    """All that goes, by id."""
    return _sorted(np.concatenate(gone))


def _ranges(documents: int) -> int:
    return max(1, -(-documents // KEYS_PER_RANGE))


def exact(folder: Path, item: Mapping[str, Any]) -> str:
    """Find the exact copies whose digests lie in a range; the name of the file with them."""
    name = f"exact-{item['range']:04d}-of-{item['ranges']:04d}.npy"
    if (folder / name).exists():
        return name
    keys, ids = [], []
    for shard, first in zip(item["names"], item["firsts"], strict=True):
        column = shards.read(folder, shard, ["digest"])["digest"].combine_chunks()
        rows = np.flatnonzero(~np.asarray(column.is_null().to_numpy(zero_copy_only=False)))
        digests = np.frombuffer(b"".join(column.drop_null().to_pylist()), "<u8").reshape(-1, 2)
        mine = (digests[:, 0] % np.uint64(item["ranges"]) == item["range"]) & (rows + first < item["end"])
        keys.append(digests[mine])
        ids.append(rows[mine] + first)
    both, every = np.concatenate(keys), np.concatenate(ids)
    order = np.lexsort((every, both[:, 1], both[:, 0]))
    both, every = both[order], every[order]
    begins = np.ones(len(every), bool)
    begins[1:] = (both[1:] != both[:-1]).any(1)
    firsts = every[begins][np.cumsum(begins) - 1]
    found = np.zeros(int((~begins).sum()), GONE)
    found["id"], found["twin"], found["likeness"] = every[~begins], firsts[~begins], 1.0
    shards.save(folder / name, found)
    return name


def meeting(folder: Path, item: Mapping[str, Any]) -> str:
    """Find pairs of near copies that meet in a band, their keys in a range; the name of the file with them."""
    name = f"near-{item['band']:03d}-{item['range']:04d}-of-{item['ranges']:04d}.npy"
    if (folder / name).exists():
        return name
    gone = _load(folder / "exact.npy")["id"]
    keys, ids, scores = [], [], []
    for shard, first in zip(item["names"], item["firsts"], strict=True):
        of_band = np.asarray(shards.keys(folder, shard, "bands")[item["band"]])
        mine = np.asarray(shards.keys(folder, shard, "rows")) + first
        wanted = (of_band % np.uint64(item["ranges"]) == item["range"]) & (mine < item["end"])
        wanted &= ~_among(mine, gone)
        keys.append(of_band[wanted])
        ids.append(mine[wanted])
        scores.append(_scores(folder, shard)[wanted])
    key, document, score = np.concatenate(keys), np.concatenate(ids), np.concatenate(scores)
    order = np.lexsort((document, -score, key))  # within a group by rank
    key, document, score = key[order], document[order], score[order]
    begins = np.flatnonzero(np.concatenate([[True], key[1:] != key[:-1]])) if len(key) else np.empty(0, np.int64)
    signatures = _Signatures(folder, item["names"], item["firsts"])
    pairs = [np.empty(0, _PAIR)]
    for group, members in _chunks(begins, len(key)):
        pairs.append(_compared(group, document[members], score[members], signatures, item["threshold"]))
    shards.save(folder / name, np.concatenate(pairs))
    return name


def _scores(folder: Path, shard: str) -> Array:
    """The higher the better: what a model says, or else what the steps say."""
    bits = shards.bits(folder, shard)
    if bits is None:
        return np.asarray(shards.keys(folder, shard, "scores"))
    return -bits[np.asarray(shards.keys(folder, shard, "rows"))]


def _chunks(begins: Array, count: int) -> Iterator[tuple[Array, Array]]:
    """(number of its group, place) of the members of whole groups of two and more, about `MEMBERS` at a time. A group
    that is larger comes in pieces, each with the group's first member in front."""
    ends = np.append(begins[1:], count)
    held: list[Array] = []
    size = 0
    for begin, end in zip(begins[ends - begins > 1], ends[ends - begins > 1], strict=True):
        for start in range(begin + 1, end, MEMBERS):
            held.append(np.concatenate([[begin], np.arange(start, min(end, start + MEMBERS))]))
            size += len(held[-1])
            if size >= MEMBERS:
                yield _numbered(held)
                held, size = [], 0
    if held:
        yield _numbered(held)


def _numbered(groups: Sequence[Array]) -> tuple[Array, Array]:
    return np.repeat(np.arange(len(groups)), [len(group) for group in groups]), np.concatenate(groups)


def _compared(group: Array, document: Array, score: Array, signatures: "_Signatures", threshold: float) -> Array:
    """The pairs of members of a group that are alike: the first against all others, then the first of those that are
    not like it, and so on."""
    marks = signatures.of(document)
    rest, pairs = np.arange(len(group)), [np.empty(0, _PAIR)]
    for _ in range(LEADERS):
        if len(rest) < 2:
            break
        begins = np.concatenate([[True], group[rest][1:] != group[rest][:-1]])
        leaders = rest[begins][np.cumsum(begins) - 1][~begins]
        rest = rest[~begins]
        alike = near.likeness(marks[leaders], marks[rest])
        like = alike >= np.float32(threshold)
        found = np.empty(int(like.sum()), _PAIR)
        found["worse"], found["better"] = document[rest[like]], document[leaders[like]]
        found["likeness"], found["score"] = alike[like], score[rest[like]]
        pairs.append(found)
        rest = rest[~like]
    return np.concatenate(pairs)


def survivors(pairs: Array) -> Array:
    """Who goes of the `pairs`, as `GONE`: from the best to the worst, each that is like one that stays."""
    pairs = np.unique(pairs)
    pairs = pairs[np.lexsort((pairs["better"], -pairs["likeness"], pairs["worse"], -pairs["score"]))]
    gone: dict[int, tuple[int, float]] = {}
    for worse, better, alike in zip(*(pairs[name].tolist() for name in ("worse", "better", "likeness")), strict=True):
        if worse not in gone and better not in gone:
            gone[worse] = (better, alike)
    found = np.zeros(len(gone), GONE)
    for at, (document, (twin, alike)) in enumerate(gone.items()):
        found[at] = (document, twin, alike, True)
    return found


class _Signatures:
    """The signatures of documents, by their ids, read from the shards that have them."""

    def __init__(self, folder: Path, names: Sequence[str], firsts: Sequence[int]) -> None:
        self._folder, self._names, self._firsts = folder, names, np.array(firsts, np.int64)

    def of(self, documents: Array) -> near.Signatures:
        """[documents, HASHES]"""
        found = np.empty((len(documents), near.HASHES), np.uint32)
        home = np.searchsorted(self._firsts, documents, "right") - 1
        for shard in np.unique(home):
            here = np.flatnonzero(home == shard)
            rows = shards.keys(self._folder, self._names[shard], "rows")
            places = np.searchsorted(rows, documents[here] - self._firsts[shard])
            found[here] = shards.keys(self._folder, self._names[shard], "signatures")[places]
        return found


def _among(values: Array, sorted_ones: Array) -> NDArray[np.bool_]:
    if not len(sorted_ones):
        return np.zeros(len(values), bool)
    places = np.searchsorted(sorted_ones, values).clip(max=len(sorted_ones) - 1)
    return np.asarray(sorted_ones[places] == values)


def _sorted(gone: Array) -> Array:
    return gone[np.argsort(gone["id"], kind="stable")]


def _load(path: Path) -> Array:
    return np.asarray(np.load(path, allow_pickle=False))
