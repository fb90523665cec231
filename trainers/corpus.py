"""Raw text to clean documents: read, normalise, drop duplicates, split into train, val and test."""

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from conf.entry import job
from conf.schema import Config, Corpus, InputError

if TYPE_CHECKING:
    import pyarrow as pa

SOURCES_PER_BLOCK = 4096
BYTES_PER_BLOCK = 8 * 2**20
ROWS_PER_FILE = 50_000
REJECTS = "rejects.jsonl"


@job
def main(cfg: Config) -> dict[str, Any]:
    from cluster.connect import connect
    from cluster.run import open_stage
    from cluster.storage import sha256
    from trainers.documents import renderer
    from trainers.readers import expand

    renderer(cfg.corpus.template)  # a template that cannot work is refused before anything starts
    files = expand(cfg.corpus.files)
    settings = {"corpus": cfg.corpus, "sources": {path: sha256(path) for path in files}}
    with open_stage(cfg, "corpus", reads=[], settings=settings) as stage:
        if stage.done:
            return stage.metrics
        connect(cfg.cluster)
        return stage.finish(collect(read(files, cfg), stage.folder, cfg.corpus, cfg.run.seed))


def read(files: list[str], cfg: Config) -> Iterator[dict[str, Any]]:
    """Every record of `files`, in their order: file, line, offset, text, record, or the reason why there is no text."""
    import ray

    items = [{"file": path, "path": str(Path(path).absolute())} for path in files]
    resources = {"num_cpus": cfg.cluster.cpus_per_worker}
    limit = cfg.corpus.max_line_bytes
    data = ray.data.from_items(items, override_num_blocks=len(items))
    data.context.execution_options.preserve_order = True
    data = data.map_batches(_load, batch_size=1, fn_kwargs={"limit": limit}, **resources)
    # batch_size=None: a block as it was read, so that the blocks of one file are cleaned side by side
    clean = {"batch_size": None, "batch_format": "pyarrow", "fn_kwargs": {"template": cfg.corpus.template}}
    data = data.map_batches(_clean, **clean, **resources)
    for batch in data.iter_batches(batch_size=None, batch_format="pyarrow"):
        yield from batch.to_pylist()


def collect(records: Iterator[dict[str, Any]], folder: Path, cfg: Corpus, seed: int) -> dict[str, Any]:
    """Write the documents among `records` into `folder`, each text once, and the bad ones to rejects.jsonl.

    Returns the stage's metrics. Raises `InputError` for more bad records than `max_bad_fraction`, for a whole file that
    cannot be read, and for a split that would be empty.
    """
    from trainers.documents import SPLITS, identity, split_of
    from trainers.readers import place

    for leftover in folder.glob("*.parquet"):
        leftover.unlink()
    counts: Counter[str] = Counter()
    seen: set[bytes] = set()
    first_bad = ""
    writers = {split: _Writer(folder, split) for split in SPLITS}
    with open(folder / REJECTS, "w", encoding="utf-8") as rejects:
        for number, row in enumerate(records):
            if row["whole_file"]:
                raise InputError(row["reason"])
            counts["read"] += 1
            if row["reason"]:
                counts["rejected"] += 1
                bad = place(row["file"], row["line"], row["offset"], row["reason"])
                first_bad = first_bad or bad
                if not cfg.max_bad_fraction:
                    raise InputError(bad)
                where = {name: row[name] for name in ("file", "line", "offset", "reason")}
                rejects.write(json.dumps(where, ensure_ascii=False) + "\n")
            elif not row["text"]:
                counts["empty"] += 1
            elif (digest := identity(row["text"])) in seen:
                counts["duplicates"] += 1
            else:
                seen.add(digest)
                split = split_of(row["text"], cfg, seed)
                writers[split].add({"id": number, "text": row["text"], "record": row["record"]})
                counts["kept"] += 1
                counts[f"{split}_documents"] += 1
                counts[f"{split}_characters"] += len(row["text"])
                if counts["kept"] == cfg.max_documents:
                    break
    for writer in writers.values():
        writer.close()
    _check(counts, cfg, first_bad)
    names = ["read", "kept", "duplicates", "empty", "rejected"]
    names += [f"{split}_{what}" for split in SPLITS for what in ("documents", "characters")]
    return {name: counts[name] for name in names}


def _check(counts: Counter[str], cfg: Corpus, first_bad: str) -> None:
    read, bad, kept = counts["read"], counts["rejected"], counts["kept"]
    if bad > cfg.max_bad_fraction * read:
        raise InputError(
            f"{first_bad}; {bad} of {read} records are bad, more than corpus.max_bad_fraction={cfg.max_bad_fraction}"
        )
    if not kept:
        raise InputError(f"corpus.files={cfg.files}: none of the {read} records has any text")
    for split, share in (("val", cfg.val_fraction), ("test", cfg.test_fraction), ("train", 1.0)):
        if share and not counts[f"{split}_documents"]:
            knob = f"corpus.{split}_fraction={share}" if split != "train" else f"corpus.val_fraction={cfg.val_fraction}"
            raise InputError(
                f"{knob} leaves the {split} split of {kept} documents empty; give more text or another share"
            )


class _Writer:
    """Parquet files of one split, each of at most ROWS_PER_FILE documents."""

    def __init__(self, folder: Path, split: str) -> None:
        self._folder, self._split, self._files = folder, split, 0
        self._rows: list[dict[str, Any]] = []

    def add(self, row: dict[str, Any]) -> None:
        self._rows.append(row)
        if len(self._rows) == ROWS_PER_FILE:
            self.close()

    def close(self) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        if self._rows:
            schema = pa.schema({"id": pa.int64(), "text": pa.string(), "record": pa.string()})
            path = self._folder / f"{self._split}-{self._files:05d}.parquet"
            pq.write_table(pa.Table.from_pylist(self._rows, schema), path, compression="zstd")
            self._files += 1
            self._rows = []


def _load(batch: dict[str, Any], limit: int) -> Iterator[dict[str, Any]]:
    """Blocks of a file's records as bytes. Runs on a worker; one that cannot be read ends in a row saying so."""
    from trainers.readers import read_sources

    file = str(batch["file"][0])
    rows: list[tuple[int, int, bytes, str, bool]] = []
    size = 0
    try:
        for source in read_sources(str(batch["path"][0]), limit):
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
    import pyarrow as pa

    names = ("line", "offset", "content", "reason", "whole_file")
    kinds = (pa.int64(), pa.int64(), pa.binary(), pa.string(), pa.bool_())
    columns = {
        name: pa.array(values, kind) for name, kind, values in zip(names, kinds, zip(*rows, strict=True), strict=True)
    }
    return pa.table({"file": pa.array([file] * len(rows)), **columns})


def _clean(batch: "pa.Table", template: str) -> "pa.Table":
    """Contents to text and record, or to a reason. Runs on a worker."""
    import pyarrow as pa

    from trainers.documents import normalise, renderer
    from trainers.readers import BadRecord, parse

    render = renderer(template)
    texts, records, reasons = [], [], []
    for row in batch.to_pylist():
        text, kept, reason = "", "", row["reason"]
        if not reason:
            try:
                record = parse(row["file"], row["content"])
                text, kept = normalise(render(record)), json.dumps(record, ensure_ascii=False)
            except BadRecord as error:
                reason = str(error)
        texts.append(text)
        records.append(kept)
        reasons.append(reason)
    places = {name: batch[name] for name in ("file", "line", "offset", "whole_file")}
    new = {"text": texts, "record": records, "reason": reasons}
    return pa.table({**places, **{name: pa.array(values, pa.string()) for name, values in new.items()}})


if __name__ == "__main__":
    main()
