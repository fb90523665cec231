"""What the experts do between their matrix products: by Triton on CUDA, in C on the CPU where that is built,
else by these few lines of torch.

All numbers are widened to fp32 (fp64 stays), and rounded once, where they are written.

Letters: N tokens, H hidden size, I inner width, k experts per token, A = N*k assignments in the order of their experts.
"""

from functools import cache
from importlib.util import find_spec

import torch
import torch.nn.functional as F
from torch import Tensor

from moe.kernels import native


def swiglu(hidden: Tensor) -> Tensor:
    """silu(gate) * up of [A, 2I] -> [A, I]."""
    if _by_triton(hidden):
        from moe.kernels import triton_passes

        return triton_passes.swiglu(hidden)
    if native.takes(hidden):
        return native.swiglu(hidden)
    gate, up = _wide(hidden).chunk(2, dim=1)
    return (F.silu(gate) * up).to(hidden.dtype)


def swiglu_backward(hidden: Tensor, slope: Tensor, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Through y = sum of weight * down @ active, active = silu(gate) * up: hidden [A, 2I], slope = down^T dy [A, I] of
    an assignment before its weight [A] -> dL/dhidden [A, 2I], weight * active [A, I], dL/dweight [A] in its dtype. Uses
    `slope` up."""
    if _by_triton(hidden):
        from moe.kernels import triton_passes

        return triton_passes.swiglu_backward(hidden, slope, weight)
    if native.takes(hidden, slope) and native.ready(weight):
        return native.swiglu_backward(hidden, slope, weight)
    gate, up = _wide(hidden).chunk(2, dim=1)
    sigmoid = gate.sigmoid()
    silu = gate * sigmoid
    active, share = silu * up, _wide(weight).unsqueeze(1)
    d_active = share * _wide(slope)
    # silu' = sigmoid + silu * (1 - sigmoid)
    d_hidden = torch.cat([d_active * up * (sigmoid + silu * (1 - sigmoid)), d_active * silu], dim=1)
    d_weight = (_wide(slope) * active).sum(1)
    return d_hidden.to(hidden.dtype), (share * active).to(hidden.dtype), d_weight.to(weight.dtype)


def combine(rows: Tensor, slot: Tensor, weights: Tensor | None = None, dtype: torch.dtype | None = None) -> Tensor:
    """[A, H] to the sum over each token's rows, at slot [N, k], weighted by [N, k] -> [N, H] in `dtype` (None: that of
    the rows). Always in one order."""
    dtype = dtype or rows.dtype
    if _by_triton(rows):
        from moe.kernels import triton_passes

        return triton_passes.combine(rows, slot, weights).to(dtype)
    if native.takes(rows) and (weights is None or native.ready(weights)):
        return native.combine(rows, slot, weights).to(dtype)
    if rows.dtype in (torch.float32, torch.float64) and rows.numel():
        given = None if weights is None else weights.to(rows.dtype)
        return F.embedding_bag(slot, rows, per_sample_weights=given, mode="sum").to(dtype)
    picked = _wide(rows.index_select(0, slot.flatten())).view(*slot.shape, rows.shape[1])
    if weights is not None:
        picked = picked * weights.unsqueeze(2)
    return picked.sum(1).to(dtype)


def _wide(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _by_triton(x: Tensor) -> bool:
    return x.is_cuda and _triton_is_there()


@cache
def _triton_is_there() -> bool:  # torch brings it along for CUDA, but not on Windows
    return find_spec("triton") is not None
