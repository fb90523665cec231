"""The experts: SwiGLU MLPs behind one signature, `(x, expert_ids, weights, gate_up, down) -> y`.

Backends never own parameters, so every checkpoint loads under every backend. x [N, H], expert_ids and weights [N, k],
gate_up [E, 2I, H] (gate rows first), down [E, H, I] -> y [N, H].

Letters: N tokens, H hidden size, E experts, I inner width, k experts per token.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from conf.knobs.model import ExpertsBackend
from moe.kernels import grouped, megablocks
from moe.kernels.grouped import grouped_experts
from moe.kernels.megablocks import experts_megablocks
from moe.kernels.sorted_experts import torch_experts

Backend = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]


def backend(kind: ExpertsBackend, device: torch.device) -> Backend:
    """The function that `compute.experts` means on a device. Raises InputError for one that is not installed."""
    if kind is ExpertsBackend.torch or (kind is ExpertsBackend.auto and device.type != "cuda"):
        return torch_experts
    if kind is ExpertsBackend.megablocks:
        return experts_megablocks
    return grouped_experts if kind is ExpertsBackend.grouped else _by_tokens


def _by_tokens(x: Tensor, experts: Tensor, weights: Tensor, gate_up: Tensor, down: Tensor) -> Tensor:
    """The fastest that these tokens and their precision allow."""
    if grouped.available(x, gate_up):
        return grouped_experts(x, experts, weights, gate_up, down)
    return (experts_megablocks if megablocks.available(x) else torch_experts)(x, experts, weights, gate_up, down)
