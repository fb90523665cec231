"""Decoding steps as CUDA graphs: at small batches a GPU waits for a step's kernels to be launched, not for them.

A graph is recorded for each (rows, width) bucket, powers of two, on buffers that stay where they are. Rows beyond those
that run compute on nothing of anybody's. Letters as in `moe.generation.rows`.
"""

import sys
from collections.abc import Callable

import torch

from moe.decoder import Decoder
from moe.generation.rows import ByTorch, Stepped

_WIDTH = 64  # the least of a bucket
Recorded = tuple[Stepped, Callable[[], None]]  # what a step gives, and what makes that anew


def record(step: Callable[[], Stepped]) -> Recorded:
    """`step`, whose tensors stay where they are, as a CUDA graph."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        step()  # what is set up at a first call cannot be recorded; the same step twice writes the same
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = step()
    return result, graph.replay


class ByGraph(ByTorch):
    """`ByTorch` whose steps are recorded once for each bucket. Where one cannot be, it says so and goes on without."""

    def __init__(
        self, model: Decoder, slots: int, capture: Callable[[Callable[[], Stepped]], Recorded] = record
    ) -> None:
        super().__init__(model, slots)
        self._capture: Callable[[Callable[[], Stepped]], Recorded] | None = capture
        self._asked = torch.zeros(2, slots, dtype=torch.long, device=model.device)  # tokens and lengths
        self._recorded: dict[tuple[int, int], Recorded] = {}

    def _states(self, tokens: list[int], lengths: list[int]) -> Stepped:
        if self._capture is None:
            return super()._states(tokens, lengths)
        count = len(tokens)
        rows = min(_bucket(count), self._keys[0].shape[0])
        width = min(max(_WIDTH, _bucket(max(lengths) + 1)), self._width)
        padding = [0] * (rows - count)
        self._asked[:, :rows].copy_(torch.tensor([tokens + padding, lengths + padding], device="cpu"))
        if (rows, width) not in self._recorded:
            try:
                self._recorded[rows, width] = self._capture(lambda: self._step(rows, width))
            except RuntimeError as error:
                print(f"decoding without CUDA graphs: {str(error).splitlines()[0]}", file=sys.stderr, flush=True)
                self._capture = None
                return super()._states(tokens, lengths)
        (states, chosen), again = self._recorded[rows, width]
        again()
        return states[:count], None if chosen is None else chosen[:count]

    def _step(self, rows: int, width: int) -> Stepped:
        tokens, lengths = self._asked[:, :rows]
        return self._through(tokens, lengths, width)

    def _grown(self) -> None:
        self._recorded.clear()  # they read and write where the cache was


def _bucket(count: int) -> int:
    return 1 << (count - 1).bit_length()
