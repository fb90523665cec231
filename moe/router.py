"""The gate: which experts a token goes to, with what weight, and the losses that keep the gate healthy.

Letters: N tokens, H hidden size, E experts, k experts per token.
"""

from dataclasses import dataclass

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Routes:
    """Where the tokens of one layer go."""

    experts: Tensor  # [N, k] int64, best first
    weights: Tensor  # [N, k] renormalised to sum 1, in the dtype of the tokens
    balance: Tensor  # [] load-balancing loss before its coefficient; 1 when every expert has an equal share
    z: Tensor  # [] mean squared log-partition of the router's logits
    load: Tensor  # [E] share of the k*N assignments that went to each expert; sums to 1


def route(x: Tensor, gate: Tensor, top_k: int) -> Routes:
    """Softmax top-k routing in fp32 with renormalised weights. x [N, H], gate [E, H].

    The balance loss is Switch Transformer's (Fedus et al. 2021, eq. 4-6) for top-k, with counts over the global batch;
    the z-loss is ST-MoE's (Zoph et al. 2022, eq. 5).
    """
    logits = F.linear(x.float(), gate.float())
    probabilities = logits.softmax(-1)
    weights, experts = probabilities.topk(top_k, dim=-1)
    weights = weights / weights.sum(-1, keepdim=True)
    counts = torch.bincount(experts.flatten(), minlength=gate.shape[0]).float()
    load = global_share(counts)
    if not torch.is_grad_enabled() or x.shape[0] == 0:
        zero = logits.sum() * 0.0
        return Routes(experts, weights.to(x.dtype), zero, zero, load)
    balance = gate.shape[0] * (probabilities.mean(0) * load).sum()
    z = logits.logsumexp(-1).square().mean()
    return Routes(experts, weights.to(x.dtype), balance, z, load)


def global_share(counts: Tensor) -> Tensor:
    """Counts [E] of this rank to shares [E] of all ranks' assignments."""
    if torch.is_grad_enabled() and dist.is_initialized() and dist.get_world_size() > 1:
        counts = counts.clone()
        dist.all_reduce(counts)
    return counts / counts.sum().clamp(min=1.0)
