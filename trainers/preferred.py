"""What HFFT and COHFT share: rankings to samples, samples to rows, the run, and what is said of the model."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from cluster.connect import connect, on_worker
from cluster.run import make, model_stage, open_stage, present
from cluster.storage import read_json
from conf.errors import InputError
from conf.knobs.alignment import Preferred
from conf.schema import Config
from moe.formats import hugging_face
from moe.tasks.domain import Domain
from moe.tasks.task import Sample
from moe.text.tokenizer import Tokenizer
from moe.training.objectives import LANGUAGE_MODEL, Objective
from trainers import closing
from trainers.files.forgotten import FORGOTTEN as FORGET
from trainers.files.forgotten import NOTHING, Forgotten
from trainers.files.hindsight import PLAIN, good
from trainers.files.rankings import Record, read_all, split, telling
from trainers.files.readers import digest, expand, folders
from trainers.loop.growth import lengthened
from trainers.loop.tuning import FORGOTTEN, check_replay, remedy, tune
from trainers.rows.conversations import by_task, check_length, fitting, piece, write
from trainers.rows.epochs import FILE as SEEN
from trainers.rows.epochs import in_steps
from trainers.rows.mixture import Course, Phase, opened

ROUND = 64  # tokens: the row length that is chosen is a multiple, where the model's context allows

Teach = Callable[[Record, Sequence[str]], list[Sample]]  # (a ranking, the principles that tell answers apart)


@dataclass(frozen=True)
class Method:
    teach: Teach
    shares: Mapping[str, float]  # of the run's rows, by the task of the samples that `teach` makes; replay left out
    objective: Callable[[Tokenizer], Objective] = lambda _: LANGUAGE_MODEL
    beside: Callable[[Path, Config], dict[str, float]] | None = None  # measured by a worker, of the finished folder


def reads(cfg: Config, knobs: Preferred, there: Collection[str]) -> list[str]:
    """Tasks measure the model; the text that the base model learnt goes with it where the run has it."""
    ranked = [] if knobs.files else ["ranked"]
    return [model_stage(cfg, "chat", there), "tasks", *ranked, *(["tokens"] if "tokens" in there else [])]


def check(cfg: Config, stage: str, knobs: Preferred) -> None:
    """Raise `InputError` for rankings that are not there."""
    expand(knobs.files, f"{stage}.files")
    Domain.of(cfg.tasks)


def learn(cfg: Config, name: str, knobs: Preferred, method: Method) -> dict[str, Any]:
    """Make the stage `name`: the chat (or parent) model tuned on what the method makes of each ranking.

    Returns what `trainers.closing.of_chat` says of it, forgetting being against the chat model, what is measured
    beside that, and what was left out. Raises `InputError` where there is nothing to learn.
    """
    own = {file: digest(file) for file in expand(knobs.files, f"{name}.files")}
    forgotten = Forgotten.of(cfg.run.folder / FORGET).among(own)
    if (origin := model_stage(cfg, "chat", present(cfg))) == "parent":
        make(cfg, "parent")
    needs = reads(cfg, knobs, present(cfg))
    check_replay(knobs, name, needs, cfg.run.folder)
    settings = {
        "optim": cfg.optim,
        "compute.precision": cfg.compute.precision,
        name: knobs,
        "rankings": own,
        "adapt": cfg.adapt,
        "spikes": cfg.spikes,
        **forgotten.setting,
        **cfg.evaluate.measure(),
    }
    longer = partial(lengthened, name, knobs, cfg.optim)
    more: dict[str, Any] = {"measured": closing.ANSWERS, "longer": longer, "outside": folders(own)}
    with open_stage(cfg, name, reads=needs, settings=settings, **more) as stage:
        if stage.done:
            return stage.metrics
        chat, text = stage.input(origin), stage.input("tokens") if "tokens" in needs else None
        train, held, counts = taught(cfg, name, knobs, method.teach, own, stage.folder, forgotten)
        fitted = replace(knobs, row_length=row_length(knobs, [*train, *held], chat))
        train, held, long = fitting(train, held, Tokenizer.load(chat), fitted, name)
        if not stage.made:
            tune_on(train, held, cfg, name, fitted, method, chat, text, counts | long)
        connect(cfg.cluster)
        unseen = by_task(held).get(PLAIN, [])
        rows = [stage.folder / "rows" / "val" / PLAIN]
        metrics = closing.answering(stage.folder, chat, text / "val" if text else None, unseen, rows, cfg)
        if method.beside:
            metrics |= on_worker(cfg.cluster, method.beside, stage.folder, cfg, within=cfg.evaluate.timeout)
        if metrics.get("forgetting", 0.0) > FORGOTTEN:
            print(remedy(metrics, name, knobs))
        return stage.finish({**metrics, **read_json(stage.folder / SEEN)})


def taught(
    cfg: Config,
    name: str,
    knobs: Preferred,
    teach: Teach,
    own: Mapping[str, str],
    folder: Path,
    forgotten: Forgotten = NOTHING,
) -> tuple[list[Sample], list[Sample], dict[str, float]]:
    """(samples to learn, samples held out, what was left out). Raises `InputError` where none is left."""
    known, ranked = Domain.of(cfg.tasks).principles, cfg.run.folder / "ranked"
    bad = f"{name}.max_bad_fraction", knobs.max_bad_fraction
    records, counts = read_all(own, ranked, known, folder, *bad, forgotten)
    parts = (good(part, knobs.at_least) for part in split(records, knobs.held_out, cfg.run.seed))
    (learnt, gone), (unseen, more) = parts
    counts |= {what: gone[what] + more[what] for what in gone}
    line = (
        f"{name}: of {len(records)} rankings {len(learnt)} are learnt from and {len(unseen)} validate; left out are "
        f"{counts['below']:.0f} whose best answer has a total below {name}.at_least={knobs.at_least:g}, and "
        f"{counts['no_best']:.0f} without an answer that is whole and ranked"
    )
    if not learnt or not unseen:
        raise InputError(f"{line}; rank more queries" + (f", or lower {name}.at_least" if counts["below"] else ""))
    print(line)
    principles = telling(learnt, known)
    return [s for r in learnt for s in teach(r, principles)], [s for r in unseen for s in teach(r, principles)], counts


def row_length(knobs: Preferred, samples: Sequence[Sample], chat: Path) -> int:
    """As asked for, or as long as the longest sample where the model's context allows."""
    context, tokenizer = hugging_face.load_config(chat).context, Tokenizer.load(chat)
    longest = max(len(piece(sample, tokenizer)[0]) for sample in samples)
    return knobs.row_length or min(context, -(-longest // ROUND) * ROUND)


def tune_on(
    samples: Sequence[Sample],
    unseen: Sequence[Sample],
    cfg: Config,
    name: str,
    knobs: Preferred,
    method: Method,
    chat: Path,
    text: Path | None,
    counts: Mapping[str, float],
) -> None:
    """Write the model into the stage's folder."""
    check_length(knobs, name, hugging_face.load_config(chat).context)
    tokenizer, rows = Tokenizer.load(chat), cfg.run.folder / name / "rows"
    train, own = by_task(samples), 1.0 - knobs.replay
    shares = {task: share * own for task, share in method.shares.items() if share}
    if lacking := shares.keys() - train.keys():
        raise InputError(f"stage {name}: no {min(lacking)}, for no two answers to a query differ in rank; rank more")
    sets = [write(rows / "train" / task, train[task], tokenizer, knobs, name) for task in shares]
    held_out = {
        task: write(rows / "val" / task, part, tokenizer, knobs, name) for task, part in by_task(unseen).items()
    }
    every, parts = list(sets), list(shares.values())
    if text and knobs.replay:
        every.append(text / "train")
        parts.append(knobs.replay)
    course = Course(tuple(every), (Phase(0, tuple(parts)),))
    count = sum(len(opened(path)) for path in sets)
    steps = in_steps(knobs, count, course.row_length, share=own) if own else knobs
    connect(cfg.cluster)
    tune(
        cfg,
        name,
        steps,
        course,
        own=len(sets),
        begin=chat,
        held_out=held_out,
        counts=counts,
        objective=method.objective(tokenizer),
    )
