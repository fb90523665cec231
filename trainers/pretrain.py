"""Pretrain the MoE decoder on packed rows by next-token cross-entropy, from random weights or from `parent.model`."""

from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from conf.entry import job
from conf.schema import Config, InputError, Pretrain

if TYPE_CHECKING:
    from moe.decoder import Decoder
    from moe.tokenizer import Tokenizer
    from trainers.course import Course


@job
def main(cfg: Config) -> dict[str, float]:
    """Read the tokens stage, write the base model; returns held-out loss, perplexity, bits per byte and its size."""
    return pretrain(cfg, "base")


def pretrain(cfg: Config, name: str) -> dict[str, float]:
    """Make the stage `name`: a model as `cfg` says, trained on the run's tokens."""
    cfg = _absolute(cfg)
    from cluster.connect import connect
    from cluster.run import open_stage
    from cluster.storage import newest_checkpoint
    from moe import folder
    from moe.tokenizer import Tokenizer
    from trainers.evaluate import check_tokenizer, held_out
    from trainers.loop import fit
    from trainers.objectives import LANGUAGE_MODEL
    from trainers.plan import Plan
    from trainers.rows import Rows

    settings = {
        **origin(cfg),
        "optim": cfg.optim,
        "compute.precision": cfg.compute.precision,
        "pretrain": {**asdict(cfg.pretrain), "replay": replayed(cfg.pretrain)},
        "spikes": cfg.spikes,
    }
    with open_stage(cfg, name, reads=["tokenizer", "tokens"], settings=settings) as stage:
        if stage.done:
            return stage.metrics
        connect(cfg.cluster)
        tokenizer = Tokenizer.load(stage.input("tokenizer"))
        rows = stage.input("tokens")
        mixed = course(rows / "train", cfg.pretrain)
        for part in mixed.sets:
            check_tokenizer(Rows(part), tokenizer)
        if cfg.parent.model and newest_checkpoint(stage.folder / "checkpoints") is None:
            prove(cfg)
        plan = Plan.of(
            cfg,
            name,
            cfg.pretrain,
            start=lambda: first_weights(cfg, tokenizer),
            objective=LANGUAGE_MODEL,
            course=mixed,
            held_out={"val": rows / "val"},
            decode=tokenizer.decode,
        )
        model = fit(plan)
        folder.save(model, stage.folder, stop=(tokenizer.eos,), pad=tokenizer.pad)
        tokenizer.save(stage.folder)
        metrics = held_out(model, tokenizer, Rows(rows / "val"), limit=cfg.evaluate.rows)
        return stage.finish(metrics | sizes(model))


def _absolute(cfg: Config) -> Config:
    """Workers have a working directory of their own."""
    parent, replay = (str(Path(path).absolute()) if path else "" for path in (cfg.parent.model, cfg.pretrain.replay))
    return replace(cfg, parent=replace(cfg.parent, model=parent), pretrain=replace(cfg.pretrain, replay=replay))


def replayed(cfg: Pretrain) -> str:
    """What the rows of the older mix are known by, wherever they lie; "" without. Raises `InputError` if there are
    none."""
    from cluster.storage import sha256
    from trainers.rows import FILE

    if not cfg.replay:
        return ""
    about = Path(cfg.replay) / FILE
    if not about.is_file():
        raise InputError(
            f"pretrain.replay={cfg.replay}: no packed rows here ({FILE} is missing); "
            "give the tokens/train folder of the run that made the older model"
        )
    return sha256(about)


def course(rows: Path, cfg: Pretrain) -> "Course":
    """The run's own rows, and those of the older mix among them."""
    from trainers.course import Course, Phase

    if not cfg.replay:
        return Course.of(rows)
    return Course((rows, Path(cfg.replay)), (Phase(0, (1 - cfg.replay_share, cfg.replay_share)),))


def sizes(model: "Decoder") -> dict[str, float]:
    """How many parameters there are, and how many of them a token passes through."""
    from moe.footprint import active_parameters, parameters

    return {
        "parameters": sum(parameters(model.cfg, model.vocab_size).values()),
        "active_parameters": sum(active_parameters(model.cfg, model.vocab_size).values()),
    }


def origin(cfg: Config) -> dict[str, Any]:
    """What decides the weights before step 0: the model's shape, or the parent's files and how it is upcycled."""
    if not cfg.parent.model:
        return {"model": cfg.model}
    from cluster.storage import sha256
    from moe.parents import weight_files

    files = {path.name: sha256(path) for path in weight_files(cfg.parent.model)}
    # by what they hold, wherever they lie
    return {"parent": {**asdict(cfg.parent), "model": files}, "adapt": cfg.adapt}


def first_weights(cfg: Config, tokenizer: "Tokenizer") -> "Decoder":
    """The model before step 0. A parent keeps its rows of vocabulary and gets new ones for what the run's tokenizer
    has beyond the parent's; `adapt` says what of it is trained."""
    from moe.adapt import adapt
    from moe.decoder import new_decoder
    from moe.parents import new_from
    from moe.tokenizer import Tokenizer
    from moe.vocabulary import grow

    if not cfg.parent.model:
        return new_decoder(cfg.model, tokenizer.padded_size, seed=cfg.run.seed)
    parent, before = new_from(cfg.parent, cfg.run.seed), Tokenizer.load(cfg.parent.model)
    known = min(parent.vocab_size, before.size)
    if cfg.adapt.only_new_rows and tokenizer.size <= known:
        raise InputError(
            f"adapt.only_new_rows=true: the run's tokenizer adds nothing to that of parent.model={cfg.parent.model}; "
            "give tokenizer.extend or tokenizer.merge"
        )
    return adapt(grow(parent, before, tokenizer), cfg.adapt, old_rows=known, seed=cfg.run.seed)


def prove(cfg: Config) -> None:
    """Print how far the first weights are from the parent's, before any vocabulary is added."""
    from moe import certificate
    from moe.parents import new_from

    model = new_from(cfg.parent, cfg.run.seed)
    if cfg.tokens.row_length > model.cfg.context:
        raise InputError(
            f"tokens.row_length={cfg.tokens.row_length} must be at most the {model.cfg.context} positions of "
            f"parent.model={cfg.parent.model}"
        )
    certificate.prove(model, Path(cfg.parent.model), exact=not cfg.parent.noise)


if __name__ == "__main__":
    main()
