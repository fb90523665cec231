"""What the loop carries: the KL's weight by hand, and that both it and the reward's statistics come back to the bit."""

from pathlib import Path

import pytest

from conf.errors import InputError
from conf.knobs.reinforcement import KlIn, Ppo
from rlhf.carried.state import Carried, moved
from rlhf.rewards import Running

CFG = Ppo(kl_coef=0.1, kl_target=6.0, kl_horizon=1000.0)


def test_the_weight_is_moved_towards_the_target_by_hand() -> None:
    # 6.6 nats are a tenth too far: 1 + .1 * 200 / 1000; 60 are a fifth at most, 1 too near by a fifth at most
    assert moved(0.1, 6.6, 200, target=6.0, horizon=1000.0) == pytest.approx(0.1 * 1.02)
    assert moved(0.1, 60.0, 200, target=6.0, horizon=1000.0) == pytest.approx(0.1 * 1.04)
    assert moved(0.1, 1.0, 200, target=6.0, horizon=1000.0) == pytest.approx(0.1 * 0.96)
    assert moved(0.1, 6.0, 200, target=6.0, horizon=1000.0) == 0.1


def test_what_is_carried_comes_back_with_the_checkpoint(tmp_path: Path) -> None:
    carried = Carried.of(CFG, None)
    told = carried.learnt({"rules": Running(3, 0.1, 1 / 3)}, 60.0, 200, CFG)
    assert told == {"actor/kl_coef": 0.1}  # what this iteration was made with
    write = carried.beside(lambda folder: (folder / "learner").mkdir())
    carried.learnt({}, 60.0, 200, CFG)  # the next iteration, while the checkpoint is being written
    write(tmp_path)
    assert (tmp_path / "learner").is_dir()
    again = Carried.of(CFG, tmp_path)
    assert again == Carried(0.1 * (1 + 0.2 * 200 / 1000), {"rules": Running(3, 0.1, 1 / 3)})


def test_a_weight_that_nobody_moves_is_the_knobs(tmp_path: Path) -> None:
    Carried(0.7).beside(lambda folder: None)(tmp_path)
    assert Carried.of(Ppo(kl_coef=0.1), tmp_path).kl_coef == 0.1
    assert Carried.of(Ppo(kl_coef=0.1, kl_in=KlIn.loss), None).kl_coef == 0.0  # it is in the loss
    fixed = Carried.of(Ppo(kl_coef=0.1), None)
    assert fixed.learnt({}, 99.0, 200, Ppo(kl_coef=0.1)) == {} and fixed.kl_coef == 0.1
    assert Carried.of(CFG, tmp_path / "older").kl_coef == 0.1  # a checkpoint from before there was such a file


def test_a_policy_that_goes_too_far_is_stopped() -> None:
    carried, cfg = Carried(0.1), Ppo(max_kl=20.0)
    carried.learnt({}, 20.0, 8, cfg)
    with pytest.raises(InputError, match="ppo.max_kl=20: the answers are 20.5 nats from the model that it starts from"):
        carried.learnt({}, 20.5, 8, cfg)
    carried.learnt({}, 1e9, 8, Ppo())


@pytest.mark.parametrize(
    ("knobs", "told"),
    [
        ({"dual_clip": 0.5}, "ppo.dual_clip=0.5 must be greater than 1, such as 3; 0: none"),
        ({"kl_target": 6.0, "kl_in": KlIn.loss}, "ppo.kl_target moves the distance's weight in the reward; it needs"),
        ({"stop_kl": -1.0}, "ppo.stop_kl=-1.0 must not be negative"),
        ({"entropy_coef": float("nan")}, "ppo.entropy_coef=nan must not be negative"),
        (
            {"micro_tokens": 64, "accumulate": 2},
            "ppo.micro_tokens and ppo.accumulate both say how a minibatch is split",
        ),
        ({"rewards": {"rules": 1.0, "spread": -1.0}}, "ppo.rewards.spread is how far reward models differ; it needs"),
        ({"name": "A b"}, "ppo.name='A b' must be small letters, digits and -"),
    ],
)
def test_knobs_that_cannot_work_are_refused(knobs: dict[str, object], told: str) -> None:
    with pytest.raises(InputError) as refused:
        Ppo(**knobs)  # type: ignore[arg-type]
    assert str(refused.value).startswith(told)


def test_the_stage_has_the_algorithms_name_and_a_weight_of_0_is_no_reward() -> None:
    assert Ppo(name="grpo").decisive == Ppo().decisive and Ppo(name="grpo").stage == "rl-grpo"
    assert Ppo(rewards={"rules": 1.0, "model": 0.0}).decisive["rewards"] == {"rules": 1.0}


PLANTED = [  # promise, file, right code, bug, test (None: this whole file)
    (
        "the weight of the KL is saved as it was at its checkpoint",
        "rlhf/carried/state.py",
        "write_json(folder / FILE, now)",
        'write_json(folder / FILE, now | {"kl_coef": self.kl_coef})',
        "test_what_is_carried_comes_back_with_the_checkpoint",
    ),
    (
        "the reward's statistics survive",
        "rlhf/carried/state.py",
        '{name: Running(**of) for name, of in saved["terms"].items()}',
        "{}",
        "test_what_is_carried_comes_back_with_the_checkpoint",
    ),
    (
        "a KL that is too large raises its weight",
        "rlhf/carried/state.py",
        "kl / target - 1.0",
        "1.0 - kl / target",
        "test_the_weight_is_moved_towards_the_target_by_hand",
    ),
]
