"""Evaluate a model folder on the run's held-out split: perplexity, bits per byte, and its answers under the rules."""

from typing import TYPE_CHECKING

from conf.entry import job
from conf.schema import Config

if TYPE_CHECKING:
    from moe.decoder import Decoder
    from moe.tokenizer import Tokenizer
    from trainers.rows import Rows


@job
def main(cfg: Config) -> dict[str, float]:
    """Print and return the metrics of `evaluate.model`, or of the newest of rl, chat, base in the run."""
    from cluster.run import newest_model
    from moe import folder
    from moe.evaluation import answers
    from moe.tokenizer import Tokenizer
    from trainers.rows import Rows

    path = newest_model(cfg, cfg.evaluate.model, among=("rl", "chat", "base"), knob="evaluate.model")
    model, tokenizer = folder.load(path), Tokenizer.load(path)
    run = cfg.run.folder
    metrics = held_out(model, tokenizer, Rows(run / "tokens" / "val"), limit=cfg.evaluate.rows)
    metrics |= answers(model, tokenizer, run / "tasks", cfg.evaluate, seed=cfg.run.seed)[0]
    print(f"{path}")
    for name, value in metrics.items():
        print(f"  {name:<16} {value:.4g}")
    return metrics


def held_out(model: "Decoder", tokenizer: "Tokenizer", rows: "Rows", *, limit: int) -> dict[str, float]:
    """{"loss" (nats per target), "perplexity", "bits_per_byte"} over the first `limit` packed rows."""
    import torch

    from moe.evaluation import bits_per_byte, perplexity, piece_bytes
    from trainers.objectives import in_turn, language_loss

    check_tokenizer(rows, tokenizer)
    sizes, nats, targets, text_bytes = piece_bytes(tokenizer), 0.0, 0, 0
    with torch.no_grad():
        for batch in in_turn(rows, limit):
            loss = language_loss(model, batch)
            nats += float(loss.total)
            targets += loss.units
            text_bytes += int(sizes[batch["tokens"][batch["loss"] == 1]].sum())
    return {
        "loss": nats / max(1, targets),
        "perplexity": perplexity(nats, targets),
        "bits_per_byte": bits_per_byte(nats, text_bytes),
    }


def check_tokenizer(rows: "Rows", tokenizer: "Tokenizer") -> None:
    """Raise `InputError` if the rows were made with another tokenizer than the model's."""
    from conf.schema import InputError

    if rows.tokenizer != tokenizer.digest:
        raise InputError(
            f"{rows.folder}: made with tokenizer {rows.tokenizer[:12]}, the model has {tokenizer.digest[:12]}; "
            "run trainers.tokens again with the model's tokenizer (tokenizer.path=<model folder>)"
        )


if __name__ == "__main__":
    main()
