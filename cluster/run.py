"""The run directory: a folder per stage, finished once it has a manifest, skipped while its inputs are the same."""

import dataclasses
import fcntl
import json
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from enum import Enum
from importlib.metadata import PackageNotFoundError, version
from itertools import count
from pathlib import Path
from typing import Any

from cluster import fault
from cluster.storage import MANIFEST, Damaged, read_json, read_sealed, seal, sha256, verify, write_json
from cluster.tracker import FILE as METRICS
from cluster.tracker import from_json, to_json
from conf.schema import Config, InputError

JOBS = {  # stage: the module whose job makes it
    "corpus": "trainers.corpus",
    "tokenizer": "trainers.tokenizer",
    "tokens": "trainers.tokens",
    "tasks": "trainers.tasks",
    "base": "trainers.pretrain",
    "twin": "trainers.twin",
    "chat": "trainers.sft",
    "ranked": "rlhf.rank",
    "reward": "trainers.reward",
    "rl": "rlhf.ppo",
    "report": "cluster.report",
}
INTENT = "stage.json"  # written at the start: what this folder is being made from
CHECKPOINTS = "checkpoints"
_UNSEALED = (CHECKPOINTS, METRICS, INTENT, "wandb")  # not the stage's output
_MAY_CHANGE = {"keep", "timeout"}  # knobs that cannot alter what a stage produces


class Stage:
    """One stage's folder while it is held. Write into `folder`; `finish` makes the result count."""

    def __init__(self, folder: Path, manifest: dict[str, Any] | None, intent: dict[str, Any]) -> None:
        self.folder = folder
        self.done = manifest is not None
        self.metrics: dict[str, Any] = from_json(manifest["metrics"]) if manifest else {}
        self._intent, self._began = intent, time.time()

    def input(self, name: str) -> Path:
        """The folder of a stage that this one reads."""
        assert name in self._intent["inputs"], f"{name} is not among the stages that open_stage(reads=...) named"
        return self.folder.parent / name

    def finish(self, metrics: Mapping[str, Any]) -> dict[str, Any]:
        """Write the manifest: from here on the stage is done. Checkpoints go, for only a stage cut short needs them."""
        now = time.time()
        self.metrics = dict(metrics)
        extra = {
            **self._intent,
            "status": "done",
            "code": _code(),
            "metrics": to_json(self.metrics),
            "seconds": round(now - self._began, 3),
            "started": round(self._began, 3),
            "finished": round(now, 3),
        }
        seal(self.folder, extra, without=_UNSEALED)
        shutil.rmtree(self.folder / CHECKPOINTS, ignore_errors=True)
        self.done = True
        return self.metrics


@contextmanager
def open_stage(cfg: Config, name: str, *, reads: Sequence[str], settings: Mapping[str, Any]) -> Iterator[Stage]:
    """Hold the stage's folder: finished (`stage.done`), cut short (its files are still there), or new.

    `settings` are the parts of the config that decide what the stage produces, by the name they have in the tree:
    `{"model": cfg.model, "optim": cfg.optim}`. Raises `InputError` when a stage it reads is not there, when another
    process holds it, or when it was begun with other settings or inputs and `run.rebuild` is false.
    """
    fault.check(cfg.run)
    folder = cfg.run.folder / name
    with locked(cfg.run.folder / f".{name}.lock", f"stage {name} of {folder.parent}"):
        intent = {
            "stage": name,
            "seed": cfg.run.seed,
            "config": json.loads(json.dumps({"run": {"seed": cfg.run.seed}, **_plain(settings)}, allow_nan=False)),
            "inputs": {read: _input(cfg, read, name) for read in reads},
        }
        try:
            manifest = _agreeing(folder, intent)
        except _Differs as differs:
            if not cfg.run.rebuild:
                raise InputError(
                    f"{folder}: {differs}; choose another run.name, or run.rebuild=true to set the old one aside"
                ) from None
            _set_aside(folder)
            manifest = None
        if manifest is None:
            for read in reads:
                try:
                    verify(cfg.run.folder / read)
                except Damaged as error:
                    raise InputError(f"{error}; run.rebuild=true makes stage {read} again") from error
            folder.mkdir(parents=True, exist_ok=True)
            write_json(folder / INTENT, intent)
        else:
            shutil.rmtree(folder / CHECKPOINTS, ignore_errors=True)
        yield Stage(folder, manifest, intent)


@contextmanager
def locked(path: Path, what: str) -> Iterator[None]:
    """Hold a lock file; the kernel lets go of it when the process dies. Raises `InputError` naming who holds it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a+", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            owner = file.read().strip() or "another process"
            raise InputError(f"{what} is in use by {owner}; wait for it, or choose another run.name") from None
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}")
        file.flush()
        yield


def read_manifest(folder: str | Path) -> dict[str, Any]:
    """A finished stage's manifest, with NaN and infinities in its metrics as numbers.

    Raises `Damaged` where there is none, or a changed one.
    """
    manifest = read_sealed(folder)
    return {**manifest, "metrics": from_json(manifest["metrics"])}


def newest_model(cfg: Config, given: str, *, among: Sequence[str], knob: str) -> Path:
    """The model folder `given`, or that of the first of the stages `among` which the run has finished.

    Raises `InputError` naming the knob when there is none, or the file that was changed since it was written.
    """
    finished = [cfg.run.folder / stage for stage in among if (cfg.run.folder / stage / MANIFEST).is_file()]
    if given and not (Path(given) / "config.json").is_file():
        raise InputError(f"{knob}={given}: no model here (config.json is missing)")
    if not given and not finished:
        raise InputError(
            f"run.name={cfg.run.name}: {cfg.run.folder} has no finished stage {' or '.join(among)}; "
            f"run python -m cluster.pipeline run.name={cfg.run.name} first, or give {knob}=<folder>"
        )
    folder = Path(given).absolute() if given else finished[0]
    if (folder / MANIFEST).is_file():
        try:
            verify(folder)
        except Damaged as error:
            raise InputError(str(error)) from error
    return folder


class _Differs(Exception):
    """What is in the folder was made from something else. The text says what."""


def _agreeing(folder: Path, intent: dict[str, Any]) -> dict[str, Any] | None:
    """The manifest of a finished stage made from `intent`, or None if it must be begun or continued."""
    try:
        before = read_json(folder / (MANIFEST if (folder / MANIFEST).exists() else INTENT))
    except Damaged as error:
        if (folder / MANIFEST).exists() or (folder / INTENT).exists():
            raise _Differs(str(error)) from error
        return None
    for name, digest in intent["inputs"].items():
        if before["inputs"].get(name) != digest:
            raise _Differs(f"made from another {name} stage than the one that is there now")
    if gone := before["inputs"].keys() - intent["inputs"].keys():
        raise _Differs(f"made from stage {min(gone)}, which it no longer reads")
    old, new = _leaves(before["config"]), _leaves(intent["config"])
    for knob in sorted(old.keys() | new.keys()):
        if old.get(knob) != new.get(knob) and knob.rpartition(".")[2] not in _MAY_CHANGE:
            raise _Differs(f"made with {knob}={old.get(knob, 'none')}, now {knob}={new.get(knob, 'none')}")
    if not (folder / MANIFEST).exists():
        return None
    try:
        verify(folder, quick=True)
    except Damaged as error:
        raise _Differs(str(error)) from error
    return dict(before)


def _input(cfg: Config, name: str, reader: str) -> str:
    manifest = cfg.run.folder / name / MANIFEST
    if not manifest.exists():
        job = JOBS.get(name, "cluster.pipeline")
        raise InputError(
            f"stage {reader} reads stage {name}, which {manifest.parent} does not have; "
            f"make it first: python -m {job} run.name={cfg.run.name}"
        )
    return sha256(manifest)


def _set_aside(folder: Path) -> None:
    free = next(n for n in count(1) if not folder.with_name(f"{folder.name}.replaced-{n}").exists())
    folder.rename(folder.with_name(f"{folder.name}.replaced-{free}"))


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {item.name: _plain(getattr(value, item.name)) for item in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(name): _plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value.value if isinstance(value, Enum) else value


def _leaves(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in tree.items():
        found |= _leaves(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
    return found


def _code() -> dict[str, str | None]:
    """Which code made it: the git revision ('-dirty' when changed since) and the versions of what computes."""
    try:
        ask = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--match="]
        answer = subprocess.run(ask, cwd=Path(__file__).parent, capture_output=True, text=True, timeout=10, check=False)
        revision = answer.stdout.strip() or None
    except (OSError, subprocess.TimeoutExpired):
        revision = None  # no git here, as in a container
    found: dict[str, str | None] = {"revision": revision}
    for package in ("ray", "torch", "transformers"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = None
    return found
