"""Ray Data streams packed rows into the training workers in the order of a course, from any position on.

Of W workers, worker r gets the positions that are r modulo W: a step of n positions holds the same rows whatever W is,
and a run's cursor is one integer. Loaded by Ray's processes that only move rows: torch comes in where rows are taken.
"""

from collections.abc import Iterator
from math import ceil
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import ray
from ray.data import DataIterator, ExecutionOptions
from ray.train import DataConfig

from cluster.checkpoints import newest_checkpoint
from cluster.storage import read_json
from conf.knobs.training import Fit
from trainers.rows.mixture import Course

if TYPE_CHECKING:
    from moe.training.objectives import Batch

POSITION = "position"  # see moe.training.objectives
PROGRESS = "progress.json"  # of a checkpoint: where the run stands
BLOCK_BYTES = 8 * 2**20  # of one Ray Data task
STREAM_CPUS = 1.0  # logical CPUs that streams must find free beside the workers: a Ray Data task that reads asks for so


def step_rows(fit: Fit, row_length: int, step: int) -> int:
    """Rows that step `step` (from 0) takes, over all workers."""
    full = fit.rows(row_length)
    growing = round(fit.ramp * fit.steps)
    if step >= growing:
        return full
    return max(1, round(full * (fit.ramp_from + (1 - fit.ramp_from) * step / growing)))


def rows_before(fit: Fit, row_length: int, step: int) -> int:
    """The position at which step `step` begins in a run that never left rows out."""
    growing = min(step, round(fit.ramp * fit.steps))
    grown = sum(step_rows(fit, row_length, n) for n in range(growing))
    return grown + (step - growing) * step_rows(fit, row_length, fit.steps)


def mine(start: int, stop: int, rank: int, world: int) -> range:
    """The positions from `start` to `stop` that are this worker's."""
    return range(start + (rank - start) % world, stop, world)


class Feed(Protocol):
    """Rows in the order of their positions, each given once."""

    def take(self, count: int) -> "Batch":
        """This worker's rows of the next `count` positions: int64 [B, T], and their `position` [B]; B may be 0."""
        ...


class DirectFeed:
    """Rows fetched where they are needed, without Ray."""

    def __init__(self, course: Course, *, seed: int, position: int, rank: int = 0, world: int = 1) -> None:
        self._course, self._seed, self._at, self._rank, self._world = course, seed, position, rank, world

    def take(self, count: int) -> "Batch":
        positions = mine(self._at, self._at + count, self._rank, self._world)
        self._at += count
        return tensors(fetch(self._course, self._seed, positions))


class StreamedFeed:
    """The rows of a Ray Data stream, cut as the steps need them."""

    def __init__(self, stream: DataIterator, *, position: int, rank: int = 0, world: int = 1) -> None:
        self._blocks = self._read(stream)
        self._at, self._rank, self._world = position, rank, world
        self._block: dict[str, np.ndarray] = {}
        self._used = 0  # rows of the block

    @staticmethod
    def _read(stream: DataIterator) -> Iterator[dict[str, np.ndarray]]:
        for block in stream.iter_batches(batch_size=None, batch_format="numpy", prefetch_batches=1):
            yield {name: values if values.dtype != object else np.stack(values) for name, values in block.items()}

    def take(self, count: int) -> "Batch":
        wanted = mine(self._at, self._at + count, self._rank, self._world)
        self._at += count
        parts: list[dict[str, np.ndarray]] = []
        missing = len(wanted)
        while missing or not self._block:
            if not self._block or self._used == len(self._block[POSITION]):
                self._block, self._used = next(self._blocks), 0
            part = {name: values[self._used : self._used + missing] for name, values in self._block.items()}
            self._used += len(part[POSITION])
            missing -= len(part[POSITION])
            parts.append(part)
        if not parts:
            parts = [{name: values[:0] for name, values in self._block.items()}]
        batch = tensors({name: np.concatenate([part[name] for part in parts]) for name in self._block})
        assert batch[POSITION].tolist() == list(wanted), "the stream is not where the run is"
        return batch


class IndexedFeed(DataConfig):
    """Gives every worker its own stream, from the position at which the newest checkpoint ends.

    Ray Train asks again whenever it restarts the workers, so a restarted group goes on where its checkpoint does.
    """

    def __init__(self, course: Course, *, seed: int, until: int, checkpoints: Path) -> None:
        """`until`: the position at which the stream may end."""
        super().__init__()
        self._course, self._seed, self._until, self._checkpoints = course, seed, until, checkpoints

    def configure(self, datasets: Any, world_size: int, *args: Any, **kwargs: Any) -> list[dict[str, DataIterator]]:
        found = newest_checkpoint(self._checkpoints)
        start = read_json(found[1] / PROGRESS)[POSITION] if found else 0
        return [{"train": self._stream(start, rank, world_size)} for rank in range(world_size)]

    def _stream(self, start: int, rank: int, world: int) -> DataIterator:
        course, seed = self._course, self._seed
        positions = mine(start, max(self._until, start + world), rank, world)
        block_rows = max(1, BLOCK_BYTES // (12 * course.row_length))

        def rows(block: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
            ids = block["id"]
            return fetch(course, seed, positions[int(ids[0]) : int(ids[-1]) + 1])

        stream = ray.data.range(len(positions), override_num_blocks=ceil(len(positions) / block_rows))
        stream = stream.map_batches(rows, batch_size=None, num_cpus=0.25)
        options = ExecutionOptions()
        options.preserve_order = True
        stream.context.execution_options = options
        return stream.iterator()


def fetch(course: Course, seed: int, positions: range) -> dict[str, np.ndarray]:
    """The rows at these positions, with the positions."""
    if not len(positions):
        places = np.empty((0, 2), dtype=np.int64)
    else:
        places = course.places(seed, positions[0], positions[-1] + 1)[:: positions.step]
    return course.fetch(places) | {POSITION: np.asarray(positions, dtype=np.int64)}


def tensors(arrays: dict[str, np.ndarray]) -> "Batch":
    import torch

    return {name: torch.from_numpy(values.astype(np.int64)) for name, values in arrays.items()}
