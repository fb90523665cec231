"""Reinforcement learning on tiny actors: it goes on where it was killed, begins as the chat model, and learns."""

import os
import random
import shutil
import signal
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import ray

from cluster import stopping
from cluster.run import open_stage
from cluster.stopping import Stopped, stoppable
from cluster.tracking.tracker import read_metrics
from conf.errors import InputError
from conf.knobs.model import Compute, Precision
from conf.knobs.reinforcement import Advantages, Start
from conf.knobs.running import Run
from conf.schema import Config
from rlhf import ppo
from rlhf.actors.calls import ActorFailed
from rlhf.graph import Graph
from rlhf.ppo import precision
from rlhf.rewards import Judged
from tests.rlhf.graphs import GRPO, PPO, Before, Started, config, weights

STOPS = 10
ENDS = (
    r"\(.+\) after [\d.]+ seconds; .+; ppo.restarts=0 does not allow another; "
    "the same command continues from the newest checkpoint"
)


@pytest.mark.ray
def test_a_run_whose_learner_dies_continues_to_the_same_weights(
    of_ppo: Graph, before: Before, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cfg = config(replace(PPO, kl_target=3.0, kl_horizon=50.0, normalise=True))  # which are carried over, too
    before.learn(of_ppo, cfg, tmp_path / "whole")
    undisturbed = weights(of_ppo)
    weighed = [line["actor/kl_coef"] for line in read_metrics(tmp_path / "whole")]
    assert len(set(weighed)) == len(weighed)
    assert sorted(path.name for path in (tmp_path / "whole" / "checkpoints").iterdir()) == [
        "step-00000003",
        "step-00000004",
    ]
    earn = Graph.earn

    def dying(self: Graph, judged: Judged, *more: Any) -> Any:
        if judged.batch.version == 2:
            ray.kill(self.roles["learner"])
        return earn(self, judged, *more)

    graph = before.start(config(replace(PPO, restarts=0)))
    try:
        monkeypatch.setattr(Graph, "earn", dying)
        with pytest.raises(ActorFailed, match=rf"^learner.\w+: the actor died {ENDS}$"):
            before.learn(graph, cfg, tmp_path / "killed")
    finally:
        graph.close()
    monkeypatch.undo()
    assert [line["step"] for line in read_metrics(tmp_path / "killed")] == [1, 2]
    of_ppo.load(tmp_path / "whole" / "checkpoints" / "step-00000004", version=4)  # anything: it loads its own
    before.learn(of_ppo, cfg, tmp_path / "killed")
    assert (weights(of_ppo) == undisturbed).all()
    for whole, continued in zip(told(tmp_path / "whole"), told(tmp_path / "killed"), strict=True):
        assert whole == continued


@pytest.mark.ray
def test_a_run_that_is_stopped_continues_to_the_same_weights(
    of_ppo: Graph, before: Before, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    cfg = config(replace(PPO, save_every=2))
    before.learn(of_ppo, cfg, tmp_path / "whole")
    undisturbed = weights(of_ppo)
    earn = Graph.earn

    def signalled(self: Graph, judged: Judged, *more: Any) -> Any:
        if judged.batch.version == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return earn(self, judged, *more)

    graph = before.start(cfg)
    try:
        with monkeypatch.context() as patched, pytest.raises(Stopped) as ended, stoppable("rlhf.ppo"):
            patched.setattr(Graph, "earn", signalled)
            patched.setattr(stopping, "_END_WITHIN", 1e6)
            before.learn(graph, cfg, tmp_path / "stopped")
    finally:
        graph.close()
    assert ended.value.code == 143
    assert (
        "stopped by SIGTERM at iteration 3; saved; the same command continues: python -m rlhf" in capfd.readouterr().err
    )
    saved = sorted(path.name for path in (tmp_path / "stopped" / "checkpoints").iterdir())
    assert saved == ["step-00000002", "step-00000003-stop"]
    before.learn(of_ppo, cfg, tmp_path / "stopped")
    assert (weights(of_ppo) == undisturbed).all()
    assert told(tmp_path / "whole") == told(tmp_path / "stopped")


@pytest.mark.ray
@pytest.mark.slow
def test_sigterm_at_random_times_changes_no_bit(
    of_ppo: Graph, before: Before, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each ends with 143 after the iteration that it is in, and the same command goes on from there."""
    monkeypatch.setattr(stopping, "_END_WITHIN", 1e6)
    cfg = config(replace(PPO, iterations=8, save_every=3))
    started = Started.of(of_ppo, tmp_path / "state")
    began = time.monotonic()
    before.learn(of_ppo, cfg, tmp_path / "whole")
    seconds, undisturbed = time.monotonic() - began, weights(of_ppo)
    dice, stopped, trial = random.Random(2), 0, 0
    while stopped < STOPS:
        folder, trial, ended = tmp_path / str(trial), trial + 1, False
        started.rewound()
        while not ended:
            timer = threading.Timer(dice.uniform(0.0, 0.4) * seconds, os.kill, (os.getpid(), signal.SIGTERM))
            try:
                with stoppable("rlhf.ppo"):
                    if stopped < STOPS:
                        timer.start()
                    before.learn(of_ppo, cfg, folder)
                    timer.cancel()
                ended = True
            except Stopped as stop:
                assert stop.code == 143
                stopped += 1
        assert (weights(of_ppo) == undisturbed).all()
        assert told(tmp_path / "whole") == told(folder)


def told(folder: Path) -> list[dict[str, Any]]:
    """What each iteration said that does not hang on the clock."""
    lines = [line for line in read_metrics(folder) if "attempt" not in line]
    return [
        {name: value for name, value in line.items() if not name.startswith(("timing_s/", "perf/", "time"))}
        for line in lines
    ]


@pytest.mark.ray
def test_the_first_step_starts_from_the_chat_model(of_ppo: Graph, before: Before, tmp_path: Path) -> None:
    cfg = config(replace(PPO, iterations=1))
    before.learn(of_ppo, cfg, tmp_path)
    (line,) = read_metrics(tmp_path)
    assert abs(line["rl/kl"]) < 1e-4  # summed over an answer's tokens
    assert line["train/rollout_logprob_abs_diff"] < 1e-5
    assert line["critic/rewards/mean"] == pytest.approx(line["rl/reward"], abs=1e-5)  # nothing is taken off yet
    # what is earned: half the model's score and the rules, of the answers that are learnt from: all of them
    assert line["rl/reward"] == pytest.approx(0.5 * line["reward/model/mean"] + line["reward/rules/mean"], abs=1e-5)
    assert line["reward/rules/mean"] == pytest.approx(line["rl/rules/mean"], abs=1e-6)
    assert line["reward/model/share"] + line["reward/rules/share"] == pytest.approx(1.0)
    assert len(line["samples"]) == cfg.tracker.samples == 4
    assert set(line["samples"][0]) == {"id", "task", "prompt", "answer", "rules"}


@pytest.mark.ray
@pytest.mark.parametrize("advantages", [Advantages.group, Advantages.leave_one_out])
def test_the_toys_reward_goes_up_without_a_critic(
    of_grpo: Graph, before: Before, tmp_path: Path, advantages: Advantages
) -> None:
    cfg = config(replace(GRPO, iterations=8, advantages=advantages, kl_coef=0.0))
    before.learn(of_grpo, cfg, tmp_path)
    lines = read_metrics(tmp_path)
    earned = [line["rl/rules/mean"] for line in lines]
    print("reward by iteration", [round(value, 3) for value in earned])
    assert earned[0] < 0.25 and sum(earned[-3:]) / 3 > earned[0] + 0.15
    assert not any(name.startswith(("critic/vf", "reward/model")) for line in lines for name in line)


@pytest.mark.ray
def test_a_reward_that_is_not_a_number_is_told_by_its_knob(
    of_grpo: Graph, before: Before, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(of_grpo.supervisor, "restarts", 0)
    earn = Graph.earn

    def without_end(self: Graph, judged: Judged, *more: Any) -> Any:
        return earn(self, replace(judged, limit=0), *more)

    monkeypatch.setattr(Graph, "earn", without_end)  # the length's share of a room of no tokens
    cfg = config(replace(GRPO, rewards={"rules": 1.0, "length": 0.1}))
    with pytest.raises(InputError, match=r"^ppo.rewards.length: not finite in iteration 0 \(first: the answer '"):
        before.learn(of_grpo, cfg, tmp_path)


@pytest.mark.ray
@pytest.mark.slow
def test_a_learning_rate_that_ruins_the_policy_is_told_by_its_knob(
    ray_cluster: None, before: Before, tmp_path: Path
) -> None:
    cfg = config(replace(GRPO, lr=1e30))
    graph = before.start(cfg)
    try:
        with pytest.raises(InputError) as error:
            before.learn(graph, cfg, tmp_path)
    finally:
        graph.close()
    assert type(error.value) is InputError and "\n" not in str(error.value)
    assert str(error.value).startswith("ppo.lr=1e+30: no step of iteration ")


def test_rl_starts_from_the_stage_that_the_knob_names(
    before: Before, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def start(_: Config, *, chat: Path, **others: object) -> Graph:
        raise InputError(f"starts as {chat.name}")

    cfg = replace(config(replace(GRPO, start=Start.hfft)), run=Run(dir=str(tmp_path), name="r"))
    for name, folder in {"chat": before.chat, "hfft": before.chat, "tasks": before.tasks}.items():
        with open_stage(cfg, name, reads=[], settings={}) as stage:
            shutil.copytree(folder, stage.folder, dirs_exist_ok=True)
            stage.finish({})
    monkeypatch.setattr(ppo, "connect", lambda _: None)
    monkeypatch.setattr(ppo, "start", start)
    with pytest.raises(InputError, match="^starts as hfft$"):
        ppo.main(cfg)


def test_fp16_is_refused_and_auto_is_fp32() -> None:
    assert precision(Config()) is Precision.fp32
    assert precision(Config(compute=Compute(precision=Precision.bf16))) is Precision.bf16
    with pytest.raises(InputError, match=r"^compute.precision=fp16: the stage rl scales no losses"):
        precision(Config(compute=Compute(precision=Precision.fp16)))


PLANTED = [  # promise, file, right code, bug, test
    (
        "rl starts from the stage that ppo.start names",
        "rlhf/ppo.py",
        "chat=folders[cfg.ppo.start.value]",
        'chat=folders["chat"]',
        "test_rl_starts_from_the_stage_that_the_knob_names",
    ),
    (
        "rl refuses fp16, which it cannot scale",
        "rlhf/ppo.py",
        "if cfg.compute.precision is Precision.fp16:",
        "if False:",
        "test_fp16_is_refused_and_auto_is_fp32",
    ),
    (
        "a run that is stopped saves the iterations since its last checkpoint",
        "rlhf/ppo.py",
        "if iteration > first and (usual or request):",
        "if iteration > first and usual:",
        "test_a_run_that_is_stopped_continues_to_the_same_weights",
    ),
    (
        "answers are compared within their query",
        "rlhf/ppo.py",
        "numbered(same)",
        "numbered([(str(place), 0) for place in range(len(same))])",
        "test_the_toys_reward_goes_up_without_a_critic",
    ),
    (
        "answers are made with the learner's weights",
        "rlhf/ppo.py",
        "graph.broadcast()",
        "pass",
        "test_the_toys_reward_goes_up_without_a_critic",
    ),
]
