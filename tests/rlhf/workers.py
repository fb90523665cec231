"""Actors that do, fail and are silent as they are told, for the tests of those who call actors."""

import os
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ray
from ray.actor import ActorHandle

from conf.errors import InputError
from moe.generation.engine import Sampling
from rlhf.actors.rollout import Rollout
from rlhf.messages import Request, Response


class Worker:
    def __init__(self, *, refuse: bool = False, asleep: float = 0.0) -> None:
        time.sleep(asleep)
        if refuse:
            raise InputError("data.jsonl line 3: no field 'text'; try another")
        self.given = 0

    def double(self, number: int) -> int:
        return 2 * number

    def wait_for(self, seconds: float) -> float:
        time.sleep(seconds)
        return seconds

    def refuse(self) -> None:
        raise InputError("ppo.lr=1e9: no finite step; try a lower one")

    def fail(self) -> None:
        raise KeyError("a bug")

    def take(self, given: Any) -> Any:
        self.given = given
        return given

    def held(self) -> Any:
        """What it was given; 0 of a new one."""
        return self.given

    def pair(self) -> tuple[int, str]:
        return 7, "a large thing"

    def once(self, mark: Path, action: str) -> str:
        """Do `action` the first time, and answer "done" to whoever asks again."""
        if not mark.exists():
            mark.touch()
            print(f"about to {action}", file=sys.stderr, flush=True)
            if action == "raise":
                raise ZeroDivisionError("by nothing")
            if action == "answer":
                return "nonsense"
            os.kill(os.getpid(), {"die": signal.SIGKILL, "stop": signal.SIGSTOP}[action])
        return "done"

    def noted(self, number: int, notes: Path, action: str) -> int:
        """Write down that it was asked, then do as `once`; twice the number."""
        with open(notes / "asked", "a") as file:
            file.write(f"{number} ")
        if action:
            self.once(notes / f"{number}.mark", action)
        return 2 * number

    def always(self, mark: Path) -> None:
        """Write down that it was asked, and die."""
        with open(mark, "a") as file:
            file.write("x")
        print("one line\nand the last one", file=sys.stderr, flush=True)
        os.kill(os.getpid(), signal.SIGKILL)


class Mortal(Rollout):
    """Of all that answer from one folder, whoever has answered first dies before it is heard, and the second stops."""

    def __init__(self, folder: Path, threads: int, engine: str = "ours", device: str = "cpu") -> None:
        super().__init__(folder, threads, engine, device)
        self.folder = folder

    def generate(self, requests: Sequence[Request], sampling: Sampling) -> list[Response]:
        made = super().generate(requests, sampling)
        for sent in (signal.SIGKILL, signal.SIGSTOP):
            mark = self.folder / sent.name
            if not mark.exists():
                mark.touch()
                os.kill(os.getpid(), sent)
        return made


def put(*args: Any, **named: Any) -> ActorHandle:
    return ray.remote(Worker).options(num_cpus=0.1, max_restarts=0).remote(*args, **named)
