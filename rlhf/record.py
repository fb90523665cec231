"""What an iteration was: its answers with all that was said of them and learnt from them, a Parquet file each.

They are there to look at (`rlhf.inspect`) and to learn from again (`rlhf.replay`). No run goes on from them: a file
that is gone or broken costs a look.
"""

import io
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from enum import Enum
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from cluster.agreement import plain
from cluster.storage import write_file
from conf.errors import InputError
from conf.knobs.reinforcement import Ppo
from moe.tasks.task import Sample, Verdict
from rlhf.messages import Assessed, Batch, Key, Response, pad

ASKED = "queries.json"  # in that of the stage: the queries in the order in which they are asked
FOLDER = "iterations"  # in that of the stage; `cluster.run` does not seal it
_ABOUT = b"conclave"
_FLOATS, _IDS, _NAMED = pa.list_(pa.float32()), pa.list_(pa.int32()), pa.map_(pa.string(), pa.float64())
SCHEMA = pa.schema(
    [
        ("query", pa.string()),  # its id
        ("sample", pa.int32()),  # which answer to it
        ("iteration", pa.int32()),
        ("version", pa.int32()),  # of the policy that answered
        ("task", pa.string()),
        ("origin", pa.list_(pa.string())),  # of the query: see `moe.tasks.task.Sample`
        ("asked", pa.string()),  # the last thing that the user says
        ("text", pa.string()),  # the answer
        ("finished", pa.bool_()),  # it ended by itself
        ("prompt", _IDS),
        ("begun", pa.int32()),  # tokens at the prompt's end that are of the answer, from earlier iterations
        ("answer", _IDS),  # below, a list of floats has one for each of these tokens
        ("logprobs", _FLOATS),  # under the policy that answered
        (
            "routes",
            pa.binary(),
        ),  # int16, of each token but the last the experts of each layer; null with ppo.routes=own
        ("rules", pa.float64()),  # the verdict's reward
        ("scores", _NAMED),  # by principle
        ("measures", _NAMED),
        ("reasons", pa.list_(pa.string())),  # in words, one for each rule that the answer broke
        ("learnt", pa.bool_()),  # whether it was learnt from; if not, what follows is null
        ("reference", _FLOATS),  # log-probs under the model that it started from
        ("values", _FLOATS),  # null without a critic, as returns are
        ("advantages", _FLOATS),
        ("returns", _FLOATS),
        ("terms", _NAMED),  # of the reward, each before its weight, summed over the answer
    ]
)


@dataclass(frozen=True)
class Answered:
    """Every answer of an iteration; the lists have one order."""

    asked: Sequence[Sample]
    responses: Sequence[Response]
    verdicts: Sequence[Verdict]
    texts: Sequence[str]

    def done(self, going: Sequence[bool]) -> "Answered":
        """Those that do not go on."""
        of = [place for place, more in enumerate(going) if not more]
        return Answered(
            [self.asked[place] for place in of],
            [self.responses[place] for place in of],
            [self.verdicts[place] for place in of],
            [self.texts[place] for place in of],
        )


@dataclass(frozen=True)
class Lesson:
    """What an update is made of."""

    batch: Batch
    reference: Tensor  # [B, T]
    advantages: Tensor  # [B, T]
    values: Tensor | None  # [B, T]
    returns: Tensor | None  # [B, T]


class Recorder:
    """Writes into `folder`, and keeps of its files the newest `ppo.keep_samples`, as far as `ppo.keep_samples_mb` go.
    `about` is what `rlhf.replay` has to know of the run beside them."""

    def __init__(self, folder: Path, cfg: Ppo, about: Mapping[str, Any]) -> None:
        self._folder, self._cfg, self._about = folder, cfg, dict(about)

    def write(
        self,
        step: int,
        every: Answered,
        kept: Sequence[int],
        batch: Batch,
        said: Assessed,
        advantages: Tensor,
        returns: Tensor | None,
        terms: Mapping[str, Tensor],
    ) -> None:
        """The file of the iteration that is logged as `step`. The rows of `batch`, and of what goes with it, are the
        answers `kept`; `terms` are [B]."""
        if not self._cfg.keep_samples:
            return
        lesson = Lesson(batch, said.reference, advantages, said.values, returns)
        about = self._about | {"step": step, "ppo": plain(self._cfg)}
        if batch.routes is not None:
            about["routes"] = list(batch.routes.shape[2:])  # layers, experts of each
        table = pa.Table.from_pylist(_rows(every, kept, lesson, terms), schema=SCHEMA)
        content = io.BytesIO()
        pq.write_table(table.replace_schema_metadata({_ABOUT: json.dumps(about).encode()}), content, compression="zstd")
        self._folder.mkdir(parents=True, exist_ok=True)
        write_file(_path(self._folder, step), content.getvalue())
        self._prune()

    def _prune(self) -> None:
        left = self._cfg.keep_samples_mb * 1e6
        for place, (_, path) in enumerate(reversed(recorded(self._folder))):
            left -= path.stat().st_size
            if place and (place >= self._cfg.keep_samples or left < 0):
                path.unlink()


@dataclass(frozen=True)
class Record:
    """An iteration, read again."""

    about: dict[str, Any]
    rows: list[dict[str, Any]]

    @property
    def ppo(self) -> Ppo:
        """The knobs that the run had, but for where its actors ran."""
        known = {item.name: item.default for item in fields(Ppo) if item.name != "actors"}
        given: dict[str, Any] = {name: value for name, value in self.about["ppo"].items() if name in known}
        kinds = {name: type(default) for name, default in known.items() if isinstance(default, Enum)}
        return Ppo(**given | {name: kind(given[name]) for name, kind in kinds.items() if name in given})

    @property
    def lesson(self) -> Lesson:
        """What was learnt from, to the bit."""
        rows = [row for row in self.rows if row["learnt"]]
        batch = pad(
            [
                Response(
                    Key(row["iteration"], row["query"], row["sample"], row["version"]),
                    row["prompt"],
                    row["answer"],
                    row["logprobs"],
                    row["finished"],
                    self._routes(row),
                    row.get("begun") or 0,
                )
                for row in rows
            ]
        )

        def column(name: str) -> Tensor:
            found = torch.zeros_like(batch.mask)
            for at, row in enumerate(rows):
                start = len(row["prompt"])
                found[at, start : start + len(row["answer"])] = torch.tensor(row[name])
            return found

        critic = rows[0]["values"] is not None
        return Lesson(
            batch,
            column("reference"),
            column("advantages"),
            column("values") if critic else None,
            column("returns") if critic else None,
        )

    def _routes(self, row: Mapping[str, Any]) -> Tensor | None:
        if not row.get("routes"):
            return None
        return torch.frombuffer(bytearray(row["routes"]), dtype=torch.int16).view(-1, *self.about["routes"])


def recorded(folder: Path) -> list[tuple[int, Path]]:
    """(step, file) of every iteration that `folder` has, the oldest first."""
    found = [(re.fullmatch(r"step-(\d+)\.parquet", path.name), path) for path in folder.glob("step-*.parquet")]
    return sorted((int(match[1]), path) for match, path in found if match)


def read(folder: Path, step: int) -> Record:
    """The iteration that was logged as `step`; 0: the newest. Raises `InputError` saying which there are."""
    there = [number for number, _ in recorded(folder)]
    if not there:
        raise InputError(f"{folder}: no iteration was kept; ppo.keep_samples says how many are")
    if step and step not in there:
        raise InputError(f"{folder} has no step {step}; there are {', '.join(_ranges(there))}")
    path = _path(folder, step or there[-1])
    try:
        table = pq.read_table(path)
        return Record(json.loads(table.schema.metadata[_ABOUT]), table.to_pylist(maps_as_pydicts="strict"))
    except (OSError, KeyError, TypeError, ValueError, pa.ArrowException) as error:
        raise InputError(f"{path}: not an iteration of the stage rl ({str(error).splitlines()[0]})") from error


def _path(folder: Path, step: int) -> Path:
    return folder / f"step-{step:08d}.parquet"


def _ranges(numbers: Sequence[int]) -> list[str]:
    """[1, 2, 3, 7] -> ["1-3", "7"]."""
    found: list[list[int]] = []
    for number in numbers:
        if found and number == found[-1][-1] + 1:
            found[-1].append(number)
        else:
            found.append([number])
    return [f"{run[0]}-{run[-1]}" if len(run) > 1 else str(run[0]) for run in found]


def _rows(every: Answered, kept: Sequence[int], lesson: Lesson, terms: Mapping[str, Tensor]) -> list[dict[str, Any]]:
    place = {answer: row for row, answer in enumerate(kept)}
    chosen = lesson.batch.mask.bool()

    def of(tensor: Tensor | None, row: int) -> list[float] | None:
        return None if tensor is None else tensor[row][chosen[row]].tolist()

    rows = []
    answers = zip(every.asked, every.responses, every.verdicts, every.texts, strict=True)
    for number, (query, response, verdict, text) in enumerate(answers):
        key = response.key
        made: dict[str, Any] = {
            "query": key.query,
            "sample": key.sample,
            "iteration": key.iteration,
            "version": key.version,
            "task": query.task,
            "origin": list(query.origin),
            "asked": query.prompt,
            "text": text,
            "finished": response.finished,
            "prompt": response.prompt,
            "begun": response.begun,
            "answer": response.answer,
            "logprobs": response.logprobs,
            "routes": None if response.routes is None else response.routes.numpy().tobytes(),
            "rules": verdict.reward,
            "scores": dict(verdict.scores),
            "measures": dict(verdict.measures),
            "reasons": list(verdict.reasons),
            "learnt": number in place,
        }
        if number in place:
            row = place[number]
            made |= {
                "reference": of(lesson.reference, row),
                "values": of(lesson.values, row),
                "advantages": of(lesson.advantages, row),
                "returns": of(lesson.returns, row),
                "terms": {name: float(sums[row]) for name, sums in terms.items()},
            }
        rows.append(made)
    return rows
