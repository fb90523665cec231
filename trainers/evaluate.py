"""Evaluate a model folder: perplexity and bits per byte, tasks, answers under the domain's rules, examples."""

from conf.entry import early, job

early(__name__)

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Column, Table

from cluster.run import CHATTING, newest_model
from cluster.storage import write_json
from cluster.tracking.tracker import Tracker, to_json
from cluster.tracking.wandb_run import tracked
from conf.errors import InputError
from conf.knobs.running import Suite, TrackerKind
from conf.schema import Config
from trainers.suites import SUITES, load, missing

SHOWN = {"tasks": "task_answers.json", "rules": "answers.json", "samples": "samples.json"}  # as the stages name them


@job
def main(cfg: Config) -> dict[str, float]:
    """Print, write and return the metrics of `evaluate.model`, or of the run's best of rl, hfft, cohft, chat, base."""

    suites = chosen(cfg)
    if cfg.cluster.gpus_per_worker and not torch.cuda.is_available():
        raise InputError(f"cluster.gpus_per_worker={cfg.cluster.gpus_per_worker:g}, and torch sees no GPU here; try 0")
    path = newest_model(cfg, cfg.evaluate.model, among=(*CHATTING, "base"), knob="evaluate.model")
    model, tokenizer = load(path)
    model = model.to(cfg.cluster.device)
    metrics: dict[str, float] = {}
    shown: dict[str, list[dict[str, Any]]] = {}
    for suite in suites:
        measured, shown[suite.name] = SUITES[suite](model, tokenizer, cfg)
        metrics |= measured
    print(path)
    show(metrics, shown.get(Suite.samples.name, []))
    if cfg.evaluate.out:
        out = Path(cfg.evaluate.out).absolute()
        found = {"model": str(path), "metrics": to_json(metrics), "answers": {s: a for s, a in shown.items() if a}}
        out.parent.mkdir(parents=True, exist_ok=True)
        write_json(out, found)
    if cfg.tracker.kind is TrackerKind.wandb:
        track(cfg, path, metrics, shown)
    return metrics


def chosen(cfg: Config) -> list[Suite]:
    """The suites to run: those of `evaluate.suites`, or all that have data. Raises `InputError` if one has none."""

    reasons = {suite: missing(suite, cfg) for suite in cfg.evaluate.suites or Suite}
    lacking = [reason for reason in reasons.values() if reason]
    if lacking and (cfg.evaluate.suites or len(lacking) == len(reasons)):
        raise InputError(lacking[0])
    return [suite for suite, reason in reasons.items() if not reason]


def show(metrics: Mapping[str, float], examples: Sequence[Mapping[str, Any]]) -> None:
    """Print a table of the metrics that stand alone, one of the tasks', and the examples."""

    console = Console(highlight=False)
    alone = {name: value for name, value in metrics.items() if "/" not in name}
    if alone:
        table = Table("metric", "value", box=SIMPLE_HEAD, pad_edge=False)
        for name, value in alone.items():
            table.add_row(name, f"{value:.4g}")
        console.print(table)
    by_task: dict[str, dict[str, float]] = {}
    for name, value in metrics.items():
        if name not in alone:
            task, _, measure = name.rpartition("/")
            by_task.setdefault(task, {})[measure] = value
    if by_task:
        measures = list(dict.fromkeys(measure for its in by_task.values() for measure in its))
        table = Table("task", *(Column(measure, no_wrap=True) for measure in measures), box=SIMPLE_HEAD, pad_edge=False)
        for task, its in by_task.items():
            table.add_row(task, *(f"{its[measure]:.4g}" if measure in its else "" for measure in measures))
        console.print(table)
    for example in examples:
        console.print(f"\n[bold]{example['task']}[/] {example['id']}")
        console.print(f"{example['prompt']}\n-> {example['answer']}", markup=False, soft_wrap=True)


def track(cfg: Config, path: Path, metrics: Mapping[str, float], shown: Mapping[str, Sequence[Any]]) -> None:
    """Log the metrics as step 0 of a W&B run of their own, with tables of the answers."""

    folder = cfg.run.folder / "evaluate" / path.name
    shutil.rmtree(folder, ignore_errors=True)  # of an evaluation before: this one does not go on from it
    with tracked(cfg, f"evaluate/{path.name}", folder, reads=[path]), Tracker(folder) as tracker:
        tracker.log(metrics, 0)
        for suite, answers in shown.items():
            if answers:
                write_json(folder / SHOWN[suite], answers)


if __name__ == "__main__":
    main()
