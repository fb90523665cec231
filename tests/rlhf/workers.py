"""An actor that does, fails and is silent as it is told, for the tests of those who call actors."""

import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import ray
from ray.actor import ActorHandle

from conf.errors import InputError


class Worker:
    def __init__(self, *, refuse: bool = False) -> None:
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

    def always(self, mark: Path) -> None:
        """Write down that it was asked, and die."""
        with open(mark, "a") as file:
            file.write("x")
        print("one line\nand the last one", file=sys.stderr, flush=True)
        os.kill(os.getpid(), signal.SIGKILL)


def put(*args: Any, **named: Any) -> ActorHandle:
    return ray.remote(Worker).options(num_cpus=0.1, max_restarts=0).remote(*args, **named)
