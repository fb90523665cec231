"""One process at a time: a lock file in a run's folder, which leaves no trace where nothing came of it."""

import fcntl
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from conf.errors import InputError


@contextmanager
def locked(path: Path, what: str) -> Iterator[None]:
    """Hold a lock file; the kernel lets go of it when the process dies. Raises `InputError` naming who holds it.

    A folder in which nothing but locks was made goes with the last of them: a command that was refused leaves no run.
    """
    file = _held(path, what)
    with file:
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}")
        file.flush()
        try:
            yield
        finally:
            with suppress(OSError):  # another lock is there still, or the folder is gone
                if all(other.suffix == ".lock" for other in path.parent.iterdir()):
                    path.unlink()
                    path.parent.rmdir()


def _held(path: Path, what: str) -> IO[str]:
    while True:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            file = open(path, "a+", encoding="utf-8")  # noqa: SIM115 - the caller holds it open
        except FileNotFoundError:  # another process has just taken the empty folder away
            continue
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.path.exists(path) and os.path.samestat(os.fstat(file.fileno()), os.stat(path)):
                return file
        except FileNotFoundError:
            pass  # likewise, between the two looks at it
        except BlockingIOError:
            file.seek(0)
            owner = file.read().strip() or "another process"
            file.close()
            raise InputError(f"{what} is in use by {owner}; wait for it, or choose another run.name") from None
        file.close()
