"""Routing and its losses against numbers worked by hand.

Planted bugs: renormalisation dropped, jitter in evaluation.
"""

from dataclasses import replace
from math import exp, log
from unittest.mock import patch

import pytest
import torch
from torch import Tensor

from conf.knobs.model import Model
from moe.decoder import Decoder, new_decoder
from moe.formats.config import from_hugging_face, to_hugging_face
from moe.router import jittered, route


def test_weights_are_the_softmax_of_the_chosen_renormalised() -> None:
    gate = torch.tensor([[log(4.0)], [log(3.0)], [log(2.0)], [log(1.0)]])
    routes = route(torch.ones(1, 1), gate, 2)  # probabilities .4 .3 .2 .1
    assert routes.experts.tolist() == [[0, 1]]
    assert routes.weights[0].tolist() == pytest.approx([4 / 7, 3 / 7])
    assert routes.load.tolist() == [0.5, 0.5, 0.0, 0.0]
    assert routes.balance.item() == pytest.approx(4 * (0.4 * 0.5 + 0.3 * 0.5))
    assert routes.z.item() == pytest.approx(log(10.0) ** 2)


def test_experts_that_are_given_weigh_by_their_own_probabilities() -> None:
    gate = torch.tensor([[log(4.0)], [log(3.0)], [log(2.0)], [log(1.0)]], requires_grad=True)
    routes = route(torch.ones(2, 1), gate, 2, given=torch.tensor([[3, 1], [-1, -1]]))
    assert routes.experts.tolist() == [[3, 1], [0, 1]]
    assert routes.weights[0].tolist() == pytest.approx([1 / 4, 3 / 4]) and routes.weights[1, 0].item() == pytest.approx(
        4 / 7
    )
    routes.weights[0, 0].backward()  # w = p3 / (p3 + p1): dw/dlogit3 = w (1 - w), and of logit1 its negative
    assert gate.grad is not None and gate.grad.flatten().tolist() == pytest.approx([0.0, -3 / 16, 0.0, 3 / 16])


def test_an_even_router_has_balance_one() -> None:
    gate = 50 * torch.eye(4)
    routes = route(torch.eye(4), gate, 1)
    assert routes.load.tolist() == [0.25] * 4
    assert routes.balance.item() == pytest.approx(1.0, abs=1e-6)


def test_evaluation_computes_no_losses() -> None:
    with torch.no_grad():
        routes = route(torch.randn(5, 3), torch.randn(4, 3), 2)
    assert routes.balance.item() == routes.z.item() == 0.0
    assert exp(routes.load.sum().log().item()) == pytest.approx(1.0)


def test_a_rank_alone_does_not_ask_the_others() -> None:
    gate = torch.tensor([[log(3.0)], [0.0]])
    with patch("moe.router.global_sum", lambda counts: counts + torch.tensor([1.0, 2.0])):
        own, shared = (route(torch.ones(1, 1), gate, 1, alone=alone) for alone in (True, False))
    assert own.load.tolist() == [1.0, 0.0] and own.balance.item() == pytest.approx(2 * 0.75)
    # beside the others' three tokens: half of the load on each, a quarter of the tokens here
    assert shared.load.tolist() == [0.5, 0.5] and shared.balance.item() == pytest.approx(2 * (0.75 + 0.25) * 0.5 / 4)


def test_jitter_is_even_noise_around_one() -> None:
    torch.manual_seed(0)
    noise = jittered(torch.full((100, 100), 2.0), 0.25) / 2
    assert 0.75 <= noise.min() < 0.751 and 1.249 < noise.max() <= 1.25
    assert noise.mean().item() == pytest.approx(1.0, abs=0.005)
    assert noise.std().item() == pytest.approx(0.5 / 12**0.5, rel=0.02)


NOISY = Model(
    hidden_size=16, layers=2, heads=2, kv_heads=1, head_dim=8, experts=4, expert_size=16, context=16, jitter=0.4
)
TOKENS = torch.arange(24).view(2, 12)


def gradients(model: Decoder) -> list[Tensor]:
    torch.manual_seed(7)
    hidden = model(TOKENS, torch.ones_like(TOKENS))
    (hidden.states.sum() + hidden.auxiliary).backward()
    found = [p.grad for p in model.parameters() if p.grad is not None]
    model.zero_grad()
    return found


def test_jitter_reaches_the_router_in_training_only() -> None:
    noisy, calm = new_decoder(NOISY, 32), new_decoder(replace(NOISY, jitter=0.0), 32)
    segments = torch.ones_like(TOKENS)
    for model in (noisy.eval(), noisy.train()):
        with torch.no_grad():
            assert torch.equal(model(TOKENS, segments).states, calm(TOKENS, segments).states)
    assert torch.equal(noisy.eval()(TOKENS, segments).states, calm(TOKENS, segments).states)
    assert not torch.equal(noisy.train()(TOKENS, segments).z, calm(TOKENS, segments).z)
    seen: list[Tensor] = []
    mlp = noisy.model.blocks()[0].mlp
    mlp.backend = lambda x, *rest: seen.append(x) or x  # type: ignore[func-returns-value]
    x = torch.randn(5, 16)
    mlp(x)
    assert torch.equal(seen[0], x)  # the experts see no noise


def test_a_block_computed_again_meets_the_same_noise() -> None:
    model = new_decoder(NOISY, 32).train()
    kept, other = gradients(model), torch.rand(1)
    model.checkpointing = True
    assert all(torch.equal(a, b) for a, b in zip(gradients(model), kept, strict=True))
    assert torch.equal(torch.rand(1), other)  # and the generator is as far


def test_mixtral_keeps_its_jitter_and_qwen_has_no_field_for_it() -> None:
    made = to_hugging_face(replace(NOISY, qk_norm=False), 32)
    assert made["router_jitter_noise"] == 0.4 and from_hugging_face(made, "here")[0].jitter == 0.4
    made = to_hugging_face(NOISY, 32)
    assert "router_jitter_noise" not in made and from_hugging_face(made, "here")[0].jitter == 0.0


PLANTED = [  # promise, file, right code, bug, test (None: this whole file)
    (
        "routing weights are renormalised",
        "moe/router.py",
        "experts, weights / weights.sum(-1, keepdim=True)",
        "experts, weights",
        None,
    ),
    (
        "no jitter in evaluation",
        "moe/decoder.py",
        "noisy = self.jitter and self.training and",
        "noisy = self.jitter and",
        None,
    ),
    (
        "a rank alone does not ask the others",
        "moe/router.py",
        "counts = counts if alone else global_sum(counts)",
        "counts = global_sum(counts)",
        None,
    ),
]
