"""Remote calls with a deadline, and one line that names the actor and the call that failed."""

import re
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import ray
from ray.actor import ActorHandle
from ray.exceptions import GetTimeoutError, RayActorError, RayTaskError

from conf.errors import InputError, user_error

_TOLD = re.compile(r"conf\.errors\.InputError: (.+)")  # inside the text of an actor that died while it was made


class ActorFailed(InputError):
    """An actor died or did not answer in time. The message names it and the call."""


@dataclass(frozen=True)
class Call:
    actor: str
    method: str
    ref: Any


def wait(calls: Sequence[Call], within: float, *, knob: str, before: Sequence[Call] = ()) -> list[Any]:
    """The results, in order. Raises `ActorFailed` for the first that fails, and for those silent after `within`
    seconds, whose deadline is `knob`.

    `before` are calls whose results these calls take as arguments: where one of them failed, that is what is told.
    """
    pending = {call.ref: call for call in calls}
    results: dict[Any, Any] = {}
    until = time.monotonic() + within
    while pending:
        ready, _ = ray.wait(list(pending), num_returns=1, timeout=max(0.0, until - time.monotonic()))
        if not ready:
            silent = ", ".join(f"{call.actor}.{call.method}" for call in pending.values())
            raise ActorFailed(f"{silent}: no answer within {knob}={within:g} seconds")
        call = pending.pop(ready[0])
        try:
            results[call.ref] = ray.get(call.ref)
        except (RayActorError, RayTaskError) as error:
            for earlier in before:
                _raise_if_failed(earlier)
            raise _named(call, error) from error
    return [results[call.ref] for call in calls]


def pooled(
    actors: Mapping[str, ActorHandle], method: str, jobs: Iterable[tuple[Any, ...]], within: float, *, knob: str
) -> Iterator[Any]:
    """The results of `method(*job)`, each from whichever actor is free, as they come; every call has the deadline."""
    waiting = iter(jobs)
    free = list(actors)
    running: dict[Any, tuple[Call, float]] = {}
    while True:
        while free and (job := next(waiting, None)) is not None:
            name = free.pop()
            call = Call(name, method, getattr(actors[name], method).remote(*job))
            running[call.ref] = call, time.monotonic() + within
        if not running:
            return
        first = min(until for _, until in running.values())
        ready, _ = ray.wait(list(running), num_returns=1, timeout=max(0.0, first - time.monotonic()))
        if not ready:
            late = min(running.values(), key=lambda entry: entry[1])[0]
            raise ActorFailed(f"{late.actor}.{late.method}: no answer within {knob}={within:g} seconds")
        call, _ = running.pop(ready[0])
        free.append(call.actor)
        yield wait([call], within, knob=knob)[0]


def _raise_if_failed(call: Call) -> None:
    try:
        ray.get(call.ref, timeout=0)
    except GetTimeoutError:
        return
    except (RayActorError, RayTaskError) as error:
        raise _named(call, error) from error


def _named(call: Call, error: Exception) -> Exception:
    """What to raise for a call that failed: the user's own error if it is one, else who it was."""
    if isinstance(error, RayActorError):
        if told := _TOLD.search(str(error)):
            return InputError(told[1].strip())
        return ActorFailed(f"{call.actor}.{call.method}: the actor died ({_first_line(error)})")
    if theirs := user_error(error):
        return theirs
    return error


def _first_line(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
