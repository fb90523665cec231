"""The critic as a plain object."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from conf.errors import InputError
from conf.knobs.model import Precision
from rlhf.actors.critic import Critic
from rlhf.messages import pad
from tests.rlhf.tiny import CFG, later, responses, save_reward


def test_it_begins_by_expecting_nothing_and_learns_the_returns(chat: Path) -> None:
    batch, critic = pad(responses(chat)), Critic(chat, CFG, Precision.fp32, 0, 1)
    returns = batch.mask * torch.tensor([1.0, -1.0] * 4).unsqueeze(1)
    values = critic.values(batch)
    assert values.abs().max().item() == 0.0
    first = critic.update(batch, values, returns)["critic/vf_loss"]
    for version in range(1, 15):
        values = critic.values(batch)
        after = critic.update(later(batch, version), values, returns)
    assert first == pytest.approx(0.5, abs=0.1) and after["critic/vf_loss"] < 0.3 * first
    assert after["critic/vf_explained_var"] > 0.5
    assert (values[batch.mask == 0] == 0).all()


def test_it_begins_as_the_reward_model_where_there_is_one(chat: Path, tmp_path: Path) -> None:
    critic = Critic(save_reward(chat, tmp_path / "reward"), CFG, Precision.fp32, 0, 1)
    assert critic.values(pad(responses(chat))).abs().max().item() == 0.0


def test_its_own_learning_rate_is_named(chat: Path) -> None:
    batch = pad(responses(chat))
    critic = Critic(chat, replace(CFG, critic_lr=1e30), Precision.fp32, 0, 1)
    returns = batch.mask.clone()
    with pytest.raises(InputError, match=r"^ppo.critic_lr=1e\+30: no step of iteration 1 has a finite loss"):
        for version in range(2):
            critic.update(later(batch, version), torch.zeros_like(returns), returns)


PLANTED = [  # promise, file, right code, bug, test (None: this whole file)
    (
        "a critic begins by expecting nothing",
        "rlhf/actors/critic.py",
        "scalar.score.weight.zero_()",
        "scalar.score.weight.abs()",
        "test_it_begins_by_expecting_nothing_and_learns_the_returns",
    ),
    (
        "explained variance is 1 for a perfect critic",
        "rlhf/losses.py",
        "return float(1 - (returns - values).var() / variance)",
        "return float((returns - values).var() / variance)",
        "test_it_begins_by_expecting_nothing_and_learns_the_returns",
    ),
    (
        "the critic's learning rate is told as its own",
        "rlhf/actors/trained.py",
        'knob = "ppo.lr" if name == "actor" else "ppo.critic_lr"',
        'knob = "ppo.lr"',
        "test_its_own_learning_rate_is_named",
    ),
]
