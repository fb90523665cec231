"""Starts training processes quickly: everything is imported once, and each run is a fork that may be killed.

`with Server() as server: server.run("base", folder, kill_after=0.3)`.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.faults.stages import stage_plan

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Ended:
    codes: list[int]  # of each worker: 0 done, -9 killed
    seconds: float

    @property
    def killed(self) -> bool:
        return -signal.SIGKILL in self.codes


class Server:
    def __enter__(self) -> Self:
        self._made: dict[str, Path] = {}  # the data of a stage
        self._scratch = tempfile.TemporaryDirectory(prefix="conclave-")
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.faults.server"],
            cwd=ROOT,
            env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(timeout=600)
        self._scratch.cleanup()

    def run(
        self,
        kind: str,
        folder: Path,
        *,
        workers: int = 0,
        kill_after: float | None = None,
        stop_after: float | None = None,
        fault: str = "",
    ) -> Ended:
        """Train a stage of tests.faults.stages from its newest checkpoint, until done or killed.

        `workers`: 0 trains in one process without a process group, else in so many with bitwise the same result.
        `kill_after` seconds all get SIGKILL, `stop_after` seconds the first SIGTERM; `fault` is armed in each
        (cluster.fault).
        """
        if not (folder / "rows").exists():  # made once, and by nobody who may be killed
            if kind not in self._made:
                self._made[kind] = Path(tempfile.mkdtemp(dir=self._scratch.name))
                stage_plan(kind, self._made[kind])
            shutil.copytree(self._made[kind], folder, dirs_exist_ok=True)
        asked = {"kind": kind, "folder": str(folder), "workers": workers, "kill_after": kill_after}
        asked |= {"stop_after": stop_after, "fault": fault}
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(json.dumps(asked) + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        assert answer, "the server is gone"
        return Ended(**json.loads(answer))


def _serve() -> None:
    import torch  # noqa: F401  before the fork, and so is what follows

    import tests.faults.stages  # noqa: F401
    import trainers.loop.loop  # noqa: F401

    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what the workers print is no answer
    for line in sys.stdin:
        asked = json.loads(line)
        began = time.monotonic()
        world = max(1, asked["workers"])
        meeting = tempfile.mktemp(prefix="conclave-")
        workers = [_fork(asked, rank, world, meeting) for rank in range(world)]
        codes = _wait(workers, began, kill_after=asked["kill_after"], stop_after=asked["stop_after"])
        Path(meeting).unlink(missing_ok=True)
        print(json.dumps({"codes": codes, "seconds": time.monotonic() - began}), file=answers, flush=True)


def _fork(asked: dict[str, str], rank: int, world: int, meeting: str) -> int:
    process = os.fork()
    if process:
        return process
    code = 1
    try:
        _train(asked, rank, world, meeting)
        code = 0
    except SystemExit as stopped:
        code = int(stopped.code or 0)
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stdout.flush()
        os._exit(code)


def _train(asked: dict[str, str], rank: int, world: int, meeting: str) -> None:
    import torch.distributed as dist

    from cluster import fault
    from cluster.stopping import deferred, stoppable
    from tests.faults.stages import logged, spread, stage_plan
    from trainers.loop.loop import learn

    fault.arm("" if rank and asked["fault"].endswith(":term") else asked["fault"])
    plan = stage_plan(asked["kind"], Path(asked["folder"]))
    if asked["workers"]:
        plan = spread(plan, world)
    if world > 1:
        dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=world)
    if rank == 0:  # as the driver does, which alone gets signals
        with stoppable("trainers.pretrain"), deferred(plan.checkpoints):
            learn(plan, logged(plan, rank, world))
    else:
        learn(plan, logged(plan, rank, world))
    if world > 1:
        dist.destroy_process_group()


def _wait(workers: list[int], began: float, *, kill_after: float | None, stop_after: float | None) -> list[int]:
    """Exit codes; at the deadline, or when one of them failed, the others are killed."""
    codes: dict[int, int] = {}
    deadline, stop = (began + after if after is not None else float("inf") for after in (kill_after, stop_after))
    while len(codes) < len(workers):
        for process in workers:
            if process not in codes and (done := os.waitpid(process, os.WNOHANG))[0]:
                codes[process] = os.waitstatus_to_exitcode(done[1])
        if time.monotonic() > stop and workers[0] not in codes:
            os.kill(workers[0], signal.SIGTERM)
            stop = float("inf")
        if time.monotonic() > deadline or set(codes.values()) - {0, 128 + signal.SIGTERM}:
            for process in workers:
                if process not in codes:
                    os.kill(process, signal.SIGKILL)
                    codes[process] = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
        time.sleep(0.002)
    return [codes[process] for process in workers]


if __name__ == "__main__":
    _serve()
