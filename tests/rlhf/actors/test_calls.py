"""Remote calls: whoever fails or is silent is named, and a user's error stays one."""

import time
from collections.abc import Iterator
from typing import Any

import pytest
import ray
from ray.actor import ActorHandle
from ray.exceptions import RayError

from conf.errors import InputError
from rlhf.actors.calls import ActorFailed, pooled, reason, refused
from tests.rlhf.workers import put

pytestmark = pytest.mark.ray


@pytest.fixture(scope="module")
def workers(ray_cluster: None) -> Iterator[list[ActorHandle]]:
    made = [put() for _ in range(2)]
    ray.get([actor.__ray_ready__.remote() for actor in made])
    yield made
    for actor in made:
        ray.kill(actor)


def error_of(ref: Any) -> RayError:
    with pytest.raises(RayError) as raised:
        ray.get(ref, timeout=60)
    return raised.value


def test_a_users_error_is_told_from_a_bug(workers: list[ActorHandle]) -> None:
    theirs = refused(error_of(workers[0].refuse.remote()))
    assert type(theirs) is InputError and str(theirs) == "ppo.lr=1e9: no finite step; try a lower one"
    bug = error_of(workers[0].fail.remote())
    assert refused(bug) is None
    assert reason(bug).startswith("KeyError: 'a bug' (workers.py:")


def test_what_a_constructor_refuses_is_the_users(ray_cluster: None) -> None:
    error = error_of(put(refuse=True).__ray_ready__.remote())
    assert str(refused(error)) == "data.jsonl line 3: no field 'text'; try another"


def test_a_death_is_told(ray_cluster: None) -> None:
    gone = put()
    ref = gone.wait_for.remote(60.0)
    ray.kill(gone)
    error = error_of(ref)
    assert refused(error) is None and reason(error).startswith("the actor died (")


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


def test_a_pools_late_actor_is_named_and_a_dead_one(workers: list[ActorHandle]) -> None:
    pool = dict(zip("ab", workers, strict=True))
    with pytest.raises(ActorFailed, match=r"^[ab].wait_for: no answer within rank.timeout=0.7 seconds$"):
        list(pooled(pool, "wait_for", [(0.0,), (2.0,), (0.0,)], 0.7, knob="rank.timeout"))
    ray.get([actor.double.remote(1) for actor in workers])
    with pytest.raises(InputError, match=r"^ppo.lr=1e9: no finite step"):
        list(pooled(pool, "refuse", [()], 30, knob="rank.timeout"))
    gone = put()
    ray.kill(gone)
    with pytest.raises(ActorFailed, match=r"^c.double: the actor died \(.+\)$"):
        list(pooled({"c": gone}, "double", [(1,)], 30, knob="rank.timeout"))


PLANTED = [  # promise, file, right code, bug, test
    (
        "what a constructor refuses is the user's error",
        "rlhf/actors/calls.py",
        "return InputError(told[1].strip()) if told else None",
        "return None",
        "test_what_a_constructor_refuses_is_the_users",
    ),
    (
        "a pool does every job",
        "rlhf/actors/calls.py",
        "free.append(name)",
        "pass",
        "test_a_pool_gives_the_results_of_all_jobs",
    ),
]
