"""Which stages have seen a record: the rows, samples, rankings and iterations that it came into, and their steps."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from cluster.run import JOBS, read_manifest
from cluster.storage import Damaged, read_json
from cluster.tracking.tracker import read_metrics
from conf.errors import InputError
from moe.tasks.task import of_corpus
from trainers.files.forgotten import parted
from trainers.files.readers import at
from trainers.files.store import shards
from trainers.rows.names import names_of
from trainers.rows.rows import FILE
from trainers.rows.way import Way, rows_of

SHOWN = 8  # records, rows and steps that are named
SPLITS = {
    "train": "to train on",
    "val": "to validate with",
    "prompts": "to ask for rankings and RL",
    "test_prompts": "to measure with",
}
_QUERIES, _ITERATIONS = "queries.json", "iterations"  # of the stage rl: see `rlhf.record`
_CORPUS_MADE = ("tokenizer", "tokens")


@dataclass(frozen=True)
class Wanted:
    """The records that are asked about."""

    origins: frozenset[str]  # as samples say theirs: see `moe.tasks.task.Sample.origin`
    train: Sequence[int] = ()  # the documents of the corpus's train split that hold them
    other: bool = False  # whether they are in the corpus's other splits

    @classmethod
    def of(cls, run: Path, kept: Sequence[Mapping[str, Any]], places: Sequence[str] = ()) -> "Wanted":
        """Of documents that the corpus kept, by their rows of the ledger, and of records of other files."""
        numbers = [int(life["id"]) for life in kept]
        origins = {*places, *(one for number in numbers for one in of_corpus(number))}
        return cls(
            frozenset(origins), rows_of_split(run / "corpus", numbers), any(one["split"] != "train" for one in kept)
        )

    def hit(self, origin: Sequence[str]) -> bool:
        return not self.origins.isdisjoint(origin)


@dataclass
class Told:
    """What is said of a stage."""

    parts: list[str] = field(default_factory=list)
    missed: list[str] = field(default_factory=list)  # what it could have seen, and had no step for

    def add(self, what: str, found: Sequence[object], rest: str = "") -> None:
        if found:
            self.parts.append(f"{numbered(what, found)}{rest}")


def rows_of_split(corpus: Path, numbers: Sequence[int]) -> list[int]:
    """The documents of the train split that hold these records: more than one each where weights repeat them."""
    columns = [pq.read_table(path, columns=["id"])["id"].to_numpy() for path in shards(corpus, "train")]
    every = np.concatenate(columns) if columns else np.empty(0, np.int64)
    return np.flatnonzero(np.isin(every, np.array(numbers, np.int64))).tolist()


def stages_of(run: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """(name, manifest) of the finished stages of a run, in the order in which they are made; of rl all there are."""
    names = [name for stage in JOBS for name in (stage, *(sorted(_beside(run)) if stage == "rl" else ()))]
    for name in names:
        try:
            yield name, read_manifest(run / name)
        except Damaged:
            continue


def _beside(run: Path) -> list[str]:
    return [path.name for path in run.glob("rl-*") if path.is_dir() and ".replaced-" not in path.name]


def seen_by(run: Path, wanted: Wanted) -> list[str]:
    """A line for each stage of the run that has seen the records, or was made from what has, and for each stage of
    other runs that began with its models."""
    if not wanted.origins:
        return ["no document of the corpus: nothing has seen them"]
    hang, weights, told = set[str](), set[str](), []
    for stage, manifest in stages_of(run):
        seen = sightings(run, stage, manifest, wanted)
        found = [*seen.parts, *seen.missed]
        origin = sorted(set(manifest["inputs"]) & hang)
        if stage == "corpus" and any(one.startswith("corpus:") for one in wanted.origins):
            hang.add(stage)
            continue
        if not found and not origin:
            continue
        hang.add(stage)
        weights |= {digest for name, digest in manifest["files"].items() if name.endswith(".safetensors")}
        made = [f"made from {', '.join(origin)}"] if origin and stage not in _CORPUS_MADE else []
        verb = "seen by {}: " if seen.parts else "not seen by {} itself: "
        told.append(verb.format(stage) + "; ".join([*found, *made]))
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


def sightings(run: Path, stage: str, manifest: Mapping[str, Any], wanted: Wanted) -> Told:
    """What a stage itself had of the records, in words; nothing where it had none."""
    folder, told = run / stage, Told()
    if stage == "tokenizer" and (wanted.train or wanted.other):
        told.parts.append("it learnt from their split" if wanted.train else "it was measured on them")
    elif stage == "tokens":
        packed = folder / "train"
        if wanted.train and (packed / FILE).is_file():
            told.add("row", rows_of(packed, wanted.train), " of tokens/train")
        elif wanted.other:
            told.parts.append("held out: measured on, not trained on")
    elif stage == "tasks":
        for split, how in SPLITS.items():
            told.add(
                "sample",
                [line["id"] for line in lines_of(folder / f"{split}.jsonl") if wanted.hit(line.get("origin", ()))],
                f" {how}",
            )
    elif stage == "ranked":
        hits = [
            n for n, line in enumerate(lines_of(folder / "rankings.jsonl"), 1) if wanted.hit(line.get("origin", ()))
        ]
        told.add("line", hits, " of rankings.jsonl")
    elif (folder / _QUERIES).is_file():
        _asked(folder, manifest, wanted, told)
    else:
        _trained(run, folder, wanted, told)
    return told


def _trained(run: Path, folder: Path, wanted: Wanted, told: Told) -> None:
    way = Way.of(folder)
    if way is None:
        return
    rows: dict[int, list[int]] = {}
    named: list[str] = []
    for number, packed in enumerate(way.course.sets):
        found = numbers_in(run, packed, wanted)
        if found:
            names = names_of(packed)
            named += [names[one][0] for one in found] if names else []
            rows[number] = rows_of(packed, found)
    if rows:
        steps = way.steps(folder, rows)
        what = f" ({numbered('sample', [one.rpartition('/')[2] for one in named])})" if named else ""
        if steps:
            told.parts.append(f"trained on in {numbered('step', steps)}{what}")
        else:
            told.missed.append(f"in none of its steps{what}")
    for packed in sorted((folder / "rows" / "val").glob(f"**/{FILE}")):
        names = names_of(packed.parent) or []
        told.add("sample", [name.rpartition("/")[2] for name, origin in names if wanted.hit(origin)], " validated with")


def numbers_in(run: Path, packed: Path, wanted: Wanted) -> list[int]:
    """What a set of rows calls the records: the numbers of its samples, or of the documents of the corpus."""
    names = names_of(packed)
    if names is not None:
        return [number for number, (_, origin) in enumerate(names) if wanted.hit(origin)]
    return list(wanted.train) if packed == (run / "tokens" / "train").resolve() else []


def _asked(folder: Path, manifest: Mapping[str, Any], wanted: Wanted, told: Told) -> None:
    """Of reinforcement learning: which iterations asked the queries that were made of the records."""
    asked = read_json(folder / _QUERIES)
    hits = {place for place, query in enumerate(asked["queries"]) if wanted.hit(query["origin"])}
    names = [asked["queries"][place]["id"] for place in sorted(hits)]
    count = manifest["config"]["ppo"]["iterations"]
    steps = [step for step in range(1, count + 1) if hits.intersection(places_of(asked, step))]
    if names:
        what = f"({numbered('query', names)})"
        if steps:
            told.parts.append(f"asked in {numbered('iteration', steps)} {what}")
        else:
            told.missed.append(f"asked in none of its iterations {what}")
    kept = [(path, table) for path, table in kept_of(folder) if any(wanted.hit(row["origin"]) for row in table)]
    told.add("iteration", [int(path.stem.partition("-")[2]) for path, _ in kept], " still kept with the answers")
    if manifest["config"]["ppo"].get("replay"):
        origins = (line.get("origin", ()) for line in lines_of(folder.parent / "tasks" / "train.jsonl"))
        if any(map(wanted.hit, origins)):
            told.parts.append("ppo.replay drew from samples that have them")


def places_of(asked: Mapping[str, Any], step: int) -> list[int]:
    """The places in the list of queries that iteration `step`, the first is 1, asks."""
    first = (step - 1) * asked["prompts"]
    return [place % len(asked["queries"]) for place in range(first, first + asked["prompts"])]


def kept_of(folder: Path) -> Iterator[tuple[Path, list[dict[str, Any]]]]:
    """(file, rows with query, sample, origin and learnt) of each iteration whose answers are kept."""
    for path in sorted((folder / _ITERATIONS).glob("step-*.parquet")):
        if "origin" in pq.read_schema(path).names:
            yield path, pq.read_table(path, columns=["query", "sample", "origin", "learnt"]).to_pylist()


def lines_of(path: Path) -> Iterator[dict[str, Any]]:
    """The objects of a .jsonl file of ours; none where it is not there."""
    if path.is_file():
        with open(path, encoding="utf-8") as file:
            yield from (json.loads(line) for line in file)


def numbered(what: str, found: Sequence[object]) -> str:
    """ "rows 1, 2, 3 and 4 more"."""
    many = {"query": "queries"}.get(what, f"{what}s") if len(found) > 1 else what
    rest = f" and {len(found) - SHOWN} more" if len(found) > SHOWN else ""
    return f"{many} {', '.join(map(str, found[:SHOWN]))}{rest}"


def own_files(run: Path) -> list[str]:
    """The files of a user's own that stages of the run have read beside the corpus's: samples, queries, rankings."""
    found: dict[str, Any] = {}
    for _, manifest in stages_of(run):
        config = manifest["config"]
        tables = (config.get("rankings"), config.get("sft", {}).get("files"), config.get("tasks", {}).get("queries"))
        for table in tables:
            found |= dict.fromkeys(table) if isinstance(table, dict) else {}
    return list(found)


def own_places(run: Path, record: str) -> list[str]:
    """The places, as origins say them, of "file:line" in the user's own files; copies of a sample have one origin more
    each, and go with it. Nothing for a file that no stage has read."""
    file, line = parted(record)
    found = {at(one, line) for one in own_files(run) if line and (one == file or one.endswith(f"/{file}"))}
    for split in SPLITS if found else ():
        for one in lines_of(run / "tasks" / f"{split}.jsonl"):
            origin = one.get("origin", ())
            if not found.isdisjoint(origin):
                found |= set(origin)
    return sorted(found)


def at_step(run: Path, stage: str, step: int) -> dict[str, list[str]]:
    """{what a step of a stage saw, as it calls it: what that was made of}: samples, rankings, queries or documents.

    Raises `InputError` for a stage that trains nothing and a step that it has not taken.
    """
    folder = run / stage
    found: dict[str, list[str]] = {}
    if (folder / _QUERIES).is_file():
        asked = read_json(folder / _QUERIES)
        count = read_manifest(folder)["config"]["ppo"]["iterations"]
        if not 1 <= step <= count:
            raise InputError(f"why.step={step}: {folder} has iterations 1 to {count}")
        queries = [asked["queries"][place] for place in places_of(asked, step)]
        return {f"query {query['id']}": query["origin"] for query in queries}
    way = Way.of(folder)
    if way is None:
        known = [name for name, _ in stages_of(run) if Way.of(run / name) or (run / name / _QUERIES).is_file()]
        there = f"those that it has are of {', '.join(known)}" if known else "nor does any other stage of it"
        raise InputError(f"why.stage={stage}: {run} knows no steps of such a stage; {there}")
    for packed, row, held in way.rows_at(folder, step):
        names = names_of(packed)
        for number in dict.fromkeys(held):
            if names is None:
                found[f"document {number} of row {row} of {packed.parent.name}/{packed.name}"] = _document(
                    run, packed, number
                )
            else:
                found[names[number][0]] = names[number][1]
    if not found:
        last = max((int(line["step"]) for line in read_metrics(folder)), default=0)
        raise InputError(f"why.step={step}: {folder} has steps 1 to {last}")
    return found


def _document(run: Path, packed: Path, number: int) -> list[str]:
    """The origin of a document of the corpus; nothing for text of another run."""
    if packed != (run / "tokens" / "train").resolve():
        return []
    for path in shards(run / "corpus", "train"):
        with pq.ParquetFile(path) as file:
            if number < file.metadata.num_rows:
                return list(of_corpus(int(file.read(columns=["id"])["id"][number].as_py())))
            number -= file.metadata.num_rows
    return []
