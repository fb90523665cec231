"""Documents to packed rows of token ids, for pretraining."""

from conf.entry import early, job

early(__name__)

import warnings
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import ray

from cluster.connect import connect
from cluster.progress import counter
from cluster.room import check_room
from cluster.run import open_stage
from cluster.storage import write_file, write_json
from conf.schema import Config
from moe.text.tokenizer import Tokenizer
from trainers.clean.ledger import kinds
from trainers.clean.page import frame, table
from trainers.clean.report import REPORT
from trainers.files.store import documents_in, shards
from trainers.rows.makeup import COUNTS, Makeup
from trainers.rows.packing import document, pack
from trainers.rows.rows import write_rows

SPLITS = ("train", "val")  # nothing is trained or tuned on test
BLOCK = 8 * 2**20  # bytes of text and ids that Ray hands on at a time, or one document
BATCH, BYTES = 1024, 2**20  # documents that an actor encodes at a time, and bytes after which it takes no more


def reads(cfg: Config, there: Collection[str]) -> list[str]:
    return ["corpus", "tokenizer"]


@job
def main(cfg: Config) -> dict[str, float]:

    with open_stage(cfg, "tokens", reads=reads(cfg, ()), settings={"tokens": _decisive(cfg)}) as stage:
        if stage.done:
            return stage.metrics
        connect(cfg.cluster)
        asked = [{"CPU": cfg.cluster.cpus_per_worker}] * cfg.tokens.actors + [{"CPU": 1.0}]  # and a task that reads
        check_room(cfg.cluster, asked, "stage tokens", less="tokens.actors or cluster.cpus_per_worker")
        metrics: dict[str, float] = {}
        told = {}
        corpus = stage.input("corpus")
        for split in SPLITS:
            made = Makeup(kinds(corpus, split, documents_in(corpus, split)))
            metrics |= tokenise(cfg, split, corpus, stage.input("tokenizer"), stage.folder / split, made)
            told[split] = made.told
        if told["train"]:
            write_json(stage.folder / f"{REPORT}.json", told)
            write_file(stage.folder / f"{REPORT}.html", page(told))
        return stage.finish(metrics)


def tokenise(cfg: Config, split: str, corpus: Path, tokenizer: Path, folder: Path, made: Makeup) -> dict[str, float]:
    """Encode, pack and write one split; returns its tokens, rows and fill (the share that is not padding)."""

    pieces = Tokenizer.load(tokenizer)
    # bytes, what a bits-per-byte figure divides by, are counted while the rows are made, and read after the last
    meta: dict[str, Any] = {"tokenizer": pieces.digest, "documents": documents_in(corpus, split), "bytes": 0}
    with counter(f"tokens {split}", meta["documents"]) as bar:
        documents = (
            document(ids, pieces.eos, pieces.opening)
            for ids in _counted(encode(cfg, split, corpus, tokenizer), bar, meta, made)
        )
        about = write_rows(
            folder,
            pack(documents, cfg.tokens.row_length, pad=pieces.pad),
            row_length=cfg.tokens.row_length,
            rows_per_shard=cfg.tokens.rows_per_shard,
            meta=meta,
        )
    slots = about["rows"] * cfg.tokens.row_length
    names = {"tokens": about["tokens"], "rows": about["rows"], "fill": about["tokens"] / slots if slots else 0.0}
    return {f"{split}_{name}": value for name, value in names.items()}


def page(told: Mapping[str, Mapping[str, Any]]) -> str:
    """What report.json holds as a page in the frame of the run's report."""
    sections = {}
    for split, by in told.items():
        for kind, found in by.items():
            rows = [[name, *(row[count] for count in COUNTS), f"{row['share']:.1%}"] for name, row in found.items()]
            sections[f"{split}, by {kind}"] = table([kind, *COUNTS, "share of tokens"], rows)
    about = (
        "What the rows are made of, a document that corpus.weights repeats as often as it is there. Marks between "
        'documents are no tokens here. <a href="../report.html">The run</a>'
    )
    return frame("The tokens", about, sections)


def encode(cfg: Config, split: str, corpus: Path, tokenizer: Path) -> Iterator[pa.Table]:
    """The ids of the documents of a split and the bytes that each has, in the corpus's order, from a pool of actors."""

    files = [str(path) for path in shards(corpus, split)]
    if not files:
        return
    data = ray.data.read_parquet(files, columns=["text"])
    data.context.execution_options.preserve_order = True
    data.context.target_max_block_size = BLOCK  # a number of documents bounds no memory: some have a megabyte each
    with warnings.catch_warnings():
        # Ray 2.60 warns of every option that it hands on, and has no other way to say max_restarts
        warnings.simplefilter("ignore")
        data = data.map_batches(
            _Encoder,
            fn_constructor_args=(str(tokenizer),),
            batch_size=None,
            batch_format="pyarrow",
            num_cpus=cfg.cluster.cpus_per_worker,
            compute=ray.data.ActorPoolStrategy(size=cfg.tokens.actors),
            max_restarts=0,  # an actor whose process dies ends the stage, which can be begun again
        )
    yield from data.iter_batches(batch_size=None, batch_format="pyarrow")


class _Encoder:
    """Lives in an actor: the tokenizer is loaded once."""

    def __init__(self, folder: str) -> None:

        self.tokenizer = Tokenizer.load(folder)

    def __call__(self, batch: "pa.Table") -> "pa.Table":

        sizes = pc.binary_length(batch["text"].cast(pa.large_binary())).cast(pa.int64())
        parts = [pa.array([], pa.list_(pa.int32()))]
        for start, stop in slices(sizes.to_pylist()):
            ids = self.tokenizer.encode_texts(batch["text"].slice(start, stop - start).to_pylist())
            parts.append(pa.array(ids, pa.list_(pa.int32())))
        return pa.table({"ids": pa.chunked_array(parts), "bytes": sizes})


def slices(sizes: Sequence[int]) -> Iterator[tuple[int, int]]:
    """(start, stop) of documents, whose bytes are given, that are encoded together."""
    start = held = 0
    for at, size in enumerate(sizes):
        held += size
        if at + 1 - start == BATCH or held >= BYTES:
            yield start, at + 1
            start, held = at + 1, 0
    if start < len(sizes):
        yield start, len(sizes)


def _counted(batches: Iterator[pa.Table], bar: Any, meta: dict[str, Any], made: Makeup) -> Iterator[list[int]]:
    """The ids of each document; what is counted of them is in `meta` and `made`."""
    for batch in batches:
        meta["bytes"] += pc.sum(batch["bytes"]).as_py() or 0
        made.add(pc.list_value_length(batch["ids"]).to_numpy())
        for ids in batch["ids"].to_pylist():
            bar.advance()
            yield ids


def _decisive(cfg: Config) -> dict[str, int]:
    # the number of actors changes no row
    return {"row_length": cfg.tokens.row_length, "rows_per_shard": cfg.tokens.rows_per_shard}


if __name__ == "__main__":
    main()
