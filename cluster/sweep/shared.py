"""What the jobs of a sweep have in common: which knobs may differ, the stages they read, the folder they lie in."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cluster.run import JOBS
from cluster.storage import MANIFEST, Damaged, read_json, sha256
from conf.errors import InputError
from conf.help import SECTIONS
from conf.schema import Config

RECORD = "sweep.json"
_ALIKE = {  # sections whose knobs may not differ, and why
    "run": "the jobs of a sweep share one run; only run.seed may differ",
    "evaluate": "jobs are only comparable if they are measured alike",
    "tracker": "it does not change what is learnt",
    "cluster": "it does not change what is learnt",
    "sweep": "it is what the sweep goes by",
}
_INPUTS = {"parent.model": "tokenizer", "sft.files": "tasks"}  # knobs that an earlier stage reads, too


def check(module: str, stage: str, configs: Sequence[Config]) -> None:
    """Raise `InputError` naming a knob that differs between the jobs and may not: it decides what they share, or it
    decides nothing."""
    flat = [_leaves(dataclasses.asdict(config)) for config in configs]
    owners = {section: name for name in before(stage) for section in SECTIONS[JOBS[name]].split()[:1]}
    for knob in dict.fromkeys(name for leaves in flat for name in leaves):
        values = list(dict.fromkeys(str(leaves.get(knob, "none")) for leaves in flat))
        if len(values) < 2 or knob == "run.seed":
            continue
        section, told = knob.partition(".")[0], f"{knob}={','.join(values)}"
        if section in _ALIKE:
            raise InputError(f"{told}: {_ALIKE[section]}")
        if owner := _INPUTS.get(knob) or owners.get(section):
            raise InputError(
                f"{told}: decides the stage {owner}, which the jobs of a sweep share; make a run of each, with a "
                "run.name of its own"
            )
        if section not in SECTIONS[module].split():
            raise InputError(f"{told}: {module} does not read it")


def _leaves(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in tree.items():
        found |= _leaves(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
    return found


def before(stage: str) -> list[str]:
    """The stages that come before `stage`, and that it may read."""
    return [name for name in list(JOBS)[: list(JOBS).index(stage)] if name != "twin"]


def inputs(cfg: Config, stage: str) -> dict[str, str]:
    """The finished stages before `stage` that the run has, each by its manifest's digest."""
    earlier = before(stage)
    found = {name: sha256(path) for name in earlier if (path := cfg.run.folder / name / MANIFEST).exists()}
    if not found:
        usual = ",".join(name for name in earlier if name in cfg.pipeline.stages)
        raise InputError(
            f"{cfg.run.folder}: no finished stage for the jobs of a sweep to share; make them first: "
            f"python -m cluster.pipeline run.name={cfg.run.name} 'pipeline.stages=[{usual}]'"
        )
    return found


def place(cfg: Config, module: str, stage: str, words: Sequence[str], known: Mapping[str, str]) -> tuple[int, Path]:
    """(number, folder) of the sweep: where the same command began on the same inputs, or the next that is free."""
    above, number = cfg.run.folder / "sweeps", 1
    for folder in above.glob("*-*"):
        taken = folder.name.partition("-")[0]
        try:
            record = read_json(folder / RECORD)
        except Damaged:
            record = {}  # not a sweep's, or cut short before its first record
        if record and (record["module"], record["words"], record["inputs"]) == (module, list(words), dict(known)):
            return record["number"], folder
        number = max(number, 1 + int(taken) if taken.isdigit() else 1)
    return number, above / f"{number}-{stage}"
