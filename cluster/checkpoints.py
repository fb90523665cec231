"""The checkpoints of a stage's folder: the newest that verifies found, the right ones kept. cluster/saver.py saves."""

import re
import shutil
import sys
from pathlib import Path

from cluster import fault
from cluster.storage import Damaged, drop, read_sealed, verify

_INTERIM = "-stop"  # ends the name of a checkpoint that a stop made


def checkpoint_path(folder: str | Path, step: int, *, interim: bool = False) -> Path:
    """`interim`: one that was saved because the run was stopped. It counts only to go on from, until the next is saved:
    a run that was stopped must keep, and go back to, the same ones as a run left alone."""
    return Path(folder) / f"step-{step:08d}{_INTERIM if interim else ''}"


def prune(folder: Path, step: int, keep: int, *, every: int = 0, best: bool = False) -> None:
    """Drop checkpoints but the newest `keep`, those whose step `every` divides and, if `best`, the lowest `score`.

    The run has just saved `step`: what is there of later steps was passed over as damaged or given up by going back,
    and is dropped as well.
    """
    drop_checkpoints(folder, after=step)
    found = _checkpoints(folder)
    usual = [(number, path) for number, path in found if not _is_interim(path)]
    kept = {path for place, (number, path) in enumerate(usual) if place < keep or (every and number % every == 0)}
    kept |= {path for _, path in found[:1]}
    scores = [(score, number, path) for number, path in usual if (score := _score(path)) is not None]
    if best and scores:
        kept.add(min(scores)[2])
    for _, path in found:
        if path not in kept:
            drop(path)
    fault.at("save.pruned")


def drop_checkpoints(folder: Path, *, after: int) -> None:
    """Remove the checkpoints of later steps than `after`, the newest first."""
    for step, path in _checkpoints(folder):
        if step > after:
            drop(path)


def drop_leftovers(folder: Path, *, but: str) -> None:
    """Remove what a killed process has left in `folder`, except for the unfinished checkpoint named `but`."""
    for path in folder.glob("*step-*.tmp"):
        if path.name != but:
            shutil.rmtree(path, ignore_errors=True)
    for path in folder.glob(".step-*.old"):
        replaced = folder / path.name[1:].removesuffix(".old")
        if replaced.exists():
            drop(path)
        else:  # the kill came before its successor had the name
            path.rename(replaced)


def newest_checkpoint(folder: str | Path, *, at_most: int | None = None) -> tuple[int, Path] | None:
    """The newest checkpoint that verifies, as (step, folder); with `at_most`, of those up to it that no stop made.

    Damaged ones are named on stderr and passed over.
    """
    for step, path in _checkpoints(Path(folder)):
        if at_most is not None and (step > at_most or _is_interim(path)):
            continue
        try:
            verify(path)
        except Damaged as error:
            print(f"checkpoint passed over: {error}", file=sys.stderr)
        else:
            return step, path
    return None


def newest_step(folder: str | Path) -> int:
    """The step of the newest checkpoint, 0 without one; to be told, for it may be damaged."""
    return next((step for step, _ in _checkpoints(Path(folder))), 0)


def _checkpoints(folder: Path) -> list[tuple[int, Path]]:
    """Newest first. Of a step that is being saved again, the one to be replaced comes second, if it is still there."""
    found = [
        (re.fullmatch(rf"(\.)?step-(\d+)(?:{_INTERIM})?(?(1)\.old)", path.name), path)
        for path in folder.glob("*step-*")
    ]
    ordered = sorted((-int(match[2]), bool(match[1]), path) for match, path in found if match)
    return [(-step, path) for step, _, path in ordered]


def _is_interim(path: Path) -> bool:
    return path.name.removesuffix(".old").endswith(_INTERIM)


def _score(checkpoint: Path) -> float | None:
    try:
        return read_sealed(checkpoint).get("score")
    except Damaged:
        return None
