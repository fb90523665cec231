"""An exponential moving average of the trained weights, which often does better than the weights of any one step.

Spread weights are averaged where they lie; names are the model's.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule

from moe.training.parallel import own, spread_as

UPDATES = "updates"


class Average:
    """Make it when the model is spread already. Update n (from 0) keeps min(decay, (1 + n) / (10 + n)) of the average,
    so that the first weights are soon forgotten."""

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay, self.updates = decay, 0
        self._values = {name: p.detach().clone() for name, p in _trained(model).items()}

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Take in the weights after an optimizer step."""
        keep = min(self.decay, (1 + self.updates) / (10 + self.updates))
        averages, weights = self._pairs(model)
        torch._foreach_lerp_(averages, weights, 1 - keep)
        self.updates += 1

    @contextmanager
    def swapped(self, model: nn.Module) -> Iterator[None]:
        """Within, the model computes with the average and this holds its weights; bitwise the same again afterwards."""
        self._swap(model)
        try:
            yield
        finally:
            self._swap(model)

    @torch.no_grad()
    def _swap(self, model: nn.Module) -> None:
        # The values change places and not the tensors, which optimizer and FSDP2 know by their memory. What FSDP2 has
        # gathered of the old values for a forward pass must go first: it would be taken for the new.
        for module in model.modules():
            if isinstance(module, FSDPModule):
                module.reshard()
        for average, weight in zip(*self._pairs(model), strict=True):
            kept = weight.clone()
            weight.copy_(average)
            average.copy_(kept)

    @torch.no_grad()
    def put_into(self, model: nn.Module) -> None:
        """The model's weights become the average."""
        for average, weight in zip(*self._pairs(model), strict=True):
            weight.copy_(average)

    def tensors(self) -> dict[str, Tensor]:
        """The average, in its own memory and spread as the model is, and the number of updates."""
        return {**self._values, UPDATES: torch.tensor(self.updates)}

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Put back what `tensors` gave, gathered."""
        for name, value in self._values.items():
            own(value).copy_(own(spread_as(value, tensors[name].to(value.device))))
        self.updates = int(tensors[UPDATES])

    def _pairs(self, model: nn.Module) -> tuple[list[Tensor], list[Tensor]]:
        """This worker's parts of the averages and of the weights, in the same order."""
        weights = _trained(model)
        return [own(value) for value in self._values.values()], [own(weights[name]) for name in self._values]


def _trained(model: nn.Module) -> dict[str, Tensor]:
    return {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}
