"""Metrics of a stage: always appended to metrics.jsonl, which `cluster.tracking.wandb_run` reads for W&B.

A line of its own says what is no measurement: `attempt` (the stage was cut short and goes on from this step) and
`incident` (what was noticed at it, and what was done).
"""

import json
import math
import os
import re
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from cluster.storage import write_file

FILE = "metrics.jsonl"
_ALARM = re.compile(r"(moe/\d+|rl)/alarm/\w+")


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
    """`with Tracker(folder, step=120) as tracker: tracker.log(...)`.

    `step` is the step the stage continues from: lines of later steps are dropped, for the steps will be taken again.
    """

    def __init__(self, folder: str | Path, *, step: int = 0) -> None:
        folder = Path(folder).absolute()
        folder.mkdir(parents=True, exist_ok=True)
        self._path = folder / FILE
        again = self._path.exists()
        attempt = 1 + max((line.get("attempt", 1) for line in read_metrics(folder)), default=1)
        self._keep(step)
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

    def sync(self) -> None:
        """Wait until what was logged is on the disk, as a checkpoint that is about to count on it needs."""
        self._file.flush()
        os.fsync(self._file.fileno())

    def log(
        self, values: Mapping[str, float | str], step: int, *, samples: Sequence[Mapping[str, float | str]] = ()
    ) -> None:
        """Append one line: the step, the time in seconds since 1970, and `values`; an alarm is a text. `samples` are
        to look at: texts and numbers by name, the same names in each."""
        line: dict[str, Any] = {"step": step, "time": round(time.time(), 3)}
        line |= {name: _plain(value) for name, value in values.items()}
        if samples:
            line["samples"] = [to_json(sample) for sample in samples]
        self._file.write(json.dumps(to_json(line), ensure_ascii=False, allow_nan=False) + "\n")
        self._file.flush()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()


def _plain(value: Any) -> float | int | str:
    if isinstance(value, bool | int | float | str):
        return value
    return float(value)  # a 0-dimensional tensor or array
