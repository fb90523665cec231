"""What crosses between the actors of the PPO graph. Every message says which policy version made it."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class Key:
    """Names one answer of a run for ever; its sampling seed is a function of it."""

    iteration: int
    query: str
    sample: int
    version: int  # of the policy that answers

    def seed(self, run_seed: int) -> int:
        words = [run_seed, self.iteration, self.sample, *self.query.encode()]
        return int(np.random.SeedSequence(words).generate_state(1, np.uint64)[0] >> 1)


@dataclass(frozen=True)
class Request:
    key: Key
    prompt: list[int]
    seed: int


@dataclass(frozen=True)
class Sample:
    key: Key
    prompt: list[int]
    answer: list[int]  # the stop token included
    logprobs: list[float]  # [len(answer)] under the policy that answered, nats
    finished: bool  # ended by itself


@dataclass(frozen=True)
class Batch:
    """Samples as padded rows: prompt, then answer, then padding."""

    version: int
    tokens: Tensor  # [B, T] int64
    segments: Tensor  # [B, T] int64, 1 where there is a token
    mask: Tensor  # [B, T] float, 1 at the answer's tokens
    logprobs: Tensor  # [B, T] of the policy that answered, 0 outside the mask

    def rows(self, index: Tensor) -> "Batch":
        """Some of the rows, without the columns that only padding is left in."""
        width = int(self.segments[index].sum(1).max())
        parts = (self.tokens, self.segments, self.mask, self.logprobs)
        return Batch(self.version, *(part[index, :width] for part in parts))


def pad(samples: Sequence[Sample]) -> Batch:
    """Rows in the order of the samples. All must come from one policy version."""
    versions = {sample.key.version for sample in samples}
    assert len(versions) == 1, f"samples of several policy versions: {sorted(versions)}"
    width = max(len(sample.prompt) + len(sample.answer) for sample in samples)
    tokens = torch.zeros(len(samples), width, dtype=torch.long)
    segments, mask = torch.zeros_like(tokens), torch.zeros(len(samples), width)
    logprobs = torch.zeros_like(mask)
    for row, sample in enumerate(samples):
        start, stop = len(sample.prompt), len(sample.prompt) + len(sample.answer)
        tokens[row, :stop] = torch.tensor(sample.prompt + sample.answer)
        segments[row, :stop] = 1
        mask[row, start:stop] = 1
        logprobs[row, start:stop] = torch.tensor(sample.logprobs)
    return Batch(versions.pop(), tokens, segments, mask, logprobs)
