"""Learner and critic as several processes: the same bits as one, and what becomes of them when one of them ends."""

import signal
from collections.abc import Mapping
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
import ray

from cluster.storage import sha256
from conf.errors import InputError
from conf.knobs.model import Precision
from conf.knobs.reinforcement import Actors, Rollouts, Seat, Seats
from conf.knobs.running import Cluster
from conf.schema import Config
from rlhf.actors import placement, trained
from rlhf.actors.trained import Trained
from rlhf.graph import Graph
from rlhf.objectives import policy_objective
from tests.rlhf import tiny
from tests.rlhf.graphs import PPO, Before, config
from tests.rlhf.test_ppo import told

TWO = Actors(rollout=Rollouts(count=2), learner=Seats(count=2), critic=Seats(count=2))
CFG = replace(PPO, iterations=2, timeout=60.0)


def asked(actors: Actors, **cluster: Any) -> Config:
    cfg = config(replace(CFG, actors=actors))
    return replace(cfg, cluster=replace(cfg.cluster, **cluster))


def ended(before: Before, cfg: Config, folder: Path) -> tuple[str, list[dict[str, Any]]]:
    """(the digest of the weights that a run exports, its metrics)."""
    with closing(before.start(cfg)) as graph:
        before.learn(graph, cfg, folder)
    return sha256(folder / "model.safetensors"), told(folder)


def pids(graph: Graph, role: str) -> list[int]:
    return ray.get(graph.roles[role].__ray_call__.remote(_pids))


def _pids(actor: Any) -> list[int]:
    import os

    return [os.getpid(), *ray.get([other.__ray_call__.remote(lambda _: os.getpid()) for other in actor.others])]


@pytest.mark.ray
@pytest.mark.slow
def test_two_ranks_give_the_bits_of_one(ray_cluster: None, before: Before, tmp_path: Path) -> None:
    one = ended(before, asked(PPO.actors, deterministic=True), tmp_path / "one")
    cfg = asked(TWO, deterministic=True)
    folder = tmp_path / "two"
    with closing(before.start(cfg)) as graph:
        numbers = {role: pids(graph, role) for role in ("learner", "critic")}
        assert [len(each) for each in numbers.values()] == [2, 2]
        victim = psutil.Process(numbers["learner"][1])
        batch_seen = graph.update

        def update(*args: Any) -> Mapping[str, float]:
            if args[0].version == 1 and victim.is_running():
                victim.send_signal(signal.SIGKILL)  # rank 1 dies before the second update
            return batch_seen(*args)

        graph.update = update  # type: ignore[method-assign,assignment]
        before.learn(graph, cfg, folder)
        assert graph.supervisor.posts["learner"].place is not None
        assert pids(graph, "learner")[0] != numbers["learner"][0]  # both ranks are new
    assert (sha256(folder / "model.safetensors"), told(folder)) == one
    _gone, alive = psutil.wait_procs([psutil.Process(p) for p in numbers["critic"] if psutil.pid_exists(p)], timeout=10)
    assert not alive, "a rank outlives its graph"


@pytest.mark.ray
@pytest.mark.slow
def test_ranks_may_spread_the_weights(ray_cluster: None, before: Before, tmp_path: Path) -> None:
    """FSDP2 and experts over two ranks: the same to rounding, and a folder that one rank goes on from."""
    _, alone = ended(before, asked(PPO.actors), tmp_path / "one")
    ranks = Actors(rollout=Rollouts(count=1), learner=Seats(count=2), critic=Seats(count=2))
    ways: dict[str, dict[str, Any]] = {
        "sharded": {"shard": True},
        "experts": {"workers": 2, "expert_parallel": 2},
        "rows": {},
    }
    for name, cluster in ways.items():
        _, lines = ended(before, asked(ranks, **cluster), tmp_path / name)
        for mine, theirs in zip(lines, alone, strict=True):
            assert mine.keys() == theirs.keys()
            for metric in ("actor/pg_loss", "actor/grad_norm", "critic/vf_loss"):
                assert mine[metric] == pytest.approx(theirs[metric], rel=2e-3, abs=2e-5), (name, metric)


@pytest.mark.parametrize(
    ("actors", "cluster", "micro_tokens", "why"),
    [
        (
            Actors(learner=Seats(count=3)),
            {"deterministic": True},
            0,
            "ppo.actors.learner.count=3 must divide cluster.",
        ),
        (Actors(critic=Seats(count=2)), {"expert_parallel": 4, "workers": 4}, 0, "ppo.actors.critic.count=2 must div"),
        (Actors(learner=Seats(count=2)), {"gpus_per_worker": 0.5}, 0, "ppo.actors.learner.count=2 needs a GPU or mo"),
        (Actors(learner=Seats(count=2, gpus=0.5)), {}, 0, "ppo.actors.learner.count=2 needs a GPU or more for each"),
        (Actors(critic=Seats(count=2)), {}, 64, "ppo.micro_tokens makes each of ppo.actors.critic.count=2 ranks its"),
    ],
)
def test_ranks_that_cannot_work_together_are_refused(
    actors: Actors, cluster: dict[str, Any], micro_tokens: int, why: str
) -> None:
    cfg = Config(ppo=replace(CFG, actors=actors, micro_tokens=micro_tokens), cluster=Cluster(**cluster))
    with pytest.raises(InputError) as refused:
        placement.check(cfg)
    assert str(refused.value).startswith(why)


def test_every_rank_learns_from_rows_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    actor = Trained(tiny.decoder(), 1e-3, replace(CFG, epochs=1, minibatches=2), Precision.fp32, 0, 1, "cpu")
    batch = tiny.random_batch(6)
    rows: list[list[list[int]]] = []  # of each rank's minibatches
    for rank, ranks in ((0, 1), (0, 2), (1, 2)):
        monkeypatch.setattr(trained, "own_rank", lambda rank=rank: rank)
        monkeypatch.setattr(trained, "world_size", lambda ranks=ranks: ranks)
        rows.append([part["position"].tolist() for part in actor._minibatches(batch, {})])
    assert rows == [[[0, 1, 2]] * 2, [[0, 2]] * 2, [[1]] * 2]


@pytest.mark.parametrize(("deterministic", "slots"), [(True, 2), (False, 0)])
def test_rows_are_dealt_over_slots_where_any_number_of_ranks_must_agree(
    monkeypatch: pytest.MonkeyPatch, deterministic: bool, slots: int
) -> None:
    def gradients(*_: Any, slots: int, **others: Any) -> None:
        raise InputError(str(slots))

    cluster = Cluster(deterministic=deterministic, slots=2)
    actor = Trained(tiny.decoder(), 1e-3, CFG, Precision.fp32, 0, 1, "cpu", cluster)
    monkeypatch.setattr(trained, "gradients", gradients)
    batch = tiny.random_batch()
    with pytest.raises(InputError, match=f"^{slots}$"):
        actor._learn("actor", batch, {"advantages": batch.mask, "reference": batch.logprobs}, policy_of)


def policy_of(number: int) -> Any:
    return policy_objective(CFG, None)


def test_a_role_asks_for_what_its_knobs_say_and_else_for_the_runs() -> None:
    run = Cluster(cpus_per_worker=2.0, gpus_per_worker=1.0)
    assert placement._bundle(Seat(), run) == {"CPU": 2.0, "GPU": 1.0}
    assert placement._bundle(Seat(cpus=0.5, gpus=0.0), run) == {"CPU": 0.5}
    assert placement._bundle(Seat(gpus=0.25), Cluster()) == {"CPU": 0.5, "GPU": 0.25}
    with pytest.raises(InputError, match=r"^ppo.actors.critic.gpus=1.5 must be whole GPUs"):
        Actors(critic=Seats(gpus=1.5))
    with pytest.raises(InputError, match=r"^ppo.actors.rollout.count=0 must be greater than 0"):
        Actors(rollout=Rollouts(count=0))


PLANTED = [  # promise, file, right code, bug, test
    (
        "two ranks give the bits of one",
        "rlhf/actors/trained.py",
        "slots=self.slots,",
        "slots=0,",
        "test_rows_are_dealt_over_slots_where_any_number_of_ranks_must_agree",
    ),
    (
        "every rank learns from rows of its own",
        "rlhf/actors/trained.py",
        "own = slice(own_rank(), None, world_size())",
        "own = slice(None)",
        "test_every_rank_learns_from_rows_of_its_own",
    ),
    (
        "a rank that dies is a loss, not an error of the learner's",
        "rlhf/supervisor.py",
        " and not rank_lost",
        "",
        "test_two_ranks_give_the_bits_of_one",
    ),
]
