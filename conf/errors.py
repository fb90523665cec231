"""The user's errors, and how one is found inside what the libraries wrapped around it."""

import errno
import re
from collections.abc import Iterator


class InputError(ValueError):
    """What the user gave cannot work. The message names the knob or the file, the value, and the fix."""


# Ray Data's error loses its cause on the way between processes; only the text of the remote traceback has it.
_TOLD = re.compile(r"^conf\.errors\.InputError: (.+)\n\nThe above exception was the direct cause", re.MULTILINE)


class NotStarted(RuntimeError):
    """A cluster could not be started; why, in its own words."""


_ON_DISK = {  # what the disk refuses, whoever writes: nothing that is tried again would help
    errno.ENOSPC: "make room",
    errno.EDQUOT: "make room",
    errno.EROFS: "give another folder",
    errno.EACCES: "give the right to it",
}
# Classes, Ray's but for one, that say that a process of its own, or the machine it was on, is gone.
_RAYS = {
    "NotStarted": "Ray did not start on this machine",
    "LocalRayletDiedError": "a process of Ray's (raylet) died",
    "NodeDiedError": "a node of the Ray cluster died",
    "OwnerDiedError": "a node of the Ray cluster died",
    "ObjectLostError": "a node of the Ray cluster died",
    "WorkerCrashedError": "a worker process died",
    "ActorDiedError": "an actor's process died",
    "ActorUnavailableError": "an actor cannot be reached",
    "OutOfMemoryError": "a machine has too little memory",
    "OutOfDiskError": "a machine has too little room on its disk",
    "ObjectStoreFullError": "Ray's object store is full (cluster.object_store_mb)",
    "RaySystemError": "the Ray cluster failed",
    "RpcError": "the Ray cluster does not answer",
}


def user_error(error: BaseException) -> InputError | None:
    """The `InputError` that began `error`, as it was raised, or None when the fault is not the user's. A disk that is
    full or refuses counts as the user's.

    A Ray task's error arrives as a subclass of both RayTaskError and InputError whose text is the whole remote
    traceback; Ray Train keeps the errors of its workers in a dict by rank. Both are read by attribute, so that this
    needs no Ray.
    """
    refused: InputError | None = None
    for here in _chain(error):
        if isinstance(here, InputError) and not hasattr(here, "cause"):
            return here
        if "UserCodeException" in type(here).__name__ and (told := _TOLD.search(str(here))):
            return InputError(told[1])
        if isinstance(here, OSError) and here.errno in _ON_DISK and not hasattr(here, "cause"):
            refused = refused or InputError(f"{here}; {_ON_DISK[here.errno]}, and the same command continues")
    return refused


def cluster_failure(error: BaseException) -> str:
    """What of Ray's own failed, in a line, where that began `error`; "" where it did not."""
    found = [here for here in _chain(error) if type(here).__name__ in _RAYS]
    if not found:
        return ""
    text = next((line.strip() for line in str(found[-1]).splitlines() if line.strip()), "")
    return f"{_RAYS[type(found[-1]).__name__]} ({text[:300]})"


def _chain(error: BaseException) -> Iterator[BaseException]:
    """The error and all that is inside it, from the outside in, each once."""
    seen: set[int] = set()
    queue = [error]
    while queue:
        here = queue.pop(0)
        if id(here) not in seen:
            seen.add(id(here))
            yield here
            queue += _inside(here)


def _inside(error: BaseException) -> Iterator[BaseException]:
    failures = getattr(error, "worker_failures", None)
    nested = list(failures.values()) if isinstance(failures, dict) else []
    nested += [getattr(error, name, None) for name in ("cause", "controller_failure", "_base_exc", "__cause__")]
    nested += [error.__context__] if not error.__suppress_context__ else []
    nested += getattr(error, "exceptions", ())
    yield from (item for item in nested if isinstance(item, BaseException))
