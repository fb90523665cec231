"""What the meter counts, against numbers worked by hand.

Planted bugs these turn red: recompute counted as the model's own operations, experts that no token chose counted as
active.
"""

import time
from collections.abc import Iterator
from statistics import median
from typing import Any

import pytest
import torch

from conf.knobs.model import Gpu, Model, Precision
from moe.decoder import SCALAR, new_decoder
from moe.kernels.gemm import product
from trainers.loop import meter
from trainers.loop.meter import Meter

CFG = Model(hidden_size=8, layers=2, heads=2, kv_heads=1, head_dim=4, experts=4, expert_size=16, context=16)
VOCABULARY = 128
# 2 layers, two operations a multiplication: q, k and v, o; router; gate, up and down of 2 of the 4 experts
BLOCKS = 2 * 2 * ((8 * 8 + 2 * 8 * 4 + 8 * 8) + 8 * 4 + 2 * 3 * 8 * 16)
HEAD = 2 * 8 * VOCABULARY
PAIR = 2 * 2 * 2 * 2 * 4  # 2 layers, 2 heads of size 4: query with key, and weight with value


@pytest.fixture
def one_thread() -> Iterator[None]:
    """A second one would not sleep when the first does: OpenMP's threads spin while they wait."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """A clock that stands until it is set."""
    at = [100.0]
    monkeypatch.setattr(time, "perf_counter", lambda: at[0])
    return at


def metered(**knobs: Any) -> Meter:
    return Meter(new_decoder(CFG, VOCABULARY), **{"world": 2, "peak": 1e6, "checkpointing": False, **knobs})


def test_operations_by_hand(now: list[float]) -> None:
    measure = metered(checkpointing=True)
    # Documents of 3, 2 and 4 tokens: 6 + 3 + 10 pairs, each token with itself among them. Their firsts are no targets.
    measure.count(9, 6, 19)
    now[0] += 0.5
    values = measure.read()
    forward = 9 * BLOCKS + 6 * HEAD + 19 * PAIR
    assert values["flops"] == pytest.approx(3 * forward)
    assert values["mfu"] == pytest.approx(3 * forward / 0.5 / 2e6)
    # The blocks, with their attention, once more.
    assert values["hfu"] == pytest.approx((4 * forward - 6 * HEAD) / 0.5 / 2e6)
    assert values["tokens_per_second"] == 18


def test_pairs_are_those_of_the_layout() -> None:
    segments = torch.tensor([[1, 1, 1, 2, 2, 0], [1, 1, 1, 1, 0, 0]])
    hidden = new_decoder(CFG, VOCABULARY)(torch.zeros_like(segments), segments)
    assert int((hidden.grid.positions + 1).sum()) == 19


def test_a_reward_model_has_no_vocabulary_to_multiply_with(now: list[float]) -> None:
    measure = Meter(new_decoder(CFG, VOCABULARY, head=SCALAR), world=1, peak=1.0, checkpointing=False)
    measure.count(10, 10, 0)
    assert measure.flops == pytest.approx(3 * (10 * BLOCKS + 10 * 2 * 8))


def test_parts_of_a_step_and_totals_that_go_on(now: list[float]) -> None:
    measure = metered(tokens=1000.0, flops=5e6)
    for _ in range(4):
        with measure.part("data"):
            now[0] += 0.25
        with measure.part("optimizer"):
            now[0] += 1.0
        measure.count(50, 50, 0)
    with measure.part(meter.EVALUATE):
        now[0] += 20.0
    values = measure.read()
    assert values["time/step"] == 1.25 and values["time/data"] == 0.25 and values["time/optimizer"] == 1.0
    assert values["time/evaluate"] == 5.0  # a step, though it is no part of one
    assert values["time/data_share"] == 0.2
    assert values["tokens_per_second"] == 200 / 5
    assert values["tokens"] == 1200
    assert values["flops"] == pytest.approx(5e6 + 3 * 200 * (BLOCKS + HEAD))
    assert 0.05 < values["memory/rss_gib"] < 16
    with measure.part("data"):
        now[0] += 0.5
    measure.count(30, 30, 0)
    again = measure.read()  # of the steps since
    assert again["tokens_per_second"] == 60 and again["time/data"] == 0.5 and "time/optimizer" not in again
    assert again["tokens"] == 1230


def test_the_peak_is_what_products_reach_and_disturbs_no_random_number() -> None:
    assert meter.peak("cuda", Precision.bf16, Gpu(tflops=989)) == 989e12
    before = torch.get_rng_state()
    first = meter.peak("cpu", Precision.fp32, Gpu())
    assert torch.equal(before, torch.get_rng_state())
    a = torch.ones(1024, 1024)
    taken = []
    for _ in range(9):
        began = time.perf_counter()
        torch.mm(a, a)
        taken.append(time.perf_counter() - began)
    assert 0.1 * 2 * 1024**3 / median(taken) < first < 1e13  # the machine may have become less busy since


def test_waiting_for_a_busy_processor_does_not_lower_the_peak(
    one_thread: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(meter, "_SIDE", 256)
    alone = meter.peak("cpu", Precision.fp32, Gpu())

    def kept_waiting(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        time.sleep(200 * 2 * 256**3 / alone)  # on any processor many times what the product itself takes
        return product(a, b)

    monkeypatch.setattr(meter, "product", kept_waiting)
    assert 0.05 < meter.peak("cpu", Precision.fp32, Gpu()) / alone < 50


PLANTED = [  # promise, file, right code, bug, test (None: this whole file)
    (
        "recompute is no operation of the model",
        "trainers/loop/meter.py",
        "for checkpointing in (False, self._checkpointing)",
        "for checkpointing in (self._checkpointing, self._checkpointing)",
        None,
    ),
    (
        "the peak is in the processor's time",
        "trainers/loop/meter.py",
        "began = time.process_time()\n        product(a, a)\n        seconds.append((time.process_time() - began)",
        "began = time.perf_counter()\n        product(a, a)\n        seconds.append((time.perf_counter() - began)",
        "test_waiting_for_a_busy_processor_does_not_lower_the_peak",
    ),
    (
        "only chosen experts are active",
        "moe/footprint.py",
        'parts["experts"] // cfg.experts * cfg.top_k',
        'parts["experts"]',
        None,
    ),
    ("evaluation is no training time", "trainers/loop/meter.py", " - self._parts[EVALUATE]", "", None),
]
