"""What the corpus stage's workers do: read the blocks of a part, make a block's shard, do one of the later tasks."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa

from cluster.storage import read_json, write_json
from conf.knobs.text import Corpus
from trainers.clean import shards
from trainers.clean.copies import Work
from trainers.clean.shards import Part
from trainers.clean.steps import Named, chain
from trainers.files.forgotten import Forgotten


def load(batch: dict[str, Any], cfg: Corpus, folder: str) -> Iterator[pa.Table]:
    """The blocks of a part, each as one row that no task cuts; of one whose shard is there the name alone."""
    part = Part(**json.loads(str(batch["part"][0])))
    end = Path(folder) / part.end
    if end.exists():
        names = [part.shard(number) for number in range(read_json(end)["blocks"])]
        if all((Path(folder) / f"{name}.json").exists() for name in names):
            for name in names:
                yield _row(part, name, b"", sum(part.sizes))
            return
    number = -1
    for number, table in enumerate(shards.blocks(part, cfg)):
        name = part.shard(number)
        there = (Path(folder) / f"{name}.json").exists()
        read = part.read(table["file"][-1].as_py(), table["offset"][-1].as_py())
        yield _row(part, name, b"" if there else _packed(table), read)
    write_json(end, {"blocks": number + 1})


def _row(part: Part, name: str, content: bytes, read: int) -> pa.Table:
    content_of = pa.array([content], pa.large_binary())
    return pa.table({"number": [part.number], "read": [read], "name": [name], "content": content_of})


def _packed(table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as stream:
        stream.write_table(table)
    return bytes(sink.getvalue())


def make(batch: pa.Table, cfg: Corpus, folder: str, seed: int, forgotten: str = "") -> pa.Table:
    """The shard of a block, unless it is there; its counts. `forgotten`: the file that says what is left out."""
    told = []
    left = Forgotten.of(Path(forgotten)) if forgotten else Forgotten()
    for row in batch.to_pylist():
        if row["content"]:
            table = pa.ipc.open_stream(row["content"]).read_all()
            counts = shards.make(Path(folder), row["name"], table, cfg, _steps(cfg), seed, left)
        else:
            counts = read_json(Path(folder) / f"{row['name']}.json")
        told.append(json.dumps(counts))
    return pa.table({"number": batch["number"], "read": batch["read"], "counts": told})


_CHAINS: dict[str, list[Named]] = {}  # of this worker


def _steps(cfg: Corpus) -> list[Named]:
    known = repr(cfg)
    if known not in _CHAINS:
        _CHAINS[known] = chain(cfg)
    return _CHAINS[known]


def task(work: Work, folder: Path, common: Mapping[str, Any], item: Mapping[str, Any]) -> Any:
    return work(folder, {**common, **item})
