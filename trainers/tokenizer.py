"""Train the tokenizer on the corpus, or take an existing one and extend it; measure it on the validation split."""

from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from conf.entry import job
from conf.schema import Config, InputError

if TYPE_CHECKING:
    from moe.tokenizer import Tokenizer

MEASURED = 20_000  # documents; more would not move the shares


@job
def main(cfg: Config) -> dict[str, float]:
    """Returns how well the tokenizer fits and, of one that was extended, how well it did before."""
    from cluster.run import open_stage
    from moe.tokenizer import FILE, Tokenizer

    path = cfg.tokenizer.path or cfg.parent.model
    if not path and (cfg.tokenizer.extend or cfg.tokenizer.merge):
        raise InputError(
            f"tokenizer.extend={cfg.tokenizer.extend} tokenizer.merge={cfg.tokenizer.merge!r} need an existing "
            "tokenizer; set tokenizer.path or parent.model"
        )
    taken = Tokenizer.load(path) if path else None
    second = Tokenizer.load(cfg.tokenizer.merge) if cfg.tokenizer.merge else None
    settings: dict[str, Any] = {"tokenizer": cfg.tokenizer}
    settings |= {name: {FILE: used.digest} for name, used in (("taken", taken), ("merge", second)) if used}
    with open_stage(cfg, "tokenizer", reads=["corpus"], settings=settings) as stage:
        if stage.done:
            return stage.metrics
        corpus = stage.input("corpus")
        tokenizer = (
            extended(taken, second, corpus, cfg) if taken else Tokenizer.train(texts(corpus, "train"), cfg.tokenizer)
        )
        tokenizer.save(stage.folder)
        metrics = measure(tokenizer, corpus)
        if taken and tokenizer.digest != taken.digest:
            from moe.vocabulary import report

            metrics |= report(taken, tokenizer, held_out(corpus), second=second)
            print(
                f"{tokenizer.size - taken.size} pieces added: {metrics['tokens_per_character_before']:.3f} tokens per "
                f"character before, {metrics['tokens_per_character']:.3f} after"
            )
        return stage.finish(metrics)


def extended(taken: "Tokenizer", second: "Tokenizer | None", corpus: Path, cfg: Config) -> "Tokenizer":
    """An existing tokenizer with the pieces that `tokenizer.merge` and `tokenizer.extend` ask for."""
    from moe.vocabulary import extend_with_characters, extend_with_pieces

    tokenizer = extend_with_pieces(taken, second) if second else taken
    if cfg.tokenizer.extend:
        tokenizer = extend_with_characters(tokenizer, texts(corpus, "train"), cfg.tokenizer.extend)
    return tokenizer


def texts(corpus: Path, split: str) -> Iterator[str]:
    """The documents of a split of the corpus stage, in order."""
    import pyarrow.parquet as pq

    for path in sorted(corpus.glob(f"{split}-*.parquet")):
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(columns=["text"]):
                yield from batch["text"].to_pylist()


def held_out(corpus: Path) -> list[str]:
    """Documents to measure on: of the validation split, or of the training split where that is empty."""
    return list(islice(texts(corpus, "val"), MEASURED)) or list(islice(texts(corpus, "train"), MEASURED))


def measure(tokenizer: "Tokenizer", corpus: Path) -> dict[str, float]:
    """How well it fits: pieces, tokens per character and the share of tokens that are no whole character."""
    documents = held_out(corpus)
    encoded = tokenizer.encode_batch(documents)
    tokens = sum(map(len, encoded))
    in_bytes = sum(index in tokenizer.byte_ids for ids in encoded for index in ids)
    return {
        "vocab_size": tokenizer.size,
        "tokens_per_character": tokens / sum(map(len, documents)),
        "byte_fallback_share": in_bytes / tokens,
    }


if __name__ == "__main__":
    main()
