"""In what precision matrix products are computed. Weights, router, norms, softmax, losses and optimizer stay fp32.

fp16 has 5 bits of exponent: slopes below 6e-8 become 0. `LossScale` says by how much the loss is to be multiplied, and
the gradients divided, so that they are kept (Micikevicius et al. 2017).
"""

from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch

from conf.knobs.model import Precision

_DTYPES = {Precision.fp32: torch.float32, Precision.bf16: torch.bfloat16, Precision.fp16: torch.float16}
_PATIENCE = 2000  # steps without overflow before a higher scale is tried


def autocast(precision: Precision, device: str = "cpu") -> AbstractContextManager[None]:
    """The context in which a forward pass and its loss run; the backward pass follows by itself."""
    assert precision is not Precision.auto, "auto is to be resolved by training.choice, once a stage"
    half = precision is not Precision.fp32
    return torch.autocast(device, dtype=_DTYPES[precision] if half else None, enabled=half)


@dataclass
class LossScale:
    """A power of two that follows the gradients; its fields are its whole state."""

    scale: float = 2.0**16
    good: int = 0  # steps in a row whose gradients were finite at this scale

    def update(self, finite: bool) -> None:
        """What a step's gradients were. A step whose gradients are not finite must not move the weights."""
        self.good = self.good + 1 if finite else 0
        if not finite:
            self.scale = max(1.0, self.scale / 2)
        elif self.good == _PATIENCE:
            self.scale, self.good = self.scale * 2, 0
