"""Losses of the supervised stages. Tensors in, tensors out.

Letters: M target tokens, H hidden size, V vocabulary, P pairs, G rankings, K answers of the longest.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from moe.kernels import native
from moe.kernels.gemm import pad_rows, product, product_dtype


def _cross_entropy_(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Write the gradient, softmax - onehot, over logits [c, V] or into a tensor of its own; returns it and the sum of
    -log p(target), fp64. The softmax is fp32.

    Rows beyond the targets are padding.
    """
    if native.takes(logits):
        return logits, native.cross_entropy_(logits, targets).sum()
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    real, wanted = targets.shape[0], targets.unsqueeze(1)
    logprobs = logits.log_softmax(-1)
    loss = -logprobs[:real].gather(1, wanted).double().sum()
    slope = torch.exp(logprobs, out=logits)  # softmax
    slope[real:] = 0
    slope[:real].scatter_add_(1, wanted, slope.new_full((1, 1), -1.0).expand_as(wanted))
    return slope, loss


class _ChunkedCrossEntropy(torch.autograd.Function):
    """Cross-entropy whose gradient is computed in the forward pass, so that [M, V] logits never exist at once."""

    @staticmethod
    def forward(ctx: Any, states: Tensor, head: Tensor, targets: Tensor, chunk: int) -> Tensor:
        total = torch.zeros((), dtype=torch.float64, device=states.device)
        count = states.shape[0]
        wide = torch.float64 if states.dtype == torch.float64 else torch.float32
        states = pad_rows(states)
        d_states = torch.empty_like(states) if ctx.needs_input_grad[0] else None
        d_head = torch.zeros_like(head, dtype=wide) if ctx.needs_input_grad[1] else None
        for start in range(0, count, chunk):
            part = states[start : start + chunk]
            slope, loss = _cross_entropy_(product(part, head.t()), targets[start : start + chunk])
            total += loss
            slope = slope.to(states.dtype)
            if d_states is not None:
                product(slope, head, out=d_states[start : start + chunk])
            if d_head is not None:
                d_head += product(slope.t(), part)
        ctx.save_for_backward(None if d_states is None else d_states[:count], d_head)
        return total.to(wide)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        d_states, d_head = ctx.saved_tensors
        return *(None if d is None else d * grads[0] for d in (d_states, d_head)), None, None


def cross_entropy_sum(states: Tensor, head: Tensor, targets: Tensor, *, chunk: int = 512) -> Tensor:
    """Sum over the targets of -log p(target), in nats, fp32. states [M, H], head [V, H], targets [M] -> [].

    Obeys `torch.autocast` in its matrix products; the softmax is fp32.
    """
    dtype = product_dtype(states)
    return _ChunkedCrossEntropy.apply(states.to(dtype), head.to(dtype), targets, chunk)


def comparisons(ranks: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Every two answers of a ranking of which one is better: (ranking, better, worse), each [P].

    ranks [G, K]: 0 the best, equal where tied, -1 where an answer has none and so is compared with nothing.
    """
    ranking, better, worse = _beats(ranks).nonzero(as_tuple=True)
    return ranking, better, worse


def _beats(ranks: Tensor) -> Tensor:
    """[G, K, K] True where the answer of the row is better than that of the column."""
    return (ranks.unsqueeze(2) < ranks.unsqueeze(1)) & (ranks >= 0).unsqueeze(2)


def pairwise_sum(ahead: Tensor, margin: Tensor | float = 0.0) -> Tensor:
    """Sum of Bradley-Terry losses -log sigmoid(score of the better - that of the worse - margin) (Ouyang et al. 2022,
    eq. 1; the margin is that of Llama 2, Touvron et al. 2023, eq. 2). Differences of scores [P] -> []."""
    return -F.logsigmoid(ahead - margin).sum()


def listwise_sum(scores: Tensor, ranks: Tensor) -> Tensor:
    """Sum of Plackett-Luce losses of rankings (Luce 1959, Plackett 1975). scores, ranks [G, K] -> []; ranks as above.

    Each answer is chosen from itself and all that are worse: without ties that is Plackett-Luce. Answers that tie are
    never in one choice, which Luce's axiom allows (what else could be chosen does not alter the odds of two): Breslow's
    and Efron's ways with ties would pull their scores together, and here nothing is said about them.
    """
    worse = scores.unsqueeze(1).expand(-1, scores.shape[1], -1).masked_fill(~_beats(ranks), float("-inf"))
    return (torch.cat([scores.unsqueeze(2), worse], 2).logsumexp(2) - scores).sum()
