"""What the stages share that tune a model on conversations: how often each is seen, and the run itself."""

from collections.abc import Collection, Mapping
from pathlib import Path

from cluster.storage import write_json
from conf.errors import InputError
from conf.knobs.training import Tune
from conf.schema import Config
from moe.formats import hugging_face
from moe.text.defaults import Defaults
from moe.text.tokenizer import Tokenizer
from moe.training.adapt import adapt
from moe.training.objectives import LANGUAGE_MODEL, Objective
from trainers.loop.loop import fit
from trainers.loop.recipe import Plan
from trainers.rows.conversations import SECTIONS
from trainers.rows.epochs import FILE as SEEN
from trainers.rows.epochs import Seen
from trainers.rows.mixture import Course, opened

FORGOTTEN = 1.5  # times the perplexity that the model had before on the base model's held-out text


def check_replay(cfg: Tune, stage: str, reads: Collection[str], run: Path) -> None:
    """Raise `InputError` where text is to be replayed that the run does not have."""
    if cfg.replay and "tokens" not in reads:
        raise InputError(
            f"{SECTIONS.get(stage, stage)}.replay={cfg.replay} takes rows of the stage tokens, which {run} does not "
            "have; make corpus, tokenizer and tokens first, or leave it out"
        )


def remedy(metrics: Mapping[str, float], stage: str, cfg: Tune) -> str:
    """What to try when more than `FORGOTTEN` was forgotten, in a line."""
    before, after = metrics["base_perplexity_before"], metrics["base_perplexity_after"]
    share = min(0.5, max(0.1, 2 * cfg.replay))
    return (
        f"{stage}: the perplexity of the base model's held-out text went from {before:.4g} to {after:.4g}; "
        f"{SECTIONS.get(stage, stage)}.replay={share:g} would keep more of it"
    )


def tune(
    cfg: Config,
    stage: str,
    knobs: Tune,
    course: Course,
    *,
    own: int,
    begin: Path,
    held_out: Mapping[str, Path],
    counts: Mapping[str, float],
    objective: Objective = LANGUAGE_MODEL,
) -> None:
    """Train the model of the folder `begin` along `course`, whose first `own` sets are conversations, and write the
    result into the folder of `stage`, with `counts` beside what is seen how often."""
    folder, tokenizer = cfg.run.folder / stage, Tokenizer.load(begin)
    seen = Seen.of(stage, knobs, course, own=own, seed=cfg.run.seed)
    many = sum(opened(path).about["samples"] for path in course.sets[:own])
    print(seen.told(many, "samples", remedy=f"{SECTIONS.get(stage, stage)}.epochs=3"))
    write_json(folder / SEEN, {"epochs": seen.epochs, **counts})
    plan = Plan.of(
        cfg,
        stage,
        knobs,
        start=lambda: adapt(hugging_face.load(begin), cfg.adapt, seed=cfg.run.seed),
        objective=objective,
        course=course,
        held_out=held_out,
        decode=tokenizer.decode,
    )
    hugging_face.save(fit(plan), folder, Defaults.of(tokenizer, chat=True))
