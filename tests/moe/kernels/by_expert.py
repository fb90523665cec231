"""The experts as plain torch says them, one after the other, with torch's own gradients: what backends are held to."""

from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from tests.moe.kernels.megablocks_conformance import NAMES, Call, Case, inputs

CPU = torch.device("cpu")


def loop(x: Tensor, experts: Tensor, weights: Tensor, gate_up: Tensor, down: Tensor) -> Tensor:
    """`torch_experts`, in the dtype of x throughout."""
    y = torch.zeros_like(x)
    for e, (both, back) in enumerate(zip(gate_up.unbind(0), down.unbind(0), strict=True)):
        token, choice = (experts == e).nonzero(as_tuple=True)
        gate, up = (x[token] @ both.t()).chunk(2, dim=1)
        out = (F.silu(gate) * up) @ back.t()
        y = y.index_add(0, token, out * weights[token, choice].unsqueeze(1))
    return y


def results(call: Call, case: Case, dtype: torch.dtype, device: torch.device = CPU) -> list[Tensor]:
    """y and the gradients of the case in the order of NAMES, for numbers that bf16 has too."""
    experts, leaves, direction = _drawn(case, str(device))
    x, weights, gate_up, down = (leaf.detach().bfloat16().to(dtype).requires_grad_() for leaf in leaves)
    y = call(x, experts, weights, gate_up, down)
    return [y.detach(), *torch.autograd.grad(y, [x, weights, gate_up, down], direction.bfloat16().to(dtype))]


@lru_cache(maxsize=1)  # a layer of a large model takes seconds to draw, and is asked for again and again
def _drawn(case: Case, device: str) -> tuple[Tensor, list[Tensor], Tensor]:
    return inputs(case, device=device)


def errors(got: list[Tensor], exact: list[Tensor]) -> dict[str, float]:
    """Of each, relative to its size."""
    sizes = [max(float(right.norm()), 1e-30) for right in exact]
    parts = zip(NAMES, got, exact, sizes, strict=True)
    return {name: float((mine.to(right) - right).norm()) / size for name, mine, right, size in parts}
