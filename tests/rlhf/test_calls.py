"""Remote calls: whoever fails or is silent is named, and a user's error stays one."""

import time
from collections.abc import Iterator
from typing import Any

import pytest
import ray
from ray.actor import ActorHandle

from conf.errors import InputError
from rlhf.calls import ActorFailed, Call, pooled, wait

pytestmark = pytest.mark.ray


class Worker:
    def __init__(self, *, refuse: bool = False) -> None:
        if refuse:
            raise InputError("data.jsonl line 3: no field 'text'; try another")

    def double(self, number: int) -> int:
        return 2 * number

    def wait_for(self, seconds: float) -> float:
        time.sleep(seconds)
        return seconds

    def refuse(self) -> None:
        raise InputError("ppo.lr=1e9: no finite step; try a lower one")

    def fail(self) -> None:
        raise KeyError("a bug")

    def take(self, given: Any) -> Any:
        return given


def started(*args: Any, **named: Any) -> ActorHandle:
    return ray.remote(Worker).options(num_cpus=0.1, max_restarts=0).remote(*args, **named)


@pytest.fixture(scope="module")
def workers(ray_cluster: None) -> Iterator[list[ActorHandle]]:
    made = [started() for _ in range(2)]
    ray.get([actor.__ray_ready__.remote() for actor in made])
    yield made
    for actor in made:
        ray.kill(actor)


def test_results_come_in_the_order_of_the_calls(workers: list[ActorHandle]) -> None:
    first, second = workers
    calls = [Call("a", "wait_for", first.wait_for.remote(0.2)), Call("b", "double", second.double.remote(4))]
    assert wait(calls, 30, knob="ppo.timeout") == [0.2, 8]


def test_the_silent_are_named_with_the_knob(workers: list[ActorHandle]) -> None:
    first, second = workers
    calls = [
        Call("learner", "update", first.wait_for.remote(1.5)),
        Call("critic", "update", second.double.remote(1)),
    ]
    began = time.monotonic()
    with pytest.raises(ActorFailed, match=r"^learner.update: no answer within ppo.timeout=0.5 seconds$"):
        wait(calls, 0.5, knob="ppo.timeout")
    assert time.monotonic() - began < 1.4
    wait(calls, 30, knob="ppo.timeout")


def test_a_dead_actor_is_named_at_once_though_another_is_silent(ray_cluster: None) -> None:
    slow, gone = started(), started()
    silent = Call("rollout 0", "generate", slow.wait_for.remote(60.0))
    dead = Call("rollout 1", "generate", gone.wait_for.remote(60.0))
    ray.kill(gone)
    began = time.monotonic()
    with pytest.raises(ActorFailed, match=r"^rollout 1.generate: the actor died \(.+\)$"):
        wait([silent, dead], 15, knob="ppo.timeout")
    assert time.monotonic() - began < 14
    ray.kill(slow)


def test_a_users_error_stays_one_and_a_bug_a_bug(workers: list[ActorHandle]) -> None:
    with pytest.raises(InputError) as error:
        wait([Call("learner", "update", workers[0].refuse.remote())], 30, knob="ppo.timeout")
    assert type(error.value) is InputError and str(error.value) == "ppo.lr=1e9: no finite step; try a lower one"
    with pytest.raises(KeyError, match="a bug"):
        wait([Call("learner", "update", workers[0].fail.remote())], 30, knob="ppo.timeout")


def test_what_a_constructor_refuses_is_told(ray_cluster: None) -> None:
    refused = started(refuse=True)
    with pytest.raises(InputError) as error:
        wait([Call("reward", "start", refused.__ray_ready__.remote())], 60, knob="ppo.timeout")
    assert str(error.value) == "data.jsonl line 3: no field 'text'; try another"


def test_who_was_to_give_an_argument_is_blamed_for_it(workers: list[ActorHandle]) -> None:
    gone = started()
    weights = gone.wait_for.remote(60.0)
    ray.kill(gone)
    calls = [Call(f"rollout {n}", "load_weights", actor.take.remote(weights)) for n, actor in enumerate(workers)]
    with pytest.raises(ActorFailed, match=r"^learner.weights: the actor died"):
        wait(calls, 30, knob="ppo.timeout", before=[Call("learner", "weights", weights)])
    refused = workers[1].refuse.remote()
    with pytest.raises(InputError, match="^ppo.lr=1e9: no finite step"):
        wait(
            [Call("rollout 0", "load_weights", workers[0].take.remote(refused))],
            30,
            knob="ppo.timeout",
            before=[Call("learner", "weights", refused)],
        )


def test_a_pool_gives_the_results_of_all_jobs(workers: list[ActorHandle]) -> None:
    pool = dict(zip("ab", workers, strict=True))
    found = pooled(pool, "double", ((number,) for number in range(20)), 30, knob="rank.timeout")
    assert sorted(found) == [2 * number for number in range(20)]
    assert list(pooled(pool, "double", [], 30, knob="rank.timeout")) == []


def test_a_pools_free_actor_takes_the_next_job(workers: list[ActorHandle]) -> None:
    pool = dict(zip("ab", workers, strict=True))
    seconds = [1.5, 0.1, 0.1, 0.1, 0.1]
    began = time.monotonic()
    assert list(pooled(pool, "wait_for", ((each,) for each in seconds), 30, knob="rank.timeout"))[-1] == 1.5
    assert time.monotonic() - began < 1.9


def test_a_pools_late_actor_is_named(workers: list[ActorHandle]) -> None:
    pool = dict(zip("ab", workers, strict=True))
    with pytest.raises(ActorFailed, match=r"^[ab].wait_for: no answer within rank.timeout=0.7 seconds$"):
        list(pooled(pool, "wait_for", [(0.0,), (2.0,), (0.0,)], 0.7, knob="rank.timeout"))
    ray.get([actor.double.remote(1) for actor in workers])


PLANTED = [  # promise, file, right code, bug, test
    (
        "a silent actor is not waited for for ever",
        "rlhf/calls.py",
        "if not ready:\n            silent",
        "if not pending:\n            silent",
        "test_the_silent_are_named_with_the_knob",
    ),
    (
        "a dead actor is told before the deadline of a silent one",
        "rlhf/calls.py",
        "ray.wait(list(pending), num_returns=1,",
        "ray.wait(list(pending), num_returns=len(pending),",
        "test_a_dead_actor_is_named_at_once_though_another_is_silent",
    ),
    (
        "what a constructor refuses is the user's error",
        "rlhf/calls.py",
        "return InputError(told[1].strip())",
        "pass",
        "test_what_a_constructor_refuses_is_told",
    ),
    (
        "who failed first is blamed",
        "rlhf/calls.py",
        "_raise_if_failed(earlier)",
        "pass",
        "test_who_was_to_give_an_argument_is_blamed_for_it",
    ),
    (
        "a pool does every job",
        "rlhf/calls.py",
        "free.append(call.actor)",
        "pass",
        "test_a_pool_gives_the_results_of_all_jobs",
    ),
]
