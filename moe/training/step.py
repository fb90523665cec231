"""The gradients of one step over the global batch: accumulated over micro-batches, summed over the workers.

Letters: L layers, E experts.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from math import isfinite

import torch
import torch.distributed as dist
from torch import Tensor

from moe.decoder import Decoder
from moe.training.average import Average
from moe.training.doctor import router_metrics
from moe.training.objectives import Batch, Loss, Objective
from moe.training.optimizer import measured_step, set_learning_rate
from moe.training.parallel import clip_gradients, fixed_sum, own_rank, reduce_gradients, world_size


@dataclass(frozen=True)
class Taken:
    """What a step was about, all workers together."""

    metrics: dict[str, float]  # loss, grad_norm, aux, accuracy where answers are compared, moe/...
    tokens: float  # padding left out
    targets: float  # of them
    pairs: float  # of tokens of which one attends to the other
    stop: bool = False  # whether a worker said that the run shall end

    @property
    def loss(self) -> float:
        return self.metrics["loss"]

    @property
    def norm(self) -> float:
        return self.metrics["grad_norm"]

    @property
    def finite(self) -> bool:
        """Whether loss and gradient are numbers that a step may be made of."""
        return isfinite(self.loss) and isfinite(self.norm)


def gradients(
    model: Decoder,
    objective: Objective,
    batch: Batch,
    *,
    accumulate: int = 1,
    budget: int = 0,
    clip: float = float("inf"),
    scale: float = 1.0,
    slots: int = 0,
    seed: int = 0,
    stop: bool = False,
) -> Taken:
    """Leave the step's gradient, clipped to a global norm of `clip`, in the parameters.

    `batch` is this worker's part. The loss is divided by the units of the whole step, so that micro-batches and workers
    weigh by what they hold; there are `accumulate` of them, or as many as hold `budget` tokens each. `scale` multiplies
    the loss on its way through the backward pass (for fp16) and is taken out again. With `slots`, rows are dealt over
    so many parts by their position, every part throws dice of its own from `seed`, and the parts are added in one fixed
    order: the result has the same bits for any number of workers that divides them. What one worker says of `stop`, all
    are told.
    """
    model.zero_grad(set_to_none=True)
    counted = torch.tensor([float(objective.units(batch)), float(stop)], dtype=torch.float64)
    units, stopping = all_sum(counted).unbind()
    units = units.clamp(min=1.0)
    measured: dict[int, Tensor] = {}
    summed: dict[int, Tensor] = {}
    trained = [p for p in model.parameters() if p.requires_grad]
    for slot, part in _dealt(batch, slots):
        if slots:
            torch.manual_seed(seed * slots + slot)
        micros = by_tokens(part, budget) if budget else split(part, accumulate)
        share = 1 / (len(micros) * max(slots, 1))
        tally = torch.zeros(())
        for micro in micros:
            loss = objective.loss(model, micro)
            auxiliary = loss.hidden.auxiliary * share
            ((loss.total / units.to(loss.total) + auxiliary) * scale).backward()
            tally = tally + _measures(objective, loss, micro, auxiliary, share, alone=bool(slots))
        measured[slot] = tally
        if slots:
            summed[slot] = torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in trained])
            model.zero_grad(set_to_none=True)
    if slots:
        torch.manual_seed(seed)  # whichever slots this worker had
        flat = fixed_sum(summed, slots)
        for p, gradient in zip(trained, flat.split([p.numel() for p in trained]), strict=True):
            p.grad = gradient.view_as(p)
        numbers = fixed_sum(measured, slots)
    else:
        reduce_gradients(model)
        numbers = all_sum(measured[0])
    if scale != 1.0:
        torch._foreach_mul_([p.grad for p in trained if p.grad is not None], 1 / scale)
    norm = float(clip_gradients(model, clip))
    return replace(_taken(model, objective, numbers.cpu(), float(units), norm), stop=bool(stopping))


def apply(
    model: Decoder,
    optimizer: torch.optim.Optimizer,
    *,
    rate: float,
    average: Average | None = None,
    measure: bool = False,
) -> dict[str, float]:
    """Move the weights by the gradients that are there, which are then gone, and their average with them;
    {"update_norm"} if asked for."""
    set_learning_rate(optimizer, rate)
    made = {}
    if measure:
        made["update_norm"] = float(measured_step(model, optimizer))
    else:
        optimizer.step()
    model.zero_grad(set_to_none=True)  # as large as the weights, and what comes next is measured and saved without them
    if average is not None:
        average.update(model)
    return made


def _dealt(batch: Batch, slots: int) -> Iterator[tuple[int, Batch]]:
    """The batch as one part, or this worker's slots of it: row p of the run belongs to slot p modulo `slots`."""
    if not slots:
        yield 0, batch
        return
    for slot in range(own_rank(), slots, world_size()):
        here = batch["position"] % slots == slot
        yield slot, {name: values[here] for name, values in batch.items()}


def split(batch: Batch, parts: int) -> list[Batch]:
    """A batch as `parts` batches, whose rows differ by one at most; each may be empty."""
    pieces = {name: values.tensor_split(parts) for name, values in batch.items()}
    return [{name: pieces[name][part] for name in batch} for part in range(parts)]


def by_tokens(batch: Batch, budget: int) -> list[Batch]:
    """A batch as batches whose rows, padded to their longest, have `budget` tokens at most, the longest rows first; one
    row may have more, and then stands alone. No column is kept in which there is only padding."""
    lengths = batch["segments"].ne(0).sum(1)
    order = lengths.argsort(descending=True, stable=True)
    found, at = [], 0
    while at < len(order):
        width = max(1, int(lengths[order[at]]))
        chosen = order[at : at + max(1, budget // width)]
        found.append(
            {name: values[chosen][:, :width] if values.dim() > 1 else values[chosen] for name, values in batch.items()}
        )
        at += len(chosen)
    return found or [batch]


def _measures(
    objective: Objective, loss: Loss, batch: Batch, auxiliary: Tensor, share: float, *, alone: bool
) -> Tensor:
    """What a micro-batch says, as one vector to be added up: [7 + the objective's sums + L * (3 + E)] float64."""
    hidden = loss.hidden
    tokens = torch.tensor(hidden.states.shape[0])
    first = [loss.total.detach(), loss.hits, loss.asked, auxiliary.detach()]
    first += [tokens, batch["loss"].sum(), (hidden.grid.positions + 1).sum()]
    first += [loss.sums[name] for name in objective.sums]
    rest = torch.stack([hidden.balance, hidden.z, hidden.entropy]) * share
    # Every worker knows the load of all, unless each looks at its own rows alone.
    load = hidden.load * (share if alone else share / world_size())
    device = loss.total.device
    return torch.cat([torch.stack([v.to(device).double() for v in first]), rest.flatten(), load.flatten()])


def _taken(model: Decoder, objective: Objective, numbers: Tensor, units: float, norm: float) -> Taken:
    layers = model.cfg.layers
    first, sums, rest, load = numbers.split([7, len(objective.sums), 3 * layers, layers * model.cfg.experts])
    total, hits, asked, auxiliary, tokens, targets, pairs = first.tolist()
    metrics = {"loss": total / units, "grad_norm": norm, "aux": auxiliary}
    metrics |= {name: value / units for name, value in zip(objective.sums, sums.tolist(), strict=True)}
    if objective.unit != "token":
        metrics["accuracy"] = hits / max(1.0, asked)
    balance, z, entropy = rest.view(3, layers)
    metrics |= router_metrics(load.view(layers, -1), balance, z, entropy, top_k=model.cfg.top_k)
    return Taken(metrics, tokens, targets, pairs)


def all_sum(value: Tensor) -> Tensor:
    if world_size() > 1:
        dist.all_reduce(value)
    return value
