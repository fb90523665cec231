"""Metrics of a stage: always appended to metrics.jsonl, and to Weights & Biases when asked.

A line of its own says what is no measurement: `attempt` (the stage was cut short and goes on from this step) and
`incident` (what was noticed at it, and what was done).

metrics.jsonl has each step once, and W&B is filled up from it: a process that is killed takes along what W&B's client
has not sent or, offline, written yet. Steps that are taken again after a kill have the values that W&B already has, so
they are not sent twice. W&B cannot unsay a line: after a rollback its curves go back and show both ways.
"""

import json
import math
import os
import re
import secrets
import shutil
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


def incidents(lines: Iterable[Mapping[str, Any]]) -> list[tuple[int, str]]:
    """(step, text) of every incident, in order."""
    return [(line["step"], line["incident"]) for line in lines if "incident" in line]


class Tracker:
    """`with Tracker(folder, cfg.tracker, run=cfg.run.name, stage="base", step=120) as tracker: tracker.log(...)`.

    `step` is the step the stage continues from: lines of later steps are dropped, for the steps will be taken again.
    """

    def __init__(self, folder: str | Path, cfg: Settings, *, run: str, stage: str, step: int = 0) -> None:
        folder = Path(folder).absolute()
        folder.mkdir(parents=True, exist_ok=True)
        self._path = folder / FILE
        again = self._path.exists()
        attempt = 1 + max((line.get("attempt", 1) for line in read_metrics(folder)), default=1)
        self._keep(step)
        self._wandb: Any = None
        self._known = 0.0  # the last step that W&B has seen
        if cfg.kind is TrackerKind.wandb:
            self._wandb, self._known = _wandb(folder, cfg, run, stage)
            for line in read_metrics(folder):
                self._send(line)
        if again:
            self.log({"attempt": attempt}, step)

    def _keep(self, step: int) -> None:
        """Drop the lines of later steps, all at once, and open the file to append."""
        if self._path.exists():
            kept = [to_json(line) for line in read_metrics(self._path.parent) if line["step"] <= step]
            write_file(self._path, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in kept))
        self._file = open(self._path, "a", encoding="utf-8")  # noqa: SIM115  closed by __exit__

    def rewind(self, step: int) -> None:
        """Drop the lines of steps after `step`, for these will be taken again."""
        self._file.close()
        self._keep(step)
        self._known = min(self._known, step)

    def sync(self) -> None:
        """Wait until what was logged is on the disk, as a checkpoint that is about to count on it needs."""
        self._file.flush()
        os.fsync(self._file.fileno())

    def log(self, values: Mapping[str, float | str], step: int) -> None:
        """Append one line: the step, the time in seconds since 1970, and `values`; an alarm is a text."""
        line = {"step": step, "time": round(time.time(), 3), **{name: _plain(value) for name, value in values.items()}}
        self._file.write(json.dumps(to_json(line), ensure_ascii=False, allow_nan=False) + "\n")
        self._file.flush()
        self._send(line)

    def _send(self, line: Mapping[str, Any]) -> None:
        if self._wandb is not None and line["step"] >= self._known:
            # The step is a column: W&B's own counter takes none twice.
            self._wandb.log({name: value for name, value in line.items() if name != "time"})

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


def _wandb(folder: Path, cfg: Settings, run: str, stage: str) -> tuple[Any, float]:
    """The session, and the last step that the W&B run has seen."""
    import wandb  # loads slowly, and only who tracks there needs it

    # What an earlier attempt left for `wandb sync` will all be in the new file, and its own was perhaps cut short.
    for old in (folder / "wandb").glob("offline-run-*"):
        shutil.rmtree(old)
    session = wandb.init(
        project=cfg.project,
        entity=cfg.entity or None,
        mode=cfg.mode.value,
        dir=str(folder),  # absolute: the working directory of a Ray job is deleted with it
        id=_identity(folder / "wandb" / "id"),
        resume="allow",
        name=f"{run}/{stage}",
        group=run,
        job_type=stage,
        # Neither the command line nor the git remote nor the list of packages: they may hold what is secret.
        settings=wandb.Settings(
            silent=True, console="off", x_disable_meta=True, disable_git=True, x_save_requirements=False
        ),
    )
    session.define_metric("*", step_metric="step")
    return session, session.summary.get("step", 0)


def _identity(kept: Path) -> str:
    """The W&B run of this folder, the same in every attempt; a stage that is made anew in its place gets another."""
    if not kept.exists():
        kept.parent.mkdir(exist_ok=True)
        write_file(kept, secrets.token_hex(8))
    return kept.read_text()
