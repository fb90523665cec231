"""Remote calls: whoever fails or is silent is named, and a user's error stays one."""

from collections.abc import Iterator
from typing import Any

import pytest
import ray
from ray.actor import ActorHandle
from ray.exceptions import RayError

from conf.errors import InputError
from rlhf.actors.calls import reason, refused
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


PLANTED = [  # promise, file, right code, bug, test
    (
        "what a constructor refuses is the user's error",
        "rlhf/actors/calls.py",
        "return InputError(told[1].strip()) if told else None",
        "return None",
        "test_what_a_constructor_refuses_is_the_users",
    ),
]
