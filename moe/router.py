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
    """Where the tokens of one layer go. The losses are this rank's share of the global batch's: summed over the ranks
    they are the batch's. Those of a rank `alone` are of its own tokens."""

    experts: Tensor  # [N, k] int64, best first
    weights: Tensor  # [N, k] renormalised to sum 1, fp32
    balance: Tensor  # [] load-balancing loss before its coefficient; 1 when every expert has an equal share
    z: Tensor  # [] mean squared log-partition of the router's logits
    load: Tensor  # [E] share of the batch's k*N assignments that went to each expert; sums to 1
    entropy: Tensor  # [] of a token's distribution over the experts, in nats, mean, no gradient


def choose(x: Tensor, gate: Tensor, top_k: int, given: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """x [N, H], gate [E, H] -> logits and probabilities [N, E]; experts and weights [N, k] as in `Routes`. Where
    `given` [N, k] names experts, and not -1, these are it: with the gradient of their own probabilities."""
    with torch.autocast(x.device.type, enabled=False):
        logits = F.linear(x.float(), gate.float())
        probabilities = logits.softmax(-1)
        weights, experts = probabilities.topk(top_k, dim=-1)
        if given is not None:
            experts = torch.where(given < 0, experts, given)
            weights = probabilities.gather(-1, experts)
        return logits, probabilities, experts, weights / weights.sum(-1, keepdim=True)


def route(x: Tensor, gate: Tensor, top_k: int, *, alone: bool = False, given: Tensor | None = None) -> Routes:
    """Softmax top-k routing in fp32 with renormalised weights, or to the experts `given`. x [N, H], gate [E, H].

    The balance loss is Switch Transformer's (Fedus et al. 2021, eq. 4-6) for top-k, with counts over the global batch
    or, `alone`, over these tokens; the z-loss is ST-MoE's (Zoph et al. 2022, eq. 5). Without gradients the losses and
    the entropy are zero.
    """
    with torch.autocast(x.device.type, enabled=False):
        logits, probabilities, experts, weights = choose(x, gate, top_k, given)
        counts = torch.bincount(experts.flatten(), minlength=gate.shape[0]).float()
        counts = counts if alone else global_sum(counts)
        assignments = counts.sum().clamp(min=1.0)
        load = counts / assignments
        if not torch.is_grad_enabled():
            zero = logits.new_zeros(())
            return Routes(experts, weights, zero, zero, load, zero)
        tokens = assignments / top_k
        partition = logits.logsumexp(-1)
        balance = gate.shape[0] * (probabilities.sum(0) @ load) / tokens
        z = partition.square().sum() / tokens
        entropy = (partition.sum() - (probabilities * logits).sum()).detach() / tokens
        return Routes(experts, weights, balance, z, load, entropy)


def jittered(x: Tensor, jitter: float) -> Tensor:
    """What the router sees of x in training: each number times one from [1 - jitter, 1 + jitter], drawn from torch's
    generator (Fedus et al. 2021). The experts see x itself; in transformers' Mixtral they see the noise too."""
    return x * torch.empty_like(x).uniform_(1 - jitter, 1 + jitter)


def global_sum(counts: Tensor) -> Tensor:
    """Counts of this rank to those of all ranks, while training."""
    if torch.is_grad_enabled() and dist.is_initialized() and dist.get_world_size() > 1:
        dist.all_reduce(counts)
    return counts
