"""What `compute.precision=auto` means on this machine: measured on steps of the model at hand, forward and backward.

Products alone would not do: what half precision wins there, casts and passes between the products may lose.

Letters: V vocabulary.
"""

import time
from collections.abc import Callable
from dataclasses import replace
from statistics import median

import torch

from conf.knobs.model import Compute, Model, Precision
from moe.decoder import new_decoder
from moe.kernels.precision import autocast
from moe.losses import cross_entropy_sum

_WORTH_IT = 1.05  # a half precision rounds more: it must be so many times as fast as fp32
_TOKENS = 2048  # of a trial's batch
_EXPERTS = 8
_ROUNDS = 5


def fastest(cfg: Model, vocab_size: int, length: int, compute: Compute, device: str = "cpu") -> tuple[Precision, float]:
    """The precision in which a step of rows of `length` tokens is the fastest, and how many times as fast as fp32 bf16
    is (0 on CUDA, where nothing is measured).

    fp16 is never chosen: its gradients need loss scaling, and where it is fast bf16 is as fast. Takes a second or two
    on a CPU: it tries one layer with a few experts, and as much of the vocabulary as belongs to a layer.
    """
    if device != "cpu":
        half = torch.cuda.is_bf16_supported(including_emulation=False)
        return (Precision.bf16 if half else Precision.fp32), 0.0
    trial = _trial(cfg, vocab_size, length, compute)
    kinds = Precision.fp32, Precision.bf16
    seconds: dict[Precision, list[float]] = {kind: [] for kind in kinds}
    for kind in kinds:
        trial(kind)
    for _ in range(_ROUNDS):  # by turns, so that other load on the machine meets both
        for kind in kinds:
            start = time.perf_counter()
            trial(kind)
            seconds[kind].append(time.perf_counter() - start)
    gain = median(seconds[Precision.fp32]) / median(seconds[Precision.bf16])
    return (Precision.bf16 if gain > _WORTH_IT else Precision.fp32), gain


def _trial(cfg: Model, vocab_size: int, length: int, compute: Compute) -> Callable[[Precision], None]:
    width = min(length, _TOKENS)
    few = replace(cfg, layers=1, experts=min(cfg.experts, max(_EXPERTS, cfg.top_k)))
    state = torch.get_rng_state()
    model = new_decoder(few, max(vocab_size // cfg.layers, 256)).compute_with(compute).train()
    tokens = torch.randint(0, model.vocab_size, (max(1, _TOKENS // width), width))
    torch.set_rng_state(state)  # the run's dice fall as they would have

    def run(kind: Precision) -> None:
        with autocast(kind):
            states = model(tokens, torch.ones_like(tokens)).states
            cross_entropy_sum(states, model.lm_head.weight, tokens.flatten()).backward()
        model.zero_grad()

    return run
