"""Documents to packed rows of token ids, for pretraining."""

from conf.entry import early, job

early(__name__)

import warnings
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import ray

from cluster.connect import connect
from cluster.progress import counter
from cluster.room import check_room
from cluster.run import open_stage
from conf.schema import Config
from moe.text.tokenizer import Tokenizer
from trainers.files.store import shards, texts
from trainers.rows.packing import document, pack
from trainers.rows.rows import write_rows

SPLITS = ("train", "val")  # nothing is trained or tuned on test
BATCH = 1024  # documents an actor encodes at a time


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
        for split in SPLITS:
            metrics |= tokenise(cfg, split, stage.input("corpus"), stage.input("tokenizer"), stage.folder / split)
        return stage.finish(metrics)


def tokenise(cfg: Config, split: str, corpus: Path, tokenizer: Path, folder: Path) -> dict[str, float]:
    """Encode, pack and write one split; returns its tokens, rows and fill (the share that is not padding)."""

    pieces = Tokenizer.load(tokenizer)
    sizes = [len(text.encode()) for text in texts(corpus, split)]
    with counter(f"tokens {split}", len(sizes)) as bar:
        documents = (
            document(ids, pieces.eos, pieces.opening) for ids in _counted(encode(cfg, split, corpus, tokenizer), bar)
        )
        about = write_rows(
            folder,
            pack(documents, cfg.tokens.row_length, pad=pieces.pad),
            row_length=cfg.tokens.row_length,
            rows_per_shard=cfg.tokens.rows_per_shard,
            # bytes: what a bits-per-byte figure divides by
            meta={"tokenizer": pieces.digest, "documents": len(sizes), "bytes": sum(sizes)},
        )
    slots = about["rows"] * cfg.tokens.row_length
    names = {"tokens": about["tokens"], "rows": about["rows"], "fill": about["tokens"] / slots if slots else 0.0}
    return {f"{split}_{name}": value for name, value in names.items()}


def encode(cfg: Config, split: str, corpus: Path, tokenizer: Path) -> Iterator[list[int]]:
    """The ids of each document of a split, in the corpus's order, from a pool of actors."""

    files = [str(path) for path in shards(corpus, split)]
    if not files:
        return
    data = ray.data.read_parquet(files, columns=["text"])
    data.context.execution_options.preserve_order = True
    with warnings.catch_warnings():
        # Ray 2.60 warns of every option that it hands on, and has no other way to say max_restarts
        warnings.simplefilter("ignore")
        data = data.map_batches(
            _Encoder,
            fn_constructor_args=(str(tokenizer),),
            batch_size=BATCH,
            batch_format="pyarrow",
            num_cpus=cfg.cluster.cpus_per_worker,
            compute=ray.data.ActorPoolStrategy(size=cfg.tokens.actors),
            max_restarts=0,  # an actor whose process dies ends the stage, which can be begun again
        )
    for batch in data.iter_batches(batch_size=None, batch_format="pyarrow"):
        yield from batch["ids"].to_pylist()


class _Encoder:
    """Lives in an actor: the tokenizer is loaded once."""

    def __init__(self, folder: str) -> None:

        self.tokenizer = Tokenizer.load(folder)

    def __call__(self, batch: "pa.Table") -> "pa.Table":

        ids = self.tokenizer.encode_texts(batch["text"].to_pylist())
        return pa.table({"ids": pa.array(ids, pa.list_(pa.int32()))})


def _counted(documents: Iterator[list[int]], bar: Any) -> Iterator[list[int]]:
    for ids in documents:
        bar.advance()
        yield ids


def _decisive(cfg: Config) -> dict[str, int]:
    # the number of actors changes no row
    return {"row_length": cfg.tokens.row_length, "rows_per_shard": cfg.tokens.rows_per_shard}


if __name__ == "__main__":
    main()
