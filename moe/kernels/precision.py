"""In what precision matrix products are computed. Weights, router, norms, softmax, losses and optimizer stay fp32.

fp16 has 5 bits of exponent: slopes below 6e-8 become 0. `LossScale` says by how much the loss is to be multiplied, and
the gradients divided, so that they are kept (Micikevicius et al. 2017).
"""

import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from statistics import median

import torch

from conf.knobs.model import Precision
from moe.kernels.gemm import product

_DTYPES = {Precision.fp32: torch.float32, Precision.bf16: torch.bfloat16, Precision.fp16: torch.float16}
_PATIENCE = 2000  # steps without overflow before a higher scale is tried
_WORTH_IT = 1.3  # a half precision must be so many times as fast as fp32: the casts around its products cost too


def autocast(precision: Precision, device: str = "cpu") -> AbstractContextManager[None]:
    """The context in which a forward pass and its loss run; the backward pass follows by itself."""
    assert precision is not Precision.auto, "auto is to be resolved by fastest(), once a run"
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


def fastest(device: str = "cpu") -> Precision:
    """What `compute.precision=auto` means on this machine, by measuring an expert's products forward and backward.

    fp16 is never chosen: its gradients need loss scaling, and where it is fast bf16 is as fast.
    """
    if device != "cpu":
        return Precision.bf16 if torch.cuda.is_bf16_supported(including_emulation=False) else Precision.fp32
    trials = {kind: _trial(_DTYPES[kind]) for kind in (Precision.fp32, Precision.bf16)}
    seconds: dict[Precision, list[float]] = {kind: [] for kind in trials}
    for kind in trials:
        trials[kind]()
    for _ in range(9):  # by turns, so that other load on the machine meets both
        for kind, run in trials.items():
            start = time.perf_counter()
            run()
            seconds[kind].append(time.perf_counter() - start)
    faster = median(seconds[Precision.fp32]) / median(seconds[Precision.bf16]) > _WORTH_IT
    return Precision.bf16 if faster else Precision.fp32


def _trial(dtype: torch.dtype) -> Callable[[], None]:
    rows, weight = torch.randn(512, 256).to(dtype), torch.randn(1024, 256).to(dtype)
    slope = torch.randn(512, 1024).to(dtype)

    def run() -> None:
        product(rows, weight.t())
        product(slope, weight)
        product(slope.t(), rows)

    return run
