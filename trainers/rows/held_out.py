"""Held-out rows, in turn. Apart from `trainers.rows.rows`, which processes without torch load."""

from collections.abc import Iterator

import numpy as np
import torch

from moe.training.objectives import Batch
from trainers.rows.rows import Rows


def in_turn(rows: Rows, limit: int, *, rank: int = 0, world: int = 1, size: int = 32) -> Iterator[Batch]:
    """The first `limit` rows, `size` at a time, every `world`-th to a rank; as many batches on all, at last empty."""
    count = min(limit, len(rows))
    mine = np.arange(rank, count, world)
    for start in range(0, -(-count // world), size):
        fetched = rows.fetch(mine[start : start + size])
        yield {name: torch.from_numpy(values).long() for name, values in fetched.items()}
