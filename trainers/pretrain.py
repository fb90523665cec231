"""Pretrain the MoE decoder on packed rows by next-token cross-entropy, from random weights or from `parent.model`."""

from conf.entry import early, job

early(__name__)

from collections.abc import Collection
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

from cluster.connect import connect, on_worker
from cluster.run import Stage, open_stage
from cluster.storage import read_json, sha256, write_json
from conf.errors import InputError
from conf.knobs.training import Pretrain
from conf.schema import Config
from moe.decoder import Decoder, new_decoder
from moe.formats import checkpoints, hugging_face
from moe.formats.checkpoints import new_from, weight_files
from moe.formats.grow import grow
from moe.text.defaults import Defaults
from moe.text.tokenizer import Tokenizer
from moe.training.adapt import adapt
from moe.training.objectives import LANGUAGE_MODEL
from trainers import closing, opening
from trainers.loop.growth import lengthened
from trainers.loop.loop import fit
from trainers.loop.recipe import Plan
from trainers.rows.epochs import FILE as SEEN
from trainers.rows.epochs import Seen, in_steps
from trainers.rows.mixture import Course, Phase, opened
from trainers.rows.rows import FILE, Rows
from trainers.suites import check_tokenizer


def reads(cfg: Config, there: Collection[str]) -> list[str]:
    return ["tokenizer", "tokens"]


def check(cfg: Config) -> None:
    """Raise `InputError` for a parent or an older mix that cannot be used."""
    replayed(cfg.pretrain)
    if cfg.parent.model and cfg.tokens.row_length > (context := checkpoints.shape(cfg.parent)[0].context):
        raise InputError(
            f"tokens.row_length={cfg.tokens.row_length} must be at most the {context} positions of "
            f"parent.model={cfg.parent.model}"
        )


@job
def main(cfg: Config) -> dict[str, float]:
    """Read the tokens stage, write the base model; returns held-out loss, perplexity, bits per byte and its size."""
    return pretrain(cfg, "base")


def pretrain(cfg: Config, name: str) -> dict[str, float]:
    """Make the stage `name`: a model as `cfg` says, trained on the run's tokens."""
    cfg = _absolute(cfg)
    check(cfg)
    settings = {
        **origin(cfg),
        "optim": cfg.optim,
        "compute.precision": cfg.compute.precision,
        "pretrain": decisive(cfg.pretrain),
        "spikes": cfg.spikes,
        "evaluate.rows": cfg.evaluate.rows,
    }
    longer = partial(lengthened, "pretrain", cfg.pretrain, cfg.optim)
    outside = [Path(cfg.parent.model)] * bool(cfg.parent.model)
    with open_stage(cfg, name, reads=reads(cfg, ()), settings=settings, longer=longer, outside=outside) as stage:
        if stage.done:
            return stage.metrics
        connect(cfg.cluster)
        if not stage.made:
            train(cfg, name, stage)
        general = opening.general_folders(stage.folder) if cfg.parent.model else {}
        found = (stage.folder, stage.input("tokens") / "val", cfg, general)
        metrics, after = on_worker(cfg.cluster, closing.of_base, *found, within=cfg.evaluate.timeout)
        if general:
            print(f"{name}: {opening.known_by(after)} at the end")
            metrics |= closing.kept(read_json(stage.folder / opening.FILE)["general"], after)
        return stage.finish({**metrics, **read_json(stage.folder / SEEN)})


def train(cfg: Config, name: str, stage: Stage) -> None:
    """Write the model into the stage's folder."""
    tokenizer = Tokenizer.load(stage.input("tokenizer"))
    rows = stage.input("tokens")
    mixed = course(rows / "train", cfg.pretrain)
    for part in mixed.sets:
        check_tokenizer(Rows(part), tokenizer)
    own = len(opened(rows / "train"))
    share = 1.0 - cfg.pretrain.replay_share if cfg.pretrain.replay else 1.0
    fitted = in_steps(cfg.pretrain, own, mixed.row_length, share=share) if share else cfg.pretrain
    seen = Seen.of(name, fitted, mixed, own=1, seed=cfg.run.seed)
    print(seen.told(own, "rows of text"))
    write_json(stage.folder / SEEN, {"epochs": seen.epochs})

    def start() -> Decoder:
        return first_weights(cfg, tokenizer)

    watched = None
    if cfg.parent.model:
        watched = opening.retention(cfg, name, stage.folder, stage.input("tokenizer"), start)
    plan = Plan.of(
        cfg,
        name,
        fitted,
        start=start,
        objective=LANGUAGE_MODEL,
        course=mixed,
        held_out={"val": rows / "val"},
        decode=tokenizer.decode,
        retention=watched,
    )
    model = fit(plan)
    also = checkpoints.defaults(cfg.parent.model).stop if cfg.parent.model else ()
    hugging_face.save(model, stage.folder, Defaults.of(tokenizer, chat=False, also=also))


def _absolute(cfg: Config) -> Config:
    """Workers have a working directory of their own."""
    parent, replay = (str(Path(path).absolute()) if path else "" for path in (cfg.parent.model, cfg.pretrain.replay))
    return replace(cfg, parent=replace(cfg.parent, model=parent), pretrain=replace(cfg.pretrain, replay=replay))


def decisive(cfg: Pretrain) -> dict[str, Any]:
    """The knobs that decide the result: not what it is only watched by."""
    kept = {name: value for name, value in asdict(cfg).items() if not name.startswith("retention")}
    return {**kept, "replay": replayed(cfg)}


def replayed(cfg: Pretrain) -> str:
    """What the rows of the older mix are known by, wherever they lie; "" without. Raises `InputError` if there are
    none."""

    if not cfg.replay:
        return ""
    about = Path(cfg.replay) / FILE
    if not about.is_file():
        raise InputError(
            f"pretrain.replay={cfg.replay}: no packed rows here ({FILE} is missing); "
            "give the tokens/train folder of the run that made the older model"
        )
    return sha256(about)


def course(rows: Path, cfg: Pretrain) -> Course:
    """The run's own rows, and those of the older mix among them."""

    if not cfg.replay:
        return Course.of(rows)
    return Course((rows, Path(cfg.replay)), (Phase(0, (1 - cfg.replay_share, cfg.replay_share)),))


def origin(cfg: Config) -> dict[str, Any]:
    """What decides the weights before step 0: the model's shape, or the parent's files and how it is upcycled."""
    if not cfg.parent.model:
        return {"model": cfg.model}

    files = {path.name: sha256(path) for path in weight_files(cfg.parent.model)}
    # by what they hold, wherever they lie
    return {"parent": {**asdict(cfg.parent), "model": files}, "adapt": cfg.adapt}


def first_weights(cfg: Config, tokenizer: Tokenizer) -> Decoder:
    """The model before step 0. A parent keeps its rows of vocabulary and gets new ones for what the run's tokenizer
    has beyond the parent's; `adapt` says what of it is trained."""

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


if __name__ == "__main__":
    main()
