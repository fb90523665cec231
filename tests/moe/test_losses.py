"""Losses and schedule against numbers worked by hand."""

from math import log

import pytest
import torch
import torch.nn.functional as F

from conf.schema import Optim
from moe.losses import cross_entropy_sum, pairwise_sum
from moe.optimizer import learning_rate


@pytest.mark.parametrize("chunk", [1, 3, 100])
def test_chunked_cross_entropy_is_that_of_torch(chunk: int) -> None:
    generator = torch.Generator().manual_seed(0)
    states = torch.randn(7, 5, generator=generator, dtype=torch.float64, requires_grad=True)
    head = torch.randn(11, 5, generator=generator, dtype=torch.float64, requires_grad=True)
    targets = torch.randint(0, 11, (7,), generator=generator)
    ours = cross_entropy_sum(states, head, targets, chunk=chunk)
    theirs = F.cross_entropy(states @ head.t(), targets, reduction="sum")
    torch.testing.assert_close(ours, theirs)
    wanted = torch.autograd.grad(3 * theirs, (states, head))
    for got, expected in zip(torch.autograd.grad(3 * ours, (states, head)), wanted, strict=True):
        torch.testing.assert_close(got, expected)


def test_pairwise_loss_by_hand() -> None:
    # sigmoid(0) = 1/2, sigmoid(log 3) = 3/4
    loss = pairwise_sum(torch.tensor([1.0, log(3.0)]), torch.tensor([1.0, 0.0]))
    assert loss.item() == pytest.approx(log(2.0) + log(4.0 / 3.0))


def test_learning_rate_warms_up_then_follows_the_cosine() -> None:
    cfg = Optim(lr=1.0, warmup=0.1, min_lr_ratio=0.2)
    assert learning_rate(0, 100, cfg) == pytest.approx(0.1)
    assert learning_rate(9, 100, cfg) == pytest.approx(1.0)
    assert learning_rate(10, 100, cfg) == pytest.approx(1.0)
    assert learning_rate(55, 100, cfg) == pytest.approx(0.6)
    assert learning_rate(100, 100, cfg, scale=0.5) == pytest.approx(0.1)
