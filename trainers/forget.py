"""Make the corpus again without given records and their copies, and say which stages and models have seen them."""

from conf.entry import early, job

early(__name__)

import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from enum import Enum
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from cluster.run import JOBS, make, read_manifest
from cluster.storage import Damaged
from conf.errors import InputError
from conf.knobs.text import Corpus
from conf.knobs.training import Pretrain
from conf.schema import Config
from trainers.clean.gather import LEDGER
from trainers.clean.ledger import by_id, by_place, forget, lives, with_copies
from trainers.clean.page import place
from trainers.files.forgotten import FORGOTTEN
from trainers.files.store import shards
from trainers.rows.epochs import in_steps
from trainers.rows.feed import rows_before
from trainers.rows.mixture import opened
from trainers.rows.rows import DOCUMENTS, FILE, order

Section = TypeVar("Section", Corpus, Pretrain)
SHOWN = 8  # records, rows and steps that are named


@job
def main(cfg: Config) -> list[str]:
    """Forget what `forget.records` and `forget.ids` name; what was said. Raises `InputError` if there is no such
    record, or no corpus.

    The list of all that the run has forgotten stays in its folder, and every later corpus of the run obeys it.
    """
    folder = cfg.run.folder / "corpus"
    try:
        manifest = read_manifest(folder)
    except Damaged as error:
        raise InputError(f"{error}; make it first: python -m trainers.corpus run.name={cfg.run.name}") from None
    named = asked(cfg, folder)
    numbers = with_copies(folder, {life["id"] for life in named})
    found = list(lives(folder, lambda table: pc.is_in(table["id"], pa.array(numbers))))
    told = [f"to be forgotten: {place(life)}, record {life['id']}" for life in found[:SHOWN]]
    told += [f"and {len(found) - SHOWN} more"] if len(found) > SHOWN else []
    if len(found) > len(named):
        told.append(f"{len(found) - len(named)} of them because they are copies of the others")
    kept = [life for life in found if not life["step"]]
    told += seen_by(cfg.run.folder, manifest, kept)
    count = forget(cfg.run.folder / FORGOTTEN, found, folder)
    print("\n".join(told), flush=True)
    again = replace(cfg, corpus=_as_made(manifest), run=replace(cfg.run, seed=manifest["seed"], rebuild=True))
    make(again, "corpus")
    for old in sorted(cfg.run.folder.glob("corpus.replaced-*")):  # they hold what is to be forgotten
        shutil.rmtree(old)
    end = [f"corpus: made again without them; {FORGOTTEN} names {count} records, and every corpus of this run obeys it"]
    if kept:
        command = f"python -m cluster.pipeline run.name={cfg.run.name} run.rebuild=true"
        end.append(f"the stages that have seen them: {command}, then delete the folders *.replaced-*")
    print("\n".join(end))
    return [*told, *end]


def asked(cfg: Config, folder: Path) -> list[dict[str, Any]]:
    """The rows of the ledger that the knobs name. Raises `InputError` for a name that has none."""
    if not cfg.forget.records and not cfg.forget.ids:
        raise InputError("say which records: 'forget.records=[data/poems.jsonl.gz:17]' or 'forget.ids=[4711]'")
    if not list(folder.glob(f"{LEDGER}-*.parquet")):
        raise InputError(f"{folder}: it was made before there was a ledger; run.rebuild=true makes it again")
    found: dict[int, dict[str, Any]] = {}
    for knob, given in (("records", cfg.forget.records), ("ids", cfg.forget.ids)):
        for one in given:
            named = by_id(folder, int(one)) if knob == "ids" else by_place(folder, str(one), "forget.records")
            there = list(named)
            if not there:
                raise InputError(f"forget.{knob}={one}: {folder} has read no such record")
            found |= {life["id"]: life for life in there}
    return list(found.values())


def _as_made(manifest: Mapping[str, Any]) -> Corpus:
    """The settings that a corpus was made with: it is the same but for what is forgotten."""
    return _section(Corpus, manifest["config"]["corpus"])


def _section(kind: type[Section], given: Mapping[str, Any]) -> Section:
    """A section of the config as a manifest says it; knobs that it does not know are at their defaults."""
    kinds = {name: type(value) for name, value in vars(kind()).items()}
    known = {name: value for name, value in given.items() if name in kinds}
    return kind(**{name: kinds[name](v) if issubclass(kinds[name], Enum) else v for name, v in known.items()})


def seen_by(run: Path, manifest: Mapping[str, Any], kept: Sequence[Mapping[str, Any]]) -> list[str]:
    """A line for each stage of the run that hangs on these documents, and of other runs that began with its models."""
    if not kept:
        return ["no document of the corpus: nothing has seen them"]
    train = _places(run / "corpus", [life["id"] for life in kept])
    stages, weights = {"corpus": manifest}, set[str]()
    told = []
    for stage in JOBS:
        try:
            one = read_manifest(run / stage)
        except Damaged:
            continue
        if stage == "corpus" or not set(one["inputs"]) & stages.keys():
            continue
        stages[stage] = one
        weights |= {digest for name, digest in one["files"].items() if name.endswith(".safetensors")}
        told.append(f"seen by {stage}: {_how(run, stage, one, train)}")
    for path in sorted(run.parent.glob("*/*/manifest.json")):
        if path.parents[1] == run:
            continue
        try:
            other = read_manifest(path.parent)
        except Damaged:
            continue
        parent = other["config"].get("parent", {})
        model = parent.get("model") if isinstance(parent, dict) else None
        if isinstance(model, dict) and weights & set(model.values()):
            told.append(f"seen by {path.parent}: it began with a model of this run")
    return told or ["seen by no other stage of this run"]


def _places(corpus: Path, numbers: Sequence[int]) -> list[int]:
    """The rows of the train split that hold these documents: more than one each where weights repeat them."""
    columns = [pq.read_table(path, columns=["id"])["id"].to_numpy() for path in shards(corpus, "train")]
    every = np.concatenate(columns) if columns else np.empty(0, np.int64)
    return np.flatnonzero(np.isin(every, np.array(numbers, np.int64))).tolist()


def _how(run: Path, stage: str, manifest: Mapping[str, Any], train: Sequence[int]) -> str:
    """How a stage came by documents, whose rows of the train split are given."""
    if stage == "tokenizer":
        return "it learnt from their split" if train else "it was measured on them"
    packed = run / "tokens" / "train"
    if stage in ("tokens", "base", "twin") and (packed / FILE).is_file():
        if not train:
            return "held out: measured on, not trained on"
        rows = rows_of(packed, train)
        if stage == "tokens":
            return f"{_numbers('row', rows)} of tokens/train"
        if not manifest["config"]["pretrain"].get("replay"):
            steps = list(steps_of(manifest, packed, rows))
            return f"trained on in {_numbers('step', steps)}" if steps else "in none of its steps"
    return f"made from {', '.join(sorted(manifest['inputs']))}"


def _numbers(what: str, found: Sequence[int]) -> str:
    shown = ", ".join(map(str, found[:SHOWN])) + (f" and {len(found) - SHOWN} more" if len(found) > SHOWN else "")
    return f"{what}{'s' * (len(found) > 1)} {shown}"


def rows_of(packed: Path, documents: Sequence[int]) -> list[int]:
    """The packed rows that hold some of the documents, in order."""
    found, before = [], 0
    wanted = pa.array(documents, pa.int32())
    for shard in opened(packed).about["shards"]:
        column = pq.read_table(packed / shard["file"], columns=[DOCUMENTS])[DOCUMENTS].combine_chunks()
        holds = np.asarray(pc.is_in(pc.list_flatten(column), wanted).to_numpy(zero_copy_only=False), bool)
        parents = np.asarray(pc.list_parent_indices(column))
        found += (before + np.unique(parents[holds])).tolist()
        before += len(column)
    return found


def steps_of(manifest: Mapping[str, Any], packed: Path, rows: Sequence[int]) -> Iterator[int]:
    """The steps, the first is 0, of a finished pretraining on these rows alone that some of `rows` came in."""
    count = len(opened(packed))
    length = opened(packed).row_length
    fit = in_steps(_section(Pretrain, manifest["config"]["pretrain"]), count, length)
    begins = np.array([rows_before(fit, length, step) for step in range(fit.steps + 1)])
    came = np.flatnonzero(np.isin(order(count, manifest["seed"], 0, int(begins[-1])), np.array(rows)))
    yield from np.unique(np.searchsorted(begins, came, "right") - 1).tolist()


if __name__ == "__main__":
    main()
