"""What a model says of the answers in a batch: log-probs and entropies, values, scores. Torch only.

Only the answers' tokens go through a head; letters as in `rlhf.losses`, M answer tokens of the batch in row order.
"""

import torch
from torch import Tensor

from moe.decoder import Decoder, Hidden
from rlhf.messages import Batch


def answer_states(model: Decoder, batch: Batch) -> tuple[Tensor, Tensor, Hidden]:
    """(states [M, H] before each answer token, the tokens [M], the trunk's output)."""
    hidden = model(batch.tokens, batch.segments)
    wanted = batch.mask.flatten().nonzero().squeeze(1)
    places = torch.zeros(batch.tokens.numel(), dtype=torch.long)
    places[hidden.grid.index] = torch.arange(hidden.grid.index.shape[0])
    return hidden.states[places[wanted - 1]], batch.tokens.flatten()[wanted], hidden


def token_logprobs(model: Decoder, batch: Batch) -> tuple[Tensor, Tensor, Hidden]:
    """(log-probs [M], entropies [M], the trunk's output)."""
    states, tokens, hidden = answer_states(model, batch)
    logprobs = model.logits(states).log_softmax(-1)
    entropy = -(logprobs.exp() * logprobs).sum(-1)
    return logprobs.gather(1, tokens.unsqueeze(1)).squeeze(1), entropy, hidden


def token_values(model: Decoder, batch: Batch) -> Tensor:
    """Values [M] of the states before each answer token."""
    return model.scores(answer_states(model, batch)[0])


def answer_scores(model: Decoder, batch: Batch) -> Tensor:
    """The reward model's score [B] at the last token of each row."""
    hidden = model(batch.tokens, batch.segments)
    ends = batch.segments.sum(1).cumsum(0) - 1
    return model.scores(hidden.states[ends])


def spread(values: Tensor, mask: Tensor) -> Tensor:
    """[M] back to [B, T], 0 outside the mask."""
    out = torch.zeros_like(mask)
    out[mask.bool()] = values.float()
    return out
