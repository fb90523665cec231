"""Whatever is thrown before training is the same on every device: the dice are the CPU's, whose generator a GPU's
tensors refuse."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.overrides import TorchFunctionMode

from conf.knobs.model import Adapt, Model, Parent
from moe.decoder import Decoder, new_decoder
from moe.formats import certificate
from moe.formats.upcycle import upcycle
from moe.training.adapt import adapt

CFG = Model(hidden_size=8, layers=1, heads=2, kv_heads=1, head_dim=4, experts=1, top_k=1, expert_size=16, context=16)
THROWN = (torch.rand, torch.randn, torch.randint, torch.randperm, torch.normal)


class Elsewhere(TorchFunctionMode):
    """As on a worker with a GPU: what says no device lies there, and takes no dice of the CPU's."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = kwargs or {}
        if func in THROWN and given.get("generator") is not None:
            assert str(given.get("device")) == "cpu", f"{func.__name__}: a GPU's tensor and the CPU's generator"
        return func(*args, **given)


def dense() -> Decoder:
    return new_decoder(CFG, 32, seed=1)


MADE: dict[str, Callable[[], Any]] = {
    "from nothing": dense,
    "upcycled, with noise": lambda: upcycle(dense(), Parent(experts=4, top_k=2, noise=0.1), seed=1),
    "LoRA": lambda: adapt(dense(), Adapt(lora_rank=2), seed=1),
    "a certificate's tokens": lambda: certificate.batch(32),
}


@pytest.mark.parametrize("name", MADE)
def test_dice_are_the_cpus(name: str) -> None:
    with Elsewhere():
        MADE[name]()


def test_weights_are_those_of_the_seed() -> None:
    """What is drawn apart and copied has the bits that drawing in place gave."""
    model, generator = dense(), torch.Generator().manual_seed(1)
    for name, parameter in model.named_parameters():
        if parameter.dim() > 1:
            std = CFG.init_std / 2**0.5 if name.endswith(("o_proj.weight", "down_proj")) else CFG.init_std
            assert torch.equal(parameter, torch.empty_like(parameter).normal_(std=std, generator=generator)), name


PLANTED = [  # promise, file, right code, bug, test (None: this whole file)
    (
        "noise is thrown on the CPU",
        "moe/formats/upcycle.py",
        'torch.randn(out.shape, generator=generator, device="cpu").to(out)',
        "torch.randn(out.shape, generator=generator)",
        "test_dice_are_the_cpus",
    ),
    (
        "low-rank factors are thrown on the CPU",
        "moe/training/adapt.py",
        'generator=generator, device="cpu").to(weight.device)',
        "generator=generator)",
        "test_dice_are_the_cpus",
    ),
]
