"""Fine-tune the base model on instruction tasks, from easy to hard if asked; answers carry the loss, prompts do not."""

from collections.abc import Iterator, Sequence
from itertools import chain, groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

from conf.entry import job
from conf.schema import Config, InputError, Sft

if TYPE_CHECKING:
    from moe.decoder import Decoder
    from moe.tokenizer import Tokenizer
    from trainers.course import Course
    from trainers.packing import Piece
    from trainers.rows import Rows
    from trainers.samples import Sample

FORGOTTEN = 1.5  # times the perplexity that the base model had on its own held-out text


@job
def main(cfg: Config) -> dict[str, float]:
    """Read the base, tasks and tokens stages, write the chat model; returns held-out loss, each task's metrics, the
    rules' metrics and what was forgotten of the base model's text."""
    from cluster.connect import connect
    from cluster.run import open_stage
    from cluster.storage import write_json
    from moe import folder
    from moe.adapt import adapt
    from moe.tokenizer import Tokenizer
    from trainers.loop import fit
    from trainers.objectives import LANGUAGE_MODEL
    from trainers.plan import Plan
    from trainers.rows import Rows
    from trainers.samples import read_samples

    settings = {
        "optim": cfg.optim,
        "compute.precision": cfg.compute.precision,
        "sft": cfg.sft,
        "adapt": cfg.adapt,
        "spikes": cfg.spikes,
        **cfg.evaluate.measure(),
    }
    with open_stage(cfg, "chat", reads=["base", "tasks", "tokens"], settings=settings) as stage:
        if stage.done:
            return stage.metrics
        base, tasks, text = stage.input("base"), stage.input("tasks"), stage.input("tokens")
        context = folder.load_config(base).context
        if cfg.sft.row_length > context:
            raise InputError(
                f"sft.row_length={cfg.sft.row_length} must be at most the base model's {context} positions"
            )
        tokenizer, rows = Tokenizer.load(base), stage.folder / "rows"
        samples, unseen = read_samples(tasks / "train.jsonl"), read_samples(tasks / "val.jsonl")
        if cfg.sft.curriculum.stages > 1:
            samples = graded(samples, stage.folder, base, tokenizer, cfg.sft)
        sets = [
            write(rows / "train" / str(number), part, tokenizer, cfg.sft)
            for number, part in enumerate(buckets(weigh(samples, cfg.sft), cfg.sft.curriculum.stages))
        ]
        held_out = {
            task: write(rows / "val" / task, part, tokenizer, cfg.sft) for task, part in by_task(unseen).items()
        }
        connect(cfg.cluster)
        plan = Plan.of(
            cfg,
            "chat",
            cfg.sft,
            start=lambda: adapt(folder.load(base), cfg.adapt, seed=cfg.run.seed),
            objective=LANGUAGE_MODEL,
            course=easy_to_hard(sets, text / "train", cfg.sft),
            held_out=held_out,
            decode=tokenizer.decode,
        )
        model = fit(plan)
        folder.save(model, stage.folder, stop=(tokenizer.im_end, tokenizer.eos), pad=tokenizer.pad)
        tokenizer.save(stage.folder)
        metrics, shown = measure(model, tokenizer, tasks, unseen, list(held_out.values()), cfg)
        for name, answers in shown.items():
            write_json(stage.folder / f"{name}.json", answers)
        metrics |= forgetting(folder.load(base), model, tokenizer, Rows(text / "val"), limit=cfg.evaluate.rows)
        if metrics.get("forgetting", 0.0) > FORGOTTEN:
            print(remedy(metrics, cfg.sft))
        return stage.finish(metrics)


def weigh(samples: Sequence["Sample"], cfg: Sft) -> list["Sample"]:
    """The samples, each as often as its task's weight says: 2 twice, 0.5 every other one, 0 never.

    Raises `InputError` for a weight whose task has no sample.
    """
    tasks = {sample.get("task", "") for sample in samples}
    for name in cfg.weights:
        if name not in tasks:
            raise InputError(f"sft.weights.{name}: no sample of this task; there are {', '.join(sorted(tasks))}")
    chosen, owed = [], dict.fromkeys(tasks, 0.0)
    for sample in samples:
        task = sample.get("task", "")
        owed[task] += cfg.weights.get(task, 1.0)
        while owed[task] >= 1.0:
            chosen.append(sample)
            owed[task] -= 1.0
    return chosen


def by_task(samples: Sequence["Sample"]) -> dict[str, list["Sample"]]:
    """The samples of each task, in their order."""
    ordered = sorted(samples, key=lambda sample: sample["task"])
    return {task: list(group) for task, group in groupby(ordered, key=lambda sample: sample["task"])}


def graded(samples: Sequence["Sample"], folder: Path, base: Path, tokenizer: "Tokenizer", cfg: Sft) -> list["Sample"]:
    """The samples with their `rank` in (0, 1) among those of their task, the easiest for the base model first.

    Grades that an earlier attempt left in `folder` are taken.
    """
    from moe.folder import load
    from trainers.difficulty import GRADES, grade, read_ranks

    if not (folder / GRADES).exists():
        grade(folder, load(base), samples, list(pieces(samples, tokenizer, cfg)))
    return [{**sample, "rank": rank} for sample, rank in zip(samples, read_ranks(folder), strict=True)]


def buckets(samples: Sequence["Sample"], stages: int) -> list[list["Sample"]]:
    """The samples of each of the curriculum's stages, by quantile of their rank."""
    found: list[list[Sample]] = [[] for _ in range(stages)]
    for sample in samples:
        found[int(sample["rank"] * stages) if stages > 1 else 0].append(sample)
    if not all(found):
        raise InputError(
            f"sft.curriculum.stages={stages}: no sample for stage {found.index([]) + 1} of the {len(samples)} that "
            "there are; try fewer stages"
        )
    return found


def easy_to_hard(sets: Sequence[Path], text: Path, cfg: Sft) -> "Course":
    """Stage by stage the rows of `sets`, with a share of the sets before; beside them a share of the rows of `text`."""
    from trainers.course import Course, Phase, opened
    from trainers.feed import rows_before

    every = (*sets, text) if cfg.replay else tuple(sets)
    row_length = max(opened(folder).row_length for folder in every)
    total = rows_before(cfg, row_length, cfg.steps)
    lengths = [cfg.curriculum.pace**stage for stage in range(len(sets))]
    ends = [round(total * sum(lengths[: stage + 1]) / sum(lengths)) for stage in range(len(sets))]
    if len({0, *ends}) <= len(sets):
        raise InputError(
            f"sft.curriculum.stages={len(sets)} with sft.curriculum.pace={cfg.curriculum.pace}: the {total} rows of "
            "the run leave a stage without any; try fewer stages, or a pace nearer to 1"
        )
    ends[-1] = 0  # the last stage has no end
    return Course(every, tuple(Phase(end, shares(stage, cfg)) for stage, end in enumerate(ends)))


def shares(stage: int, cfg: Sft) -> tuple[float, ...]:
    """How much of a stage's rows comes from each stage's set; with `sft.replay` the last is the base model's text."""
    old = cfg.curriculum.revisit if stage else 0.0
    later = cfg.curriculum.stages - stage - 1
    tasks = [old / max(1, stage)] * stage + [1.0 - old] + [0.0] * later
    return (*(share * (1.0 - cfg.replay) for share in tasks), *([cfg.replay] if cfg.replay else []))


def pieces(samples: Sequence["Sample"], tokenizer: "Tokenizer", cfg: Sft) -> Iterator["Piece"]:
    """(ids, loss mask) of each sample. Raises `InputError` naming a sample that is longer than a row."""
    from moe.chat import sample_ids

    for sample in samples:
        ids, mask = sample_ids(tokenizer, sample["messages"])
        if len(ids) > cfg.row_length:
            raise InputError(
                f"sample {sample.get('id', '?')}: {len(ids)} tokens do not fit into sft.row_length={cfg.row_length}; "
                f"try sft.row_length={len(ids)}"
            )
        yield ids, mask


def write(path: Path, samples: Sequence["Sample"], tokenizer: "Tokenizer", cfg: Sft) -> Path:
    """Pack the samples into rows under `path`."""
    from trainers.packing import pack
    from trainers.rows import write_rows

    rows = pack(pieces(samples, tokenizer, cfg), cfg.row_length, pad=tokenizer.pad)
    meta = {"tokenizer": tokenizer.digest, "samples": len(samples)}
    write_rows(path, rows, row_length=cfg.row_length, rows_per_shard=16384, meta=meta)
    return path


def measure(
    model: "Decoder",
    tokenizer: "Tokenizer",
    tasks: Path,
    samples: Sequence["Sample"],
    held_out: Sequence[Path],
    cfg: Config,
) -> tuple[dict[str, float], dict[str, list[dict[str, Any]]]]:
    """(metrics, answers to look at): the rules' metrics of the held-out queries of `tasks`, each task's on the held-out
    `samples`, and the loss on the rows packed of them."""
    from moe.evaluation import answers, first_of_each
    from trainers.objectives import in_turn
    from trainers.rows import Rows
    from trainers.suites import language_metrics, task_metrics

    ruled, shown = answers(model, tokenizer, tasks, cfg.evaluate, seed=cfg.run.seed)
    by_task, told = task_metrics(model, tokenizer, first_of_each(samples, cfg.evaluate.prompts), cfg.evaluate)
    batches = chain.from_iterable(in_turn(Rows(path), cfg.evaluate.rows) for path in held_out)
    metrics = ruled | by_task | language_metrics(model, tokenizer, batches)
    return metrics, {"answers": shown, "task_answers": told}


def forgetting(
    before: "Decoder", after: "Decoder", tokenizer: "Tokenizer", text: "Rows", *, limit: int
) -> dict[str, float]:
    """{"base_perplexity_before", "base_perplexity_after"} of the base model's held-out text, and "forgetting", the
    second over the first; nothing where the corpus holds no text out."""
    from trainers.evaluate import held_out

    if not len(text):
        return {}
    old, new = (held_out(model, tokenizer, text, limit=limit)["perplexity"] for model in (before, after))
    return {"base_perplexity_before": old, "base_perplexity_after": new, "forgetting": new / old}


def remedy(metrics: dict[str, Any], cfg: Sft) -> str:
    """What to try when much was forgotten, in a line."""
    before, after = metrics["base_perplexity_before"], metrics["base_perplexity_after"]
    share = min(0.5, max(0.1, 2 * cfg.replay))
    return (
        f"chat: the perplexity of the base model's held-out text went from {before:.4g} to {after:.4g}; "
        f"sft.replay={share:g} would keep more of it"
    )


if __name__ == "__main__":
    main()
