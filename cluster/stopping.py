"""SIGTERM and Ctrl-C: what can be saved is saved, and one line says how far the stage is and what command goes on.

The command ends with 128 + the signal's number: 143 after SIGTERM, 130 after Ctrl-C. Training finishes the step that
it is in, on every worker, saves and ends; a stage with nothing to save ends at once. A second signal ends the process
there and then, which like any kill costs what was done since the last checkpoint. A run that was stopped ends, bitwise,
as it would have ended.

Schedulers send one of the two, and SIGKILL some time later. How much time, they are told: `exec python -m ...` under
Slurm's `--signal=B:TERM@120`, Kubernetes' `terminationGracePeriodSeconds: 120`, and for `ray job stop`, which waits for
3 seconds, the job's environment variable `RAY_JOB_STOP_WAIT_TIME_S=120`.
"""

import os
import shlex
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import NoReturn

SIGNALS = (signal.SIGTERM, signal.SIGINT)
_FILE = "stop"  # in the folder that the workers look into
_END_WITHIN = 10.0  # seconds that libraries get to clean up


class Stopped(SystemExit):
    """A signal ended the command. The code is 128 + the signal's number."""


class Request:
    """Whether a signal has asked for an end, and where the work was when it followed."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.signal = 0  # its number; 0: nobody asked
        self.where = ""  # as in "at step 41; saved"

    def __bool__(self) -> bool:
        return self.signal != 0


_command = ""  # what is told to go on with; empty: signals are not ours
_request: Request | None = None  # of the work that may not be broken off now
_came = 0  # the number of the signal that came


@contextmanager
def stoppable(module: str) -> Iterator[None]:
    """Handle the signals until the block ends: `python -m <module>` and this process's words are the command to go on
    with. Within another such block, and outside the main thread, which alone may do so, it does nothing."""
    global _command
    if _command or threading.current_thread() is not threading.main_thread():
        yield
        return
    _command = shlex.join(["python", "-m", module, *sys.argv[1:]])
    old = {number: signal.signal(number, _handle) for number in SIGNALS}
    try:
        yield
    finally:
        _command = ""
        for number, handler in old.items():
            signal.signal(number, handler)


def renew() -> None:
    """Take the signals back from a library that took them."""
    if _command and threading.current_thread() is threading.main_thread():
        for number in SIGNALS:
            if signal.getsignal(number) not in (_handle, signal.SIG_DFL):
                signal.signal(number, _handle)


@contextmanager
def deferred(folder: Path) -> Iterator[Request]:
    """Within, a signal does not break off but asks: the request that is yielded, and `asked(folder)` on any machine
    that sees the folder, are then true. The command ends with the block, unless an error does."""
    global _request
    folder.mkdir(parents=True, exist_ok=True)
    (folder / _FILE).unlink(missing_ok=True)  # of a process that was killed while it stopped
    _request = request = Request(folder)
    try:
        yield request
    finally:
        _request = None
        (folder / _FILE).unlink(missing_ok=True)
    if request:
        _end(request.signal, request.where)


def asked(folder: Path) -> bool:
    """Whether the command that works in this folder shall end."""
    # Listed, not looked up: a network file system may remember for a minute that a file is not there.
    return folder.exists() and _FILE in os.listdir(folder)


def give_up(reason: str) -> None:
    """End this process at once where it cannot go on, for the `reason`; after a signal, as that asked."""
    _say(f"error: {reason}; the same command continues")
    os._exit(128 + _came if _came else 1)


def _handle(number: int, frame: FrameType | None) -> None:
    global _came
    _came = number
    for each in SIGNALS:
        signal.signal(each, signal.SIG_DFL)  # a second one ends it at once
    if _request is None:
        _end(number, "")
    _say(f"{signal.Signals(number).name}: this step is finished and saved first; a second signal ends it at once")
    _request.signal = number
    (_request.folder / _FILE).touch()


def _end(number: int, where: str) -> NoReturn:
    _say(f"stopped by {signal.Signals(number).name}{where and ' '}{where}; the same command continues: {_command}")
    # A library that swallows SystemExit or waits for its workers must not keep us.
    killer = threading.Timer(_END_WITHIN, os._exit, (128 + number,))
    killer.daemon = True
    killer.start()
    raise Stopped(128 + number)


def _say(text: str) -> None:
    # Not print: the main thread may be in the middle of one.
    os.write(2, f"\n{text}\n".encode())
