"""Losses of the supervised stages. Tensors in, tensors out.

Letters: M target tokens, H hidden size, V vocabulary, P pairs.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


class _ChunkedCrossEntropy(torch.autograd.Function):
    """Cross-entropy whose gradient is computed in the forward pass, so that [M, V] logits never exist at once."""

    @staticmethod
    def forward(ctx: Any, states: Tensor, head: Tensor, targets: Tensor, chunk: int) -> Tensor:
        total = states.new_zeros((), dtype=torch.float64)
        needs = states.requires_grad or head.requires_grad
        d_states = torch.empty_like(states) if needs else None
        d_head = torch.zeros_like(head) if needs else None
        for start in range(0, states.shape[0], chunk):
            part, wanted = states[start : start + chunk], targets[start : start + chunk, None]
            logits = part @ head.t()
            normaliser = logits.logsumexp(-1, keepdim=True)
            total += (normaliser - logits.gather(1, wanted)).sum().double()
            if d_states is not None and d_head is not None:
                slope = logits.sub_(normaliser).exp_()  # softmax
                slope.scatter_add_(1, wanted, slope.new_full((1, 1), -1.0).expand_as(wanted))
                torch.mm(slope, head, out=d_states[start : start + chunk])
                d_head.addmm_(slope.t(), part)
        if needs:
            ctx.save_for_backward(d_states, d_head)
        return total.to(states.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        d_states, d_head = ctx.saved_tensors
        return d_states * grads[0], d_head * grads[0], None, None


def cross_entropy_sum(states: Tensor, head: Tensor, targets: Tensor, *, chunk: int = 256) -> Tensor:
    """Sum over the targets of -log p(target), in nats. states [M, H], head [V, H], targets [M] -> []."""
    return _ChunkedCrossEntropy.apply(states, head, targets, chunk)


def pairwise_sum(better: Tensor, worse: Tensor) -> Tensor:
    """Sum of Bradley-Terry losses -log sigmoid(better - worse) (Ouyang et al. 2022, eq. 1). Scores [P] -> []."""
    return -F.logsigmoid(better - worse).sum()
