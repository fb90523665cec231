"""Run the stages of a preset in order: from raw text to a chat model. Finished stages are skipped.

python -m cluster.pipeline preset=demo
"""

import importlib
import os
import shlex
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

from conf.entry import job
from conf.schema import Config, InputError

_STOP_WITHIN = 10.0  # seconds that libraries get to clean up after a signal
_SHOWN_FIRST = (  # the metrics that tell most about a stage, in this order
    "form_ok rhyme_ok form_accuracy kl_per_answer pair_accuracy loss bits_per_byte perplexity train val test "
    "duplicates rejected vocab_size pieces tokens rows samples pairs"
).split()
_SHOWN = 4


@dataclass(kw_only=True)
class Ran:
    """What became of one stage."""

    stage: str
    state: str = "waiting"  # done, continued, skipped, failed, waiting
    seconds: float = 0.0
    metrics: dict[str, Any] = field(default_factory=dict)


@job
def main(cfg: Config) -> dict[str, float]:
    """Run `pipeline.stages`; returns {"seconds": ..., "peak_memory_bytes": ...}."""
    from cluster.connect import connect
    from cluster.memory import PeakMemory
    from cluster.run import locked

    jobs = {stage: importlib.import_module(_module(stage)) for stage in cfg.pipeline.stages}
    began, ran = time.monotonic(), [Ran(stage=stage) for stage in jobs]
    with locked(cfg.run.folder / ".pipeline.lock", f"run {cfg.run.folder}"), PeakMemory() as peak:
        connect(cfg.cluster)
        with _stoppable():
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


def _module(stage: str) -> str:
    from cluster.run import JOBS

    if stage not in JOBS:
        raise InputError(f"pipeline.stages names {stage!r}; there are: {', '.join(JOBS)}")
    return JOBS[stage]


def _run(body: Any, row: Ran, cfg: Config) -> None:
    folder = cfg.run.folder / row.stage
    before, cut_short = _manifest(folder), (folder / "stage.json").exists()
    began = time.monotonic()
    try:
        row.metrics = dict(body(cfg) or {})
    except BaseException:
        row.state, row.seconds = "failed", time.monotonic() - began
        raise
    row.seconds = time.monotonic() - began
    if before and before == _manifest(folder):
        row.state = "skipped"
    else:
        row.state = "continued" if cut_short and not before else "done"
    print(f"{row.stage}: {row.state} in {_clock(row.seconds)}", flush=True)


def _manifest(folder: Path) -> bytes:
    path = folder / "manifest.json"
    return path.read_bytes() if path.exists() else b""


@contextmanager
def _stoppable() -> Iterator[None]:
    """SIGTERM and Ctrl-C end the pipeline promptly; what is finished or saved stays."""

    def stop(number: int, frame: FrameType | None) -> None:
        signal.signal(number, signal.SIG_DFL)  # a second one ends it at once
        words = shlex.join(["python", "-m", "cluster.pipeline", *sys.argv[1:]])
        print(
            f"\nstopped by {signal.Signals(number).name}; the same command continues: {words}",
            file=sys.stderr,
            flush=True,
        )
        # A library that swallows SystemExit or waits for its workers must not keep us.
        killer = threading.Timer(_STOP_WITHIN, os._exit, (128 + number,))
        killer.daemon = True
        killer.start()
        raise SystemExit(128 + number)

    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread may handle signals
        return
    old = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)


def _record(cfg: Config, ran: list[Ran], seconds: float, peak: int) -> None:
    from cluster.storage import write_json
    from cluster.tracker import to_json

    stages = [{**asdict(row), "metrics": to_json(row.metrics)} for row in ran]
    write_json(cfg.run.folder / "pipeline.json", {"seconds": seconds, "peak_memory_bytes": peak, "stages": stages})


def _table(ran: list[Ran], seconds: float, peak: int) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(show_footer=True, title="stages", title_justify="left")
    table.add_column("stage", footer="total")
    table.add_column("state")
    table.add_column("time", justify="right", footer=_clock(seconds))
    table.add_column("metrics", footer=f"peak memory {peak / 2**30:.1f} GiB over all processes")
    for row in ran:
        table.add_row(row.stage, row.state, _clock(row.seconds) if row.seconds else "", _key_metrics(row.metrics))
    console = Console()
    print()
    # A file or a pipe has no width: a line must not be folded there.
    Console(width=console.width if console.is_terminal else 160).print(table)


def _key_metrics(metrics: dict[str, Any]) -> str:
    from cluster.progress import shown_number

    numbers = {name: value for name, value in metrics.items() if isinstance(value, int | float)}
    first = [name for name in _SHOWN_FIRST if name in numbers]
    names = [*first, *(name for name in numbers if name not in first)][:_SHOWN]
    return "  ".join(shown_number(name, numbers[name]) for name in names)


def _samples(run: Path, count: int) -> None:
    """Print answers to the same prompts after each stage that can chat, as the rl stage recorded them."""
    from cluster.storage import read_json

    path = run / "rl" / "samples.json"
    if not path.exists():
        return
    for sample in read_json(path)[:count]:
        print(f"\nuser  {sample['prompt']}")
        for stage in ("base", "chat", "rl"):
            if sample.get(stage):
                lines = sample[stage].strip().splitlines() or [""]
                print(f"{stage:<6}" + "\n      ".join(lines))


def _clock(seconds: float) -> str:
    from cluster.progress import clock

    return clock(seconds)


def _short(path: Path) -> str:
    here = Path.cwd()
    return str(path.relative_to(here) if path.is_relative_to(here) else path)


if __name__ == "__main__":
    main()
