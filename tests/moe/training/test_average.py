"""The average of the weights against numbers worked by hand; how it is spread is tested in test_parallel.py.

Planted bug: no warm-up of the decay.
"""

import pytest
import torch

from conf.knobs.model import Adapt, Model
from moe.decoder import Decoder, new_decoder
from moe.training.adapt import adapt
from moe.training.average import Average

CFG = Model(hidden_size=16, layers=1, heads=2, kv_heads=1, head_dim=8, experts=2, expert_size=16, context=16)
TOKENS = torch.arange(12).view(1, 12)


def started() -> Decoder:
    return new_decoder(CFG, 32, seed=0)


def states(model: Decoder) -> torch.Tensor:
    with torch.no_grad():
        return model(TOKENS, torch.ones_like(TOKENS)).states


def set_norms(model: Decoder, value: float) -> None:
    with torch.no_grad():
        model.model.norm.weight.fill_(value)


def test_the_decay_warms_up() -> None:
    model = started()
    set_norms(model, 0.0)
    average = Average(model, 0.15)
    found = []
    for value in (10.0, 20.0, 40.0):
        set_norms(model, value)
        average.update(model)
        found.append(average.tensors()["model.norm.weight"][0].item())
    # kept: 1/10, then 2/11 > 0.15
    assert found == pytest.approx([9.0, 0.15 * 9 + 0.85 * 20, 0.15 * 18.35 + 0.85 * 40])
    assert average.tensors()["updates"].item() == 3


def test_the_model_computes_with_the_average_and_has_its_weights_back() -> None:
    model = started()
    average = Average(model, 0.5)
    set_norms(model, 3.0)
    before, kept = states(model), {name: t.clone() for name, t in average.tensors().items()}
    with pytest.raises(KeyError), average.swapped(model):
        torch.testing.assert_close(states(model), before / 3)  # the average still has ones
        raise KeyError
    assert torch.equal(states(model), before)
    assert all(torch.equal(average.tensors()[name], value) for name, value in kept.items())


def test_what_was_saved_goes_on_bitwise() -> None:
    model, other = started(), started()
    average = Average(model, 0.9)
    for value in (2.0, 5.0):
        set_norms(model, value)
        average.update(model)
    loaded = Average(other, 0.9)
    loaded.load({name: tensor.clone() for name, tensor in average.tensors().items()})
    for one, its in ((model, average), (other, loaded)):
        set_norms(one, 7.0)
        its.update(one)
    wanted = average.tensors()
    assert all(torch.equal(value, wanted[name]) for name, value in loaded.tensors().items()) and len(wanted) > 10


def test_only_what_is_trained_is_averaged() -> None:
    model = adapt(started(), Adapt(lora_rank=2))
    average = Average(model, 0.9)
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert set(average.tensors()) == trained | {"updates"} and len(trained) == 2 * 6


PLANTED = [  # promise, file, right code, bug, test (None: this whole file)
    (
        "the average's decay warms up",
        "moe/training/average.py",
        "min(self.decay, (1 + self.updates) / (10 + self.updates))",
        "self.decay",
        None,
    ),
]
