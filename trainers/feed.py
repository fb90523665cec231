"""Ray Data streams packed rows into the training workers in an order that is a pure function of (seed, position).

Position p of the run is row `order(n, seed, p)`. Of W workers, worker r gets the positions that are r modulo W: a step
of `batch_rows` positions holds the same rows whatever W is, and a cursor is one integer.
"""

from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import ray
import torch
from ray.data import DataIterator, ExecutionOptions
from ray.train import DataConfig

from cluster.storage import newest_checkpoint
from trainers.objectives import Batch
from trainers.rows import Rows, order

FETCHERS = 2  # tasks at once for one worker: a row is read thousands of times faster than it is trained on
BLOCK_ROWS = 512  # rows of one Ray Data task: about a megabyte


@lru_cache(maxsize=4)
def opened(folder: Path) -> Rows:
    """The rows of a folder, decoded once per process."""
    return Rows(folder)


class IndexedFeed(DataConfig):
    """Gives every worker its own stream, from the position at which the newest checkpoint ends.

    Ray Train asks again whenever it restarts the workers, so a restarted group goes on where its checkpoint does.
    """

    def __init__(self, rows: Path, *, seed: int, steps: int, batch_rows: int, checkpoints: Path) -> None:
        super().__init__()
        self._rows, self._seed, self._checkpoints = rows, seed, checkpoints
        self._steps, self._batch_rows = steps, batch_rows

    def configure(self, datasets: Any, world_size: int, *args: Any, **kwargs: Any) -> list[dict[str, DataIterator]]:
        found = newest_checkpoint(self._checkpoints)
        start = (found[0] if found else 0) * self._batch_rows
        return [{"train": self._stream(start, rank, world_size)} for rank in range(world_size)]

    def _stream(self, start: int, rank: int, world_size: int) -> DataIterator:
        rows, seed, folder = len(Rows(self._rows)), self._seed, self._rows
        count = max(1, (self._steps * self._batch_rows - start) // world_size)

        def fetch(block: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
            positions = start + rank + block["id"] * world_size  # consecutive ids: evenly spaced positions
            wanted = order(rows, seed, int(positions[0]), int(positions[-1]) + 1)[::world_size]
            return opened(folder).fetch(wanted)

        stream = ray.data.range(count, override_num_blocks=max(1, -(-count // BLOCK_ROWS)))
        stream = stream.map_batches(fetch, batch_size=None, num_cpus=0.25, concurrency=FETCHERS)
        options = ExecutionOptions()
        options.preserve_order = True
        stream.context.execution_options = options
        return stream.iterator()


def batches(stream: DataIterator, rows: int) -> Iterator[Batch]:
    """Batches of `rows` rows as int64 tensors [rows, T]."""
    for batch in stream.iter_batches(batch_size=rows, batch_format="numpy", prefetch_batches=2):
        yield {name: torch.from_numpy(np.stack(list(values)).astype(np.int64)) for name, values in batch.items()}
