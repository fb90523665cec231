"""Say the whole life of one record of the corpus: where it was read, each step's verdict, the row that holds it."""

from conf.entry import early, job

early(__name__)

import json
from pathlib import Path
from typing import Any

from cluster.run import read_manifest
from cluster.storage import Damaged, read_json
from conf.errors import InputError
from conf.schema import Config
from trainers.clean.gather import LEDGER, ROWS_PER_FILE
from trainers.clean.ledger import by_id, by_place, text_of
from trainers.clean.page import number, place
from trainers.clean.report import REPORT
from trainers.clean.shards import LEFT_OUT

SHOWN = 200  # characters of a text


@job
def main(cfg: Config) -> list[str]:
    """Print the life of the records that `why.record` or `why.id` names. Raises `InputError` if there is none."""
    folder = cfg.run.folder / "corpus"
    try:
        read_manifest(folder)
    except Damaged as error:
        raise InputError(f"{error}; make it first: python -m trainers.corpus run.name={cfg.run.name}") from None
    if not list(folder.glob(f"{LEDGER}-*.parquet")):
        raise InputError(f"{folder}: it was made before there was a ledger; run.rebuild=true makes it again")
    if bool(cfg.why.record) == (cfg.why.id >= 0):
        raise InputError("say which record: why.record=file:line or why.id=17")
    found = list(by_id(folder, cfg.why.id) if cfg.why.id >= 0 else by_place(folder, cfg.why.record))
    if not found:
        asked = f"why.id={cfg.why.id}" if cfg.why.id >= 0 else f"why.record={cfg.why.record}"
        raise InputError(f"{asked}: {folder} has read no such record")
    steps = [step["name"] for step in read_json(folder / f"{REPORT}.json")["steps"] if "rejected" in step]
    told = [line for life in found for line in lines(folder, life, steps)]
    print("\n".join(told))
    return told


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
