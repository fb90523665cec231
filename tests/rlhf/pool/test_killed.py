"""Answers that are made ahead of time are no less safe: actors die in the middle, and the run ends as if none had."""

from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import ray

from cluster import fault
from conf.knobs.reinforcement import Actors, Rollouts
from tests.rlhf.graphs import PPO, Before, Started, config, weights
from tests.rlhf.test_ppo import told

CFG = config(replace(PPO, staleness=1, save_every=2, actors=Actors(rollout=Rollouts(count=2))))
HURT = {  # while they answer for the next iteration, and this one is learnt from
    "rollout 0": "rollout.generated:3:kill",
    "rollout 1": "rollout.load_weights:4:kill",
    "learner": "trained.stepped:10:kill",
}


def _arm(text: str, _actor: Any) -> None:
    fault.arm(text)


@pytest.mark.ray
@pytest.mark.slow
def test_actors_that_die_change_no_bit(
    ray_cluster: None, before: Before, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with closing(before.start(CFG)) as graph:
        started = Started.of(graph, tmp_path / "state")
        before.learn(graph, CFG, tmp_path / "whole")
        whole = weights(graph), told(tmp_path / "whole")
        graph = started.rewound()
        capfd.readouterr()
        ray.get([graph.roles[name].__ray_call__.remote(partial(_arm, text)) for name, text in HURT.items()])
        before.learn(graph, CFG, tmp_path / "hurt")
        said = [line.split(".")[0] for line in capfd.readouterr().err.splitlines() if "; it is started again (" in line]
        assert {*said} == {*HURT}
        assert (weights(graph) == whole[0]).all() and told(tmp_path / "hurt") == whole[1]
    assert [line.get("rl/staleness") for line in whole[1]] == [None, 1.0, 1.0, 1.0]
