"""The experts: SwiGLU MLPs behind one signature, `(x, expert_ids, weights, gate_up, down) -> y`.

Backends never own parameters, so every checkpoint loads under every backend. `torch` sorts the assignments by expert
once and runs one matrix product per expert and projection; no token is dropped and no capacity is set.

Letters: N tokens, H hidden size, E experts, I inner width, k experts per token, A = N*k assignments.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.amp import custom_bwd, custom_fwd


class _SortedExperts(torch.autograd.Function):
    """One autograd node for the whole layer: no per-expert nodes, no [E, 2I, H] gradient per expert."""

    @staticmethod
    @custom_fwd(device_type="cpu")
    def forward(ctx: Any, x: Tensor, experts: Tensor, weights: Tensor, gate_up: Tensor, down: Tensor) -> Tensor:
        n, k = experts.shape
        inner = down.shape[2]
        order = experts.flatten().argsort(stable=True)
        bounds = _bounds(experts, gate_up.shape[0])
        sorted_x = x[order // k]  # [A, H]
        hidden = x.new_empty(n * k, 2 * inner)
        for e, start, stop in bounds:
            torch.mm(sorted_x[start:stop], gate_up[e].t(), out=hidden[start:stop])
        active = F.silu(hidden[:, :inner]).mul_(hidden[:, inner:])
        out = x.new_empty(n * k, x.shape[1])
        for e, start, stop in bounds:
            torch.mm(active[start:stop], down[e].t(), out=out[start:stop])
        place = torch.empty_like(order)
        place[order] = torch.arange(n * k, device=order.device)
        ctx.save_for_backward(sorted_x, hidden, active, out, order, place, weights, gate_up, down)
        ctx.bounds = bounds
        return torch.bmm(weights.unsqueeze(1), out[place].view(n, k, x.shape[1])).squeeze(1)

    @staticmethod
    @custom_bwd(device_type="cpu")
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (dy,) = grads
        sorted_x, hidden, active, out, order, place, weights, gate_up, down = ctx.saved_tensors
        n, k = weights.shape
        inner = down.shape[2]
        dy_sorted = dy[order // k]  # [A, H]
        d_weights = (out * dy_sorted).sum(-1)[place].view(n, k)
        dy_sorted.mul_(weights.flatten()[order].unsqueeze(1))
        d_active = torch.empty_like(active)
        d_down = torch.zeros_like(down)
        for e, start, stop in ctx.bounds:
            torch.mm(dy_sorted[start:stop], down[e], out=d_active[start:stop])
            torch.mm(dy_sorted[start:stop].t(), active[start:stop], out=d_down[e])
        gate, up = hidden[:, :inner], hidden[:, inner:]
        d_hidden = torch.empty_like(hidden)
        sigmoid = gate.sigmoid()
        torch.mul(gate, sigmoid, out=d_hidden[:, inner:]).mul_(d_active)  # d_up = silu(gate) * d_active
        slope = (1 - sigmoid).mul_(gate).add_(1).mul_(sigmoid)  # silu'(gate)
        torch.mul(slope, up, out=d_hidden[:, :inner]).mul_(d_active)
        d_gate_up = torch.zeros_like(gate_up)
        d_sorted_x = torch.empty_like(sorted_x)
        for e, start, stop in ctx.bounds:
            torch.mm(d_hidden[start:stop].t(), sorted_x[start:stop], out=d_gate_up[e])
            torch.mm(d_hidden[start:stop], gate_up[e], out=d_sorted_x[start:stop])
        dx = d_sorted_x[place].view(n, k, dy.shape[1]).sum(1)
        return dx, None, d_weights, d_gate_up, d_down


def _bounds(experts: Tensor, count: int) -> list[tuple[int, int, int]]:
    """(expert, start, stop) of each expert's slice among the sorted assignments; experts without tokens left out."""
    stop = 0
    bounds = []
    for e, tokens in enumerate(torch.bincount(experts.flatten(), minlength=count).tolist()):
        start, stop = stop, stop + tokens
        if tokens:
            bounds.append((e, start, stop))
    return bounds


def torch_experts(x: Tensor, experts: Tensor, weights: Tensor, gate_up: Tensor, down: Tensor) -> Tensor:
    """y[n] = sum_j weights[n, j] * down_e @ (silu(gate_e @ x[n]) * (up_e @ x[n])), e = experts[n, j].

    x [N, H], experts [N, k] int64, weights [N, k], gate_up [E, 2I, H] (gate rows first), down [E, H, I] -> y [N, H].
    """
    return _SortedExperts.apply(x, experts, weights, gate_up, down)
