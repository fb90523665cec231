"""Raw text to clean documents: read, normalise, drop duplicates, split into train, val and test."""

from conf.entry import early, job

early(__name__)

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import ray

from cluster.connect import connect
from cluster.room import check_room
from cluster.run import open_stage
from conf.errors import InputError
from conf.knobs.text import Corpus, Txt
from conf.schema import Config
from trainers.files.damage import repaired
from trainers.files.documents import SPLITS, clean, fields, identity, renderer, share_of, split_of
from trainers.files.readers import BadRecord, absolute, digest, expand, parse, read_sources, unchanged
from trainers.files.rejects import rejects_in

TASKS = 1024  # of reading, at most: a task for each of a million small files would cost more than they do
SOURCES_PER_BLOCK = 4096
BYTES_PER_BLOCK = 8 * 2**20
ROWS_PER_FILE = 50_000
WHOLLY_BAD = 100_000  # records of which none is good: it is not worth to read a terabyte of them


def check(cfg: Config) -> None:
    """Raise `InputError` for what cannot be read."""
    renderer(cfg.corpus.template)
    expand(cfg.corpus.files)


@job
def main(cfg: Config) -> dict[str, Any]:

    check(cfg)
    files = expand(cfg.corpus.files, told=print)
    sources = {path: digest(path) for path in files}
    settings = {"corpus": cfg.corpus, "sources": sources}
    with open_stage(cfg, "corpus", reads=[], settings=settings) as stage:
        if stage.done:
            return stage.metrics
        connect(cfg.cluster)
        check_room(cfg.cluster, [{"CPU": cfg.cluster.cpus_per_worker}], "stage corpus", less="cluster.cpus_per_worker")
        metrics = collect(read(files, cfg), stage.folder, cfg.corpus, cfg.run.seed)
        unchanged(sources)
        return stage.finish(metrics)


def read(files: list[str], cfg: Config) -> Iterator[dict[str, Any]]:
    """Every record of `files`, in their order: file, line, offset, text, record, or the reason why there is no text."""

    items = [{"file": path, "path": absolute(path)} for path in files]
    resources = {"num_cpus": cfg.cluster.cpus_per_worker}
    given = {
        "limit": cfg.corpus.max_line_bytes,
        "needed": fields(cfg.corpus.template),
        "txt": cfg.corpus.txt,
        "keep": cfg.corpus.keep,
    }
    data = ray.data.from_items(items, override_num_blocks=min(len(items), TASKS))
    data.context.execution_options.preserve_order = True
    data = data.map_batches(_load, batch_size=1, fn_kwargs=given, **resources)
    # batch_size=None: a block as it was read, so that the blocks of one file are cleaned side by side
    clean = {
        "batch_size": None,
        "batch_format": "pyarrow",
        "fn_kwargs": {"template": cfg.corpus.template, "keep": cfg.corpus.keep},
    }
    data = data.map_batches(_clean, **clean, **resources)
    for batch in data.iter_batches(batch_size=None, batch_format="pyarrow"):
        yield from batch.to_pylist()


def collect(records: Iterator[dict[str, Any]], folder: Path, cfg: Corpus, seed: int) -> dict[str, Any]:
    """Write the documents among `records` into `folder`, each text once, and the bad ones to rejects.jsonl.

    A file that cannot be read, or not to its end, counts as one bad record. Returns the stage's metrics. Raises
    `InputError` for more bad records than `max_bad_fraction`, and for a split that would be empty.
    """

    for leftover in folder.glob("*.parquet"):
        leftover.unlink()
    counts: Counter[str] = Counter()
    seen: set[bytes] = set()
    writers = {split: _Writer(folder, split) for split in SPLITS}
    with rejects_in(folder, "corpus.max_bad_fraction", cfg.max_bad_fraction) as rejects:
        for number, row in enumerate(records):
            if row["whole_file"]:
                rejects.unreadable(row["file"], InputError(row["reason"]))
                continue
            rejects.read += 1
            if row["reason"]:
                rejects.add(row["file"], row["line"], row["offset"], row["reason"])
                if rejects.bad == rejects.read == WHOLLY_BAD:
                    rejects.check()
            elif not row["text"]:
                counts["empty"] += 1
            elif (digest := identity(row["text"])) in seen:
                counts["duplicates"] += 1
            else:
                seen.add(digest)
                split = split_of(row["text"], cfg, seed)
                writers[split].add({"id": number, "text": row["text"], "record": row["record"]})
                counts["kept"] += 1
                counts["repaired"] += row["repaired"]
                counts[f"{split}_documents"] += 1
                counts[f"{split}_characters"] += len(row["text"])
                if counts["kept"] == cfg.max_documents:
                    break
    fill(writers, counts, cfg, seed)
    for writer in writers.values():
        writer.close()
    counts["read"], counts["rejected"] = rejects.read, rejects.bad
    _check(counts, cfg)
    names = ["read", "kept", "duplicates", "empty", "rejected", "repaired"]
    names += [f"{split}_{what}" for split in SPLITS for what in ("documents", "characters")]
    return {name: counts[name] for name in names}


def fill(writers: Mapping[str, "_Writer"], counts: Counter[str], cfg: Corpus, seed: int) -> None:
    """Give each split that a small corpus leaves empty a document of the largest, the one whose hash is the nearest
    to it; train comes before val, and val before test. What has been written to the disk stays where it is."""
    wanted = {"train": 1.0, "val": cfg.val_fraction, "test": cfg.test_fraction}
    for split in [name for name, share in wanted.items() if share and not counts[f"{name}_documents"]]:
        largest = max(writers, key=lambda name: counts[f"{name}_documents"])
        if counts[f"{largest}_documents"] < 2 or writers[largest].written:
            return
        pick = max if split == "train" else min  # test has the lowest shares, then val
        row = pick(writers[largest].rows, key=lambda row: share_of(row["text"], seed))
        writers[largest].rows.remove(row)
        writers[split].add(row)
        for name, by in ((largest, -1), (split, 1)):
            counts[f"{name}_documents"] += by
            counts[f"{name}_characters"] += by * len(row["text"])
        print(f"corpus: {counts['kept']} documents left the {split} split empty; one of the {largest} split is in it")


def _check(counts: Counter[str], cfg: Corpus) -> None:
    read, kept = counts["read"], counts["kept"]
    if not kept:
        raise InputError(f"corpus.files={cfg.files}: none of the {read} records has any text")
    # two documents are one to train on and one to validate; nothing hangs on the test split
    few = kept == 2 and cfg.val_fraction > 0
    for split, share in (("val", cfg.val_fraction), ("test", cfg.test_fraction * (not few)), ("train", 1.0)):
        if share and not counts[f"{split}_documents"]:
            knob = f"corpus.{split}_fraction={share}" if split != "train" else f"corpus.val_fraction={cfg.val_fraction}"
            raise InputError(
                f"{knob} leaves the {split} split of {kept} documents empty; give more text or another share"
            )


class _Writer:
    """Parquet files of one split, each of at most ROWS_PER_FILE documents."""

    def __init__(self, folder: Path, split: str) -> None:
        self._folder, self._split, self.written = folder, split, 0
        self.rows: list[dict[str, Any]] = []

    def add(self, row: dict[str, Any]) -> None:
        self.rows.append(row)
        if len(self.rows) == ROWS_PER_FILE:
            self.close()

    def close(self) -> None:

        if self.rows:
            schema = pa.schema({"id": pa.int64(), "text": pa.string(), "record": pa.string()})
            path = self._folder / f"{self._split}-{self.written:05d}.parquet"
            pq.write_table(pa.Table.from_pylist(self.rows, schema), path, compression="zstd")
            self.written += 1
            self.rows = []


def _load(
    batch: dict[str, Any], limit: int, needed: list[str], txt: Txt = Txt.file, keep: Sequence[str] = ()
) -> Iterator[dict[str, Any]]:
    """Blocks of a file's records as bytes. Runs on a worker; one that cannot be read ends in a row saying so."""

    file = str(batch["file"][0])
    rows: list[tuple[int, int, bytes, str, bool]] = []
    size = 0
    try:
        path, knob = str(batch["path"][0]), "corpus.max_line_bytes"
        for source in read_sources(path, limit, needed, txt, keep=keep and [*keep, *needed], knob=knob):
            rows.append((source.line, source.offset, source.content, source.reason, False))
            size += len(source.content)
            if len(rows) == SOURCES_PER_BLOCK or size >= BYTES_PER_BLOCK:
                yield _block(file, rows)
                rows, size = [], 0
    except InputError as error:
        rows.append((0, 0, b"", str(error).replace(str(batch["path"][0]), file), True))
    if rows:
        yield _block(file, rows)


def _block(file: str, rows: list[tuple[int, int, bytes, str, bool]]) -> "pa.Table":

    names = ("line", "offset", "content", "reason", "whole_file")
    kinds = (pa.int64(), pa.int64(), pa.binary(), pa.string(), pa.bool_())
    columns = {
        name: pa.array(values, kind) for name, kind, values in zip(names, kinds, zip(*rows, strict=True), strict=True)
    }
    return pa.table({"file": pa.array([file] * len(rows)), **columns})


def _clean(batch: "pa.Table", template: str, keep: Sequence[str] = ()) -> "pa.Table":
    """Contents to text and record, or to a reason. Runs on a worker."""

    render = renderer(template)
    kept_fields = {*keep, *fields(template)}
    texts, records, reasons, mended = [], [], [], []
    for row in batch.to_pylist():
        text, kept, reason, whole = "", "", row["reason"], True
        if not reason:
            try:
                given = parse(row["file"], row["content"])
                if keep:
                    given = {name: value for name, value in given.items() if name in kept_fields}
                record = {name: repaired(value) if isinstance(value, str) else value for name, value in given.items()}
                text, kept, whole = clean(render(record)), json.dumps(record, ensure_ascii=False), record == given
            except BadRecord as error:
                reason = str(error)
        texts.append(text)
        records.append(kept)
        reasons.append(reason)
        mended.append(not whole)
    places = {name: batch[name] for name in ("file", "line", "offset", "whole_file")}
    new = {"text": texts, "record": records, "reason": reasons}
    texts_of = {name: pa.array(values, pa.string()) for name, values in new.items()}
    return pa.table({**places, **texts_of, "repaired": pa.array(mended, pa.bool_())})


if __name__ == "__main__":
    main()
