"""What one answer's draws are moved by beside the model: logit bias, and penalties on tokens that were there before.

In the order of vLLM and transformers: first the bias is added, then what was there, in the prompt or in the answer,
has its logit divided by `repetition_penalty` where that is positive and multiplied where it is not (Keskar et al. 2019;
transformers' RepetitionPenaltyLogitsProcessor), then OpenAI's two are taken off: `frequency_penalty` for every time
that a token stands in the answer, `presence_penalty` once if it does. What a guide forbids stays forbidden.

Each row is moved by itself and number by number, so that it comes out the same in any company.

Letters: V vocabulary.
"""

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor


class Moved(Protocol):
    """The part of a sampling that is read here."""

    @property
    def repetition_penalty(self) -> float: ...
    @property
    def presence_penalty(self) -> float: ...
    @property
    def frequency_penalty(self) -> float: ...
    @property
    def logit_bias(self) -> tuple[tuple[int, float], ...]: ...


class Penalties:
    """Those of one answer. Token ids have to lie in the vocabulary."""

    def __init__(self, sampling: Moved, prompt: Sequence[int], made: Sequence[int], like: Tensor) -> None:
        """`made` are tokens of the answer that there are already; `like` is a row of logits [V]."""
        self._sampling = sampling
        self._device = like.device
        self._counts = torch.zeros(like.shape[0], device=like.device)  # in the answer
        self._counts.index_add_(0, self._ids(made), torch.ones(len(made), device=like.device))
        self._there = torch.zeros(like.shape[0], dtype=torch.bool, device=like.device)  # in the prompt or the answer
        self._there[self._ids([*prompt, *made])] = True
        self._biased = self._ids([token for token, _ in sampling.logit_bias])
        self._bias = torch.tensor([bias for _, bias in sampling.logit_bias], device=like.device)

    @classmethod
    def of(cls, sampling: Moved, prompt: Sequence[int], made: Sequence[int], like: Tensor) -> "Penalties | None":
        """None where the sampling moves nothing."""
        none = sampling.repetition_penalty == 1 and not sampling.presence_penalty and not sampling.frequency_penalty
        return None if none and not sampling.logit_bias else cls(sampling, prompt, made, like)

    def _ids(self, tokens: Sequence[int]) -> Tensor:
        return torch.tensor(tokens, dtype=torch.long, device=self._device)

    def took(self, token: int) -> None:
        """This one came."""
        self._counts[token] += 1
        self._there[token] = True

    def moved(self, logits: Tensor) -> Tensor:
        """A row of logits [V] -> another one, in fp32."""
        cfg = self._sampling
        out = logits.float().index_add(0, self._biased, self._bias)
        if (by := cfg.repetition_penalty) != 1:
            out = torch.where(self._there, torch.where(out > 0, out / by, out * by), out)
        if cfg.frequency_penalty:
            out = out - cfg.frequency_penalty * self._counts
        return out - cfg.presence_penalty * (self._counts > 0) if cfg.presence_penalty else out


def moved(logits: Tensor, rows: Sequence[Penalties | None]) -> Tensor:
    """`logits` [n, V], in fp32 where a row of them is moved."""
    if all(row is None for row in rows):
        return logits
    logits = logits.float()
    for place, row in enumerate(rows):
        if row is not None:
            logits[place] = row.moved(logits[place])
    return logits
