"""The grouped experts on this card: errors, bits, what empty experts get, and that the host waits for nothing."""

from typing import Any

import torch
from torch import Tensor

from moe.kernels.grouped import grouped_experts, obstacle
from tests.gpu.machine import Skipped, device
from tests.moe.kernels.by_expert import errors, loop, results
from tests.moe.kernels.megablocks_conformance import NAMES, Case

TOY = [Case(24, 32, 24, 4, 2, busy=4), Case(24, 32, 24, 8, 2, busy=3, skewed=True), Case(20, 16, 8, 8, 1, busy=1)]
CASES = [
    Case(4096, 2048, 768, 128, 8, busy=128),  # Qwen3-30B-A3B
    Case(4096, 2048, 768, 128, 8, busy=60, skewed=True),
    Case(4096, 2048, 512, 256, 10, busy=256),
    Case(2048, 256, 512, 8, 2, busy=8),
    Case(2048, 2048, 1024, 64, 8, busy=64),  # OLMoE
    Case(1000, 1024, 1408, 16, 1, busy=5),
    Case(3, 256, 128, 8, 2, busy=8),
    Case(64, 256, 128, 8, 8, busy=8),
]
REPEATS = 20


def run(toy: bool) -> dict[str, Any]:
    where = device(toy)
    if why := obstacle(torch.empty(1, 256, device=where, dtype=torch.bfloat16), torch.empty(1, 256, 256)):
        raise Skipped(f"compute.experts=grouped {why}")
    worst: dict[str, float] = {}
    for case in TOY if toy else CASES:
        exact = results(loop, case, torch.float32, where)
        poison(where)
        ours = results(grouped_experts, case, torch.bfloat16, where)
        theirs = errors(results(loop, case, torch.bfloat16, where), exact)
        for name, error in errors(ours, exact).items():
            assert error <= 2 * theirs[name] + 1e-7, (
                f"{case}: {name} is off by {error:.2e}, a loop by {theirs[name]:.2e}"
            )
            worst[name] = max(worst.get(name, 0.0), error)
        for gradient in ours[3:]:
            empty = gradient[case.busy :]
            assert not empty.any(), f"{case}: an expert without rows got a gradient"
    case = (TOY if toy else CASES)[1]
    first = results(grouped_experts, case, torch.bfloat16, where)
    for _ in range(REPEATS):
        again = results(grouped_experts, case, torch.bfloat16, where)
        assert all(torch.equal(one, other) for one, other in zip(first, again, strict=True)), "bits differ"
    return {
        "worst_relative_error": {name: float(f"{worst[name]:.2e}") for name in NAMES},
        "equal_repeats": REPEATS,
        "host_waits": 0 if not toy and no_wait(case, where) else "a CPU has nothing to wait for",
    }


def poison(where: torch.device) -> None:
    """Leave NaN in the memory that the next tensors will get."""
    if where.type == "cuda":
        torch.full((2**30,), float("nan"), device=where, dtype=torch.bfloat16)


def no_wait(case: Case, where: torch.device) -> bool:
    """Forward and backward while torch refuses whatever makes the host wait for the device."""

    def watched(x: Tensor, *rest: Tensor) -> Tensor:
        torch.cuda.set_sync_debug_mode("error")
        return grouped_experts(x, *rest)

    try:
        results(watched, case, torch.bfloat16, where)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return True
