"""What crosses between the actors of the PPO graph. Every message says which policy version made it."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod

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
    prompt: list[int]  # what is begun of the answer is its end
    seed: int
    begun: int = 0  # tokens of the answer that earlier iterations made
    room: int | None = None  # tokens at most, where that is fewer than others may have


@dataclass(frozen=True)
class Response:
    """An answer, as a rollout actor gave it."""

    key: Key
    prompt: list[int]
    answer: list[int]  # the stop token included
    logprobs: list[float]  # [len(answer)] under the policy that answered, nats
    finished: bool  # ended by itself
    routes: Tensor | None = field(default=None, compare=False)  # [prompt and answer but the last, layers, k] experts
    begun: int = 0  # tokens at the prompt's end that are of the answer, from earlier iterations

    @property
    def whole(self) -> list[int]:
        """The answer with what earlier iterations made of it."""
        return self.prompt[len(self.prompt) - self.begun :] + self.answer


@dataclass(frozen=True)
class Batch:
    """Responses as padded rows: prompt, then answer, then padding."""

    version: int
    tokens: Tensor  # [B, T] int64
    segments: Tensor  # [B, T] int64, 1 where there is a token
    mask: Tensor  # [B, T] float, 1 at the answer's tokens
    logprobs: Tensor  # [B, T] of the policy that answered, 0 outside the mask
    routes: Tensor | None = None  # [B, T, layers, k] int16, the experts that it chose; -1 where it chose none
    behind: int = 0  # versions between the policy that answered and the one that learns from it

    @property
    def iteration(self) -> int:
        """The version that learns from it."""
        return self.version + self.behind

    @property
    def columns(self) -> dict[str, Tensor]:
        """As `moe.training.objectives` names them."""
        columns = {"tokens": self.tokens, "segments": self.segments, "loss": self.mask, "logprobs": self.logprobs}
        return columns if self.routes is None else columns | {"routes": self.routes}

    def to(self, device: torch.device) -> "Batch":
        return self._each(lambda part: part.to(device))

    def rows(self, index: Tensor) -> "Batch":
        """Some of the rows, without the columns that only padding is left in."""
        width = int(self.segments[index].sum(1).max())
        return self._each(lambda part: part[index, :width])

    def _each(self, of: Callable[[Tensor], Tensor]) -> "Batch":
        tokens, segments, mask, logprobs = map(of, (self.tokens, self.segments, self.mask, self.logprobs))
        routes = None if self.routes is None else of(self.routes)
        return Batch(self.version, tokens, segments, mask, logprobs, routes, self.behind)


@dataclass(frozen=True)
class Scored:
    """The reward model's scores of answers, in standard deviations of those of the rankings; of several their mean."""

    mean: Tensor  # [B]
    spread: Tensor  # [B] standard deviation over the models; 0 where there is one


@dataclass(frozen=True)
class Assessed:
    """What the models say of the answers that are learnt from."""

    reference: Tensor  # [B, T] the chat model's log-probs
    scored: Scored | None  # by the reward model
    values: Tensor | None  # [B, T] the critic's


def pad(responses: Sequence[Response]) -> Batch:
    """Rows in the order of the responses. All must come from one policy version, and be for one iteration where that is
    a later one."""
    versions = {response.key.version for response in responses}
    assert len(versions) == 1, f"responses of several policy versions: {sorted(versions)}"
    width = max(len(response.prompt) + len(response.answer) for response in responses)
    tokens = torch.zeros(len(responses), width, dtype=torch.long)
    segments, mask = torch.zeros_like(tokens), torch.zeros(len(responses), width)
    logprobs = torch.zeros_like(mask)
    for row, response in enumerate(responses):
        start, stop = len(response.prompt), len(response.prompt) + len(response.answer)
        tokens[row, :stop] = torch.tensor(response.prompt + response.answer)
        segments[row, :stop] = 1
        mask[row, start:stop] = 1
        logprobs[row, start:stop] = torch.tensor(response.logprobs)
    version = versions.pop()
    behind = {max(0, response.key.iteration - version) for response in responses}  # one that went on was begun earlier
    assert len(behind) == 1, f"responses of version {version} for iterations that are {sorted(behind)} later"
    return Batch(version, tokens, segments, mask, logprobs, _routes(responses, width), behind.pop())


def _routes(responses: Sequence[Response], width: int) -> Tensor | None:
    """Those of all rows, of which either each or none has some."""
    told = [response.routes for response in responses]
    first = told[0]
    if first is None:
        assert not any(routes is not None for routes in told), "routes of some answers only"
        return None
    found = torch.full((len(told), width, *first.shape[1:]), -1, dtype=torch.int16)
    for row, (response, routes) in enumerate(zip(responses, told, strict=True)):
        assert routes is not None and len(routes) == len(response.prompt) + len(response.answer) - 1, response.key
        found[row, : len(routes)] = routes
    return found


@dataclass(frozen=True)
class Weights:
    """A policy's weights under their names in a Hugging Face folder, as one array: one message, one copy."""

    version: int
    shapes: tuple[tuple[str, tuple[int, ...]], ...]  # (name, shape) in the order of the array
    flat: np.ndarray  # float32
    bits: int  # the sum of its numbers' bits, which whoever has received it compares

    @classmethod
    def of(cls, version: int, tensors: Mapping[str, Tensor]) -> "Weights":
        shapes = tuple((name, tuple(tensor.shape)) for name, tensor in tensors.items())
        flat = torch.cat([tensor.flatten() for tensor in tensors.values()]).cpu().numpy()
        return cls(version, shapes, flat, _bits(flat))

    def named(self) -> Iterator[tuple[str, Tensor]]:
        """(name, tensor) of each; the tensors are parts of one copy. Raises `ValueError` where it is not what was
        sent."""
        copy = self.flat.copy()
        if _bits(copy) != self.bits:
            raise ValueError(f"the weights of version {self.version} are not those that were sent: other bits")
        parts = torch.from_numpy(copy).split([prod(shape) for _, shape in self.shapes])
        for (name, shape), part in zip(self.shapes, parts, strict=True):
            yield name, part.view(shape)


def _bits(flat: np.ndarray) -> int:
    return int(flat.view(np.uint32).sum(dtype=np.uint64))
