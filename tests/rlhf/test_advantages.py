"""Advantages against numbers worked by hand."""

from dataclasses import replace
from math import sqrt

import pytest
import torch
from torch import Tensor

from conf.knobs.reinforcement import Advantages, CutOff, Ppo
from rlhf.advantages import ADVANTAGES, gae, group, heard, leave_one_out
from rlhf.losses import at_the_end

CFG = Ppo(gamma=0.9, lam=0.5)
MASK = torch.tensor([[0, 1, 1, 0], [0, 1, 1, 1], [0, 0, 1, 0], [0, 1, 0, 0], [0, 1, 1, 1]], dtype=torch.float32)
GROUPS = torch.tensor([0, 1, 0, 1, 0])


def given(*scores: float) -> Tensor:
    """Rewards of answers whose last token earns the score less what its first token earned."""
    rewards = at_the_end(torch.tensor(scores) - 0.25, MASK)
    rewards[torch.arange(len(scores)), MASK.argmax(1)] += 0.25
    return rewards


def test_an_answer_is_measured_in_its_groups_deviations() -> None:
    # group 0 earns 1, 2 and 6: mean 3, variance (4 + 1 + 9) / 3; group 1 earns 10 and 20: mean 15, deviation 5
    advantages, returns = group(given(1, 10, 2, 20, 6), None, MASK, GROUPS, CFG)
    deviation = sqrt(14 / 3)
    by_hand = torch.tensor([-2 / deviation, -1.0, -1 / deviation, 1.0, 3 / deviation])
    assert torch.allclose(advantages, by_hand.unsqueeze(1) * MASK, atol=1e-5)
    assert returns is None


def test_an_answer_is_measured_against_the_others_of_its_group() -> None:
    # group 0 earns 1, 2 and 6: the others' means are 4, 3.5 and 1.5; group 1 earns 10 and 20
    advantages, returns = leave_one_out(given(1, 10, 2, 20, 6), None, MASK, GROUPS, CFG)
    by_hand = torch.tensor([-3.0, -10.0, -1.5, 10.0, 4.5])
    assert torch.allclose(advantages, by_hand.unsqueeze(1) * MASK, atol=1e-5)
    assert returns is None


@pytest.mark.parametrize("kind", [Advantages.group, Advantages.leave_one_out])
def test_groups_never_mix(kind: Advantages) -> None:
    def of(*scores: float) -> Tensor:
        return ADVANTAGES[kind](given(*scores), None, MASK, GROUPS, CFG)[0]

    here = GROUPS == 0
    first, second = of(1, 10, 2, 20, 6), of(1, 7000, 2, -300, 6)
    assert torch.allclose(first[here], second[here], atol=1e-4)
    assert not torch.allclose(first[~here], second[~here])


@pytest.mark.parametrize("kind", [Advantages.group, Advantages.leave_one_out])
@pytest.mark.parametrize("score", [0.0, 0.1, 0.7, 1.7, -1 / 3, 123.4])
def test_where_all_earn_the_same_there_is_nothing_to_learn(kind: Advantages, score: float) -> None:
    rewards = at_the_end(torch.full((5,), score), MASK)
    advantages, _ = ADVANTAGES[kind](rewards, None, MASK, GROUPS, CFG)
    assert advantages.abs().max().item() < 1e-4


def test_tokens_against_the_critic_are_whitened_over_the_batch() -> None:
    # deltas and sums as in test_losses; of two rows .7185 .33 .6 and .5: mean .537125, variance over these four
    mask = torch.tensor([[0.0, 1.0, 1.0, 1.0], [0.0, 1.0, 0.0, 0.0]])
    rewards = torch.tensor([[0.0, 0.5, 0.0, 1.0], [0.0, 1.0, 0.0, 0.0]])
    values = torch.tensor([[0.0, 0.2, 0.3, 0.4], [0.0, 0.5, 0.0, 0.0]])
    advantages, returns = gae(rewards, values, mask, torch.tensor([0, 0]), CFG)
    plain = [0.7185, 0.33, 0.6, 0.5]
    mean = sum(plain) / 4
    deviation = sqrt(sum((value - mean) ** 2 for value in plain) / 4)
    by_hand = [(value - mean) / deviation for value in plain]
    assert advantages[0].tolist() == pytest.approx([0, *by_hand[:3]], abs=1e-5)
    assert advantages[1].tolist() == pytest.approx([0, by_hand[3], 0, 0], abs=1e-5)
    assert returns is not None
    assert returns[0].tolist() == pytest.approx([0, 0.9185, 0.63, 1.0]) and returns[1, 1].item() == 1.0


def test_every_name_of_the_knob_is_there() -> None:
    assert set(ADVANTAGES) == set(Advantages)


def test_advantages_stay_as_they_are_where_nobody_whitens() -> None:
    rewards, values = given(1, 10, 2, 20, 6), torch.zeros_like(MASK)
    plain, _ = gae(rewards, values, MASK, GROUPS, replace(CFG, whiten=False, gamma=1.0, lam=1.0))
    assert torch.equal(plain[torch.arange(5), MASK.argmax(1)], torch.tensor([1.0, 10.0, 2.0, 20.0, 6.0]))


def test_nothing_is_learnt_from_an_answer_that_was_cut_off_where_the_knob_says_so() -> None:
    done = [True, False, True]
    assert heard(done, [False] * 3, CFG).tolist() == [[1.0], [1.0], [1.0]]
    assert heard(done, [False] * 3, replace(CFG, cut_off=CutOff.mask)).tolist() == [[1.0], [0.0], [1.0]]
    assert heard(done, [False, True, False], replace(CFG, cut_off=CutOff.mask)).tolist() == [[1.0]] * 3


PLANTED = [  # promise, file, right code, bug, test (None: this whole file)
    (
        "groups are not compared with each other",
        "rlhf/advantages.py",
        "over = earned - same @ earned / count",
        "over = earned - earned.mean()",
        "test_an_answer_is_measured_in_its_groups_deviations",
    ),
    (
        "answers that earn the same teach nothing",
        "rlhf/advantages.py",
        "rewards.sum(1).double()",
        "rewards.sum(1)",
        "test_where_all_earn_the_same_there_is_nothing_to_learn",
    ),
    (
        "an answer is not its own baseline",
        "rlhf/advantages.py",
        " - torch.eye(len(groups))",
        "",
        "test_an_answer_is_measured_against_the_others_of_its_group",
    ),
    (
        "PPO's advantages are whitened",
        "rlhf/advantages.py",
        "return whiten(advantages, mask) if cfg.whiten else advantages, returns",
        "return advantages, returns",
        "test_tokens_against_the_critic_are_whitened_over_the_batch",
    ),
    (
        "an answer that was cut off teaches nothing where the knob says so",
        "rlhf/advantages.py",
        "float(done or more or all_of_them)",
        "1.0",
        "test_nothing_is_learnt_from_an_answer_that_was_cut_off_where_the_knob_says_so",
    ),
]
