"""Run the stages of a preset in order: from raw text to a chat model. Finished stages are skipped.

python -m cluster.pipeline preset=demo
"""

from conf.entry import early, job

early(__name__)

import importlib
import json
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from cluster.connect import connect
from cluster.memory import PeakMemory, where
from cluster.progress import clock, shown_number
from cluster.run import JOBS, locked, missing, present, stage_folder
from cluster.stopping import Stopped, stoppable
from cluster.storage import read_json, write_json
from cluster.tracking.tracker import to_json
from conf.errors import InputError
from conf.schema import Config

_SHOWN_FIRST = (  # the metrics that tell most about a stage, in this order
    "kl_per_answer pair_accuracy loss bits_per_byte perplexity train val test "
    "duplicates rejected vocab_size pieces tokens rows samples pairs"
).split()
_SHOWN = 4


@dataclass(kw_only=True)
class Ran:
    """What became of one stage."""

    stage: str
    state: str = "waiting"  # done, continued, measured, skipped, stopped, failed, waiting
    seconds: float = 0.0
    metrics: dict[str, Any] = field(default_factory=dict)


@job
def main(cfg: Config) -> dict[str, float]:
    """Run `pipeline.stages`; returns {"seconds": ..., "peak_memory_bytes": ...}."""

    jobs = planned(cfg)
    began, ran = time.monotonic(), [Ran(stage=stage) for stage in jobs]
    with (
        stoppable("cluster.pipeline"),
        locked(cfg.run.folder / ".pipeline.lock", f"run {cfg.run.folder}"),
        PeakMemory() as peak,
    ):
        connect(cfg.cluster)
        try:
            for number, row in enumerate(ran, start=1):
                print(f"\n[{number}/{len(ran)}] {row.stage}", flush=True)
                _run(jobs[row.stage].main, row, cfg)
        except BaseException:
            _table(ran, time.monotonic() - began, peak.bytes)
            raise
    seconds = time.monotonic() - began
    _record(cfg, ran, seconds, peak.bytes)
    _table(ran, seconds, peak.bytes)
    _samples(cfg.run.folder, cfg.pipeline.samples)
    report = cfg.run.folder / "report.html"
    if report.exists():
        print(f"\nreport: {_short(report)}")
    return {"seconds": seconds, "peak_memory_bytes": peak.bytes}


def planned(cfg: Config) -> dict[str, Any]:
    """The job of each stage of `pipeline.stages`, with the stage parent before the first that needs it.

    Raises `InputError` for what can be known before the first stage: one that reads what nothing makes, files that are
    not there, a corpus of which the domain can make nothing.
    """
    jobs: dict[str, Any] = {}
    for stage in cfg.pipeline.stages:
        body = importlib.import_module(_module(stage))
        reads = body.reads(cfg, present(cfg) | jobs.keys()) if hasattr(body, "reads") else []
        if "parent" in reads and "parent" not in jobs:
            jobs["parent"] = importlib.import_module(_module("parent"))
        for read in reads:
            if read not in present(cfg, finished=True) | jobs.keys():
                raise missing(cfg, stage, read)
        jobs[stage] = body
    for body in jobs.values():
        if hasattr(body, "check"):
            body.check(cfg)
    return jobs


def _module(stage: str) -> str:

    if stage not in JOBS:
        raise InputError(f"pipeline.stages names {stage!r}; there are: {', '.join(JOBS)}")
    return JOBS[stage]


def _run(body: Any, row: Ran, cfg: Config) -> None:
    folder = stage_folder(cfg, row.stage)
    before, cut_short = _manifest(folder), (folder / "stage.json").exists()
    began = time.monotonic()
    try:
        row.metrics = dict(body(cfg) or {})
    except BaseException as error:
        row.state = "stopped" if isinstance(error, Stopped) else "failed"
        row.seconds = time.monotonic() - began
        raise
    row.seconds = time.monotonic() - began
    if before and before == _manifest(folder):
        row.state = "skipped"
    elif before and _product(before) == _product(_manifest(folder)):
        row.state = "measured"  # again
    else:
        row.state = "continued" if cut_short and not before else "done"
    print(f"{row.stage}: {row.state} in {_clock(row.seconds)}", flush=True)


def _manifest(folder: Path) -> bytes:
    path = folder / "manifest.json"
    return path.read_bytes() if path.exists() else b""


def _product(manifest: bytes) -> Any:
    return json.loads(manifest or b"{}").get("product", manifest)


def _record(cfg: Config, ran: list[Ran], seconds: float, peak: int) -> None:

    stages = [{**asdict(row), "metrics": to_json(row.metrics)} for row in ran]
    write_json(cfg.run.folder / "pipeline.json", {"seconds": seconds, "peak_memory_bytes": peak, "stages": stages})


def _table(ran: list[Ran], seconds: float, peak: int) -> None:

    table = Table(show_footer=True, title="stages", title_justify="left")
    table.add_column("stage", footer="total")
    table.add_column("state")
    table.add_column("time", justify="right", footer=_clock(seconds))
    table.add_column("metrics", footer=f"peak memory {peak / 2**30:.1f} GiB over {where()}")
    for row in ran:
        table.add_row(row.stage, row.state, _clock(row.seconds) if row.seconds else "", _key_metrics(row.metrics))
    console = Console()
    print()
    # A file or a pipe has no width: a line must not be folded there.
    Console(width=console.width if console.is_terminal else 160).print(table)


def _key_metrics(metrics: dict[str, Any]) -> str:

    numbers = {name: value for name, value in metrics.items() if isinstance(value, int | float)}
    measured = [name for name in numbers if name.endswith("_ok")]  # what the domain's rules say
    first = measured + [name for name in _SHOWN_FIRST if name in numbers]
    names = [*first, *(name for name in numbers if name not in first)][:_SHOWN]
    return "  ".join(shown_number(name, numbers[name]) for name in names)


def _samples(run: Path, count: int) -> None:
    """Print answers to the same prompts after each stage that can chat, as stage compared or rl recorded them."""

    path = next((path for stage in ("compared", "rl") if (path := run / stage / "samples.json").exists()), None)
    if path is None:
        return
    for sample in read_json(path)[:count]:
        print(f"\nuser  {sample['prompt']}")
        for stage, text in sample.items():
            if stage != "prompt" and text:
                lines = text.strip().splitlines() or [""]
                print(f"{stage:<6}" + "\n      ".join(lines))


def _clock(seconds: float) -> str:

    return clock(seconds)


def _short(path: Path) -> str:
    here = Path.cwd()
    return str(path.relative_to(here) if path.is_relative_to(here) else path)


if __name__ == "__main__":
    main()
