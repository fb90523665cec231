"""Actors that die, hang or fail are replaced, get only what they still owe, and are named when it happens too often."""

import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
import ray

from conf.errors import InputError
from rlhf.actors.calls import ActorFailed
from rlhf.supervisor import Ask, Lost, Post, Supervisor, surviving
from tests.rlhf.workers import put

pytestmark, SLOW = pytest.mark.ray, pytest.mark.slow
Started = Callable[..., Supervisor]


@pytest.fixture
def started(ray_cluster: None) -> Iterator[Started]:
    made: list[Supervisor] = []

    def start(*names: str, state: bool = False, timeout: float = 30, restarts: int = 2) -> Supervisor:
        posts = {name: Post(put, state) for name in names}
        given = lambda name: [Ask(name, "take", (5,))] if name == "b" else []  # noqa: E731
        made.append(Supervisor(posts, timeout=timeout, restarts=restarts, fresh=given))
        made[-1].start()
        return made[-1]

    yield start
    for supervisor in made:
        supervisor.close()


def place(supervisor: Supervisor, name: str) -> int:
    where = supervisor.posts[name].place
    assert where is not None
    return where.process


def test_results_come_in_the_order_of_the_calls(started: Started) -> None:
    supervisor = started("a", "b")
    assert supervisor.ask([Ask("a", "wait_for", (0.2,)), Ask("b", "double", (4,))]) == [0.2, 8]
    (kept,) = supervisor.ask([Ask("a", "pair", kept=True)])
    assert isinstance(kept, ray.ObjectRef) and ray.get(kept) == "a large thing"


@pytest.mark.parametrize("action", ["die", *(pytest.param(each, marks=SLOW) for each in ("stop", "raise", "answer"))])
def test_another_takes_the_place_of_one_that_fails_and_does_only_what_is_missing(
    started: Started, tmp_path: Path, capfd: pytest.CaptureFixture[str], action: str
) -> None:
    supervisor = started("a", "b", timeout=3 if action == "stop" else 60)
    first, other = place(supervisor, "b"), place(supervisor, "a")
    unfit = lambda found: "" if found == "done" else f"{found!r} is no answer"  # noqa: E731
    ask, began = Ask("b", "once", (tmp_path / "mark", action), unfit=unfit), time.monotonic()
    assert supervisor.ask([Ask("a", "double", (4,)), ask]) == [8, "done"]
    assert time.monotonic() - began < 50
    assert place(supervisor, "a") == other and place(supervisor, "b") != first
    assert not psutil.pid_exists(first) or psutil.Process(first).status() == psutil.STATUS_ZOMBIE
    assert supervisor.ask([Ask("b", "held")]) == [5], "the new one was not brought to where the other was"
    told = {
        "die": "b.once: the actor died (",
        "stop": "b.once: no answer within ppo.timeout=3 seconds; its last log lines: ",
        "raise": "b.once: ZeroDivisionError: by nothing (workers.py:",
        "answer": "b.once: 'nonsense' is no answer after ",
    }
    said = capfd.readouterr().err
    assert told[action] in said and f"about to {action}; it is started again (1 of ppo.restarts=2)" in said


@pytest.mark.slow
def test_a_dead_actor_is_seen_at_once_though_another_is_silent(
    started: Started, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    supervisor = started("a", "b", timeout=60)
    asks = [Ask("a", "wait_for", (8.0,)), Ask("b", "once", (tmp_path / "mark", "die"))]
    assert supervisor.ask(asks) == [8.0, "done"]
    seen = re.search(r"b.once: the actor died .* after ([\d.]+) seconds; ", capfd.readouterr().err)
    assert seen and float(seen[1]) < 7


def test_who_is_started_again_too_often_is_named_with_its_last_lines(started: Started, tmp_path: Path) -> None:
    supervisor = started("a", restarts=1)
    with pytest.raises(ActorFailed) as failed:
        supervisor.ask([Ask("a", "always", (tmp_path / "mark",))])
    assert (tmp_path / "mark").read_text() == "xx"  # and no third time
    said = str(failed.value)
    assert said.startswith("a.always: the actor died (") and "\n" not in said
    assert said.endswith("one line | and the last one; ppo.restarts=1 does not allow another")
    assert not isinstance(failed.value, Lost)


@pytest.mark.slow
def test_who_made_progress_may_fail_again(started: Started, tmp_path: Path) -> None:
    supervisor = started("a", restarts=1)
    assert supervisor.ask([Ask("a", "once", (tmp_path / "1", "die"))]) == ["done"]
    supervisor.progressed()
    assert supervisor.ask([Ask("a", "once", (tmp_path / "2", "die"))]) == ["done"]
    with pytest.raises(ActorFailed, match="does not allow another$"):
        supervisor.ask([Ask("a", "once", (tmp_path / "3", "die"))])


@pytest.mark.slow
def test_what_always_fails_is_told_after_others_tried(started: Started) -> None:
    supervisor = started("a", restarts=1)
    with pytest.raises(ActorFailed, match=r"^a.fail: KeyError: 'a bug' \(workers.py:\d+\) after "):
        supervisor.ask([Ask("a", "fail")])
    supervisor.progressed()
    supervisor.renew("a")
    with pytest.raises(InputError) as error:
        supervisor.ask([Ask("a", "refuse")])
    assert type(error.value) is InputError and str(error.value) == "ppo.lr=1e9: no finite step; try a lower one"


def test_an_actor_with_state_is_lost_and_only_mended_when_asked(started: Started, tmp_path: Path) -> None:
    supervisor = started("a", "b", state=True)
    supervisor.ask([Ask("a", "take", (3,))])
    with pytest.raises(Lost, match=r"^b.once: the actor died \("):
        supervisor.ask([Ask("a", "double", (1,)), Ask("b", "once", (tmp_path / "mark", "die"))])
    with pytest.raises(Lost, match=r"^b.once: the actor died \("):  # it stays so
        supervisor.ask([Ask("b", "held")])
    supervisor.mend()
    assert supervisor.ask([Ask("a", "held"), Ask("b", "held")]) == [3, 5]
    with pytest.raises(KeyError, match="a bug"):  # what it raised once it would raise again
        supervisor.ask([Ask("a", "fail")])
    supervisor.renew("a")
    assert supervisor.ask([Ask("a", "held")]) == [0]


def test_whoever_is_free_does_the_next_job_and_what_one_owes_who_died_is_done_in_its_place(
    started: Started, tmp_path: Path
) -> None:
    supervisor = started("a", "b")
    jobs = [(number, tmp_path, "die" if number == 3 else "") for number in range(8)]
    right = lambda number, notes, action, found: "" if found == 2 * number else "another's result"  # noqa: E731
    assert sorted(supervisor.share("ab", "noted", iter(jobs), right)) == [2 * number for number in range(8)]
    asked = (tmp_path / "asked").read_text().split()
    assert sorted(asked) == sorted([*map(str, range(8)), "3"])  # none lost, none twice but the one that was not heard
    assert list(supervisor.share("ab", "noted", [], right)) == []
    began = time.monotonic()
    seconds = [(1.5,), *[(0.1,)] * 5]
    assert list(supervisor.share("ab", "wait_for", seconds, lambda *_: ""))[-1] == 1.5
    assert time.monotonic() - began < 1.9


def test_who_is_not_there_in_time_is_named_with_the_knob(ray_cluster: None) -> None:
    supervisor = Supervisor(
        {"a": Post(lambda: put(asleep=60.0), False)}, timeout=30, restarts=0, start_timeout=0.5, section="rank"
    )
    with pytest.raises(ActorFailed) as late:
        supervisor.start()
    assert str(late.value) == (
        "a.start: no answer within cluster.start_timeout=0.5 seconds; no log of it; rank.restarts=0 does not allow "
        "another"
    )


@pytest.mark.slow
def test_work_is_done_again_until_it_is_done(started: Started, tmp_path: Path) -> None:
    supervisor = started("a", state=True, restarts=1)
    tries: list[int] = []

    def work() -> None:
        supervisor.mend()
        tries.append(len(tries))
        supervisor.ask([Ask("a", "always", (tmp_path / "mark",))])

    with pytest.raises(ActorFailed, match="; ppo.restarts=1 does not allow another; the same command continues from"):
        surviving(work)
    assert tries == [0, 1]
    supervisor.progressed()
    surviving(work, ended=lambda: True)
    assert tries == [0, 1, 2]


def test_what_a_constructor_refuses_is_told(ray_cluster: None) -> None:
    supervisor = Supervisor({"a": Post(lambda: put(refuse=True), False)}, timeout=30, restarts=2)
    with pytest.raises(InputError) as error:
        supervisor.start()
    assert str(error.value) == "data.jsonl line 3: no field 'text'; try another"


PLANTED = [  # promise, file, right code, bug, test
    (
        "every job is done",
        "rlhf/supervisor.py",
        "            free.append(call.ask.actor)\n",
        "",
        "test_whoever_is_free_does_the_next_job_and_what_one_owes_who_died_is_done_in_its_place",
    ),
    (
        "an actor has the time that the knob gives it to be there",
        "rlhf/supervisor.py",
        "until = time.monotonic() + self.start_timeout",
        "until = time.monotonic() + 600.0",
        "test_who_is_not_there_in_time_is_named_with_the_knob",
    ),
    (
        "a silent actor is not waited for for ever",
        "rlhf/supervisor.py",
        "timeout=max(0.0, until - time.monotonic()))\n            said",
        "timeout=60.0)\n            said",
        "test_another_takes_the_place_of_one_that_fails_and_does_only_what_is_missing[stop]",
    ),
    (
        "a dead actor is told before the deadline of a silent one",
        "rlhf/supervisor.py",
        "ray.wait(list(pending), num_returns=1,",
        "ray.wait(list(pending), num_returns=len(pending),",
        "test_a_dead_actor_is_seen_at_once_though_another_is_silent",
    ),
    (
        "an actor is not started again for ever",
        "rlhf/supervisor.py",
        "if post.restarts >= self.restarts:",
        "if post.restarts > 9:",
        "test_who_is_started_again_too_often_is_named_with_its_last_lines",
    ),
    (
        "a new rollout actor gets the weights of the one before it",
        "rlhf/supervisor.py",
        "for ask in [first, *self._fresh(name)]:",
        "for ask in [first]:",
        "test_another_takes_the_place_of_one_that_fails_and_does_only_what_is_missing",
    ),
    (
        "an actor whose state is gone is not asked as if it had it",
        "rlhf/supervisor.py",
        "        if post.state:\n",
        "        if False:\n",
        "test_an_actor_with_state_is_lost_and_only_mended_when_asked",
    ),
]
