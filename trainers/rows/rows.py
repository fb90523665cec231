"""Packed rows on disk, and the order in which training sees them.

Row i of a set is row i % rows_per_shard of Parquet shard i // rows_per_shard. The order is a pure function of the seed
and the position, so a run's cursor is one integer and any number of workers can ask for any part of it.
"""

from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from cluster.storage import Damaged, fsync, read_json, sha256, write_json
from trainers.rows.packing import Row

FILE = "rows.json"  # written last: without it there is no set
COLUMNS = {"tokens": np.int32, "segments": np.int32, "loss": np.uint8}  # of every set
DOCUMENTS = "documents"


def write_rows(
    folder: str | Path, rows: Iterable[Row], *, row_length: int, rows_per_shard: int, meta: Mapping[str, Any]
) -> dict[str, Any]:
    """Write `rows` as shards and rows.json; returns what rows.json holds. Files of an earlier attempt are replaced.

    All rows must have the same `extra` columns. `meta` is kept with it, at least {"tokenizer": digest}. Counted:
    `rows`, `tokens` (padding left out) and `targets`.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for leftover in [folder / FILE, *folder.glob("rows-*.parquet")]:
        leftover.unlink(missing_ok=True)
    shards: list[dict[str, Any]] = []
    tokens = targets = 0
    extra: list[str] = []
    stream = iter(rows)
    while shard := list(islice(stream, rows_per_shard)):
        extra = sorted(shard[0].extra)
        assert all(sorted(row.extra) == extra for row in shard), "rows of a set have the same columns"
        arrays = {name: np.stack([getattr(row, name) for row in shard]).astype(kind) for name, kind in COLUMNS.items()}
        arrays |= {name: np.stack([row.extra[name].astype(np.int32) for row in shard]) for name in extra}
        path = folder / f"rows-{len(shards):05d}.parquet"
        pq.write_table(_table(arrays, [row.documents for row in shard]), path, compression="zstd")
        fsync(path)
        shards.append({"file": path.name, "rows": len(shard), "sha256": sha256(path)})
        tokens += int((arrays["segments"] > 0).sum())
        targets += int(arrays["loss"].sum())
    about = {
        **meta,
        "row_length": row_length,
        "columns": [*COLUMNS, *extra],
        "rows_per_shard": rows_per_shard,
        "rows": sum(shard["rows"] for shard in shards),
        "tokens": tokens,
        "targets": targets,
        "shards": shards,
    }
    write_json(folder / FILE, about)
    return about


class Rows:
    """A set of rows, opened for reading by number. Pickles as its folder: each process decodes for itself."""

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self.about: dict[str, Any] = read_json(self.folder / FILE)
        self.row_length: int = self.about["row_length"]
        self.tokenizer: str = self.about["tokenizer"]  # digest of the tokenizer that made the ids
        self.columns = {name: COLUMNS.get(name, np.int32) for name in self.about["columns"]}
        self._decoded: dict[int, dict[str, np.ndarray]] = {}

    def __len__(self) -> int:
        return int(self.about["rows"])

    def fetch(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        """Rows by number, in the order asked: tokens [n, T] int32, segments [n, T] int32, loss [n, T] uint8, and the
        set's further columns [n, T] int32.

        A shard is checked and decoded at its first use, then kept. Raises `Damaged`, naming it, if it was changed.
        """
        indices = np.asarray(indices, dtype=np.int64)
        if len(indices) and not (indices.min() >= 0 and indices.max() < len(self)):
            raise IndexError(
                f"{self.folder} has rows 0 to {len(self) - 1}, asked for {indices.min()} to {indices.max()}"
            )
        found = {name: np.empty((len(indices), self.row_length), kind) for name, kind in self.columns.items()}
        shards, places = np.divmod(indices, self.about["rows_per_shard"])
        for shard in np.unique(shards):
            here = shards == shard
            decoded = self._shard(int(shard))
            for name in self.columns:
                found[name][here] = decoded[name][places[here]]
        return found

    def documents(self, indices: Sequence[int]) -> list[list[int]]:
        """The numbers of the documents in each row, segment by segment: their places in what was packed."""
        places = [divmod(int(index), self.about["rows_per_shard"]) for index in indices]
        files = {shard: self.folder / self.about["shards"][shard]["file"] for shard, _ in places}
        lists = {shard: pq.read_table(file, columns=[DOCUMENTS])[DOCUMENTS] for shard, file in files.items()}
        return [lists[shard][place].as_py() for shard, place in places]

    def _shard(self, number: int) -> dict[str, np.ndarray]:
        if number not in self._decoded:
            about = self.about["shards"][number]
            path = self.folder / about["file"]
            if not path.is_file() or sha256(path) != about["sha256"]:
                raise Damaged(f"{path} is not the file that {FILE} describes")
            table = pq.read_table(path, columns=list(self.columns))
            flat = {name: table[name].combine_chunks().flatten().to_numpy() for name in self.columns}
            self._decoded[number] = {name: values.reshape(-1, self.row_length) for name, values in flat.items()}
        return self._decoded[number]

    def __reduce__(self) -> tuple[type["Rows"], tuple[Path]]:
        return Rows, (self.folder,)


def order(n: int, seed: int, start: int, stop: int) -> np.ndarray:
    """Row numbers [stop - start] at positions start..stop of an endless run over `n` rows, shuffled anew each epoch."""
    assert n > 0 and 0 <= start <= stop
    epochs = range(start // n, -(-stop // n))
    parts = [_epoch(n, seed, epoch)[max(0, start - epoch * n) : stop - epoch * n] for epoch in epochs]
    return np.concatenate(parts) if parts else np.empty(0, dtype=np.int64)


@lru_cache(maxsize=4)
def _epoch(n: int, seed: int, epoch: int) -> np.ndarray:
    # Sorting a bit generator's raw output: unlike Generator.permutation, its stream is promised never to change.
    keys = np.random.Philox(key=np.array([seed, epoch], dtype=np.uint64)).random_raw(n)
    shuffled = np.argsort(keys, kind="stable")
    shuffled.setflags(write=False)
    return shuffled


def _table(arrays: Mapping[str, np.ndarray], documents: Sequence[Sequence[int]]) -> pa.Table:
    columns = {
        name: pa.FixedSizeListArray.from_arrays(pa.array(values.ravel()), values.shape[1])
        for name, values in arrays.items()
    }
    return pa.table({**columns, DOCUMENTS: pa.array([list(row) for row in documents], pa.list_(pa.int32()))})
