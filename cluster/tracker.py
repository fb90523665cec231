"""Metrics of a stage: always appended to metrics.jsonl, and to Weights & Biases when asked."""

import hashlib
import json
import math
import re
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from cluster.storage import write_file
from conf.schema import Tracker as Settings
from conf.schema import TrackerKind

FILE = "metrics.jsonl"
_ALARM = re.compile(r"moe/\d+/alarm/\w+")


def to_json(values: Mapping[str, Any]) -> dict[str, Any]:
    """`values` with NaN and infinities as the strings "nan", "inf", "-inf": JSON has no such numbers."""
    return {name: str(float(v)) if isinstance(v, float) and not math.isfinite(v) else v for name, v in values.items()}


def from_json(values: Mapping[str, Any]) -> dict[str, Any]:
    """The inverse of `to_json`."""
    return {name: float(v) if v in ("nan", "inf", "-inf") else v for name, v in values.items()}


def read_metrics(folder: str | Path) -> list[dict[str, Any]]:
    """Every whole line of the folder's metrics.jsonl, in order; a line that a kill cut short is left out."""
    path = Path(folder) / FILE
    return parse_lines(path.read_bytes()) if path.exists() else []


def parse_lines(content: bytes) -> list[dict[str, Any]]:
    whole = content[: content.rfind(b"\n") + 1]
    return [from_json(json.loads(line)) for line in whole.splitlines() if line]


def alarms(lines: Iterable[Mapping[str, Any]]) -> list[tuple[int, str]]:
    """(step, text) of every alarm in the lines of a metrics.jsonl, in order."""
    return [(line["step"], text) for line in lines for name, text in line.items() if _ALARM.fullmatch(name)]


class Tracker:
    """`with Tracker(folder, cfg.tracker, run=cfg.run.name, stage="base", step=120) as tracker: tracker.log(...)`.

    `step` is the step the stage continues from: lines of later steps are dropped, for the steps will be taken again.
    """

    def __init__(self, folder: str | Path, cfg: Settings, *, run: str, stage: str, step: int = 0) -> None:
        folder = Path(folder).absolute()
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / FILE
        if path.exists():
            kept = [
                json.dumps(to_json(line), ensure_ascii=False) for line in read_metrics(folder) if line["step"] <= step
            ]
            write_file(path, "".join(f"{line}\n" for line in kept))
        self._file = open(path, "a", encoding="utf-8")  # noqa: SIM115  closed by __exit__
        self._wandb = _wandb(folder, cfg, run, stage) if cfg.kind is TrackerKind.wandb else None

    def log(self, values: Mapping[str, float | str], step: int) -> None:
        """Append one line: the step, the time in seconds since 1970, and `values`; an alarm is a text."""
        line = {"step": step, "time": round(time.time(), 3), **{name: _plain(value) for name, value in values.items()}}
        self._file.write(json.dumps(to_json(line), ensure_ascii=False, allow_nan=False) + "\n")
        self._file.flush()
        if self._wandb is not None:
            # The step is a column, not W&B's own counter, which refuses the steps that a continued run takes again.
            self._wandb.log({**values, "step": step})

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()
        if self._wandb is not None:
            self._wandb.finish(exit_code=0 if kind is None else 1)


def _plain(value: Any) -> float | int | str:
    if isinstance(value, bool | int | float | str):
        return value
    return float(value)  # a 0-dimensional tensor or array


def _wandb(folder: Path, cfg: Settings, run: str, stage: str) -> Any:
    import wandb  # loads slowly, and only who tracks there needs it

    session = wandb.init(
        project=cfg.project,
        entity=cfg.entity or None,
        mode=cfg.mode.value,
        dir=str(folder),  # absolute: the working directory of a Ray job is deleted with it
        id=hashlib.sha256(f"{folder}\0{stage}".encode()).hexdigest()[:16],
        resume="allow" if cfg.mode.value == "online" else None,
        name=f"{run}/{stage}",
        group=run,
        job_type=stage,
        settings=wandb.Settings(silent=True, console="off"),
    )
    session.define_metric("*", step_metric="step")
    return session
