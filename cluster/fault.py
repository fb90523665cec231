"""Points at which a test hurts the process, to prove what survives. They do nothing unless told to.

`FAULT=save.written:2:kill` in the environment kills the process when it reaches the point `save.written` for the second
time; several are separated by commas. Each process counts for itself, so that one which Ray restarts counts from 1.
"""

import errno
import os
import signal
import time
from dataclasses import dataclass

from conf.errors import InputError
from conf.knobs.running import Run

VARIABLE = "FAULT"


class Fault(RuntimeError):
    """Raised by the action `raise`: an error that nobody foresaw."""


@dataclass
class _Armed:
    left: int  # times the point is still to be reached
    action: str

    def reach(self, name: str) -> None:
        self.left -= 1
        if self.left != 0:
            return
        verb, _, seconds = self.action.partition("=")
        if verb == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        elif verb == "term":
            os.kill(os.getpid(), signal.SIGTERM)
        elif verb == "stop":
            os.kill(os.getpid(), signal.SIGSTOP)
        elif verb == "raise":
            raise Fault(f"{VARIABLE} raised at {name}")
        elif verb == "enospc":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), name)
        else:
            time.sleep(float(seconds))


_armed: dict[str, _Armed] | None = None  # by point; None: the environment has not been read


def at(name: str) -> None:
    """Mark a point; hurt the process if that is what the environment or `arm` asks for."""
    if _armed is None:
        arm(os.environ.get(VARIABLE, ""))
        assert _armed is not None
    if armed := _armed.get(name):
        armed.reach(name)


def arm(text: str) -> None:
    """Take `text` for the environment's FAULT. Raises `InputError` if it is none."""
    global _armed
    _armed = dict(_parse(part) for part in text.split(",") if part)


def reached() -> bool:
    """Whether every armed fault has fired; false where none is armed."""
    return bool(_armed) and all(armed.left <= 0 for armed in (_armed or {}).values())


def check(run: Run) -> None:
    """Raise `InputError` where FAULT is set and malformed, or the run is not marked as a test's."""
    text = os.environ.get(VARIABLE, "")
    if text and not run.faults:
        raise InputError(f"{VARIABLE}={text} would hurt this run; unset it, or set run.faults=true if this is a test")
    arm(text)


def _parse(part: str) -> tuple[str, _Armed]:
    name, count, action = [*part.split(":"), "", ""][:3]
    verb, _, seconds = action.partition("=")
    known = action in {"kill", "term", "stop", "raise", "enospc"} or (verb == "delay" and _is_number(seconds))
    if not name or part.count(":") != 2 or not count.isdecimal() or int(count) < 1 or not known:
        raise InputError(
            f"{VARIABLE}={part} is not <point>:<count from 1>:kill|term|stop|raise|enospc|delay=<seconds>; "
            f"try {VARIABLE}=save.written:1:kill"
        )
    return name, _Armed(int(count), action)


def _is_number(text: str) -> bool:
    try:
        return 0 <= float(text) < float("inf")
    except ValueError:
        return False
