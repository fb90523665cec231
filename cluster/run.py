"""The run directory: a folder per stage, finished once it has a manifest, skipped while its inputs are the same."""

import importlib
import json
import shutil
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from itertools import count
from pathlib import Path
from typing import Any

from cluster import fault
from cluster.agreement import CHECKPOINTS, INTENT, Differs, Longer, agreeing, holds_work, key, plain, product
from cluster.code import code
from cluster.locks import locked as locked
from cluster.memory import give_back
from cluster.people.heard import HEARD, heard
from cluster.stopping import stoppable
from cluster.storage import (
    MANIFEST,
    Damaged,
    digests,
    drop_temporary,
    fsync,
    read_sealed,
    verify,
    write_json,
    write_manifest,
)
from cluster.tracking.tracker import FILE as METRICS
from cluster.tracking.tracker import from_json, to_json
from cluster.tracking.wandb_run import tracked
from conf.errors import InputError
from conf.schema import Config

JOBS = {  # stage: the module whose job makes it
    "corpus": "trainers.corpus",
    "tokenizer": "trainers.tokenizer",
    "tokens": "trainers.tokens",
    "tasks": "trainers.tasks",
    "base": "trainers.pretrain",
    "twin": "trainers.twin",
    "parent": "trainers.parent",
    "chat": "trainers.sft",
    "ranked": "rlhf.rank",
    "reward": "trainers.reward",
    "hfft": "trainers.hfft",
    "cohft": "trainers.cohft",
    "rl": "rlhf.ppo",
    "compared": "rlhf.compare",
    "report": "cluster.report",
}
CHATTING = ("rl", "hfft", "cohft", "chat")  # stages that write a chat model, the best first
_UNSEALED = (CHECKPOINTS, METRICS, INTENT, "wandb", "iterations")  # not the stage's output
_ELSE = {  # (stage, one that it reads): what to do instead of making that
    ("tasks", "corpus"): "; or give sft.files=[...]",
    ("chat", "base"): "; or begin with a model that is there: parent.model=<folder or .gguf>",
    ("ranked", "chat"): "; or begin with a chat model that is there: parent.model=<folder or .gguf>",
    ("reward", "chat"): "; or begin with a chat model that is there: parent.model=<folder or .gguf>",
    **{
        (stage, read): f"; or {instead}"
        for stage in ("hfft", "cohft")
        for read, instead in (
            ("chat", "begin with a chat model that is there: parent.model=<folder or .gguf>"),
            ("ranked", f"give {stage}.files=[...]"),
        )
    },
    ("rl", "chat"): "; or begin with a chat model that is there: parent.model=<folder or .gguf>",
    ("reward", "ranked"): "; or give reward.files=[...]",
    ("rl", "reward"): "; or leave the reward model out: ppo.rewards.model=0",
}


class Stage:
    """One stage's folder while it is held. Write into `folder`; `finish` makes the result count."""

    def __init__(
        self,
        folder: Path,
        manifest: dict[str, Any] | None,
        intent: dict[str, Any],
        measured: Sequence[str],
        outside: Collection[Path] = (),
    ) -> None:
        self.folder = folder
        self.done = manifest is not None
        self.metrics: dict[str, Any] = from_json(manifest["metrics"]) if manifest else {}
        self._intent, self._measured, self._began = intent, measured, time.time()
        self._outside = outside

    @property
    def made(self) -> bool:
        """Whether the stage's product is there and has only to be measured again."""
        return "made" in self._intent

    def input(self, name: str) -> Path:
        """The folder of a stage that this one reads."""
        assert name in self._intent["inputs"], f"{name} is not among the stages that open_stage(reads=...) named"
        return self.folder.parent / name

    def finish(self, metrics: Mapping[str, Any]) -> dict[str, Any]:
        """Write the manifest: from here on the stage is done. Checkpoints go, for only a stage cut short needs them.

        `product` in it is what the stages that read this one know it by: what measuring it again does not change.
        """
        now = time.time()
        self.metrics = dict(metrics)
        made_of = [*(self.folder.parent / name for name in self._intent["inputs"]), *self._outside]
        whose = heard(self._intent["config"], made_of)
        drop_temporary(self.folder, without=_UNSEALED)
        record = digests(self.folder, without=_UNSEALED)
        intent = dict(self._intent)
        made = intent.pop("made", None) or {
            "product": product(intent, record["files"], self._measured),
            "code": code(),
            "seconds": round(now - self._began, 3),
            "started": round(self._began, 3),
        }
        extra = {
            **intent,
            "status": "done",
            "product": made["product"],
            "code": made["code"],
            **({HEARD: whose} if whose else {}),
            "metrics": to_json(self.metrics),
            "seconds": made["seconds"],
            "started": made["started"],
            "finished": round(now, 3),
        }
        write_manifest(self.folder, {**extra, **record})
        shutil.rmtree(self.folder / CHECKPOINTS, ignore_errors=True)
        self.done = True
        return self.metrics


@contextmanager
def open_stage(
    cfg: Config,
    name: str,
    *,
    reads: Sequence[str],
    settings: Mapping[str, Any],
    measured: Sequence[str] = (),
    longer: Longer | None = None,
    measures: bool = False,
    outside: Collection[Path] = (),
) -> Iterator[Stage]:
    """Hold the stage's folder: finished (`stage.done`), to be measured again (`stage.made`), cut short (its files are
    still there), or new.

    `settings` are the parts of the config that decide what the stage produces, by the name they have in the tree:
    `{"model": cfg.model, "optim": cfg.optim}`; what another value does is said in `conf.decides`. `measured` are the
    files that the closing measurement writes, `longer` says whether the stage can go on to another length. A stage that
    `measures`, and does nothing else, is made again where a setting or an input differs, and nobody is asked. `outside`
    are the folders of other runs' stages that it reads from: whose conversations they heard, it hears. Raises
    `InputError` when a stage it reads is not there, when another process holds it, or when it was made, in whole or in
    part, with other settings or inputs and `run.rebuild` is false. One of which nothing was saved begins anew.
    """
    fault.check(cfg.run)
    give_back()  # what the stage before has freed
    folder = cfg.run.folder / name
    intent = {  # before anything is written: what is refused here leaves nothing behind
        "stage": name,
        "seed": cfg.run.seed,
        "config": json.loads(json.dumps({"run": {"seed": cfg.run.seed}, **plain(settings)}, allow_nan=False)),
        "inputs": {read: _input(cfg, read, name) for read in reads},
    }
    with (
        stoppable(JOBS.get(name, name)),
        locked(cfg.run.folder / f".{name}.lock", f"stage {name} of {folder.parent}"),
    ):
        try:
            before, again = agreeing(folder, intent, longer)
        except Differs as differs:
            if measures or not holds_work(folder):
                why = "is made again" if measures else "begins anew, for nothing of it was saved"
                print(f"{name}: {why}: {differs}", flush=True)
                shutil.rmtree(folder)
            elif cfg.run.rebuild:
                _set_aside(folder)
            else:
                raise InputError(
                    f"{folder}: {differs}; choose another run.name, or run.rebuild=true to set the old one aside"
                ) from None
            before, again = None, []
        done = (folder / MANIFEST).exists() and not again
        if not done:
            for read in reads:
                try:
                    verify(cfg.run.folder / read)
                except Damaged as error:
                    raise InputError(f"{error}; run.rebuild=true makes stage {read} again") from error
            if again and before:
                print(f"{name}: measured again: {', '.join(again)}", flush=True)
                _unseal(folder, before, intent, measured)
            else:
                folder.mkdir(parents=True, exist_ok=True)
                write_json(folder / INTENT, intent)
        else:
            shutil.rmtree(folder / CHECKPOINTS, ignore_errors=True)
        try:
            inputs = [cfg.run.folder / read for read in reads]
            with nullcontext() if done else tracked(cfg, name, folder, reads=inputs):
                yield Stage(folder, before if done else None, intent, measured, outside)
        except InputError:
            if [path.name for path in folder.iterdir()] == [INTENT]:
                shutil.rmtree(folder)  # refused before it had begun
            raise


def stage_folder(cfg: Config, stage: str) -> Path:
    """Where the job of a stage writes: reinforcement learning under another name writes beside rl."""
    return cfg.run.folder / (cfg.ppo.stage if stage == "rl" else stage)


def present(cfg: Config, *, finished: bool = False) -> set[str]:
    """The stages that the run has finished, or at least begun."""
    marks = (MANIFEST,) if finished else (MANIFEST, INTENT)
    return {stage for stage in JOBS if any((cfg.run.folder / stage / mark).is_file() for mark in marks)}


def model_stage(cfg: Config, stage: str, there: Collection[str]) -> str:
    """Where a stage's model comes from in a run that has the stages `there`: `stage` (base or chat), or else `parent`,
    the model that `parent.model` names."""
    return "parent" if cfg.parent.model and not {stage, "base"} & set(there) else stage


def make(cfg: Config, stage: str) -> None:
    """Make a stage that another needs, if it is not done."""
    importlib.import_module(JOBS[stage]).main(cfg)


def missing(cfg: Config, reader: str, stage: str) -> InputError:
    """What to say of a stage that `reader` needs and the run does not have."""
    folder, job = cfg.run.folder / stage, JOBS.get(stage, "cluster.pipeline")
    return InputError(
        f"stage {reader} reads stage {stage}, which {folder} does not have; "
        f"make it first: python -m {job} run.name={cfg.run.name}{_ELSE.get((reader, stage), '')}"
    )


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


def _input(cfg: Config, name: str, reader: str) -> str:
    folder = cfg.run.folder / name
    if not (folder / MANIFEST).exists():
        raise missing(cfg, reader, name)
    try:
        return key(folder)
    except (AttributeError, Damaged) as error:
        raise InputError(f"{folder / MANIFEST}: {error}; run.rebuild=true makes stage {name} again") from None


def _unseal(folder: Path, manifest: dict[str, Any], intent: dict[str, Any], measured: Sequence[str]) -> None:
    """A stage that is done becomes one that is made, and not measured yet."""
    kept = {name: manifest[name] for name in ("code", "seconds", "started")}
    kept["product"] = key(folder)
    for what in ("files", "bytes"):
        kept[what] = {name: value for name, value in manifest[what].items() if name not in measured}
    intent["made"] = kept
    write_json(folder / INTENT, intent)
    (folder / MANIFEST).unlink()
    fsync(folder)


def _set_aside(folder: Path) -> None:
    free = next(n for n in count(1) if not folder.with_name(f"{folder.name}.replaced-{n}").exists())
    folder.rename(folder.with_name(f"{folder.name}.replaced-{free}"))
