"""The experts in torch: the assignments are sorted by expert once, then there is one matrix product per expert and
projection; no token is dropped and no capacity is set.

The backward pass keeps x, the routes and the hidden activations [P, 2I]. With g = down^T dy of an assignment and active
its SwiGLU, dL/dweight is <g, active> and dL/ddown takes weight * active: neither the outputs [P, H] nor the gathered
rows [P, H] are kept (as in SonicMoE, Guo et al. 2025).

Letters: N tokens, H hidden size, E experts, I inner width, k experts per token, A = N*k assignments, P slots: the
assignments in the order of their experts, each expert's share padded to whole tiles.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from moe.kernels import passes
from moe.kernels.gemm import product, product_dtype, tile


class _Dispatch(NamedTuple):
    """Which slot serves which assignment."""

    slices: list[tuple[int, slice]]  # (expert, its slots); experts without tokens left out
    token: Tensor  # [P] the token that a slot reads; padding reads token 0
    weight: Tensor  # [P] its routing weight; 0 for padding, so that nothing flows back from it
    slot: Tensor  # [N, k] where each assignment went


def _dispatch(experts: Tensor, weights: Tensor, count: int, rows: int) -> _Dispatch:
    k = experts.shape[1]
    flat = experts.flatten()
    order = flat.argsort(stable=True)
    tokens = torch.bincount(flat, minlength=count)
    token, weight = order // k, weights.detach().flatten()[order]
    sorted_slot = torch.arange(flat.shape[0], device=flat.device)
    if rows > 1:
        padded = (tokens + rows - 1) // rows * rows
        shift = (padded.cumsum(0) - padded) - (tokens.cumsum(0) - tokens)
        sorted_slot += shift[flat[order]]
        tokens = padded
        slots = int(tokens.sum())
        token = token.new_zeros(slots).index_copy_(0, sorted_slot, token)
        weight = weight.new_zeros(slots).index_copy_(0, sorted_slot, weight)
    slot = torch.empty_like(flat).index_copy_(0, order, sorted_slot)
    lengths = tokens.tolist()
    slices, end = [], 0
    for e, length in enumerate(lengths):
        start, end = end, end + length
        if length:
            slices.append((e, slice(start, end)))
    return _Dispatch(slices, token, weight, slot.view_as(experts))


class _SortedExperts(torch.autograd.Function):
    """One autograd node for the whole layer: no per-expert nodes, no [E, 2I, H] gradient per expert. An expert's rows
    pass through all of its steps while they are still in the cache."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, experts: Tensor, weights: Tensor, gate_up: Tensor, down: Tensor) -> Tensor:
        count, inner = gate_up.shape[0], down.shape[2]
        plan = _dispatch(experts, weights, count, tile(x, experts.numel() // count))
        hidden = x.new_empty(plan.token.shape[0], 2 * inner)
        out = x.new_empty(plan.token.shape[0], x.shape[1])
        for e, share in plan.slices:
            product(_rows(x, plan.token[share]), gate_up[e].t(), out=hidden[share])
            product(passes.swiglu(hidden[share]), down[e].t(), out=out[share])
        ctx.plan = plan
        ctx.save_for_backward(x, weights, gate_up, down, hidden)
        return passes.combine(out, plan.slot, weights, weights.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        plan: _Dispatch = ctx.plan
        x, weights, gate_up, down, hidden = ctx.saved_tensors
        dy = grads[0].to(x.dtype)
        served = [e for e, _ in plan.slices]
        d_gate_up, d_down = (
            _room(p, served) if needed else None
            for p, needed in zip((gate_up, down), ctx.needs_input_grad[3:], strict=True)
        )
        d_weight = weights.new_zeros(hidden.shape[0])
        d_rows = x.new_empty(hidden.shape[0], x.shape[1])
        for e, share in plan.slices:
            slope = _rows(dy, plan.token[share])
            given = product(slope, down[e])
            d_hidden, active, d_weight[share] = passes.swiglu_backward(hidden[share], given, plan.weight[share])
            if d_down is not None:
                product(slope.t(), active, out=d_down[e])
            if d_gate_up is not None:
                product(d_hidden.t(), _rows(x, plan.token[share]), out=d_gate_up[e])
            product(d_hidden, gate_up[e], out=d_rows[share])
        return passes.combine(d_rows, plan.slot), None, d_weight[plan.slot], d_gate_up, d_down


def _rows(x: Tensor, rows: Tensor) -> Tensor:
    return x.index_select(0, rows)  # several times as fast as x[rows]


def _room(parameter: Tensor, served: list[int]) -> Tensor:
    """Where the gradients of experts [E, ...] go: zeros for those that have no tokens."""
    room = torch.empty_like(parameter)
    for e in set(range(parameter.shape[0])).difference(served):
        room[e].zero_()
    return room


def _of_one(x: Tensor, experts: Tensor, weights: Tensor, gate_up: Tensor, down: Tensor) -> Tensor:
    """`torch_experts` of one token, without gradients: there is nothing to sort."""
    out = [torch.mv(down[e], passes.swiglu(torch.mv(gate_up[e], x[0]).unsqueeze(0))[0]) for e in experts[0].tolist()]
    return weights.to(x.dtype) @ torch.stack(out)


def torch_experts(x: Tensor, experts: Tensor, weights: Tensor, gate_up: Tensor, down: Tensor) -> Tensor:
    """y[n] = sum_j weights[n, j] * down_e @ (silu(gate_e @ x[n]) * (up_e @ x[n])), e = experts[n, j].

    x [N, H], experts [N, k] int64, weights [N, k], gate_up [E, 2I, H] (gate rows first), down [E, H, I] -> y [N, H] in
    the dtype of x. Obeys `torch.autocast` in its matrix products and what lies between them; a token's sum over its
    experts is fp32.
    """
    dtype = product_dtype(x)
    if x.shape[0] == 1 and x.device.type == "cpu" and not torch.is_grad_enabled():
        return _of_one(x.to(dtype), experts, weights, gate_up.to(dtype), down.to(dtype)).to(x.dtype)
    wide = weights.to(torch.promote_types(weights.dtype, torch.float32))
    return _SortedExperts.apply(x.to(dtype), experts, wide, gate_up.to(dtype), down.to(dtype)).to(x.dtype)
