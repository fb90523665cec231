"""Fine-tune the base model on instruction tasks, from easy to hard if asked; answers carry the loss, prompts do not."""

from conf.entry import early, job

early(__name__)

from collections.abc import Collection, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from cluster.connect import connect
from cluster.run import make, model_stage, open_stage, present
from cluster.storage import read_json
from conf.errors import InputError
from conf.knobs.training import Sft
from conf.schema import Config
from moe.formats import checkpoints, hugging_face
from moe.tasks.measure import read_task_file
from moe.tasks.task import Sample
from moe.text.tokenizer import Tokenizer
from trainers import closing
from trainers.loop.growth import lengthened
from trainers.loop.tuning import FORGOTTEN, check_replay, remedy, tune
from trainers.rows.conversations import by_task, check_length, fitting, pieces, write
from trainers.rows.difficulty import GRADES, grade, read_ranks
from trainers.rows.epochs import FILE as SEEN
from trainers.rows.epochs import in_steps
from trainers.rows.feed import rows_before
from trainers.rows.mixture import Course, Phase, opened


def reads(cfg: Config, there: Collection[str]) -> list[str]:
    """The text that the base model learnt goes with it; a parent's is taken where the run has some."""
    model = model_stage(cfg, "base", there)
    return [model, "tasks", *(["tokens"] if model == "base" or "tokens" in there else [])]


def check(cfg: Config) -> None:
    """Raise `InputError` for rows that no sample of theirs fits into."""
    if cfg.parent.model:
        check_length(cfg.sft, "chat", checkpoints.shape(cfg.parent)[0].context)


@job
def main(cfg: Config) -> dict[str, float]:
    """Read the tasks and base (or parent) stages, and tokens where there are any; write the chat model; returns
    held-out loss, each task's metrics, the rules' metrics and what was forgotten of the base model's text."""

    origin = model_stage(cfg, "base", present(cfg))
    if origin == "parent":
        make(cfg, "parent")
        if cfg.sft.files:
            make(cfg, "tasks")
    needs = reads(cfg, present(cfg))
    check_replay(cfg.sft, "chat", needs, cfg.run.folder)
    settings = {
        "optim": cfg.optim,
        "compute.precision": cfg.compute.precision,
        "sft": cfg.sft,
        "adapt": cfg.adapt,
        "spikes": cfg.spikes,
        **cfg.evaluate.measure(),
    }
    longer = partial(lengthened_chat, cfg)
    with open_stage(cfg, "chat", reads=needs, settings=settings, measured=closing.ANSWERS, longer=longer) as stage:
        if stage.done:
            return stage.metrics
        base, tasks = stage.input(origin), stage.input("tasks")
        text = stage.input("tokens") if "tokens" in needs else None
        tokenizer, rows = Tokenizer.load(base), stage.folder / "rows" / "val"
        samples, unseen = (read_task_file(tasks / f"{split}.jsonl") for split in ("train", "val"))
        samples, unseen, left_out = fitting(samples, unseen, tokenizer, cfg.sft, "chat")
        if not stage.made:
            train(cfg, stage.folder, base, text, samples, unseen, left_out)
        connect(cfg.cluster)
        held_out = [rows / task for task in by_task(unseen)]
        metrics = closing.answering(stage.folder, base, text / "val" if text else None, unseen, held_out, cfg)
        if metrics.get("forgetting", 0.0) > FORGOTTEN:
            print(remedy(metrics, "chat", cfg.sft))
        return stage.finish({**metrics, **read_json(stage.folder / SEEN)})


def lengthened_chat(cfg: Config, before: Mapping[str, Any], step: int) -> str:
    """See `trainers.loop.growth`."""
    if cfg.sft.curriculum.stages > 1:
        return f"sft.curriculum.stages={cfg.sft.curriculum.stages} divide the steps among them"
    return lengthened("sft", cfg.sft, cfg.optim, before, step)


def train(
    cfg: Config,
    folder: Path,
    base: Path,
    text: Path | None,
    samples: Sequence[Sample],
    unseen: Sequence[Sample],
    left_out: Mapping[str, float],
) -> None:
    """Write the chat model into `folder`."""
    check_length(cfg.sft, "chat", hugging_face.load_config(base).context)
    tokenizer, rows = Tokenizer.load(base), folder / "rows"
    train_text = text / "train" if text else None
    stages = cfg.sft.curriculum.stages
    ranks = graded(samples, folder, base, tokenizer, cfg) if stages > 1 else {}
    sets = [
        write(rows / "train" / str(number), part, tokenizer, cfg.sft, "chat")
        for number, part in enumerate(buckets(weigh(samples, cfg.sft), ranks, stages))
    ]
    held_out = {
        task: write(rows / "val" / task, part, tokenizer, cfg.sft, "chat") for task, part in by_task(unseen).items()
    }
    connect(cfg.cluster)
    own = 1.0 - cfg.sft.replay
    count = sum(len(opened(path)) for path in sets)
    sft = in_steps(cfg.sft, count, longest(sets, train_text, cfg.sft), share=own) if own else cfg.sft
    course = easy_to_hard(sets, train_text, sft)
    tune(cfg, "chat", sft, course, own=len(sets), begin=base, held_out=held_out, counts=left_out)


def weigh(samples: Sequence[Sample], cfg: Sft) -> list[Sample]:
    """The samples, each as often as its task's weight says: 2 twice, 0.5 every other one, 0 never.

    Raises `InputError` for a weight whose task has no sample.
    """
    tasks = {sample.task for sample in samples}
    for name in cfg.weights:
        if name not in tasks:
            raise InputError(f"sft.weights.{name}: no sample of this task; there are {', '.join(sorted(tasks))}")
    chosen, owed = [], dict.fromkeys(tasks, 0.0)
    for sample in samples:
        task = sample.task
        owed[task] += cfg.weights.get(task, 1.0)
        while owed[task] >= 1.0:
            chosen.append(sample)
            owed[task] -= 1.0
    return chosen


def graded(samples: Sequence[Sample], folder: Path, base: Path, tokenizer: Tokenizer, cfg: Config) -> dict[str, float]:
    """Of each sample, by its id, the rank in (0, 1) among those of its task, the easiest for the base model first.

    Grades that an earlier attempt left in `folder` are taken.
    """

    if not (folder / GRADES).exists():
        found = list(pieces(samples, tokenizer, cfg.sft, "chat"))
        connect(cfg.cluster)
        grade(folder, base, samples, found, cfg)
    return {sample.id: rank for sample, rank in zip(samples, read_ranks(folder), strict=True)}


def buckets(samples: Sequence[Sample], ranks: Mapping[str, float], stages: int) -> list[list[Sample]]:
    """The samples of each of the curriculum's stages, by quantile of their rank."""
    found: list[list[Sample]] = [[] for _ in range(stages)]
    for sample in samples:
        found[int(ranks[sample.id] * stages) if stages > 1 else 0].append(sample)
    if not all(found):
        raise InputError(
            f"sft.curriculum.stages={stages}: no sample for stage {found.index([]) + 1} of the {len(samples)} that "
            "there are; try fewer stages"
        )
    return found


def easy_to_hard(sets: Sequence[Path], text: Path | None, cfg: Sft) -> Course:
    """Stage by stage the rows of `sets`, with a share of the sets before; beside them a share of the rows of `text`."""

    every = (*sets, *([text] if cfg.replay and text else []))
    total = rows_before(cfg, longest(sets, text, cfg), cfg.steps)
    lengths = [cfg.curriculum.pace**stage for stage in range(len(sets))]
    ends = [round(total * sum(lengths[: stage + 1]) / sum(lengths)) for stage in range(len(sets))]
    if len({0, *ends}) <= len(sets):
        raise InputError(
            f"sft.curriculum.stages={len(sets)} with sft.curriculum.pace={cfg.curriculum.pace}: the {total} rows of "
            "the run leave a stage without any; try fewer stages, or a pace nearer to 1"
        )
    ends[-1] = 0  # the last stage has no end
    return Course(every, tuple(Phase(end, shares(stage, cfg)) for stage, end in enumerate(ends)))


def longest(sets: Sequence[Path], text: Path | None, cfg: Sft) -> int:
    """Tokens of a row of the run."""
    return max(opened(folder).row_length for folder in (*sets, *([text] if cfg.replay and text else [])))


def shares(stage: int, cfg: Sft) -> tuple[float, ...]:
    """How much of a stage's rows comes from each stage's set; with `sft.replay` the last is the base model's text."""
    old = cfg.curriculum.revisit if stage else 0.0
    later = cfg.curriculum.stages - stage - 1
    tasks = [old / max(1, stage)] * stage + [1.0 - old] + [0.0] * later
    return (*(share * (1.0 - cfg.replay) for share in tasks), *([cfg.replay] if cfg.replay else []))


if __name__ == "__main__":
    main()
