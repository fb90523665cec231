"""The way that a training took through its rows, written down: which step had which samples, and in which a sample was.

Steps are numbered as metrics.jsonl does: the first that is taken is 1.
"""

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from cluster.storage import read_json, write_json
from cluster.tracking.tracker import read_metrics
from conf.knobs.training import Fit
from trainers.rows.feed import rows_before
from trainers.rows.mixture import Course, Phase, opened
from trainers.rows.rows import DOCUMENTS

FILE = "way.json"  # in a stage's folder
_FIT = ("steps", "batch_rows", "batch_tokens", "ramp", "ramp_from")  # what a step's rows hang on
_BACK, _LEFT_OUT = re.compile(r"from step \d+ back to step (\d+): "), re.compile(r"step (\d+) left out: ")


@dataclass(frozen=True)
class Way:
    """A course, and how many of its rows each step takes."""

    course: Course
    seed: int
    fit: Fit

    def write(self, folder: Path) -> None:
        """Into the stage's folder; the sets by their places from there, so that a run may move."""
        told = {
            "sets": [os.path.relpath(rows, folder) for rows in self.course.sets],
            "phases": [[phase.until, list(phase.shares)] for phase in self.course.phases],
            "seed": self.seed,
            "fit": {name: getattr(self.fit, name) for name in _FIT},
        }
        write_json(folder / FILE, told)

    @classmethod
    def of(cls, folder: Path) -> "Way | None":
        """The way of the stage in `folder`; None for one that trains nothing, or was made before ways were kept."""
        if not (folder / FILE).is_file():
            return None
        told: dict[str, Any] = read_json(folder / FILE)
        sets = tuple((folder / rows).resolve() for rows in told["sets"])
        phases = tuple(Phase(until, tuple(shares)) for until, shares in told["phases"])
        return cls(Course(sets, phases), told["seed"], Fit(**told["fit"]))

    def begins(self, metrics: Sequence[Mapping[str, Any]]) -> tuple[np.ndarray, set[int]]:
        """([steps + 1] the position at which each step up to the last that was taken begins, and where that ends;
        the steps that were refused and moved no weight), by what the stage has logged.

        A step that was gone back to takes the rows after those that are left out for good.
        """
        last = max((line["step"] for line in metrics if "position" in line), default=0)
        usual = np.array([rows_before(self.fit, self.course.row_length, step) for step in range(last + 1)])
        shift, now, mark, refused = np.zeros(last + 1, np.int64), 0, 0, set[int]()
        for line in metrics:
            incident = str(line.get("incident", ""))
            if found := _LEFT_OUT.match(incident):
                refused.add(int(found[1]))
            elif found := _BACK.match(incident):
                shift[mark : int(found[1])] = now
                mark = int(found[1])
            elif "position" in line:
                now = int(line["position"]) - int(usual[line["step"]])
                shift[mark : line["step"]] = now
                mark = line["step"]
        shift[mark:] = now
        return usual + shift, refused

    def steps(self, folder: Path, wanted: Mapping[int, Sequence[int]]) -> list[int]:
        """The steps of the stage in `folder` that learnt from some of these rows {set of the course: rows}."""
        begins, refused = self.begins(read_metrics(folder))
        if len(begins) < 2:
            return []
        places = self.course.places(self.seed, 0, int(begins[-1]))
        hit = np.zeros(len(places), bool)
        for number, rows in wanted.items():
            hit |= (places[:, 0] == number) & np.isin(places[:, 1], np.array(rows, np.int64))
        came = np.flatnonzero(hit)
        ends = [begins[step] + self._rows(step) for step in range(len(begins) - 1)]
        step = np.searchsorted(begins, came, "right") - 1
        inside = [int(one) for one, at in zip(step, came, strict=True) if at < ends[one]]
        return sorted({one + 1 for one in inside} - refused)

    def rows_at(self, folder: Path, step: int) -> Iterator[tuple[Path, int, list[int]]]:
        """(set, row, its documents) of each row of a step of the stage in `folder`. Nothing for a step that it has not
        taken."""
        begins, _ = self.begins(read_metrics(folder))
        if 1 <= step < len(begins):
            start = int(begins[step - 1])
            places = self.course.places(self.seed, start, start + self._rows(step - 1))
            for (number, row), held in zip(places.tolist(), self.course.documents(places), strict=True):
                yield self.course.sets[number], row, held

    def _rows(self, step: int) -> int:
        length = self.course.row_length
        return rows_before(self.fit, length, step + 1) - rows_before(self.fit, length, step)


def rows_of(packed: Path, documents: Sequence[int]) -> list[int]:
    """The rows of a set that hold some of the documents, in order."""
    found, before = [], 0
    wanted = pa.array(documents, pa.int32())
    for shard in opened(packed).about["shards"]:
        column = pq.read_table(packed / shard["file"], columns=[DOCUMENTS])[DOCUMENTS].combine_chunks()
        holds = np.asarray(pc.is_in(pc.list_flatten(column), wanted).to_numpy(zero_copy_only=False), bool)
        parents = np.asarray(pc.list_parent_indices(column))
        found += (before + np.unique(parents[holds])).tolist()
        before += len(column)
    return found
