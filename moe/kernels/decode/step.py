"""The whole decoder over a few tokens in one call: step.c, its weights and its caches.

Weights are read where they lie in the model, so those that are loaded into it are the ones that count. No number
depends on what else is computed in the call, nor on the threads.

Letters: R tokens, W room of a cache in positions, D head size, V vocabulary.
"""

from collections.abc import Sequence
from dataclasses import astuple, dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from moe.kernels import native
from moe.kernels.int8 import Int8

LANES = 16  # positions of a cache lie side by side by so many
SMALL = 1 << 19  # products in a step below which a second thread costs more than it saves
MATRICES = 5  # where they begin among a layer's weights, after norms and gate
_KINDS = {torch.float32: 0, torch.bfloat16: 1, torch.int8: 2}  # as products.h numbers them
_TAKEN = {  # matrices, norms and gate
    (torch.float32, torch.float32),
    (torch.bfloat16, torch.bfloat16),
    (torch.int8, torch.float32),
}


@dataclass(frozen=True)
class Shape:
    """In the order of step.c's `model`."""

    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    experts: int
    top_k: int
    inner: int
    vocabulary: int

    def products(self, tokens: int) -> int:
        """Of numbers, in a step over so many tokens."""
        joined = (self.heads + self.kv_heads) * 2 * self.head_dim
        return tokens * (self.layers * self.hidden * (joined + 3 * self.top_k * self.inner))


class Place(NamedTuple):
    """A token of a step."""

    token: int
    position: int
    cache: Tensor


class Source(NamedTuple):
    """Where a model keeps a weight."""

    owner: nn.Module
    name: str

    def read(self) -> Tensor | Int8 | None:
        found = self.owner._parameters.get(self.name)
        module = self.owner._modules.get(self.name) if found is None else None
        return module if isinstance(module, Int8) else found


class Step:
    """The step of one model. `layers`: for each layer eleven weights in step.c's order, None where the model has none;
    `ends`: embedding, last norm and vocabulary."""

    def __init__(
        self, shape: Shape, layers: Sequence[Sequence[Source | None]], ends: Sequence[Source], eps: float
    ) -> None:
        self.shape, self._eps = shape, eps
        self._sources = [source for layer in [*layers, ends] for source in layer]
        table, norm, head = ends
        self._small = [norm, *(source for layer in layers for source in layer[:MATRICES] if source is not None)]
        self._matrices = [table, head, *(source for layer in layers for source in layer[MATRICES:] if source)]
        self._read: list[tuple[int, int]] = []
        self._room = torch.empty(0, device="cpu")

    def takes(self) -> bool:
        """Whether step.c can read the weights: whole and in main memory, the matrices of one kind and norms and gate in
        fp32, or in bf16 as they are; and the kernels are in use."""
        return native.available() and self._kinds() is not None

    def _kinds(self) -> tuple[int, int] | None:
        """Of the matrices, and of norms and gate; nothing where step.c knows no such model."""
        matrices, small = _dtypes(self._matrices), _dtypes(self._small)
        if matrices is None or small is None or (matrices, small) not in _TAKEN:
            return None
        return _KINDS[matrices], _KINDS[small]

    def cache(self, room: int) -> Tensor:
        """What one sequence of at most `room` positions needs: [parts, positions filled up * D filled up]."""
        cells = -(-room // LANES) * LANES * -(-self.shape.head_dim // LANES) * LANES
        return torch.empty(self.shape.layers * self.shape.kv_heads * 2, cells, dtype=torch.float32, device="cpu")

    def copy(self, cache: Tensor, length: int, to: Tensor) -> None:
        """The first `length` positions of a cache into another, which has room for them."""
        cells = -(-length // LANES) * LANES * -(-self.shape.head_dim // LANES) * LANES
        to[:, :cells] = cache[:, :cells]

    def __call__(
        self, places: Sequence[Place], ends: Sequence[int], rope: Tensor, routes: Tensor | None = None
    ) -> Tensor:
        """Logits [len(ends), V] after those of the R tokens that `ends` names. rope [2, W, D/2]: cosines and sines of
        all positions. Tokens of one sequence come in their order; their keys and values are written into its cache, and
        the experts that were chosen into routes [R, layers, k] int16.

        Raises IndexError for a token outside the vocabulary.
        """
        self._refresh()
        for token in {place.token for place in places}:
            if not 0 <= token < self.shape.vocabulary:
                raise IndexError(f"token {token} is not one of the vocabulary's {self.shape.vocabulary}")
        shape, tokens, longest = self.shape, len(places), max(place.position for place in places) + 1
        wide = -(-shape.head_dim // LANES) * LANES
        cells = [
            number
            for place in places
            for number in (place.token, place.position, place.cache.shape[1] // wide, place.cache.data_ptr())
        ]
        table = torch.tensor(cells, dtype=torch.int64, device="cpu")
        wanted = torch.tensor(ends, dtype=torch.int64, device="cpu")
        logits = torch.empty(len(ends), shape.vocabulary, dtype=torch.float32, device="cpu")
        threads = torch.get_num_threads() if shape.products(tokens) > SMALL else 1
        floats = native.library().decode_room(self._shape.data_ptr(), tokens, threads, longest)
        if self._room.numel() < floats + LANES:
            self._room = torch.empty(floats + floats // 4 + LANES, dtype=torch.float32, device="cpu")
        room = self._room[-self._room.data_ptr() % 64 // 4 :]  # a vector lies in one cache line
        native.run(
            "decode",
            *(
                self._shape,
                self._weights,
                table,
                tokens,
                wanted,
                len(ends),
                rope,
                rope.shape[1],
                longest,
                room,
                logits,
                routes,
            ),
            self._eps,
            threads=threads,
        )
        return logits

    def _refresh(self) -> None:
        """Look where the weights lie now: somebody may have put others into the model."""
        read = [_address(source.read()) if source is not None else (0, 0) for source in self._sources]
        if read != self._read:
            self._read = read
            self._weights = torch.tensor(read, dtype=torch.int64, device="cpu")
            kinds = self._kinds()
            assert kinds is not None, "the model was turned into another while it generates"
            self._shape = torch.tensor([*astuple(self.shape), *kinds], dtype=torch.int64, device="cpu")


def _dtypes(sources: Sequence[Source]) -> torch.dtype | None:
    """That of all these weights, whole and in main memory; None if they differ or one is not so."""
    found = set()
    for source in sources:
        weight = source.read()
        if isinstance(weight, Int8):
            weight = weight.values
        if weight is None or weight.device.type != "cpu" or not weight.is_contiguous():
            return None
        found.add(weight.dtype)
    return found.pop() if len(found) == 1 else None


def _address(weight: Tensor | Int8 | None) -> tuple[int, int]:
    """Of the numbers and of their scales."""
    if isinstance(weight, Int8):
        return weight.values.data_ptr(), weight.scales.data_ptr()
    assert weight is not None
    return weight.data_ptr(), 0
