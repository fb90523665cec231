"""Why a remote call failed, in one line, and a pool of actors that answer with a deadline."""

import re
import time
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import ray
from ray.actor import ActorHandle
from ray.exceptions import RayActorError, RayTaskError

from conf.errors import InputError, cluster_failure, user_error

_TOLD = re.compile(r"conf\.errors\.InputError: (.+)")  # inside the text of an actor that died while it was made
_LINE = re.compile(r'File "(?:[^"]*/)?([^"/]+)", line (\d+)')  # of a traceback
_LONGEST = 300  # characters of somebody else's words


class ActorFailed(InputError):
    """An actor died or did not answer in time. The message names it and the call."""


class RankLost(Exception):
    """One of the processes of a learner or a critic died, and what they held together is gone with it."""


def refused(error: Exception) -> InputError | None:
    """The user's own error that ended a call, or the actor that was made for it; None where that was another."""
    if isinstance(error, RayActorError):
        told = _TOLD.search(str(error))
        return InputError(told[1].strip()) if told else None
    return user_error(error)


def reason(error: Exception) -> str:
    """'the actor died (...)', 'ZeroDivisionError: division by zero (rules.py:12)'."""
    if isinstance(error, RayActorError):
        return f"the actor died ({_first_line(error)})"
    if isinstance(error, RayTaskError) and not cluster_failure(error):
        cause = getattr(error, "cause", error)
        lines = _LINE.findall(str(error))
        where = f" ({lines[-1][0]}:{lines[-1][1]})" if lines else ""
        return f"{type(cause).__name__}: {_first_line(cause)}{where}"
    return cluster_failure(error) or f"{type(error).__name__}: {_first_line(error)}"


def pooled(
    actors: Mapping[str, ActorHandle], method: str, jobs: Iterable[tuple[Any, ...]], within: float, *, knob: str
) -> Iterator[Any]:
    """The results of `method(*job)`, each from whichever actor is free, as they come. Raises `ActorFailed` for an actor
    that dies, or is silent for `within` seconds, a deadline that `knob` sets."""
    waiting = iter(jobs)
    free = list(actors)
    running: dict[Any, tuple[str, float]] = {}
    while True:
        while free and (job := next(waiting, None)) is not None:
            name = free.pop()
            running[getattr(actors[name], method).remote(*job)] = name, time.monotonic() + within
        if not running:
            return
        first = min(until for _, until in running.values())
        ready, _ = ray.wait(list(running), num_returns=1, timeout=max(0.0, first - time.monotonic()))
        if not ready:
            late = min(running.values(), key=lambda entry: entry[1])[0]
            raise ActorFailed(f"{late}.{method}: no answer within {knob}={within:g} seconds")
        name, _ = running.pop(ready[0])
        free.append(name)
        try:
            result = ray.get(ready[0])
        except RayActorError as error:
            raise refused(error) or ActorFailed(f"{name}.{method}: {reason(error)}") from error
        except RayTaskError as error:
            raise refused(error) or error from error
        yield result


def _first_line(error: BaseException) -> str:
    lines = (line.strip() for line in str(error).splitlines())
    return next((line[:_LONGEST] for line in lines if line), type(error).__name__)
