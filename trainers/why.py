"""Say the whole life of one record: where it was read, each step's verdict, the rows, samples, rankings and training
steps that it came into; or, the other way round, which records a step of any stage has seen."""

from conf.entry import early, job

early(__name__)

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from cluster.run import read_manifest
from cluster.storage import Damaged, read_json
from conf.errors import InputError
from conf.schema import Config
from moe.tasks.task import CORPUS
from trainers.clean.gather import LEDGER, ROWS_PER_FILE
from trainers.clean.ledger import by_id, by_place, lives, text_of
from trainers.clean.page import number, place
from trainers.clean.report import REPORT
from trainers.clean.shards import LEFT_OUT
from trainers.trail.seen import Wanted, at_step, own_places, seen_by

SHOWN = 200  # characters of a text


@job
def main(cfg: Config) -> list[str]:
    """Print the life of the records that `why.record` or `why.id` names, or what `why.step` of `why.stage` saw. Raises
    `InputError` if there is none."""
    folder = cfg.run.folder / "corpus"
    if cfg.why.stage:
        return said(back(cfg.run.folder, cfg.why.stage, cfg.why.step))
    if bool(cfg.why.record) == (cfg.why.id >= 0):
        raise InputError(
            "say which record: why.record=file:line or why.id=17, or which step: why.stage=chat why.step=3"
        )
    if cfg.why.record and (places := own_places(cfg.run.folder, cfg.why.record)):
        seen = seen_by(cfg.run.folder, Wanted.of(cfg.run.folder, [], places))
        return said([*places, *(f"  {line}" for line in seen)])
    try:
        read_manifest(folder)
    except Damaged as error:
        raise InputError(f"{error}; make it first: python -m trainers.corpus run.name={cfg.run.name}") from None
    if not list(folder.glob(f"{LEDGER}-*.parquet")):
        raise InputError(f"{folder}: it was made before there was a ledger; run.rebuild=true makes it again")
    found = list(by_id(folder, cfg.why.id) if cfg.why.id >= 0 else by_place(folder, cfg.why.record))
    if not found:
        asked = f"why.id={cfg.why.id}" if cfg.why.id >= 0 else f"why.record={cfg.why.record}"
        raise InputError(f"{asked}: {folder} has read no such record")
    steps = [step["name"] for step in read_json(folder / f"{REPORT}.json")["steps"] if "rejected" in step]
    told = []
    for life in found:
        told += lines(folder, life, steps)
        if not life["step"]:
            told += [f"  {line}" for line in seen_by(cfg.run.folder, Wanted.of(cfg.run.folder, [life]))]
    return said(told)


def said(told: list[str]) -> list[str]:
    print("\n".join(told))
    return told


def back(run: Path, stage: str, step: int) -> list[str]:
    """What a step of a stage saw, and of which records each was made, by their places."""
    seen = at_step(run, stage, step)
    numbers = {int(one.removeprefix(CORPUS)) for origin in seen.values() for one in origin if one.startswith(CORPUS)}
    by_number: dict[int, str] = {}
    if numbers and list((run / "corpus").glob(f"{LEDGER}-*.parquet")):
        wanted = pa.array(sorted(numbers))
        by_number = {
            life["id"]: place(life) for life in lives(run / "corpus", lambda table: pc.is_in(table["id"], wanted))
        }
    kinds = Counter(name.partition(" ")[0] if name.startswith(("document ", "query ")) else "sample" for name in seen)
    counts = " and ".join(f"{count} {_many(kind, count)}" for kind, count in kinds.items())
    told = [f"{'iteration' if 'query' in kinds else 'step'} {step} of {stage} saw {counts}"]
    for name, origin in seen.items():
        told.append(f"  {name}" + ("" if origin else ": of no record that is known"))
        for one in (one for one in origin if one != name):
            number = int(one.removeprefix(CORPUS)) if one.startswith(CORPUS) else -1
            told.append(f"    {by_number[number]}: record {number}" if number in by_number else f"    {one}")
    return told


def _many(what: str, count: int) -> str:
    return what if count == 1 else {"query": "queries"}.get(what, f"{what}s")


def lines(folder: Path, life: dict[str, Any], steps: list[str]) -> list[str]:
    """What is said of a record, a line for each thing that became of it."""
    told = [f"{place(life)}: record {life['id']}"]
    step = life["step"]
    if step == "read":
        return [*told, f"  read: no record: {life['rule']}"]
    if step == LEFT_OUT:
        return [*told, f"  left out: {life['rule']}"]
    told.append(f"  read: {life['characters']:,} characters, language {life['language'] or 'other'}")
    if step == "empty":
        return [*told, "  empty: nothing to see"]
    changes = json.loads(life["changes"]) if life["changes"] else {}
    for name in steps:
        if name == step:
            return [*told, f"  {name}: rejected by {life['rule']}: {number(life)}", *_start(life["start"])]
        told.append(f"  {name}: kept")
    if changes:
        told.append("  changed: " + ", ".join(f"{rule} {times}" for rule, times in changes.items()))
    if step in ("exact", "near"):
        (twin,) = by_id(folder, life["twin"])
        likeness = f", likeness {life['value']:.2f}" if step == "near" else ""
        return [*told, f"  {step} copy of {place(twin)}, record {twin['id']}{likeness}", *_start(life["start"])]
    if step == "weights":
        return [*told, f"  weights: thinned out by its weight, {life['value']:g}", *_start(life["start"])]
    if step:
        return [*told, f"  {step}: rejected by {life['rule']}: {number(life)}", *_start(life["start"])]
    if life["bucket"]:
        told.append(f"  score: {life['score']:.2f} bits per byte, {life['bucket']} of its language")
    file, row = divmod(life["row"], ROWS_PER_FILE)
    name = f"{life['split']}-{file:05d}.parquet"
    return [
        *told,
        f"  kept: row {row} of {name}, document {life['row']} of {life['split']}",
        *_start(text_of(folder, life)),
    ]


def _start(text: str) -> list[str]:
    shown = text[:SHOWN].replace("\n", "\n    ")
    return [f"    {shown}" + ("..." if len(text) > SHOWN else "")]


if __name__ == "__main__":
    main()
