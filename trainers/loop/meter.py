"""What training costs: tokens a second, how much of the machine's arithmetic that uses, and where the time goes.

`mfu` (Chowdhery et al. 2022) counts the operations that the model needs, forward and backward: of the parameters that a
token passes through, of the head for the tokens that are targets, of attention within each document. `hfu` also counts
what activation checkpointing computes a second time. Frozen weights count as if they were trained.
"""

import os
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager

import psutil
import torch

from conf.knobs.model import Gpu, Precision
from moe.decoder import LANGUAGE, Decoder
from moe.footprint import training_flops
from moe.kernels.gemm import product, product_dtype
from moe.kernels.precision import autocast

EVALUATE = "evaluate"  # the part that is no training: speeds leave it out
_SIDE, _TRIES, _ENOUGH = 1024, 16, 0.3  # of the matrices whose product is timed, and seconds after which it is known


class Meter:
    """`with meter.part("data"): ...` around the parts of a step, `meter.count(...)` once a step, `meter.read()` to log.

    `peak` is what one of the `world` workers can do, in operations a second. `tokens` and `flops` are those of all
    steps so far: to be kept with a checkpoint and put back, for they are the same in every attempt of a run.
    """

    def __init__(
        self, model: Decoder, *, world: int, peak: float, checkpointing: bool, tokens: float = 0.0, flops: float = 0.0
    ) -> None:
        self.tokens, self.flops = tokens, flops
        self._cfg, self._vocab = model.cfg, model.vocab_size if model.head == LANGUAGE else len(model.head)
        self._peak, self._checkpointing = world * peak, checkpointing
        self._begin()

    def _begin(self) -> None:
        self._since = time.perf_counter()
        self._parts: defaultdict[str, float] = defaultdict(float)  # seconds
        self._steps, self._tokens, self._needed, self._computed = 0, 0.0, 0.0, 0.0

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Add the time spent inside to the part `name`. On a GPU it is that of whoever waits for the results."""
        began = time.perf_counter()
        try:
            yield
        finally:
            self._parts[name] += time.perf_counter() - began

    def count(self, tokens: float, targets: float, pairs: float) -> None:
        """A step is done: of all workers together its tokens, padding left out, those of them that are targets, and its
        pairs of tokens of which one attends to the other, `(hidden.grid.positions + 1).sum()`."""
        shares = {"seen": pairs / max(1.0, tokens), "targets": targets / max(1.0, tokens)}
        needed, computed = (
            tokens * training_flops(self._cfg, self._vocab, checkpointing=checkpointing, **shares)
            for checkpointing in (False, self._checkpointing)
        )
        self.tokens, self.flops = self.tokens + tokens, self.flops + needed
        self._steps, self._tokens = self._steps + 1, self._tokens + tokens
        self._needed, self._computed = self._needed + needed, self._computed + computed

    def read(self) -> dict[str, float]:
        """What the steps since the last reading took, evaluations left out, and the totals.

        `time/<part>` and `time/step` are seconds a step, `time/data_share` is that of waiting for rows.
        """
        steps, seconds = max(1, self._steps), time.perf_counter() - self._since - self._parts[EVALUATE]
        values = {
            "tokens_per_second": self._tokens / seconds,
            "mfu": self._needed / seconds / self._peak,
            "hfu": self._computed / seconds / self._peak,
            "tokens": self.tokens,
            "flops": self.flops,
            "time/step": seconds / steps,
            "time/data_share": self._parts["data"] / seconds,
            "memory/rss_gib": psutil.Process().memory_info().rss / 2**30,
        }
        values |= {f"time/{name}": spent / steps for name, spent in self._parts.items()}
        if torch.cuda.is_available():
            values["memory/cuda_peak_gib"] = torch.cuda.max_memory_allocated() / 2**30
        self._begin()
        return values


def peak(device: str, precision: Precision, gpu: Gpu) -> float:
    """Operations a second that one worker can at most do: what `gpu` says, or on a CPU what the products of large
    matrices reach with torch's threads. That counts the processor's time, so that it is the same while other programs
    keep the processor busy: what these take lowers `mfu`, which is the share of the machine that training gets."""
    if device != "cpu":
        return gpu.tflops * 1e12
    with autocast(precision):
        dtype = product_dtype(torch.empty(0))
    a = torch.ones(_SIDE, _SIDE, dtype=dtype)  # not random: the training's random numbers are not to be disturbed
    cores = min(torch.get_num_threads(), len(os.sched_getaffinity(0)))
    seconds: list[float] = []
    while len(seconds) < _TRIES and sum(seconds) < _ENOUGH:
        began = time.process_time()
        product(a, a)
        seconds.append((time.process_time() - began) / cores)
    return 2 * _SIDE**3 / min(seconds)
