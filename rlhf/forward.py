"""What a model says of the answers in a batch: log-probs and entropies, values, scores. Torch only.

Only the answers' tokens go through a head; letters as in `rlhf.losses`, M answer tokens of the batch in row order.
"""

import torch
from torch import Tensor

from moe.decoder import Decoder, Hidden
from rlhf.messages import Batch

SLICE = 32  # rows of one forward pass without gradient


def slices(batch: Batch) -> list[Batch]:
    """The batch in parts of `SLICE` rows."""
    return [batch.rows(index) for index in torch.arange(len(batch.tokens)).split(SLICE)]


def logprobs_of(
    model: Decoder, tokens: Tensor, segments: Tensor, mask: Tensor, routes: Tensor | None = None
) -> tuple[Tensor, Tensor, Hidden]:
    """(log-probs [M], entropies [M], the trunk's output) of the tokens [B, T] where `mask` is 1, by way of the experts
    `routes` [B, T, layers, k] where there are some."""
    hidden = model(tokens, segments, routes)
    wanted = mask.flatten().nonzero().squeeze(1)
    logprobs = model.logits(hidden.before(wanted)).log_softmax(-1)
    entropy = -(logprobs.exp() * logprobs).sum(-1)
    return logprobs.gather(1, tokens.flatten()[wanted].unsqueeze(1)).squeeze(1), entropy, hidden


def values_of(model: Decoder, tokens: Tensor, segments: Tensor, mask: Tensor) -> tuple[Tensor, Hidden]:
    """(values [M] of the states before each of the tokens where `mask` is 1, the trunk's output)."""
    hidden = model(tokens, segments)
    return model.scores(hidden.before(mask.flatten().nonzero().squeeze(1))), hidden


def token_logprobs(model: Decoder, batch: Batch, *, routed: bool = False) -> tuple[Tensor, Tensor, Hidden]:
    """`logprobs_of` the answers, wherever the batch lies; `routed`: as the policy that answered went, if that is told.
    It is not for other models, whose experts are others."""
    batch = batch.to(model.device)
    return logprobs_of(model, batch.tokens, batch.segments, batch.mask, batch.routes if routed else None)


def token_values(model: Decoder, batch: Batch) -> Tensor:
    """Values [M] of the states before each answer token."""
    batch = batch.to(model.device)
    return values_of(model, batch.tokens, batch.segments, batch.mask)[0]


def answer_scores(model: Decoder, batch: Batch) -> Tensor:
    """The reward model's score [B] at the last token of each row."""
    batch = batch.to(model.device)
    hidden = model(batch.tokens, batch.segments)
    ends = batch.segments.sum(1).cumsum(0) - 1
    return model.scores(hidden.states[ends])


def spread(values: Tensor, mask: Tensor) -> Tensor:
    """[M] back to [B, T], 0 outside the mask and where the mask lies."""
    out = torch.zeros_like(mask)
    out[mask.bool()] = values.float().to(mask.device)
    return out
