"""Routing and its losses against numbers worked by hand. Planted bug: renormalisation dropped."""

from math import exp, log

import pytest
import torch

from moe.router import route


def test_weights_are_the_softmax_of_the_chosen_renormalised() -> None:
    gate = torch.tensor([[log(4.0)], [log(3.0)], [log(2.0)], [log(1.0)]])
    routes = route(torch.ones(1, 1), gate, 2)  # probabilities .4 .3 .2 .1
    assert routes.experts.tolist() == [[0, 1]]
    assert routes.weights[0].tolist() == pytest.approx([4 / 7, 3 / 7])
    assert routes.load.tolist() == [0.5, 0.5, 0.0, 0.0]
    assert routes.balance.item() == pytest.approx(4 * (0.4 * 0.5 + 0.3 * 0.5))
    assert routes.z.item() == pytest.approx(log(10.0) ** 2)


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
