"""Half precision computes the same to its rounding; weights and their gradients stay fp32.

Planted bug: the loss scale is not halved at an overflow.
"""

from dataclasses import asdict

import pytest
import torch

from conf.knobs.model import Precision
from moe.decoder import Decoder
from moe.kernels import precision
from moe.losses import cross_entropy_sum
from tests.moe.conftest import VOCABULARY


def loss_and_gradients(
    model: Decoder, kind: Precision, *, units: float = 159, scale: float = 1.0
) -> tuple[float, dict[str, torch.Tensor]]:
    tokens = torch.randint(0, VOCABULARY, (4, 40), generator=torch.Generator().manual_seed(3))
    with precision.autocast(kind):
        hidden = model(tokens, torch.ones_like(tokens))
        loss = cross_entropy_sum(hidden.states[:-1], model.lm_head.weight, tokens.flatten()[1:]) / units
        ((loss + hidden.auxiliary / units) * scale).backward()
    gradients = {name: p.grad / scale for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return loss.item(), gradients


@pytest.mark.usefixtures("any_processor")
@pytest.mark.parametrize("kind", [Precision.bf16, Precision.fp16])
def test_half_precision_is_near_fp32(model: Decoder, kind: Precision) -> None:
    model.train()
    exact, wanted = loss_and_gradients(model, Precision.fp32)
    rough, got = loss_and_gradients(model, kind)
    assert rough == pytest.approx(exact, rel=5e-3) and rough != exact
    for name, gradient in got.items():
        assert gradient.dtype == torch.float32
        alike = torch.cosine_similarity(gradient.flatten(), wanted[name].flatten(), dim=0)
        assert alike > 0.95, name  # rounding sends a token or two to other experts


@pytest.mark.usefixtures("any_processor")
def test_scaling_keeps_what_fp16_would_lose(model: Decoder) -> None:
    # the share of these tokens in a large batch: slopes that fp16 has no numbers for
    _, wanted = loss_and_gradients(model.train(), Precision.fp32, units=1e8)

    def error(scale: float) -> float:
        _, got = loss_and_gradients(model, Precision.fp16, units=1e8, scale=scale)
        errors = [(got[name] - gradient).norm() / gradient.norm() for name, gradient in wanted.items()]
        return torch.stack(errors).max().item()

    assert error(1.0) > 0.9 and error(2.0**20) < 0.03
    assert not error(2.0**45) < float("inf")  # an overflow shows


def test_the_loss_scale_follows_the_gradients() -> None:
    scale = precision.LossScale()
    assert scale.scale == 65536.0
    scale.update(False)
    assert asdict(scale) == {"scale": 32768.0, "good": 0}
    for _ in range(1999):
        scale.update(True)
    assert scale.scale == 32768.0
    scale = precision.LossScale(**asdict(scale))
    scale.update(True)
    assert asdict(scale) == {"scale": 65536.0, "good": 0}
    for _ in range(40):
        scale.update(False)
    assert scale.scale == 1.0


PLANTED = [  # promise, file, right code, bug, test (None: this whole file)
    (
        "an overflow halves the loss scale",
        "moe/kernels/precision.py",
        "self.scale = max(1.0, self.scale / 2)",
        "pass",
        "test_the_loss_scale_follows_the_gradients",
    ),
]
