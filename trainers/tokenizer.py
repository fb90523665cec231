"""Train the tokenizer on the corpus, or take an existing one and extend it; measure it on the validation split."""

from conf.entry import early, job

early(__name__)

from collections.abc import Collection
from pathlib import Path
from typing import Any

from cluster.run import open_stage
from conf.errors import InputError
from conf.schema import Config
from moe.text.chat import replacement
from moe.text.tokenizer import FILE, Tokenizer
from moe.text.vocabulary import extend_with_characters, extend_with_pieces, report
from trainers.files.store import held_out, spaced, texts


def reads(cfg: Config, there: Collection[str]) -> list[str]:
    return ["corpus"]


def check(cfg: Config) -> None:
    """Raise `InputError` for a tokenizer that is not there."""
    existing(cfg)


def existing(cfg: Config) -> tuple[Tokenizer | None, Tokenizer | None]:
    """The tokenizers that `tokenizer.path`, or `parent.model`, and `tokenizer.merge` name."""
    path = cfg.tokenizer.path or cfg.parent.model
    if not path and (cfg.tokenizer.extend or cfg.tokenizer.merge):
        raise InputError(
            f"tokenizer.extend={cfg.tokenizer.extend} tokenizer.merge={cfg.tokenizer.merge!r} need an existing "
            "tokenizer; set tokenizer.path or parent.model"
        )
    taken = Tokenizer.load(path) if path else None
    return taken, Tokenizer.load(cfg.tokenizer.merge) if cfg.tokenizer.merge else None


@job
def main(cfg: Config) -> dict[str, float]:
    """Returns how well the tokenizer fits and, of one that was extended, how well it did before."""

    taken, second = existing(cfg)
    settings: dict[str, Any] = {"tokenizer": cfg.tokenizer}
    settings |= {name: {FILE: used.digest} for name, used in (("taken", taken), ("merge", second)) if used}
    if taken and taken.form.template:
        settings["template"] = taken.form.digest
    with open_stage(cfg, "tokenizer", reads=reads(cfg, ()), settings=settings) as stage:
        if stage.done:
            return stage.metrics
        if taken and (line := replacement(taken)):
            print(line)
        corpus = stage.input("corpus")
        tokenizer = (
            extended(taken, second, corpus, cfg) if taken else Tokenizer.train(spaced(corpus, "train"), cfg.tokenizer)
        )
        tokenizer.save(stage.folder)
        metrics = measure(tokenizer, corpus)
        if taken and tokenizer.digest != taken.digest:
            metrics |= report(taken, tokenizer, held_out(corpus), second=second)
            print(
                f"{tokenizer.size - taken.size} pieces added: {metrics['tokens_per_character_before']:.3f} tokens per "
                f"character before, {metrics['tokens_per_character']:.3f} after"
            )
        return stage.finish(metrics)


def extended(taken: Tokenizer, second: Tokenizer | None, corpus: Path, cfg: Config) -> Tokenizer:
    """An existing tokenizer with the pieces that `tokenizer.merge` and `tokenizer.extend` ask for."""

    tokenizer = extend_with_pieces(taken, second) if second else taken
    if cfg.tokenizer.extend:
        tokenizer = extend_with_characters(tokenizer, texts(corpus, "train"), cfg.tokenizer.extend)
    return tokenizer


def measure(tokenizer: Tokenizer, corpus: Path) -> dict[str, float]:
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
