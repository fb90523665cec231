"""Train the tokenizer on the corpus, or take an existing one, and measure it on the validation split."""

from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from conf.entry import job
from conf.schema import Config

if TYPE_CHECKING:
    from moe.tokenizer import Tokenizer

MEASURED = 20_000  # documents; more would not move the shares


@job
def main(cfg: Config) -> dict[str, float]:
    from cluster.run import open_stage
    from moe.tokenizer import FILE, Tokenizer

    settings: dict[str, Any] = {"tokenizer": cfg.tokenizer}
    if cfg.tokenizer.path:
        taken = Tokenizer.load(cfg.tokenizer.path)
        settings["taken"] = {FILE: taken.digest}
    with open_stage(cfg, "tokenizer", reads=["corpus"], settings=settings) as stage:
        if stage.done:
            return stage.metrics
        corpus = stage.input("corpus")
        tokenizer = taken if cfg.tokenizer.path else Tokenizer.train(texts(corpus, "train"), cfg.tokenizer)
        tokenizer.save(stage.folder)
        return stage.finish(measure(tokenizer, corpus))


def texts(corpus: Path, split: str) -> Iterator[str]:
    """The documents of a split of the corpus stage, in order."""
    import pyarrow.parquet as pq

    for path in sorted(corpus.glob(f"{split}-*.parquet")):
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(columns=["text"]):
                yield from batch["text"].to_pylist()


def measure(tokenizer: "Tokenizer", corpus: Path) -> dict[str, float]:
    """How well it fits: pieces, tokens per character and the share of tokens that are single bytes."""
    held_out = list(islice(texts(corpus, "val"), MEASURED)) or list(islice(texts(corpus, "train"), MEASURED))
    encoded = tokenizer.encode_batch(held_out)
    tokens = sum(map(len, encoded))
    in_bytes = sum(index in tokenizer.byte_ids for ids in encoded for index in ids)
    return {
        "vocab_size": tokenizer.size,
        "tokens_per_character": tokens / sum(map(len, held_out)),
        "byte_fallback_share": in_bytes / tokens,
    }


if __name__ == "__main__":
    main()
