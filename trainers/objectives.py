"""What a supervised stage minimises, as a pure function of a batch; here next tokens, rankings in `preferences`.

A batch holds packed rows, int64 [B, T]: `tokens`; `segments` (1.. per document, 0 is padding); `loss` (1 where a token
counts: as the target of the position before it, or as the place where an answer is scored).
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from moe.decoder import Decoder, Hidden
from moe.losses import cross_entropy_sum
from trainers.rows import Rows

Batch = dict[str, Tensor]


def in_turn(rows: Rows, limit: int, *, rank: int = 0, world: int = 1, size: int = 32) -> Iterator[Batch]:
    """The first `limit` rows, `size` at a time, every `world`-th to a rank; as many batches on all, at last empty."""
    count = min(limit, len(rows))
    mine = np.arange(rank, count, world)
    for start in range(0, -(-count // world), size):
        fetched = rows.fetch(mine[start : start + size])
        yield {name: torch.from_numpy(values).long() for name, values in fetched.items()}


@dataclass(frozen=True)
class Loss:
    total: Tensor  # [] summed over the batch's units
    units: int  # targets, pairs, or rankings
    asked: Tensor  # [] comparisons of answers that were made; 0 where there are none
    hits: Tensor  # [] of them came out right
    hidden: Hidden


@dataclass(frozen=True)
class Objective:
    unit: str
    units: Callable[[Batch], int]
    loss: Callable[[Decoder, Batch], Loss]


def language_loss(model: Decoder, batch: Batch) -> Loss:
    """Cross-entropy of the tokens that count, each predicted from the position before it."""
    hidden = model(batch["tokens"], batch["segments"])
    targets = batch["loss"].flatten().nonzero().squeeze(1)
    states = hidden.states[places(hidden, batch)[targets - 1]]
    total = cross_entropy_sum(states, model.lm_head.weight, batch["tokens"].flatten()[targets])
    none = total.new_zeros(())
    return Loss(total, targets.shape[0], none, none, hidden)


def places(hidden: Hidden, batch: Batch) -> Tensor:
    """[B*T] -> which row of `hidden.states` holds a flat position."""
    index = hidden.grid.index
    places = index.new_zeros(batch["tokens"].numel())
    places[index] = torch.arange(index.shape[0], device=index.device)
    return places


LANGUAGE_MODEL = Objective("token", lambda batch: int(batch["loss"].sum()), language_loss)
