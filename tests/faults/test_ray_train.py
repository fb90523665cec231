"""Ray Train restarts a worker that was killed; the run ends as one worker without Ray ends it, to the bit."""

import os
import signal
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from cluster.tracking.tracker import read_metrics
from conf.errors import InputError, user_error
from moe.decoder import Decoder
from moe.training.objectives import LANGUAGE_MODEL, Batch, Loss
from tests.faults.stages import logged, spread, stage_plan
from trainers.loop.loop import fit, learn, result
from trainers.loop.recipe import Plan

pytestmark = [pytest.mark.ray, pytest.mark.slow]


def deadly(plan: Plan, once: Path, at: int) -> Plan:
    """The plan with a worker that is killed, once, when it meets the row at position `at`."""

    def loss(model: Decoder, batch: Batch) -> Loss:
        if at in batch.get("position", torch.empty(0)) and not once.exists():
            once.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return LANGUAGE_MODEL.loss(model, batch)

    return replace(plan, objective=replace(LANGUAGE_MODEL, loss=loss))


@pytest.mark.parametrize("error", [InputError("optim.lr=9 diverged; try 1e-3"), OSError(28, "No space left", "/run")])
def test_what_would_only_happen_again_is_not_tried_again(ray_cluster: None, tmp_path: Path, error: Exception) -> None:
    plan = spread(stage_plan("base", tmp_path, steps=24), 1)

    def loss(model: Decoder, batch: Batch) -> Loss:
        with open(tmp_path / "tries", "a") as tries:
            tries.write("x")
        raise error

    plan = replace(plan, objective=replace(LANGUAGE_MODEL, loss=loss))
    with pytest.raises(Exception) as raised:
        fit(plan)
    assert str(error) in str(user_error(raised.value))
    assert (tmp_path / "tries").read_text() == "x"


def test_a_killed_worker_is_restarted_and_the_end_is_the_same(ray_cluster: None, tmp_path: Path) -> None:
    alone = spread(stage_plan("base", tmp_path / "alone", steps=24), 1)
    learn(alone, logged(alone, 0, 1))
    expected = result(alone)
    folder = tmp_path / "killed"
    plan = spread(stage_plan("base", folder, steps=24), 2)
    plan = replace(plan, cluster=replace(plan.cluster, cpus_per_worker=0.25))
    got = fit(deadly(plan, tmp_path / "once", at=71))
    assert (tmp_path / "once").exists(), "no worker was killed"
    wanted = dict(expected.named_parameters())
    assert all(torch.equal(weight, wanted[name]) for name, weight in got.named_parameters())
    curves = [[(x["step"], x["loss"]) for x in read_metrics(p.folder) if "loss" in x] for p in (alone, plan)]
    assert curves[0] == curves[1] and len(curves[0]) > 20
