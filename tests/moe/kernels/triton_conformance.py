"""The Triton kernels of `moe.kernels.triton_passes` against their torch twins, on a CPU by Triton's interpreter.

Run by test_triton_passes.py, and by tests/gpu on the real device, in a process of its own: Triton interprets its
kernels only if TRITON_INTERPRET=1 is set before it is imported. Prints one JSON object.
"""

import json
import sys
from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace
from math import isfinite
from typing import Any

import torch
from torch import Tensor

from moe.kernels import passes, triton_passes
from moe.kernels.processor import processor, using

SIZES = [(1, 1), (3, 5), (2, 1024), (4, 1500), (2, 2049)]  # rows, width: less than a block, one, and more
CHOICES = [(5, 1), (4, 3), (3, 4)]  # tokens, k


def errors(device: str) -> dict[str, float]:
    """{kernel and dtype of a result: its largest difference from the twin, in that dtype's last places}"""
    dice = torch.Generator().manual_seed(0)
    found: defaultdict[str, float] = defaultdict(float)

    def drawn(dtype: torch.dtype, *shape: int) -> Tensor:
        return torch.randn(*shape, generator=dice).to(device, dtype)

    def compare(name: str, *given: Any, called: str = "") -> None:
        results = [getattr(triton_passes, name)(*given), in_torch(name)(*given)]
        mine, right = ([result] if isinstance(result, Tensor) else result for result in results)
        for got, wanted in zip(mine, right, strict=True):
            assert got.shape == wanted.shape and got.dtype == wanted.dtype, (got.dtype, wanted.dtype)
            place = wanted.float().abs().clamp(min=1e-2) * torch.finfo(wanted.dtype).eps
            error = float(((got.float() - wanted.float()).abs() / place).max())
            assert isfinite(error), name
            key = f"{called or name}, {str(wanted.dtype).removeprefix('torch.')}"
            found[key] = max(found[key], error)

    for dtype in (torch.float32, torch.bfloat16):
        for rows, width in SIZES:
            hidden, slope = drawn(dtype, rows, 2 * width), drawn(dtype, rows, width)
            compare("swiglu", hidden)
            compare("swiglu_backward", hidden, slope, drawn(torch.float32, rows).abs())
            for tokens, k in CHOICES:
                slot = torch.randperm(tokens * k, generator=dice).view(tokens, k).to(device)
                out = drawn(dtype, tokens * k, width)
                compare("combine", out, slot, drawn(torch.float32, tokens, k))
                compare("combine", out, slot, called="combine unweighted")
    return found


def in_torch(name: str) -> Callable[..., Any]:
    """The twin, also on a GPU."""

    def run(*given: Any) -> Any:
        kept, passes._by_triton = passes._by_triton, lambda x: False
        try:
            with using(replace(processor(), kernels=False)):
                return getattr(passes, name)(*given)
        finally:
            passes._by_triton = kept

    return run


if __name__ == "__main__":
    print(json.dumps(errors(*sys.argv[1:])))
