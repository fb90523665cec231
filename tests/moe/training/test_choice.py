"""`compute.precision=auto` is what was measured to be the fastest on the model at hand, and costs the run nothing else.

Planted bugs these turn red: half precision taken where it is slower, the run's dice moved by the measurement.
"""

import time
from collections.abc import Callable

import pytest
import torch

from conf.knobs.model import Compute, Model, Precision
from moe.training import choice

CFG = Model(hidden_size=32, layers=2, heads=2, kv_heads=1, head_dim=16, experts=16, top_k=2, expert_size=32)


def chosen() -> tuple[Precision, float]:
    return choice.fastest(CFG, 512, 64, Compute(precision=Precision.auto))


@pytest.mark.parametrize(
    ("fp32", "bf16", "wanted"), [(2.0, 1.0, Precision.bf16), (1.04, 1.0, Precision.fp32), (1.0, 3.0, Precision.fp32)]
)
def test_bf16_is_taken_only_where_it_is_faster(
    monkeypatch: pytest.MonkeyPatch, fp32: float, bf16: float, wanted: Precision
) -> None:
    now, seconds = [0.0], {Precision.fp32: fp32, Precision.bf16: bf16}

    def trial(*_: object) -> Callable[[Precision], None]:
        return lambda kind: now.__setitem__(0, now[0] + seconds[kind])

    monkeypatch.setattr(choice, "_trial", trial)
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    precision, gain = chosen()
    assert precision is wanted and gain == pytest.approx(fp32 / bf16)


def test_the_measurement_runs_and_leaves_the_dice_alone() -> None:
    torch.manual_seed(3)
    wanted = torch.rand(4)
    torch.manual_seed(3)
    precision, gain = chosen()
    assert precision in (Precision.fp32, Precision.bf16) and gain > 0
    assert torch.equal(torch.rand(4), wanted)


PLANTED = [  # promise, file, right code, bug, test (None: this whole file)
    (
        "auto takes half precision only where a step is faster in it",
        "moe/training/choice.py",
        "if gain > _WORTH_IT",
        "if gain > 0",
        "test_bf16_is_taken_only_where_it_is_faster",
    ),
    (
        "measuring the precision throws none of the run's dice",
        "moe/training/choice.py",
        "torch.set_rng_state(state)",
        "pass",
        "test_the_measurement_runs_and_leaves_the_dice_alone",
    ),
]
