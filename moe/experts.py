"""The experts: SwiGLU MLPs behind one signature, `(x, expert_ids, weights, gate_up, down) -> y`.

Backends never own parameters, so every checkpoint loads under every backend. x [N, H], expert_ids and weights [N, k],
gate_up [E, 2I, H] (gate rows first), down [E, H, I] -> y [N, H].

Letters: N tokens, H hidden size, E experts, I inner width, k experts per token.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from conf.knobs.model import ExpertsBackend
from moe.kernels import grouped, megablocks
from moe.kernels.gemm import product_dtype
from moe.kernels.grouped import grouped_experts
from moe.kernels.megablocks import experts_megablocks
from moe.kernels.sorted_experts import torch_experts

Backend = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]
_FEW = 256  # assignments of a decoding step, for which a copy of each one's matrices costs less than to ask the host


def backend(kind: ExpertsBackend) -> Backend:
    """The function that `compute.experts` means. What it asks for and is not there it says when it is called."""
    return {
        ExpertsBackend.auto: by_tokens,
        ExpertsBackend.torch: torch_experts,
        ExpertsBackend.megablocks: experts_megablocks,
        ExpertsBackend.grouped: grouped_experts,
    }[kind]


def by_tokens(x: Tensor, experts: Tensor, weights: Tensor, gate_up: Tensor, down: Tensor) -> Tensor:
    """The fastest that these tokens, their device and their precision allow."""
    if not x.is_cuda:
        return torch_experts(x, experts, weights, gate_up, down)
    if grouped.available(x, gate_up):
        return grouped_experts(x, experts, weights, gate_up, down)
    if experts.numel() <= _FEW and not torch.is_grad_enabled():
        return gathered_experts(x, experts, weights, gate_up, down)
    return (experts_megablocks if megablocks.available(x) else torch_experts)(x, experts, weights, gate_up, down)


def gathered_experts(x: Tensor, experts: Tensor, weights: Tensor, gate_up: Tensor, down: Tensor) -> Tensor:
    """`torch_experts` for a few tokens: every assignment's matrices side by side, and the host learns nothing, so that
    a CUDA graph can hold it."""
    chosen = experts.flatten()
    rows = x.to(product_dtype(x)).repeat_interleave(experts.shape[1], 0).unsqueeze(2)  # [A, H, 1]
    gate, up = torch.bmm(gate_up[chosen].to(rows.dtype), rows).chunk(2, 1)  # [A, I, 1]
    out = torch.bmm(down[chosen].to(rows.dtype), F.silu(gate) * up).view(*experts.shape, -1)  # [N, k, H]
    return (out.float() * weights.float().unsqueeze(2)).sum(1).to(out.dtype)
