"""The toy domain with a judge that fails so many times, or for ever, in the way that a file in its folder says."""

import os
import signal
import time
from collections.abc import Mapping
from dataclasses import replace
from math import nan
from pathlib import Path
from typing import Any

from conf.knobs.alignment import Tasks
from moe.tasks.task import Judge, Sample, Source
from tests.rlhf import toy

PRINCIPLES = toy.PRINCIPLES


def spoil(folder: Path, mode: str, times: int) -> None:
    """Have the judge that reads `folder` fail so many times, across all actors."""
    (folder / "mood").write_text(f"{mode} {times}")


def left(folder: Path) -> int:
    return int((folder / "mood").read_text().split()[1])


def samples(source: Source, cfg: Tasks, seed: int) -> dict[str, list[Sample]]:
    return toy.samples(source, cfg, seed)


def judge(folder: Path, options: Mapping[str, float]) -> Judge:
    right = toy.judge(folder, options)

    def judged(query: Sample, text: str, finished: bool) -> Any:
        verdict = right(query, text, finished)
        mode, times = (folder / "mood").read_text().split()
        if int(times) == 0 or query.id != "prompts-2":  # the answers before it are judged
            return verdict
        spoil(folder, mode, int(times) - 1)
        if mode == "raises":
            raise ZeroDivisionError("of letters by none")
        if mode == "hangs":
            time.sleep(3600)
        if mode == "stops":
            os.kill(os.getpid(), signal.SIGSTOP)
        return {"is nan": replace(verdict, reward=nan)}.get(mode.replace("_", " "))

    return judged
