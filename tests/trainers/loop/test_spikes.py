"""Which steps are refused: windows worked by hand, planted spikes all caught, nothing refused in healthy runs.

Planted bugs: a spike enters the window, a NaN enters the window.
"""

import json
from math import exp, inf, nan

import numpy as np
import pytest
import torch

from conf.errors import InputError
from conf.knobs.model import Model
from conf.knobs.training import Optim, Optimizer, SpikeAction, Spikes
from moe.decoder import new_decoder
from moe.losses import cross_entropy_sum
from moe.training.optimizer import learning_rate, new_optimizer, set_learning_rate
from moe.training.parallel import clip_gradients
from trainers.loop.spikes import Verdict, Watch

STEPS = 500


def after(losses: list[float], *, window: int = 8, limit: int = 3) -> Watch:
    """A watch that has seen so many steps, whose gradients all had norm 1."""
    watch = Watch(Spikes(warmup=4, window=window, limit=limit))
    for loss in losses:
        watch.judge(loss, 1.0)
    return watch


def test_a_deviation_by_hand() -> None:
    # median 4; neighbours differ by 2, 1, 1, 1: median 1, of which a normal distribution's deviation is 1.0484
    watch = after([3.0, 5.0, 4.0, 3.0, 4.0])
    found = watch.judge(4.0 + 11 * 1.0484, 1.0)
    assert not found.accepted and not found.stop and found.kind == "loss" and found.median == 4.0
    assert found.deviation == pytest.approx(11.0)
    assert found.reason == "loss 15.53 is 11.0 deviations above the median 4 of 5 steps"
    assert watch.judge(4.0 + 9 * 1.0484, 1.0).accepted and watch.judge(-1000.0, 1e-6).accepted
    # e^1 is 1 / 0.05 = 20 deviations of a calm norm
    assert after([3.0] * 4).judge(3.0, exp(0.99)).accepted
    norm = after([3.0] * 4).judge(3.0, exp(1.1))
    assert norm.kind == "gradient norm" and norm.deviation == pytest.approx(22.0)
    assert norm.reason == "gradient norm 3.004 is 22.0 deviations above the median 1 of 4 steps"
    clipped = Watch(Spikes(), clip=5.0)
    norms = [*[1.0] * 30, 4.9, 5.1]
    assert [clipped.judge(3.0, value).accepted for value in norms] == [True] * 31 + [False]


def test_a_calm_run_is_not_alarmed_by_little() -> None:
    # a hundredth of the median and 0.02 count as one deviation: 3.0 may become 3.5
    watch = after([3.0] * 8)
    assert watch.judge(3.49, 1.0).accepted and not watch.judge(3.51, 1.0).accepted


def test_a_rising_loss_is_compared_with_the_latest() -> None:
    watch = after([1.0] * 24 + [1.1 + n / 20 for n in range(8)], window=64)
    assert watch.judge(1.5, 1.0).median == pytest.approx(1.275)  # of 1.1, 1.15 ... 1.45


def test_the_first_steps_are_taken_as_they_come_if_they_are_finite() -> None:
    watch = Watch(Spikes(warmup=4))
    assert [watch.judge(loss, 1.0).accepted for loss in (9.0, nan, 90.0, inf, 1.0, 5.0)] == [
        *(True, False, True, False, True, True)
    ]
    assert not watch.judge(1.0, inf).accepted and watch.judge(1.0, nan).reason == "loss 1, gradient norm nan"


def test_what_was_refused_does_not_blind_the_window() -> None:
    watch = after([3.0, 3.1, 3.0, 2.9, 3.0, 3.1], limit=8)
    refused = [watch.judge(bad, 1.0) for bad in (nan, 8.0, inf, 8.0, 8.0, 7.0, 7.0)]
    assert not any(verdict.accepted for verdict in refused)
    assert {verdict.median for verdict in refused if verdict.kind == "loss"} == {3.0}
    assert watch.judge(3.05, 1.0).accepted


def test_incidents_in_a_row_end_the_stage_and_long_ago_ones_do_not() -> None:
    watch = after([3.0] * 8)
    assert [watch.judge(8.0, 1.0).stop for _ in range(3)] == [False, False, True]
    watch = after([3.0] * 8)
    pattern = [8.0, *[3.0] * 3] * 6  # two of the last eight
    assert not any(watch.judge(loss, 1.0).stop for loss in pattern)


def test_a_known_change_of_the_data_is_no_spike() -> None:
    watch = after([1.0] * 8)
    watch.forget()
    assert all(watch.judge(loss, 5.0).accepted for loss in [4.0] * 8)
    assert watch.judge(14.0, 5.0).median == 4.0


def test_action_none_refuses_only_what_is_not_finite() -> None:
    watch = Watch(Spikes(action=SpikeAction.none, warmup=2))
    assert [watch.judge(loss, 1.0).accepted for loss in (1.0, 1.0, 1.0, 99.0, nan)] == [True] * 4 + [False]


def test_the_state_survives_json_exactly() -> None:
    curve = healthy(3)
    straight, broken = Watch(Spikes()), Watch(Spikes())
    wanted = [straight.judge(*step) for step in curve]
    found: list[Verdict] = []
    for at, step in enumerate(curve):
        if at % 7 == 0:
            kept = json.dumps(broken.state(), allow_nan=False)
            broken = Watch(Spikes())
            broken.load(json.loads(kept))
        found.append(broken.judge(*step))
    assert found == wanted and straight.state() == broken.state()


def test_an_incident_is_json() -> None:
    verdict = after([3.0] * 4).judge(nan, 2.0)
    record = verdict.incident(step=7, position=56, action=SpikeAction.skip, rows=[{"document": 3}])
    assert json.loads(json.dumps(record, allow_nan=False)) == {
        "step": 7,
        "position": 56,
        "action": "skip",
        "kind": "not finite",
        "reason": "loss nan, gradient norm 2",
        "loss": "nan",
        "grad_norm": 2.0,
        "median": 0.0,
        "deviation": 0.0,
        "rows": [{"document": 3}],
    }


def test_a_limit_that_cannot_be_reached_is_refused() -> None:
    with pytest.raises(InputError, match=r"spikes.limit=65 must be at most spikes.window=64"):
        Spikes(limit=65)


def healthy(seed: int) -> list[tuple[float, float]]:
    """Losses and norms that fall at some speed, under noise with tails longer than a normal distribution's."""
    dice = np.random.default_rng(seed)
    gone = np.exp(-np.arange(STEPS) / dice.uniform(20, 120))
    noise = dice.choice([0.005, 0.02, 0.05])
    losses = (dice.uniform(0.5, 3) + 7 * gone) * (1 + noise * dice.standard_t(6, STEPS))
    norms = (0.3 + 3 * gone) * np.exp(0.2 * dice.standard_t(6, STEPS))
    return list(zip(losses.tolist(), norms.tolist(), strict=True))


def test_healthy_curves_have_no_false_alarm() -> None:
    for seed in range(20):
        watch = Watch(Spikes())
        assert [found.reason for found in (watch.judge(*step) for step in healthy(seed)) if not found.accepted] == []


def test_a_hundred_planted_spikes_are_all_caught() -> None:
    caught = 0
    for seed in range(10):
        curve, watch = healthy(seed), Watch(Spikes())
        planted = {int(at) for at in np.random.default_rng(seed).choice(np.arange(30, STEPS), 10, replace=False)}
        for at, (loss, norm) in enumerate(curve):
            size = [2.5, 4.0, 10.0, 100.0][at % 4]
            if at in planted:
                loss, norm = (loss * size, norm) if at % 3 else (loss, norm * 1000 * size)
            assert watch.judge(loss, norm).accepted == (at not in planted), (seed, at)
        caught += len(planted)
    assert caught == 100


@pytest.mark.slow
@pytest.mark.parametrize(("steps", "planted"), [(STEPS, False), (STEPS // 2, True)])
def test_a_real_run_refuses_garbage_and_nothing_else(steps: int, planted: bool) -> None:
    """Counting on from a random number, beside random numbers, numbers in disorder, one number, counting down."""
    cfg = Model(hidden_size=32, layers=1, heads=2, kv_heads=1, head_dim=16, experts=4, expert_size=32, context=32)
    optim, watch = Optim(kind=Optimizer.adamw, lr=1e-2), Watch(Spikes(), clip=1.0)
    model = new_decoder(cfg, 128, seed=0).train()
    optimizer, dice = new_optimizer(model, optim), torch.Generator().manual_seed(0)
    segments = torch.arange(1, 5).repeat_interleave(8).expand(8, 32)
    targets = (torch.arange(256) % 8).nonzero().squeeze(1)
    for step in range(steps):
        tokens = (torch.randint(10, 90, (8, 4, 1), generator=dice) + torch.arange(8)).view(8, 32)
        garbage = planted and step >= 30 and step % 11 == 0
        if garbage:
            tokens = (
                torch.randint(0, 128, (8, 32), generator=dice),
                tokens.gather(1, torch.rand(8, 32, generator=dice).argsort(1)),
                torch.full((8, 32), step % 128),
                tokens.flip(1),
            )[step % 4]
        hidden = model(tokens, segments)
        wanted = tokens.flatten()[targets]
        loss = cross_entropy_sum(hidden.states[targets - 1], model.lm_head.weight, wanted) / len(targets)
        (loss + hidden.auxiliary).backward()
        found = watch.judge(loss.item(), clip_gradients(model, optim.clip).item())
        assert found.accepted == (not garbage), (step, found)
        if found.accepted:
            set_learning_rate(optimizer, learning_rate(step, steps, optim))
            optimizer.step()
        optimizer.zero_grad()
    assert loss.item() < 0.1


PLANTED = [  # promise, file, right code, bug, test (None: this whole file)
    (
        "a spike never enters the window",
        "trainers/loop/spikes.py",
        "        if not kind:\n",
        '        if kind != "not finite":\n',
        None,
    ),
    (
        "a NaN never enters the window",
        "trainers/loop/spikes.py",
        "        if not kind:\n",
        '        if not kind or kind == "not finite":\n',
        None,
    ),
]
