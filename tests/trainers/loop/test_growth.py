"""A stage that has begun goes on with other knobs: those that are free change no bit, and more steps under wsd are what
they would have been from the start."""

from pathlib import Path
from typing import Any

import pytest
import torch

from conf.knobs.training import Optim, Pretrain, Schedule
from tests.trainers.training import Broken, plan_for, run
from trainers.loop.growth import lengthened
from trainers.loop.recipe import Plan

CONSTANT = Optim(lr=1e-2, schedule=Schedule.wsd, warmup=0.0)


def weights(plan: Plan) -> dict[str, torch.Tensor]:
    return dict(run(plan).model.state_dict())


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(tensor, other[name]) for name, tensor in one.items())


def begun(folder: Path, *, until: int, **parts: Any) -> None:
    with pytest.raises(Broken):
        run(plan_for(folder, **parts), until=until)


def test_how_often_is_looked_and_saved_changes_no_bit(tmp_path: Path) -> None:
    straight = weights(plan_for(tmp_path / "straight"))
    begun(tmp_path / "other", until=25)
    often = {"eval_every": 7, "eval_rows": 3, "save_every": 4, "log_every": 3, "keep": 1}
    assert same(weights(plan_for(tmp_path / "other", fit=often)), straight)


def test_more_steps_are_what_they_would_have_been(tmp_path: Path) -> None:
    straight = weights(plan_for(tmp_path / "straight", fit={"steps": 60}, optim=CONSTANT))
    begun(tmp_path / "grown", until=25, fit={"steps": 40}, optim=CONSTANT)  # saved at 20; decays from 32
    assert lengthened("pretrain", Pretrain(steps=60), CONSTANT, {"pretrain.steps": 40}, 20) == ""
    assert same(weights(plan_for(tmp_path / "grown", fit={"steps": 60}, optim=CONSTANT)), straight)


@pytest.mark.parametrize(
    ("schedule", "steps", "step", "fit", "why"),
    [
        (Schedule.wsd, 200, 60, {}, ""),
        (Schedule.wsd, 80, 60, {}, ""),  # fewer, as long as none has been passed in another way
        (Schedule.wsd, 200, 81, {}, "it has saved step 81, which lies in the decay of 100 steps"),
        (Schedule.wsd, 70, 60, {}, "it has saved step 60, which lies in the decay of 70 steps"),
        (Schedule.wsd, 1000, 60, {}, "it has saved step 60, which lies in the warm-up of 1000 steps"),
        (Schedule.wsd, 50, 60, {}, "it has saved step 60, where the fewer steps end"),
        (Schedule.wsd, 200, 60, {"ramp": 0.5}, "it has saved step 60, where pretrain.ramp=0.5 still makes the batch"),
        (
            Schedule.cosine,
            200,
            60,
            {},
            "under optim.schedule=cosine the learning rate of every step hangs on how many there are; a stage that is "
            "to grow begins with optim.schedule=wsd",
        ),
    ],
)
def test_when_a_stage_can_go_on(schedule: Schedule, steps: int, step: int, fit: dict[str, Any], why: str) -> None:
    optim = Optim(schedule=schedule, warmup=0.1, decay_share=0.2)
    told = lengthened("pretrain", Pretrain(steps=steps, **fit), optim, {"pretrain.steps": 100}, step)
    assert told.startswith(why) and bool(told) == bool(why)


PLANTED = [  # promise, file, right code, bug, test (None: this whole file)
    (
        "a stage does not grow out of its decay",
        "trainers/loop/growth.py",
        "for many in (steps, fit.steps):",
        "for many in (fit.steps,):",
        None,
    ),
    (
        "a stage does not grow under a schedule of all its steps",
        "trainers/loop/growth.py",
        "if optim.schedule is not Schedule.wsd:",
        "if optim.schedule is Schedule.linear:",
        None,
    ),
]
