"""The experts in torch: the assignments are sorted by expert once, then there is one matrix product per expert and
projection; no token is dropped and no capacity is set.

Letters: N tokens, H hidden size, E experts, I inner width, k experts per token, A = N*k assignments, P slots: the
assignments in the order of their experts, each expert's share padded to whole tiles.
"""

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from moe.kernels import native
from moe.kernels.gemm import product, product_dtype, tile


class _Dispatch(NamedTuple):
    """Which slot serves which assignment."""

    slices: list[tuple[int, int, int]]  # (expert, first slot, end); experts without tokens left out
    token: Tensor  # [P] the token that a slot reads; padding reads token 0
    weight: Tensor  # [P, 1] its routing weight; 0 for padding, so that nothing flows back from it
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
            slices.append((e, start, end))
    return _Dispatch(slices, token, weight.unsqueeze(1), slot.view_as(experts))


def _combine(rows: Tensor, slot: Tensor, weights: Tensor | None = None) -> Tensor:
    """[P, H] to the sum over each token's slots [N, H], weighted by [N, k]."""
    if rows.dtype in (torch.float32, torch.float64) and rows.numel():
        return F.embedding_bag(slot, rows, per_sample_weights=weights, mode="sum")
    picked = rows[slot.flatten()].view(*slot.shape, rows.shape[1])
    return picked.sum(1) if weights is None else torch.bmm(weights.unsqueeze(1), picked).squeeze(1)


def _combine_backward(dy: Tensor, out: Tensor, token: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Through y[token[p]] += weight[p] * out[p]: dy [N, H], out [P, H], weight [P, 1] -> dL/dout, dL/dweight [P]."""
    if native.ready(dy, out, weight):
        return native.combine_backward(dy, out, token, weight)
    d_out = dy.index_select(0, token)
    d_weight = (out * d_out).sum(1)
    return d_out.mul_(weight), d_weight


def _swiglu(hidden: Tensor) -> Tensor:
    """silu(gate) * up of [P, 2I] -> [P, I]."""
    if native.ready(hidden):
        return native.swiglu(hidden)
    gate, up = hidden.chunk(2, dim=1)
    return F.silu(gate).mul_(up)


def _swiglu_backward(hidden: Tensor, d_active: Tensor) -> tuple[Tensor, Tensor]:
    """-> dL/dhidden [P, 2I] and silu(gate) * up [P, I], which is not kept from the forward pass. Uses up `d_active`."""
    if native.ready(hidden, d_active):
        return native.swiglu_backward(hidden, d_active)
    gate, up = hidden.chunk(2, dim=1)
    d_hidden = torch.empty_like(hidden)
    d_gate, d_up = d_hidden.chunk(2, dim=1)
    sigmoid = gate.sigmoid()
    silu = torch.mul(gate, sigmoid, out=d_up)
    active = silu * up
    # silu' = sigmoid + silu * (1 - sigmoid)
    torch.addcmul(sigmoid, silu, sigmoid, value=-1, out=d_gate).add_(silu).mul_(up).mul_(d_active)
    d_up.mul_(d_active)
    return d_hidden, active


class _SortedExperts(torch.autograd.Function):
    """One autograd node for the whole layer: no per-expert nodes, no [E, 2I, H] gradient per expert. An expert's rows
    pass through all of its steps while they are still in the cache."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, experts: Tensor, weights: Tensor, gate_up: Tensor, down: Tensor) -> Tensor:
        count = gate_up.shape[0]
        plan = _dispatch(experts, weights, count, tile(x, experts.numel() // count))
        out = x.new_empty(plan.token.shape[0], x.shape[1])
        kept = []
        for e, start, end in plan.slices:
            rows = x.index_select(0, plan.token[start:end])  # several times as fast as x[...]
            hidden = product(rows, gate_up[e].t())
            product(_swiglu(hidden), down[e].t(), out=out[start:end])
            kept += [rows, hidden]
        ctx.plan = plan
        ctx.save_for_backward(out, weights, gate_up, down, *kept)
        return _combine(out, plan.slot, weights)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        plan: _Dispatch = ctx.plan
        out, weights, gate_up, down, *kept = ctx.saved_tensors
        dy = grads[0].contiguous()
        learnt = ctx.needs_input_grad[3:]
        d_gate_up, d_down = (
            torch.zeros_like(p) if needed else None for p, needed in zip((gate_up, down), learnt, strict=True)
        )
        d_weight = weights.new_zeros(out.shape[0])
        d_rows = torch.empty_like(out)
        for (e, start, end), rows, hidden in zip(plan.slices, kept[::2], kept[1::2], strict=True):
            share = slice(start, end)
            d_out, d_weight[share] = _combine_backward(dy, out[share], plan.token[share], plan.weight[share])
            d_hidden, active = _swiglu_backward(hidden, product(d_out, down[e]))
            if d_down is not None:
                product(d_out.t(), active, out=d_down[e])
            if d_gate_up is not None:
                product(d_hidden.t(), rows, out=d_gate_up[e])
            product(d_hidden, gate_up[e], out=d_rows[start:end])
        return _combine(d_rows, plan.slot), None, d_weight[plan.slot], d_gate_up, d_down


def torch_experts(x: Tensor, experts: Tensor, weights: Tensor, gate_up: Tensor, down: Tensor) -> Tensor:
    """y[n] = sum_j weights[n, j] * down_e @ (silu(gate_e @ x[n]) * (up_e @ x[n])), e = experts[n, j].

    x [N, H], experts [N, k] int64, weights [N, k], gate_up [E, 2I, H] (gate rows first), down [E, H, I] -> y [N, H].
    Obeys `torch.autocast`.
    """
    dtype = product_dtype(x)
    return _SortedExperts.apply(x.to(dtype), experts, weights.to(dtype), gate_up.to(dtype), down.to(dtype))
