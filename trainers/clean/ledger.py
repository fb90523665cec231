"""The ledger of a corpus looked into: what became of a record, of what it is a copy, and what a run shall forget."""

import json
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from cluster.storage import read_json, write_file
from conf.errors import InputError
from trainers.clean import flow
from trainers.clean.gather import LEDGER, ROWS_PER_FILE
from trainers.clean.report import REPORT
from trainers.files.documents import identity

_COPIES = ("exact", "near")


def by_id(folder: Path, number: int) -> Iterator[dict[str, Any]]:
    """The record of that number, if the corpus in `folder` has read it."""
    return lives(folder, lambda table: pc.equal(table["id"], number))


def by_place(folder: Path, record: str, knob: str = "why.record") -> Iterator[dict[str, Any]]:
    """The records at file:line, of every file whose name ends so. Raises `InputError` for what names no line."""
    file, _, line = record.rpartition(":")
    if not file or not line.isdigit():
        raise InputError(f"{knob}={record}: must be file:line, as in data/poems.jsonl.gz:17")

    def wanted(table: pa.Table) -> Any:
        names = table["file"]
        named = pc.or_(pc.equal(names, file), pc.ends_with(names, f"/{file}"))
        return pc.and_(named, pc.equal(table["line"], int(line)))

    return lives(folder, wanted)


def lives(folder: Path, wanted: Callable[[pa.Table], Any]) -> Iterator[dict[str, Any]]:
    """The rows of the ledger that are asked for by their id, file and line, a row group in memory at a time."""
    for path in sorted(folder.glob(f"{LEDGER}-*.parquet")):
        with pq.ParquetFile(path) as file:
            for group in range(file.num_row_groups):
                places = file.read_row_group(group, columns=["id", "file", "line"])
                if rows := [row for row, is_one in enumerate(wanted(places).to_pylist()) if is_one]:
                    yield from file.read_row_group(group).take(rows).to_pylist()


def with_copies(folder: Path, numbers: Iterable[int]) -> list[int]:
    """The ids of records and of all that are copies of one another with them, exact or near: of a text that is to be
    forgotten another copy must not take its place."""
    found = set(numbers)
    pairs = [np.empty((0, 2), np.int64)]
    for path in sorted(folder.glob(f"{LEDGER}-*.parquet")):
        table = pq.read_table(path, columns=["id", "twin", "step"], partitioning=None)
        table = table.filter(pc.is_in(table["step"], pa.array(_COPIES)))
        pairs.append(np.stack([table["id"].to_numpy(), table["twin"].to_numpy()], axis=1).astype(np.int64))
    every = np.concatenate(pairs)
    while True:
        touched = every[np.isin(every, np.array(sorted(found), np.int64)).any(1)]
        if len(more := found | set(touched.ravel().tolist())) == len(found):
            return sorted(found)
        found = more


def text_of(folder: Path, life: Mapping[str, Any]) -> str:
    """The text of a document that stayed. Raises `InputError` where the ledger names a row that is not there."""
    number, row = divmod(life["row"], ROWS_PER_FILE)
    path = folder / f"{life['split']}-{number:05d}.parquet"
    with pq.ParquetFile(path) as file:
        for group in range(file.num_row_groups):
            rows = file.metadata.row_group(group).num_rows
            if row < rows:
                return str(file.read_row_group(group, columns=["text"])["text"][row].as_py())
            row -= rows
    raise InputError(f"{path}: has no row {row}, which the ledger names")


def kinds(folder: Path, split: str, documents: int) -> Iterator[pa.Table]:
    """Source, language and characters of each of the `documents` of a split, in their order, one that is repeated as
    often as it is: a table for each file of the ledger, none for a corpus that has none."""
    paths = sorted(folder.glob(f"{LEDGER}-*.parquet"))
    sources = read_json(folder / f"{REPORT}.json").get("source_of", {}) if paths else {}
    held: list[Any] = []  # the table before this one: the first row of what follows says how often its last is there
    for path in paths:
        table = pq.read_table(path, columns=["file", "language", "characters", "split", "row"], partitioning=None)
        table = table.filter(pc.equal(table["split"], split))
        if len(table):
            yield from (_repeated(one, table["row"][0].as_py(), sources) for one in held)
            held = [table]
    yield from (_repeated(one, documents, sources) for one in held)


def _repeated(table: pa.Table, end: int, sources: Mapping[str, str]) -> pa.Table:
    """Each document of a table as often as it is there: up to the next one's row, the last up to `end`."""
    times = np.diff(table["row"].to_numpy(), append=end)
    whole = table.take(pa.array(np.repeat(np.arange(len(table)), times)))
    languages = pc.if_else(pc.equal(whole["language"], ""), "other", whole["language"])
    named = {"source": flow.sourced(whole, sources), "language": languages}
    return pa.table({**named, "characters": whole["characters"]})


def forget(path: Path, found: Collection[Mapping[str, Any]], corpus: Path) -> int:
    """Add records, by their rows of the ledger, to the list at `path`; how many there are now. The file is there whole,
    with them or as it was."""
    held = dict.fromkeys(path.read_text(encoding="utf-8").splitlines()) if path.exists() else {}
    for life in found:
        digest = "" if life["step"] else identity(text_of(corpus, life)).hex()
        held[json.dumps({"file": life["file"], "line": life["line"], "digest": digest}, ensure_ascii=False)] = None
    write_file(path, "".join(f"{line}\n" for line in held))
    return len(held)
