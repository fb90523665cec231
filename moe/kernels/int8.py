"""Int8 matrices, symmetric with one scale a row, and what computes with them.

A product rounds its activations to bf16 and runs on PyTorch's own int8 kernel, which never widens a whole matrix.
torchao's int8 tensors do at every call outside `torch.compile`: decoding gets slower than in fp32, instead of faster.

Letters: N tokens, H hidden size, E experts, I inner width, k experts per token.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Int8(nn.Module):
    """A matrix [..., m, n] in the place of a parameter: int8 values with a scale for each row."""

    values: Tensor  # [..., m, n] int8
    scales: Tensor  # [..., m] bf16

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        weight = weight.detach().float()
        scales = (weight.abs().amax(-1).clamp(min=1e-12) / 127).bfloat16()  # rounded first, so that values fit it
        values = (weight / scales.float().unsqueeze(-1)).round().clamp(-127, 127)
        self.register_buffer("values", values.to(torch.int8))
        self.register_buffer("scales", scales)

    def forward(self, x: Tensor) -> Tensor:
        """x [N, n] times the transpose of [m, n] -> [N, m]."""
        return _product(x, self.values, self.scales)


def int8_experts(x: Tensor, experts: Tensor, weights: Tensor, gate_up: Int8, down: Int8) -> Tensor:
    """`moe.experts` for int8 matrices: x [N, H], experts and weights [N, k], gate_up [E, 2I, H], down [E, H, I]
    -> y [N, H]."""
    n, k = experts.shape
    order = experts.flatten().argsort(stable=True)
    chosen = x[order // k]  # [N*k, H]
    out = torch.empty_like(chosen)
    start = 0
    for e, count in enumerate(torch.bincount(experts.flatten()).tolist()):
        if count:
            rows = slice(start, start + count)
            gate, up = _product(chosen[rows], gate_up.values[e], gate_up.scales[e]).chunk(2, dim=-1)
            out[rows] = _product(F.silu(gate) * up, down.values[e], down.scales[e])
            start += count
    y = torch.empty_like(out)
    y[order] = out
    return torch.bmm(weights.unsqueeze(1), y.view(n, k, -1)).squeeze(1)


def _product(x: Tensor, values: Tensor, scales: Tensor) -> Tensor:
    return torch._weight_int8pack_mm(x.bfloat16(), values, scales).to(x.dtype)
