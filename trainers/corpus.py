"""Raw text to clean documents: read, normalise, take the steps, drop copies, split into train, val and test."""

from conf.entry import early, job

early(__name__)

import json
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pyarrow as pa
import ray

from cluster.agreement import CHECKPOINTS
from cluster.connect import connect
from cluster.progress import counter
from cluster.room import check_room
from cluster.run import open_stage
from cluster.storage import read_json, write_json
from conf.errors import InputError
from conf.knobs.running import Cluster
from conf.knobs.text import Corpus
from conf.schema import Config
from trainers.clean import copies, gather, shards
from trainers.clean.copies import Shards, Spread
from trainers.clean.shards import Part
from trainers.clean.steps import Named, chain, versions
from trainers.files.documents import SPLITS, renderer
from trainers.files.readers import absolute, digest, expand, unchanged
from trainers.files.rejects import Rejects, rejects_in

WHOLLY_BAD = 100_000  # records of which none is good: it is not worth to read a terabyte of them
TASKS = 1024  # of reading, at most
TOLD = ("read", "kept", "duplicates", "empty", "rejected", "repaired", "removed", "near_duplicates")


def check(cfg: Config) -> None:
    """Raise `InputError` for what cannot be read, and for a step that is not there."""
    renderer(cfg.corpus.template)
    chain(cfg.corpus)
    expand(cfg.corpus.files)


@job
def main(cfg: Config) -> dict[str, Any]:

    check(cfg)
    files = expand(cfg.corpus.files, told=print)
    sources = {path: digest(path) for path in files}
    settings = {"corpus": cfg.corpus, "sources": sources, "steps": versions(cfg.corpus)}
    with open_stage(cfg, "corpus", reads=[], settings=settings) as stage:
        if stage.done:
            return stage.metrics
        connect(cfg.cluster)
        check_room(cfg.cluster, [{"CPU": cfg.cluster.cpus_per_worker}], "stage corpus", less="cluster.cpus_per_worker")
        folder = stage.folder / CHECKPOINTS / "shards"
        folder.mkdir(parents=True, exist_ok=True)
        made = make_shards(shards.parts(files, [absolute(path) for path in files]), cfg, folder)
        metrics = collect(made, folder, stage.folder, cfg.corpus, on_workers(cfg.cluster, folder))
        unchanged(sources)
        return stage.finish(metrics)


def collect(
    made: Iterable[Mapping[str, Any]], folder: Path, target: Path, cfg: Corpus, spread: Spread
) -> dict[str, Any]:
    """Make the corpus in `target` of the working shards in `folder`, whose counts come in order; its metrics.

    A file that cannot be read, or not to its end, counts as one bad record. Raises `InputError` for more bad records
    than `max_bad_fraction`, and for a split that would be empty.
    """
    limit = _Limit(cfg.max_documents)
    there = Shards(folder, [], [], 0)
    passed = 0
    with rejects_in(target, "corpus.max_bad_fraction", cfg.max_bad_fraction) as rejects:
        for counts in made:
            rows = limit.rows(folder, counts)
            _set_aside(folder, counts, rows, rejects)
            there.names.append(counts["name"])
            there.firsts.append(there.end)
            there = Shards(folder, there.names, there.firsts, there.end + rows)
            passed += counts["passed"]
            if limit.reached:
                break
    gone = copies.find(there, passed, cfg.near, spread) if passed else copies.NONE
    shards.save(folder / "gone.npy", gone)
    totals = gather.gather(there, cfg, target, spread)
    names = [*TOLD, *(f"{split}_{what}" for split in SPLITS for what in ("documents", "characters"))]
    return {name: totals[name] for name in names}


class _Limit:
    """Where `max_documents` ends the corpus: after the record that gives the last of so many different documents."""

    def __init__(self, documents: int) -> None:
        self.reached = False
        self._documents, self._seen = documents, set[bytes]()

    def rows(self, folder: Path, counts: Mapping[str, Any]) -> int:
        """How many of a shard's rows count."""
        if not self._documents:
            return int(counts["rows"])
        for row, found in enumerate(shards.read(folder, counts["name"], ["digest"])["digest"].to_pylist()):
            if found is not None:
                self._seen.add(found)
            if len(self._seen) == self._documents:
                self.reached = True
                return row + 1
        return int(counts["rows"])


def _set_aside(folder: Path, counts: Mapping[str, Any], rows: int, rejects: Rejects) -> None:
    """Count the first `rows` of a shard, and write down the bad ones among them."""
    if not counts["bad"]:
        rejects.read += rows
        return
    columns = ["file", "line", "offset", "reason", "whole_file"]
    for row in shards.read(folder, counts["name"], columns).slice(0, rows).to_pylist():
        if row["whole_file"]:
            rejects.unreadable(row["file"], InputError(row["reason"]))
            continue
        rejects.read += 1
        if row["reason"]:
            rejects.add(row["file"], row["line"], row["offset"], row["reason"])
            if rejects.bad == rejects.read == WHOLLY_BAD:
                rejects.check()


def make_shards(parts: Sequence[Part], cfg: Config, folder: Path) -> Iterator[dict[str, Any]]:
    """The counts of every working shard in order. One task reads a part, others clean its blocks side by side; a shard
    that is there already is not made again."""
    given = {"cfg": cfg.corpus, "folder": str(folder)}
    cpus = cfg.cluster.cpus_per_worker
    items = [{"part": json.dumps(asdict(part))} for part in parts]
    data = ray.data.from_items(items, override_num_blocks=min(len(items), TASKS))
    data.context.execution_options.preserve_order = True
    data.context.target_max_block_size = 2**20  # else blocks would be put together until they are 128 MiB
    # Half of what cleaning asks for: Ray would make one task of the two where they ask for the same.
    data = data.map_batches(_load, batch_size=1, fn_kwargs=given, num_cpus=cpus / 2)
    given["seed"] = cfg.run.seed
    data = data.map_batches(_make, batch_size=1, batch_format="pyarrow", fn_kwargs=given, num_cpus=cpus)
    with counter("corpus", len(parts)) as bar:
        records = 0
        for batch in data.iter_batches(batch_size=None, batch_format="pyarrow"):
            for told in batch.to_pylist():
                counts = json.loads(told["counts"])
                records += counts["rows"]
                bar.update(told["number"], records=records)
                yield counts
        bar.update(len(parts), records=records)


def _load(batch: dict[str, Any], cfg: Corpus, folder: str) -> Iterator[pa.Table]:
    """The blocks of a part, each as one row that no task cuts; of one whose shard is there the name alone."""
    part = Part(**json.loads(str(batch["part"][0])))
    end = Path(folder) / part.end
    if end.exists():
        names = [part.shard(number) for number in range(read_json(end)["blocks"])]
        if all((Path(folder) / f"{name}.json").exists() for name in names):
            for name in names:
                yield _row(part, name, b"")
            return
    number = -1
    for number, table in enumerate(shards.blocks(part, cfg)):
        name = part.shard(number)
        there = (Path(folder) / f"{name}.json").exists()
        yield _row(part, name, b"" if there else _packed(table))
    write_json(end, {"blocks": number + 1})


def _row(part: Part, name: str, content: bytes) -> pa.Table:
    return pa.table(
        {
            "number": [part.number],
            "name": [name],
            "content": pa.array([content], pa.large_binary()),
        }
    )


def _packed(table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as stream:
        stream.write_table(table)
    return bytes(sink.getvalue())


def _make(batch: pa.Table, cfg: Corpus, folder: str, seed: int) -> pa.Table:
    """The shard of a block, unless it is there; its counts."""
    told = []
    for row in batch.to_pylist():
        if row["content"]:
            table = pa.ipc.open_stream(row["content"]).read_all()
            counts = shards.make(Path(folder), row["name"], table, cfg, _steps(cfg), seed)
        else:
            counts = read_json(Path(folder) / f"{row['name']}.json")
        told.append(json.dumps(counts))
    return pa.table({"number": batch["number"], "counts": told})


_chains: dict[str, list[Named]] = {}  # of this worker


def _steps(cfg: Corpus) -> list[Named]:
    known = repr(cfg)
    if known not in _chains:
        _chains[known] = chain(cfg)
    return _chains[known]


def on_workers(cluster: Cluster, folder: Path) -> Spread:
    """Runs tasks on the cluster's workers, a few more than it has room for, and gives what they return in order."""

    def spread(work: copies.Work, common: Mapping[str, Any], items: Iterable[Mapping[str, Any]]) -> Iterator[Any]:
        remote = ray.remote(num_cpus=cluster.cpus_per_worker)(_with)
        shared, pending = ray.put(dict(common)), deque[Any]()
        room = 2 * max(1, int(ray.cluster_resources().get("CPU", 1.0) / cluster.cpus_per_worker))
        for item in items:
            if len(pending) == room:
                yield ray.get(pending.popleft())
            pending.append(remote.remote(work, folder, shared, dict(item)))
        while pending:
            yield ray.get(pending.popleft())

    return spread


def _with(work: copies.Work, folder: Path, common: Mapping[str, Any], item: Mapping[str, Any]) -> Any:
    return work(folder, {**common, **item})


if __name__ == "__main__":
    main()
