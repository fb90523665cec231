"""What a supervised stage minimises: next tokens, or which of two answers is better. Pure functions of a batch.

A batch holds packed rows, int64 [B, T]: `tokens`; `segments` (1.. per document, 0 is padding); `loss` (1 where a token
counts: as the target of the position before it, or as the place where an answer is scored).
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from moe.decoder import Decoder, Hidden
from moe.losses import cross_entropy_sum, pairwise_sum
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
    units: int  # targets, or pairs
    hits: Tensor  # [] how many units came out right; zeros where that is not asked
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
    states = hidden.states[_places(hidden, batch)[targets - 1]]
    total = cross_entropy_sum(states, model.lm_head.weight, batch["tokens"].flatten()[targets])
    return Loss(total, targets.shape[0], total.new_zeros(()), hidden)


def pair_loss(model: Decoder, batch: Batch) -> Loss:
    """Bradley-Terry loss of the pairs in a batch: scored places come as better, worse, better, worse, ..."""
    scores, hidden = pair_scores(model, batch)
    better, worse = scores.unbind(1)
    return Loss(pairwise_sum(better, worse), better.shape[0], (better > worse).sum(), hidden)


def pair_scores(model: Decoder, batch: Batch) -> tuple[Tensor, Hidden]:
    """Scores [P, 2] of the better and the worse answer of each pair."""
    hidden = model(batch["tokens"], batch["segments"])
    scored = batch["loss"].flatten().nonzero().squeeze(1)
    return model.scores(hidden.states[_places(hidden, batch)[scored]]).view(-1, 2), hidden


def _places(hidden: Hidden, batch: Batch) -> Tensor:
    """[B*T] -> which row of `hidden.states` holds a flat position."""
    index = hidden.grid.index
    places = index.new_zeros(batch["tokens"].numel())
    places[index] = torch.arange(index.shape[0], device=index.device)
    return places


LANGUAGE_MODEL = Objective("token", lambda batch: int(batch["loss"].sum()), language_loss)
PREFERENCE = Objective("pair", lambda batch: int(batch["loss"].sum()) // 2, pair_loss)
