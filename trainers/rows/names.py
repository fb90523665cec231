"""What the numbers in a set of packed rows stand for: the samples or rankings by name, and what each was made of.

Row `n` of the file is what a packed row calls document `n`. A set of the corpus's own text has no such file: there the
numbers are those of its split's documents.
"""

from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from cluster.storage import fsync

FILE = "names.parquet"
SCHEMA = pa.schema({"id": pa.string(), "origin": pa.list_(pa.string())})  # see `moe.tasks.task.Sample.origin`


def write_names(folder: Path, names: Sequence[tuple[str, Sequence[str]]]) -> None:
    """Write (id, origin) of each sample of the set in `folder`, in their order."""
    table = pa.table({"id": [name for name, _ in names], "origin": [list(origin) for _, origin in names]}, SCHEMA)
    pq.write_table(table, folder / FILE, compression="zstd")
    fsync(folder / FILE)


def names_of(folder: Path) -> list[tuple[str, list[str]]] | None:
    """What `write_names` wrote; None for a set of the corpus's own text."""
    if not (folder / FILE).is_file():
        return None
    return [(one["id"], one["origin"]) for one in pq.read_table(folder / FILE).to_pylist()]
