"""Losses and schedule against numbers worked by hand."""

from math import log

import pytest
import torch
import torch.nn.functional as F

from conf.knobs.model import Model
from conf.knobs.training import Optim, Optimizer
from moe.decoder import new_decoder
from moe.losses import comparisons, cross_entropy_sum, listwise_sum, pairwise_sum
from moe.training.optimizer import learning_rate, new_optimizer, orthogonalise, set_learning_rate


@pytest.mark.usefixtures("any_processor")
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
    loss = pairwise_sum(torch.tensor([0.0, log(3.0)]))
    assert loss.item() == pytest.approx(log(2.0) + log(4.0 / 3.0))


def test_a_margin_by_hand() -> None:
    # log 3 ahead where it should be log 3 ahead is as good as 0; log 4 ahead with a margin of log 2 is log 2
    ahead, margin = torch.tensor([log(3.0), log(4.0)]), torch.tensor([log(3.0), log(2.0)])
    assert pairwise_sum(ahead, margin).item() == pytest.approx(log(2.0) + log(3.0 / 2.0))


def test_only_answers_with_different_ranks_are_compared() -> None:
    # 0 beats 2; 1 ties with 0 and beats 2; 3 has no rank. The second ranking says nothing.
    ranking, better, worse = comparisons(torch.tensor([[0, 0, 4, -1], [2, 2, -1, -1]]))
    assert (ranking.tolist(), better.tolist(), worse.tolist()) == ([0, 0], [0, 1], [2, 2])


@pytest.mark.parametrize(
    ("ranks", "odds"),
    [
        ([2, 1, 0], 6 / 3 * 3 / 2),  # 3 of {1, 2, 3}, then 2 of {1, 2}
        ([0, 1, 2], 6 / 1 * 5 / 2),
        ([0, 0, 1], 4 / 1 * 5 / 2),  # 1 of {1, 3} and 2 of {2, 3}: the tied ones are in no choice together
        ([0, 1, 1], 6 / 1),
        ([5, -1, 0], 4 / 3),  # the second has no rank: 3 of {1, 3}
        ([1, 1, 1], 1),
        ([-1, 0, -1], 1),
    ],
)
def test_listwise_loss_by_hand(ranks: list[int], odds: float) -> None:
    scores = torch.tensor([[log(1.0), log(2.0), log(3.0), 50.0]])  # what fills a list up does not count
    assert listwise_sum(scores, torch.tensor([[*ranks, -1]])).item() == pytest.approx(log(odds), abs=1e-6)


def test_listwise_gradient_is_that_of_finite_differences_and_says_nothing_of_ties() -> None:
    generator = torch.Generator().manual_seed(0)
    ranks = torch.tensor([[0, 2, 2, 1, -1], [3, 3, -1, 3, -1], [1, 0, -1, -1, -1]])
    scores = torch.randn(3, 5, generator=generator, dtype=torch.float64, requires_grad=True)
    torch.autograd.gradcheck(lambda given: listwise_sum(given, ranks), (scores,))
    (slope,) = torch.autograd.grad(listwise_sum(scores, ranks), scores)
    assert slope[1].tolist() == [0.0] * 5 and slope[ranks < 0].abs().max() == 0 and slope[0, :4].abs().min() > 0.01
    empty = torch.zeros(0, 0, requires_grad=True)
    listwise_sum(empty, torch.zeros(0, 0, dtype=torch.long)).backward()


def test_learning_rate_warms_up_then_follows_the_cosine() -> None:
    cfg = Optim(lr=1.0, warmup=0.1, min_lr_ratio=0.2)
    assert learning_rate(0, 100, cfg) == pytest.approx(0.1)
    assert learning_rate(9, 100, cfg) == pytest.approx(1.0)
    assert learning_rate(10, 100, cfg) == pytest.approx(1.0)
    assert learning_rate(55, 100, cfg) == pytest.approx(0.6)
    assert learning_rate(100, 100, cfg, scale=0.5) == pytest.approx(0.1)


@pytest.mark.usefixtures("any_processor")
def test_orthogonalise_brings_every_singular_value_near_one() -> None:
    generator = torch.Generator().manual_seed(0)
    for shape in ((3, 8, 20), (3, 20, 8)):
        made = orthogonalise(torch.randn(*shape, generator=generator))
        values = torch.linalg.svdvals(made)
        assert made.shape == shape and values.min() > 0.6 and values.max() < 1.3


def test_muon_moves_matrices_by_its_rms_and_the_rest_as_adamw_does() -> None:
    cfg = Model(hidden_size=16, layers=1, heads=2, kv_heads=1, head_dim=8, experts=2, expert_size=16, context=16)
    models = [new_decoder(cfg, 32, seed=0) for _ in range(2)]
    for model, kind in zip(models, (Optimizer.muon, Optimizer.adamw), strict=True):
        optimizer = new_optimizer(model, Optim(kind=kind, weight_decay=0.0, muon_rms=0.4))
        generator = torch.Generator().manual_seed(1)
        for p in model.parameters():
            p.grad = torch.randn(p.shape, generator=generator)
        set_learning_rate(optimizer, 0.01)
        optimizer.step()
        optimizer.zero_grad()
        assert all(p.grad is None for p in model.parameters())
    before = new_decoder(cfg, 32, seed=0)
    (_, old), (_, ours) = (
        next((n, p) for n, p in m.named_parameters() if n.endswith("down_proj")) for m in (before, models[0])
    )
    # an orthogonal 16 x 16 matrix has entries of root mean square 1/4, scaled by sqrt(16) x 0.4 x lr
    assert (ours - old).square().mean().sqrt().item() == pytest.approx(0.004, rel=0.2)
    for name, p in models[0].named_parameters():
        same = torch.equal(p, dict(models[1].named_parameters())[name])
        assert same == (".self_attn." not in name or p.dim() == 1) * (".experts." not in name)


PLANTED = [  # promise, file, right code, bug, test (None: this whole file)
    (
        "tied answers are not put in order",
        "moe/losses.py",
        "(ranks.unsqueeze(2) < ranks.unsqueeze(1))",
        "(ranks.unsqueeze(2) <= ranks.unsqueeze(1))",
        "test_only_answers_with_different_ranks_are_compared",
    ),
    (
        "an answer without a rank is not the best",
        "moe/losses.py",
        " & (ranks >= 0).unsqueeze(2)",
        "",
        "test_only_answers_with_different_ranks_are_compared",
    ),
    (
        "the better answer has to be ahead by the margin",
        "moe/losses.py",
        "-F.logsigmoid(ahead - margin)",
        "-F.logsigmoid(ahead + margin)",
        "test_a_margin_by_hand",
    ),
]
