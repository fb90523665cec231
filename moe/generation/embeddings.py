"""Texts as points: near each other where the model reads them alike."""

from collections.abc import Sequence

import torch

from moe.decoder import Decoder


@torch.inference_mode()
def embed(model: Decoder, ids: Sequence[int]) -> list[float]:
    """[hidden_size] of length 1: the mean, over the tokens of a text that is no longer than the context, of what the
    trunk says after its last norm. A decoder that was trained for nothing else separates texts coarsely."""
    tokens = torch.tensor([list(ids)], device=model.device)
    states = model(tokens, torch.ones_like(tokens)).states.float()
    point: list[float] = torch.nn.functional.normalize(states.mean(0), dim=0).tolist()
    return point
