"""A server of processes that save a checkpoint and may be hurt while they do; see test_storage_crashes.py.

It imports once and forks for every line on its standard input, {"folder", "how", "hurt", "traced"}, and answers with
two lines: the child's process id, then how it ended (0: saved, 1: refused, 2: saved in spite of a call that failed,
-9: killed). A traced child waits to be continued.
"""

import builtins
import ctypes
import errno
import io
import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))
from cluster import fault, storage
from conf.errors import InputError
from tests.cluster.saving import save_checkpoint

NEW = b"new" * 20_000
ANY_TRACER = 0x59616D61, ctypes.c_ulong(-1)  # PR_SET_PTRACER, PR_SET_PTRACER_ANY: where Yama would not let strace


def write(folder: Path) -> None:
    with open(folder / "weights", "wb") as file:
        file.write(NEW)
    storage.write_json(folder / "progress.json", {"step": 1})


def save(folder: Path, how: str) -> None:
    """There are checkpoints of the steps 1 and 2."""
    save_checkpoint(folder, 2 if how == "again" else 3, write, keep=2, asynchronous=how == "asynchronous")


def hurt_at(number: int, code: int) -> Callable[[], bool]:
    """The `number`-th call that changes the disk kills the process (code 0) or fails with this error; returns whether
    it was reached."""
    left = number

    def hurting(call: Callable[..., Any]) -> Callable[..., Any]:
        def called(*args: Any, **kwargs: Any) -> Any:
            nonlocal left
            changes = call is not builtins_open or any(letter in [*args, "r"][1] for letter in "wax+")
            left -= changes
            if changes and left == 0:
                if not code:
                    os.kill(os.getpid(), signal.SIGKILL)
                raise OSError(code, os.strerror(code))
            return call(*args, **kwargs)

        return called

    builtins_open = builtins.open
    builtins.open = io.open = hurting(builtins_open)
    for name in ("mkdir", "rename", "replace", "unlink", "rmdir", "fsync"):
        setattr(os, name, hurting(getattr(os, name)))
    return lambda: left <= 0


def child(asked: dict[str, Any], prctl: Any) -> int:
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    if asked["traced"]:
        prctl(*ANY_TRACER, 0, 0, 0)
        os.kill(os.getpid(), signal.SIGSTOP)
    if isinstance(asked["hurt"], str):
        fault.arm(asked["hurt"])
        reached = fault.reached
    else:
        reached = hurt_at(*asked["hurt"])
    try:
        save(Path(asked["folder"]), asked["how"])
    except (InputError, OSError, fault.Fault):
        return 1
    return 2 if reached() else 0


def serve() -> None:
    prctl = ctypes.CDLL(None).prctl
    for line in sys.stdin:
        asked = json.loads(line)
        pid = os.fork()
        if not pid:
            code = errno.EPROTO
            try:
                code = child(asked, prctl)
            finally:
                os._exit(code)
        if asked["traced"]:
            os.waitpid(pid, os.WUNTRACED)
        print(pid, flush=True)
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)


if __name__ == "__main__":
    serve()
