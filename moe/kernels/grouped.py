"""The experts by torch's grouped matrix product: one kernel for all experts, and the host waits for nothing.

The backward pass keeps x, the routes and the hidden activations [A, 2I]. With g = down^T dy of an assignment and active
its SwiGLU, dL/dweight is <g, active> and dL/ddown takes weight * active: neither the outputs [A, H] nor the gathered
rows [A, H] are kept (as in SonicMoE, Guo et al. 2025).

Letters: N tokens, H hidden size, E experts, I inner width, k experts per token, A = N*k assignments in the order of
their experts.
"""

from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from conf.errors import InputError
from moe.kernels import passes
from moe.kernels.gemm import product_dtype
from moe.kernels.sorted_experts import torch_experts

_MAJORS = (9, 10)  # compute capabilities (Hopper, Blackwell) for which torch has the kernel; it loops on others
_EMPTY_IS_ZERO = (9,)  # of these, where a weight's gradient without rows is written as zeros and not left as it lies
_ALIGNED = 8  # bf16 numbers in the 16 bytes that the kernel wants strides to be multiples of


def obstacle(x: Tensor, gate_up: Tensor) -> str:
    """Why torch would not run these experts as grouped kernels on the device of x, but loop over them or refuse, and
    what helps; "" where it would. On a CPU nothing speaks against our own loop."""
    if not x.is_cuda:
        return ""
    dtype, inner, hidden = product_dtype(x), gate_up.shape[1] // 2, gate_up.shape[2]
    if dtype is not torch.bfloat16:
        return f"computes in bf16 on CUDA, not in {dtype}; set compute.precision=bf16 or compute.experts=auto"
    major, minor = torch.cuda.get_device_capability(x.device)
    if major not in _MAJORS:
        return f"needs a GPU of compute capability 9 or 10, and this one has {major}.{minor}; set compute.experts=auto"
    for knob, size in (("hidden_size", hidden), ("expert_size", inner)):
        if size % _ALIGNED:
            return f"needs a model.{knob} that divides by {_ALIGNED}, not {size}; set compute.experts=auto"
    return ""


def available(x: Tensor, gate_up: Tensor) -> bool:
    """Whether `compute.experts=auto` sends the tokens x here."""
    return x.is_cuda and not obstacle(x, gate_up)


def grouped_experts(x: Tensor, experts: Tensor, weights: Tensor, gate_up: Tensor, down: Tensor) -> Tensor:
    """`torch_experts` by another road: the same arguments, shapes and, to rounding, results.

    x [N, H], experts [N, k] int64, weights [N, k], gate_up [E, 2I, H] (gate rows first), down [E, H, I] -> y [N, H] in
    the dtype of the products: autocast's where that is on, else that of x. A token's weights keep their dtype, its sum
    over the experts is fp32.

    Raises InputError on CUDA where torch would fall back to a loop over the experts (see `obstacle`).
    """
    if reason := obstacle(x, gate_up):
        raise InputError(f"compute.experts=grouped {reason}")
    if x.shape[0] == 0:
        return torch_experts(x, experts, weights, gate_up, down)
    dtype = product_dtype(x)
    return _GroupedExperts.apply(x.to(dtype), experts, weights, gate_up.to(dtype), down.to(dtype))


def grouped_product(a: Tensor, b: Tensor, ends: Tensor) -> Tensor:
    """One product per expert, whose rows end at ends [E] (int32): a [A, m] with b [E, m, n] -> [A, n]; a [m, A] with
    b [A, n] -> [E, m, n], zeros for an expert without rows."""
    if a.is_cuda:
        out = F.grouped_mm(a, b, offs=ends)
        if b.dim() == 2 and torch.cuda.get_device_capability(a.device)[0] not in _EMPTY_IS_ZERO:
            empty = ends.diff(prepend=ends.new_zeros(1)) == 0
            out.masked_fill_(empty.view(-1, 1, 1), 0)  # garbage there (pytorch#172439), and NaN (#193633)
        return out
    bounds = [0, *ends.tolist()]
    shares = [slice(start, end) for start, end in pairwise(bounds)]
    if b.dim() == 2:
        return torch.stack([a[:, share] @ b[share] for share in shares])
    return torch.cat([a[share] @ matrix for share, matrix in zip(shares, b, strict=True)])


def _sorted(experts: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """(order [A]: the assignment at each place, ends [E]: where each expert's places end, slot [N, k]: the place of an
    assignment); the host learns none of it."""
    expert, order = experts.flatten().sort(stable=True)
    every = torch.arange(count, device=expert.device)
    ends = torch.searchsorted(expert, every, right=True, out_int32=True)
    places = torch.arange(expert.shape[0], device=expert.device)
    return order, ends, torch.empty_like(order).index_copy_(0, order, places).view_as(experts)


class _GroupedExperts(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, experts: Tensor, weights: Tensor, gate_up: Tensor, down: Tensor) -> Tensor:
        order, ends, slot = _sorted(experts, gate_up.shape[0])
        hidden = grouped_product(x.index_select(0, order // experts.shape[1]), gate_up.mT, ends)
        ctx.save_for_backward(x, weights, gate_up, down, hidden, order, ends, slot)
        return passes.combine(grouped_product(passes.swiglu(hidden), down.mT, ends), slot, weights)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, weights, gate_up, down, hidden, order, ends, slot = ctx.saved_tensors
        token = order // slot.shape[1]
        dy = grads[0].index_select(0, token)  # [A, H]
        slope = grouped_product(dy, down, ends)
        d_hidden, active, d_weight = passes.swiglu_backward(hidden, slope, weights.take(order))
        learns_gate_up, learns_down = ctx.needs_input_grad[3:]
        d_down = grouped_product(dy.t(), active, ends) if learns_down else None
        d_gate_up = grouped_product(d_hidden.t(), x.index_select(0, token), ends) if learns_gate_up else None
        dx = passes.combine(grouped_product(d_hidden, gate_up, ends), slot)
        return dx, None, d_weight.take(slot), d_gate_up, d_down
