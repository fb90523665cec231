"""What a supervised stage minimises, as a pure function of a batch; here next tokens, rankings in `preferences`.

A batch holds packed rows, int64 [B, T]: `tokens`; `segments` (1.. per document, 0 is padding); `loss` (1 where a token
counts: as the target of the position before it, or as the place where an answer is scored); in training `position` [B],
which place of the run's order a row is at.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np
import torch
from torch import Tensor

from conf.knobs.model import Precision
from moe.decoder import Decoder, Hidden
from moe.kernels.precision import autocast
from moe.losses import cross_entropy_sum

Batch = dict[str, Tensor]


@dataclass(frozen=True)
class Loss:
    total: Tensor  # [] summed over the batch's units
    units: int  # targets, pairs, or rankings
    asked: Tensor  # [] comparisons of answers that were made; 0 where there are none
    hits: Tensor  # [] of them came out right
    hidden: Hidden
    sums: Mapping[str, Tensor] = field(default_factory=dict)  # [] each, over the units: their means are metrics


@dataclass(frozen=True)
class Objective:
    unit: str
    units: Callable[[Batch], int]
    loss: Callable[[Decoder, Batch], Loss]
    sums: tuple[str, ...] = ()  # the names of what `Loss.sums` holds


def on(batch: Batch, model: Decoder) -> Batch:
    """The batch where the model is."""
    return {name: values.to(model.device, non_blocking=True) for name, values in batch.items()}


def language_loss(model: Decoder, batch: Batch, read: Tensor | None = None) -> Loss:
    """Cross-entropy of the tokens that count, each predicted from the position before it; the model reads `read` [B, T]
    where that is another text than its targets."""
    hidden = model(batch["tokens"] if read is None else read, batch["segments"])
    targets = batch["loss"].flatten().nonzero().squeeze(1)
    total = cross_entropy_sum(hidden.before(targets), model.lm_head.weight, batch["tokens"].flatten()[targets])
    none = total.new_zeros(())
    return Loss(total, targets.shape[0], none, none, hidden)


def forgetful_loss(model: Decoder, batch: Batch, mask: float, blank: int, seed: int) -> Loss:
    """`language_loss`, but that in training a share of a segment's earlier answers, drawn for each row from
    [0, `mask`], is read as the token `blank`: what is learnt after them is not to be copied from them. Targets stay as
    they are.

    Forgetful causal masking (Liu et al. 2022) as chain of hindsight uses it; there attention passes hidden tokens over,
    and tokens of the answer that is being written may be hidden too.
    """
    if "position" not in batch:
        return language_loss(model, batch)
    hidden = earlier_answers(batch) & dice(batch["position"], batch["tokens"].shape[1], mask, seed)
    read = torch.where(hidden, blank, batch["tokens"])
    return language_loss(model, batch, read)


def earlier_answers(batch: Batch) -> Tensor:
    """[B, T] bool: the tokens that count and are followed in their segment by another run of tokens that count."""
    segments, counts = batch["segments"], batch["loss"] == 1
    begins = counts.clone()
    begins[:, 1:] &= ~counts[:, :-1] | (segments[:, 1:] != segments[:, :-1])
    run = begins.long().cumsum(1)
    last = torch.zeros_like(run).scatter_reduce(1, segments, run * counts, "amax")  # [B, segment]
    return counts & (run < last.gather(1, segments))


def dice(positions: Tensor, length: int, most: float, seed: int) -> Tensor:
    """[B, length] bool, each true with a probability that is drawn for its row from [0, `most`]: a function of the seed
    and the row's place in the run, so that a run that goes on throws what it would have thrown."""
    thrown = np.zeros((len(positions), length), dtype=bool)
    for row, position in enumerate(positions.tolist()):
        own = np.random.Generator(np.random.Philox(key=np.array([seed, position], dtype=np.uint64)))
        thrown[row] = own.random(length) < most * own.random()
    return torch.from_numpy(thrown).to(positions.device)


def forgetful(mask: float, blank: int, seed: int) -> Objective:
    """The objective of `forgetful_loss`; `blank` is the id of a token that no text has."""
    loss = partial(forgetful_loss, mask=mask, blank=blank, seed=seed)
    return replace(LANGUAGE_MODEL, loss=loss) if mask else LANGUAGE_MODEL


LANGUAGE_MODEL = Objective("token", lambda batch: int(batch["loss"].sum()), language_loss)


def in_precision(objective: Objective, precision: Precision) -> Objective:
    """The objective with its matrix products in `precision`."""

    def loss(model: Decoder, batch: Batch) -> Loss:
        with autocast(precision, batch["tokens"].device.type):
            return objective.loss(model, batch)

    return replace(objective, loss=loss)
