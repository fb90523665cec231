"""Whether what lies in a stage's folder is what is asked for now: what it was made from, and what another value of a
knob makes of it (`conf.decides`)."""

import dataclasses
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from enum import Enum
from pathlib import Path
from typing import Any

from cluster.checkpoints import newest_checkpoint
from cluster.storage import MANIFEST, Damaged, read_json, sha256, verify, verify_files
from conf.decides import RENAMED, Effect, effect
from conf.help import knobs

INTENT = "stage.json"  # written at the start: what this folder is being made from
CHECKPOINTS = "checkpoints"
# Why a stage that has saved this step cannot go on to the length that is asked for, "" if it can; by its old settings.
Longer = Callable[[Mapping[str, Any], int], str]


class Differs(Exception):
    """What is in the folder was made from something else. The text says what."""


def agreeing(folder: Path, intent: dict[str, Any], longer: Longer | None) -> tuple[dict[str, Any] | None, list[str]]:
    """(what is recorded of a stage that was made or begun from `intent`, the changed knobs of its measurement); None
    where there is nothing."""
    sealed = (folder / MANIFEST).exists()
    try:
        before = read_json(folder / (MANIFEST if sealed else INTENT))
    except Damaged as error:
        if sealed or (folder / INTENT).exists():
            raise Differs(str(error)) from error
        return None, []
    for name, digest in intent["inputs"].items():
        if before["inputs"].get(name) != digest:
            raise Differs(f"made from another {name} stage than the one that is there now")
    if gone := before["inputs"].keys() - intent["inputs"].keys():
        raise Differs(f"made from stage {min(gone)}, which it no longer reads")
    old = {RENAMED.get(knob, knob): value for knob, value in _leaves(before["config"]).items()}
    new = _leaves(intent["config"])
    again = []
    for knob in sorted(old.keys() | new.keys()):
        was, now, kind = old.get(knob, "none"), new.get(knob, "none"), effect(knob, new)
        if was == now or kind is Effect.free or (knob not in old and _as_before(knob, now)):
            continue
        told = f"made with {knob}={was}, now {knob}={now}"
        if kind is Effect.decides:
            raise Differs(told)
        if kind is Effect.lasts and (why := _no_longer(folder, old, sealed, longer)):
            raise Differs(f"{told}: {why}")
        if kind is Effect.rounds and not sealed:
            print(f"{intent['stage']}: {told}: the result is the same to rounding, not to the bit", flush=True)
        if kind is Effect.measures and sealed and knob in old:  # what an older manifest does not say may be as it is
            again.append(f"{knob}={was}, now {now}")
    try:
        if sealed:
            verify(folder, quick=not again)
        elif "made" in before:
            verify_files(folder, before["made"])
            intent["made"] = before["made"]
    except Damaged as error:
        raise Differs(str(error)) from error
    return dict(before), again


def _as_before(knob: str, value: Any) -> bool:
    """Whether a knob that is newer than what was made is as it was before there was one."""
    return knob in knobs() and value == plain(knobs()[knob][0])


def _no_longer(folder: Path, old: Mapping[str, Any], sealed: bool, longer: Longer | None) -> str:
    """Why a stage cannot go on to another length; "" if it can."""
    if sealed:
        return (
            "it is done, and keeps no checkpoint to go on from; another run can train on from its model: "
            f"parent.model={folder}"
        )
    found = newest_checkpoint(folder / CHECKPOINTS)
    return "" if found and longer is None else longer(old, found[0]) if found and longer else "no checkpoint is whole"


def holds_work(folder: Path) -> bool:
    """Whether a stage's folder has anything that the next start would go on from."""
    saved = [path for path in (folder / CHECKPOINTS).glob("*step-*") if path.suffix != ".tmp"]
    try:
        return bool(saved) or (folder / MANIFEST).exists() or "made" in read_json(folder / INTENT)
    except Damaged:
        return False


def product(intent: dict[str, Any], files: Mapping[str, str], measured: Sequence[str]) -> str:
    """What a stage is known by to those that read it: its files and what decides them, how it was measured left out."""
    leaves = _leaves(intent["config"])
    decisive = {knob: value for knob, value in leaves.items() if effect(knob, leaves) in (Effect.decides, Effect.lasts)}
    body = {
        "stage": intent["stage"],
        "config": decisive,
        "files": {name: digest for name, digest in files.items() if name not in measured},
    }
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()


def key(folder: Path) -> str:
    """The product of a finished stage; of one that an older version made, the digest of its manifest."""
    return str(read_json(folder / MANIFEST).get("product") or sha256(folder / MANIFEST))


def plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {item.name: plain(getattr(value, item.name)) for item in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(name): plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return value.value if isinstance(value, Enum) else value


def _leaves(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in tree.items():
        found |= _leaves(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
    return found
