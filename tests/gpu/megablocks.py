"""MegaBlocks' own kernels, as `compute.experts=megablocks` calls them, in bf16 against a loop in fp32."""

from typing import Any

import torch
from torch import Tensor

from conf.errors import InputError
from moe.kernels.megablocks import _package, experts_megablocks
from tests.gpu.machine import Skipped, device
from tests.moe.kernels.by_expert import errors, loop, results
from tests.moe.kernels.megablocks_conformance import NAMES, Case

TOY = [Case(24, 32, 32, 4, 2, busy=4)]
CASES = [
    Case(4096, 2048, 768, 128, 8, busy=128),
    Case(2048, 256, 512, 8, 2, busy=8),
    Case(2048, 2048, 1024, 64, 8, busy=40, skewed=True),
    Case(1000, 1024, 1408, 16, 1, busy=5),
    Case(3, 256, 128, 8, 2, busy=8),
]


def run(toy: bool) -> dict[str, Any]:
    try:
        _package()
    except InputError as missing:
        raise Skipped(str(missing)) from missing
    if toy:
        from tests.moe.kernels.megablocks_conformance import count_launches

        count_launches()  # which leaves one configuration to each kernel
    where = device(toy)
    worst: dict[str, float] = {}
    for case in TOY if toy else CASES:
        exact = results(loop, case, torch.float32, where)
        theirs = errors(results(loop, case, torch.bfloat16, where), exact)
        for name, error in errors(results(in_bf16, case, torch.bfloat16, where), exact).items():
            assert error <= 2 * theirs[name] + 1e-7, (
                f"{case}: {name} is off by {error:.2e}, a loop by {theirs[name]:.2e}"
            )
            worst[name] = max(worst.get(name, 0.0), error)
    return {"worst_relative_error": {name: float(f"{worst[name]:.2e}") for name in NAMES}}


def in_bf16(x: Tensor, *rest: Tensor) -> Tensor:
    return experts_megablocks(x, *rest)
