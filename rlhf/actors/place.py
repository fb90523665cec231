"""Where an actor runs: its process, which can be ended though it is stopped, and its log."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import ray

_GRACE = 3.0  # seconds for an actor to end by itself
_LINES, _WIDTH = 3, 200  # of an actor's log, in a message


@dataclass(frozen=True)
class Place:
    node: str
    process: int
    born: float  # of the process: its number may be another's later
    logs: tuple[str, ...]


def whereabouts(actor: Any) -> Place:
    """Called inside the actor."""
    logs = []
    for stream in (1, 2):
        try:
            logs.append(os.readlink(f"/proc/self/fd/{stream}"))
        except OSError:  # a system without /proc
            continue
    node = ray.get_runtime_context().get_node_id()
    return Place(node, os.getpid(), psutil.Process().create_time(), tuple(logs))


def last_lines(place: Place | None) -> str:
    """What the actor logged last, or where its log lies when that is another machine."""
    if place is None or not place.logs:
        return "no log of it"
    lines: list[str] = []
    for path in place.logs:
        try:
            text = Path(path).read_text("utf-8", errors="replace")
        except OSError:
            return f"its log is {path} on its node"
        lines += [line.strip()[:_WIDTH] for line in text.splitlines() if line.strip() and not line.startswith(":")]
    return f"its last log lines: {' | '.join(lines[-_LINES:])}" if lines else "it has logged nothing"


def kill(place: Place) -> None:
    """Ray asks an actor to end, which one that is stopped does not hear. Others get the time to do so: a sudden death
    Ray reports to the user, as a fault."""
    try:
        process = psutil.Process(place.process)
        if process.create_time() == place.born:
            process.wait(_GRACE)
    except psutil.TimeoutExpired:
        process.kill()
    except psutil.NoSuchProcess:
        pass
