"""PPO's mathematics against numbers worked by hand.

Planted bugs these turn red: the value after the last token not 0, the KL's sign turned, min for max in the
clipped loss.
"""

from math import log

import pytest
import torch

from conf.knobs.reinforcement import KlEstimate
from rlhf.losses import (
    at_the_end,
    distance,
    explained_variance,
    gae,
    policy_loss,
    token_rewards,
    value_loss,
    whiten,
)


def test_gae_by_hand() -> None:
    # One answer of three tokens after a prompt token, then padding. gamma .9, lambda .5:
    # d3 = 1 - .4 = .6; d2 = 0 + .9*.4 - .3 = .06; d1 = .5 + .9*.3 - .2 = .57
    # A3 = .6; A2 = .06 + .45*.6 = .33; A1 = .57 + .45*.33 = .7185
    mask = torch.tensor([[0.0, 1.0, 1.0, 1.0, 0.0]])
    rewards = torch.tensor([[0.0, 0.5, 0.0, 1.0, 0.0]])
    values = torch.tensor([[0.0, 0.2, 0.3, 0.4, 0.0]])
    advantages, returns = gae(rewards, values, mask, gamma=0.9, lam=0.5)
    assert advantages[0].tolist() == pytest.approx([0, 0.7185, 0.33, 0.6, 0])
    assert returns[0].tolist() == pytest.approx([0, 0.9185, 0.63, 1.0, 0])


def test_gae_with_lambda_one_is_the_return_minus_the_value() -> None:
    mask = torch.tensor([[1.0, 1.0, 1.0]])
    rewards, values = torch.tensor([[1.0, 2.0, 4.0]]), torch.tensor([[0.5, 0.25, 8.0]])
    advantages, returns = gae(rewards, values, mask, gamma=1.0, lam=1.0)
    assert returns[0].tolist() == [7.0, 6.0, 4.0]
    assert advantages[0].tolist() == [6.5, 5.75, -4.0]


def test_token_rewards_charge_kl_everywhere_and_score_the_last_token() -> None:
    mask = torch.tensor([[0.0, 1.0, 1.0, 0.0], [0.0, 1.0, 1.0, 1.0]])
    logprobs = torch.tensor([[0.0, -1.0, -2.0, 0.0], [0.0, -1.0, -1.0, -1.0]])
    reference = torch.tensor([[0.0, -1.5, -1.0, 0.0], [0.0, -1.0, -1.0, -3.0]])
    rewards = token_rewards(at_the_end(torch.tensor([3.0, -1.0]), mask), logprobs, reference, mask, 0.1)
    assert rewards.flatten().tolist() == pytest.approx([0, -0.05, 3.1, 0, 0, 0, 0, -1.2])


def test_policy_loss_by_hand() -> None:
    # ratios 1.5, 0.5, 1.1, 0.5 with advantages 1, 1, 2, -1 and clip .2: the clipped terms of tokens 1 and 4 are worse
    ratios = torch.tensor([1.5, 0.5, 1.1, 0.5])
    made = policy_loss(ratios.log(), torch.zeros(4), torch.tensor([1.0, 1.0, 2.0, -1.0]), 0.2)
    assert made.loss.item() == pytest.approx(-1.2 - 0.5 - 2.2 + 0.8)
    assert made.clipped.item() == 2.0
    assert made.kl.item() == pytest.approx(-(log(1.5) + log(0.5) + log(1.1) + log(0.5)))


def test_an_unmoved_policy_has_ratio_one_and_the_plain_policy_gradient() -> None:
    logprobs = torch.tensor([-1.0, -2.0], requires_grad=True)
    made = policy_loss(logprobs, logprobs.detach(), torch.tensor([3.0, -1.0]), 0.2)
    made.loss.backward()
    assert logprobs.grad is not None
    assert logprobs.grad.tolist() == [-3.0, 1.0] and made.kl.item() == 0.0 and made.clipped.item() == 0.0


def test_value_loss_by_hand() -> None:
    # new 1.0 from old 0.0 with return 1.0: free error 0, clipped to 0.2 its error is .64; half of it counts
    assert value_loss(torch.tensor([1.0]), torch.tensor([0.0]), torch.tensor([1.0]), 0.2).item() == pytest.approx(0.32)
    assert value_loss(torch.tensor([0.1]), torch.tensor([0.0]), torch.tensor([1.1]), 0.2).item() == pytest.approx(0.5)


def test_whitening_ignores_what_the_mask_hides() -> None:
    values, mask = torch.tensor([[1.0, 3.0, 99.0]]), torch.tensor([[1.0, 1.0, 0.0]])
    assert whiten(values, mask)[0].tolist() == pytest.approx([-1.0, 1.0, 0.0], abs=1e-6)


def test_explained_variance() -> None:
    returns = torch.tensor([1.0, 2.0, 3.0])
    assert explained_variance(returns, returns) == 1.0
    assert explained_variance(torch.full((3,), 2.0), returns) == 0.0


def test_the_dual_clip_bounds_what_a_bad_token_costs_by_hand() -> None:
    # advantage -2: ratio 5 costs 10 without a bound and 3 * 2 with it, ratio 1.1 costs 2.2; advantage 1 has none
    ratios, advantages = torch.tensor([5.0, 1.1, 5.0]), torch.tensor([-2.0, -2.0, 1.0])
    made = policy_loss(ratios.log(), torch.zeros(3), advantages, 0.2, 3.0)
    assert made.loss.item() == pytest.approx(6.0 + 2.2 - 1.2) and made.bounded.item() == 1.0
    assert policy_loss(ratios.log(), torch.zeros(3), advantages, 0.2).loss.item() == pytest.approx(10.0 + 2.2 - 1.2)


def test_the_estimates_of_the_kl_by_hand() -> None:
    # log-ratio new - reference = ln 2: k1 ln 2, k2 half its square, k3 1/2 + ln 2 - 1
    new, reference = torch.tensor([0.0]), -torch.tensor([2.0]).log()
    told = [distance(new, reference, each).item() for each in (KlEstimate.k1, KlEstimate.k2, KlEstimate.k3)]
    assert told == pytest.approx([log(2), log(2) ** 2 / 2, 0.5 + log(2) - 1])
    # each is taken off a token's reward
    ones = torch.ones(1, 1)
    charged = [token_rewards(ones, new[None], reference[None], ones, 2.0, each).item() for each in list(KlEstimate)[1:]]
    assert charged == pytest.approx([1 - 2 * each for each in told])


def test_the_estimates_are_of_the_kl() -> None:
    logits = torch.randn(2, 8, generator=torch.Generator().manual_seed(0)) * 0.3
    new, reference = logits.log_softmax(-1)
    exact = (new.exp() * (new - reference)).sum().item()
    drawn = torch.multinomial(new.exp(), 200_000, replacement=True, generator=torch.Generator().manual_seed(1))
    for estimate in (KlEstimate.k1, KlEstimate.k3):
        assert distance(new[drawn], reference[drawn], estimate).mean().item() == pytest.approx(exact, rel=0.05)
    assert distance(new[drawn], reference[drawn], KlEstimate.k2).mean().item() == pytest.approx(exact, rel=0.25)


PLANTED = [  # promise, file, right code, bug, test (None: this whole file)
    (
        "nothing follows an answer's last token",
        "rlhf/losses.py",
        "following_value = values[:, t] * mask[:, t]",
        "following_value = values[:, t] + 1",
        None,
    ),
    (
        "the KL penalty pulls towards the chat model",
        "rlhf/losses.py",
        "(earned - kl_coef * distance(logprobs, reference, estimate))",
        "(earned + kl_coef * distance(logprobs, reference, estimate))",
        None,
    ),
    (
        "the dual clip bounds only bad tokens",
        "rlhf/losses.py",
        "torch.where(advantages < 0, -advantages * dual, torch.inf)",
        "-advantages * dual",
        "test_the_dual_clip_bounds_what_a_bad_token_costs_by_hand",
    ),
    (
        "k2 is half the square",
        "rlhf/losses.py",
        "return apart.square() / 2 if",
        "return apart.square() if",
        "test_the_estimates_of_the_kl_by_hand",
    ),
]
