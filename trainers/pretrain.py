"""Pretrain the MoE decoder on packed rows by next-token cross-entropy."""

from conf.entry import job
from conf.schema import Config


@job
def main(cfg: Config) -> dict[str, float]:
    """Read the tokens stage, write the base model; returns held-out loss, perplexity and bits per byte."""
    from cluster.connect import connect
    from cluster.run import open_stage
    from moe import folder
    from moe.decoder import new_decoder
    from moe.tokenizer import Tokenizer
    from trainers.evaluate import check_tokenizer, held_out
    from trainers.loop import Plan, fit
    from trainers.objectives import LANGUAGE_MODEL
    from trainers.rows import Rows

    settings = {
        "model": cfg.model,
        "optim": cfg.optim,
        "pretrain": cfg.pretrain,
        "cluster.workers": cfg.cluster.workers,
    }
    with open_stage(cfg, "base", reads=["tokenizer", "tokens"], settings=settings) as stage:
        if stage.done:
            return stage.metrics
        connect(cfg.cluster)
        tokenizer = Tokenizer.load(stage.input("tokenizer"))
        rows = stage.input("tokens")
        check_tokenizer(Rows(rows / "train"), tokenizer)
        plan = Plan.of(
            cfg,
            "base",
            cfg.pretrain,
            start=lambda: new_decoder(cfg.model, tokenizer.padded_size, seed=cfg.run.seed),
            objective=LANGUAGE_MODEL,
            rows=rows / "train",
            held_out=rows / "val",
        )
        model = fit(plan)
        folder.save(model, stage.folder, stop=(tokenizer.eos,), pad=tokenizer.pad)
        tokenizer.save(stage.folder)
        return stage.finish(held_out(model, tokenizer, Rows(rows / "val"), limit=cfg.evaluate.rows))


if __name__ == "__main__":
    main()
