"""Raw text to clean documents: read, normalise, take the steps, drop copies, split into train, val and test."""

from conf.entry import early, job

early(__name__)

import json
import os
import warnings
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, replace
from itertools import accumulate
from pathlib import Path
from typing import Any

import ray

from cluster.agreement import CHECKPOINTS
from cluster.connect import connect
from cluster.progress import counter
from cluster.room import check_room
from cluster.run import open_stage
from conf.errors import InputError
from conf.knobs.running import Cluster
from conf.knobs.text import Corpus
from conf.schema import Config
from trainers.clean import blocks, copies, gather, report, score, shards
from trainers.clean.copies import Shards, Spread
from trainers.clean.shards import Part
from trainers.clean.steps import Tally, chain, versions
from trainers.files import encodings
from trainers.files.documents import SPLITS, renderer
from trainers.files.forgotten import FORGOTTEN, Forgotten
from trainers.files.formats import pages
from trainers.files.readers import absolute, digest, expand, unchanged
from trainers.files.rejects import Rejects, rejects_in

WHOLLY_BAD = 100_000  # records of which none is good: it is not worth to read a terabyte of them
TASKS = 1024  # of reading, at most
SHOWN = 16  # tasks from which on their progress is shown
TOLD = ("read", "kept", "duplicates", "empty", "rejected", "repaired", "removed", "near_duplicates")


def check(cfg: Config) -> None:
    """Raise `InputError` for what cannot be read, and for a step that is not there."""
    renderer(cfg.corpus.template)
    chain(cfg.corpus)
    expand(cfg.corpus.files, asked_format=cfg.corpus.format)
    encodings.check(cfg.corpus.encoding)
    pages.check_reader(cfg.corpus.html)
    expand(cfg.corpus.against, "corpus.against")
    if cfg.corpus.score:
        score.check(cfg.corpus.score)
    score.check_weights(cfg.corpus)


@job
def main(cfg: Config) -> dict[str, Any]:

    check(cfg)
    files = expand(cfg.corpus.files, told=print, asked_format=cfg.corpus.format)
    samples = expand(cfg.corpus.against, "corpus.against")
    sources = {path: digest(path) for path in [*files, *samples]}
    settings: dict[str, Any] = {"corpus": cfg.corpus, "sources": sources, "steps": versions(cfg.corpus)}
    settings |= Forgotten.of(cfg.run.folder / FORGOTTEN).setting
    if cfg.corpus.score:
        settings["model"] = score.digests(cfg.corpus.score)
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
    passed, tallies = 0, {step.name: Tally() for step in chain(cfg)}
    with rejects_in(target, "corpus.max_bad_fraction", cfg.max_bad_fraction) as rejects:
        for counts in made:
            rows = limit.rows(folder, counts)
            _set_aside(folder, counts, rows, rejects)
            there.names.append(counts["name"])
            there.firsts.append(there.end)
            there = Shards(folder, there.names, there.firsts, there.end + rows)
            passed += counts["passed"]
            for step, tally in counts["tallies"].items():
                tallies[step].add(Tally.of(tally))
            if limit.reached:
                break
    gone = copies.exact_copies(there, passed, spread)
    if cfg.score:
        score.score(there, str(Path(cfg.score).absolute()), spread)
    if cfg.near:
        gone = copies.together(gone, copies.near_copies(there, passed, cfg.near, spread))
    shards.save(folder / "gone.npy", gone)
    totals = gather.gather(there, cfg, target, spread)
    report.write(there, target, totals, tallies, spread, score.sources(cfg))
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
    samples = [absolute(path) for path in expand(cfg.corpus.against, "corpus.against")]
    given: dict[str, Any] = {"cfg": replace(cfg.corpus, against=samples), "folder": str(folder)}
    cpus = cfg.cluster.cpus_per_worker
    items = [{"part": json.dumps(asdict(part))} for part in parts]
    data = ray.data.from_items(items, override_num_blocks=min(len(items), TASKS))
    data.context.execution_options.preserve_order = True
    data.context.target_max_block_size = 2**20  # else blocks would be put together until they are 128 MiB
    # Reading asks for no CPU: a task that waits for its blocks to be cleaned must not hold what cleaning asks for. And
    # Ray would make one task of the two if they asked for the same.
    room = side_by_side(cfg.cluster)
    readers, cleaners = (ray.data.TaskPoolStrategy(size=size) for size in (min(len(items), room), room))
    data = data.map_batches(blocks.load, batch_size=1, fn_kwargs=dict(given), num_cpus=0, compute=readers)
    given |= {"seed": cfg.run.seed, "forgotten": str(cfg.run.folder.absolute() / FORGOTTEN)}
    more: dict[str, Any] = {"batch_format": "pyarrow", "fn_kwargs": given, "num_cpus": cpus, "compute": cleaners}
    data = data.map_batches(blocks.make, batch_size=1, **more)
    before = [0, *accumulate(sum(part.sizes) for part in parts)]  # bytes, for who waits
    with counter("corpus bytes", before[-1]) as bar, warnings.catch_warnings():
        # of a small corpus, that it has fewer blocks than there is room for
        warnings.filterwarnings("ignore", "The maximum number of concurrent tasks")
        records = 0
        for batch in data.iter_batches(batch_size=None, batch_format="pyarrow"):
            for told in batch.to_pylist():
                counts = json.loads(told["counts"])
                records += counts["rows"]
                bar.update(before[told["number"]] + told["read"], records=records)
                yield counts
        bar.update(before[-1], records=records)


def side_by_side(cluster: Cluster) -> int:
    """How many tasks at a time. A Ray that was started here says that it has more CPUs than there are: each task more
    than these would cost the start of a process, and save no time."""
    room = int(ray.cluster_resources().get("CPU", 1.0) / cluster.cpus_per_worker)
    return max(1, room if os.environ.get("RAY_ADDRESS") else min(room, os.cpu_count() or 1))


def on_workers(cluster: Cluster, folder: Path) -> Spread:
    """Runs tasks on the cluster's workers, as many at a time as it has room for; what they return comes in order."""

    def spread(work: copies.Work, common: Mapping[str, Any], items: Iterable[Mapping[str, Any]]) -> Iterator[Any]:
        remote = ray.remote(num_cpus=cluster.cpus_per_worker)(blocks.task)
        shared, pending = ray.put(dict(common)), deque[Any]()
        room = side_by_side(cluster)
        given = list(items)
        with counter(f"corpus {work.__name__}", len(given)) if len(given) >= SHOWN else nullcontext() as bar:
            for item in [*given, *[None] * room]:
                if pending and (item is None or len(pending) == room):
                    yield ray.get(pending.popleft())
                    if bar:
                        bar.advance()
                if item is not None:
                    pending.append(remote.remote(work, folder, shared, dict(item)))

    return spread


if __name__ == "__main__":
    main()
