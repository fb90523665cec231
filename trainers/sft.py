"""Fine-tune the base model on instruction tasks; answers carry the loss, prompts do not."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from conf.entry import job
from conf.schema import Config, InputError, Sft

if TYPE_CHECKING:
    from moe.tokenizer import Tokenizer
    from trainers.packing import Piece


@job
def main(cfg: Config) -> dict[str, float]:
    """Read the base and tasks stages, write the chat model; returns held-out loss and the rules' metrics."""
    from cluster.connect import connect
    from cluster.run import open_stage
    from cluster.storage import write_json
    from moe import folder
    from moe.adapt import adapt
    from moe.evaluation import answers
    from moe.tokenizer import Tokenizer
    from trainers.evaluate import held_out
    from trainers.loop import Plan, fit
    from trainers.objectives import LANGUAGE_MODEL
    from trainers.rows import Rows
    from trainers.samples import read_samples

    settings = {
        "optim": cfg.optim,
        "compute.precision": cfg.compute.precision,
        "sft": cfg.sft,
        "adapt": cfg.adapt,
        "cluster.workers": cfg.cluster.workers,
        "evaluate": cfg.evaluate,
    }
    with open_stage(cfg, "chat", reads=["base", "tasks"], settings=settings) as stage:
        if stage.done:
            return stage.metrics
        connect(cfg.cluster)
        base = stage.input("base")
        tokenizer = Tokenizer.load(base)
        tasks = stage.input("tasks")
        samples = weigh(read_samples(tasks / "train.jsonl"), cfg.sft)
        rows = write(stage.folder / "rows" / "train", samples, tokenizer, cfg.sft)
        held = write(stage.folder / "rows" / "val", read_samples(tasks / "val.jsonl"), tokenizer, cfg.sft)
        plan = Plan.of(
            cfg,
            "chat",
            cfg.sft,
            start=lambda: adapt(folder.load(base), cfg.adapt, seed=cfg.run.seed),
            objective=LANGUAGE_MODEL,
            rows=rows,
            held_out=held,
        )
        model = fit(plan)
        folder.save(model, stage.folder, stop=(tokenizer.im_end, tokenizer.eos), pad=tokenizer.pad)
        tokenizer.save(stage.folder)
        metrics, shown = answers(model, tokenizer, tasks, cfg.evaluate, seed=cfg.run.seed)
        write_json(stage.folder / "answers.json", shown)
        metrics |= held_out(model, tokenizer, Rows(held), limit=cfg.evaluate.rows)
        return stage.finish(metrics)


def weigh(samples: Sequence[dict[str, Any]], cfg: Sft) -> list[dict[str, Any]]:
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


def pieces(samples: Sequence[dict[str, Any]], tokenizer: "Tokenizer", cfg: Sft) -> Iterator["Piece"]:
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


def write(path: Path, samples: Sequence[dict[str, Any]], tokenizer: "Tokenizer", cfg: Sft) -> Path:
    """Pack the samples into rows under `path`."""
    from trainers.packing import pack
    from trainers.rows import write_rows

    rows = pack(pieces(samples, tokenizer, cfg), cfg.row_length, pad=tokenizer.pad)
    meta = {"tokenizer": tokenizer.digest, "samples": len(samples)}
    write_rows(path, rows, row_length=cfg.row_length, rows_per_shard=16384, meta=meta)
    return path


if __name__ == "__main__":
    main()
