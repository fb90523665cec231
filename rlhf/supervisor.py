"""Keeps the actors of a graph alive: one that dies, hangs or gives what cannot be is ended and started again.

One without state (rollout, reward, reference) then gets the calls that it still owes, and only those, as they were. The
state of one that has some (learner, critic) is gone: `Lost` is raised, and `surviving` has the work done again, which
goes on from the newest checkpoint.
"""

import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import ray
from ray.actor import ActorHandle
from ray.exceptions import RayError, RayTaskError

from rlhf.actors.calls import ActorFailed, RankLost, reason, refused
from rlhf.actors.place import Place, kill, last_lines, whereabouts


class Lost(ActorFailed):
    """An actor that has state is gone, and its state with it."""


def _fits(found: Any) -> str:
    return ""


@dataclass(frozen=True)
class Ask:
    """A call, as often as it is needed: the same arguments give the same result."""

    actor: str
    method: str
    args: tuple[Any, ...] = ()
    unfit: Callable[[Any], str] = _fits  # of the result: why it cannot be; "" where it can
    kept: bool = (
        False  # it gives two things; the second, which may be large, is not fetched: the result is its reference
    )
    starts: bool = False  # it makes more actors, and has as long as a start
    first: tuple[str, tuple[Any, ...]] | None = None  # (method, args) of what the actor does before, each time

    def to(self, handle: ActorHandle) -> tuple[Any, Any]:
        """Make the call: (the reference that says how it ended, what the result is or None if that is its value)."""
        if self.first:
            before, args = self.first
            getattr(handle, before).remote(*args)  # where that fails, the call does
        method = getattr(handle, self.method)
        if self.kept:
            said, rest = method.options(num_returns=2).remote(*self.args)
            return said, rest
        return method.remote(*self.args), None


@dataclass
class Post:
    """A role in the graph, and the actor that has it."""

    make: Callable[[], ActorHandle]
    state: bool  # whether the actor has state that cannot be given to another
    handle: ActorHandle | None = None
    place: Place | None = None
    restarts: int = 0  # since the last iteration that was new
    gone: str = ""  # why the actor with its state is gone


@dataclass
class _Open:
    """A call that is not answered yet."""

    number: int
    ask: Ask
    handle: ActorHandle
    rest: Any
    since: float


class _Failed(Exception):
    """A call, or a start, that came to nothing."""

    def __init__(self, why: str, error: Exception | None = None) -> None:
        super().__init__(why)
        self.why, self.error = why, error


class Supervisor:
    """Of the actors in `posts`, by name.

    An actor has `start_timeout` seconds to be there, and a call `timeout`. One may be started again `restarts` times
    until `progressed` is called; `section` has these two knobs. `fresh` gives the calls that bring a new actor without
    state to where the one before it was.
    """

    def __init__(
        self,
        posts: Mapping[str, Post],
        *,
        timeout: float,
        restarts: int,
        start_timeout: float = 600.0,
        section: str = "ppo",
        fresh: Callable[[str], Sequence[Ask]] = lambda _: (),
    ) -> None:
        self.posts, self.timeout, self.restarts, self._fresh = dict(posts), timeout, restarts, fresh
        self.start_timeout, self.section = start_timeout, section

    def start(self) -> None:
        """Start every actor. Raises `InputError` for what a constructor refuses."""
        try:
            self._start(list(self.posts))
        except BaseException:
            self.close()
            raise

    def ask(self, asks: Sequence[Ask]) -> list[Any]:
        """The results, in order, whoever has to be started again for them. Raises as `finish` does."""
        return self.finish(self.begin(asks))

    def begin(self, asks: Sequence[Ask]) -> dict[Any, _Open]:
        """Make the calls, for `finish`; others may be asked meanwhile."""
        pending: dict[Any, _Open] = {}
        for number, one in enumerate(asks):
            self._issue(pending, number, one)
        return pending

    def finish(self, pending: dict[Any, _Open]) -> list[Any]:
        """The results of what `begin` asked, in order, whoever has to be started again for them.

        Raises `Lost` for an actor with state that dies or is silent, and `ActorFailed`, or the user's own error, where
        one without was started again too often.
        """
        results: dict[int, Any] = {}
        for call in pending.values():  # others may have been waited for since it was made
            call.since = time.monotonic()
        while pending:
            call, found = self._next(pending)
            results[call.number] = found
        return [results[number] for number in sorted(results)]

    def share(
        self, names: Iterable[str], method: str, jobs: Iterable[tuple[Any, ...]], unfit: Callable[..., str]
    ) -> Iterator[Any]:
        """The results of `method(*job)`, each from whichever of the actors is free, as they come; `unfit(*job, found)`
        says why one cannot be. A job whose actor fails is done by the one that takes its place. Raises as `ask`."""
        waiting, free = iter(jobs), list(names)
        pending: dict[Any, _Open] = {}
        while True:
            while free and (job := next(waiting, None)) is not None:
                self._issue(pending, 0, Ask(free.pop(), method, job, partial(unfit, *job)))
            if not pending:
                return
            call, found = self._next(pending)
            free.append(call.ask.actor)
            yield found

    def mend(self) -> None:
        """Start the actors again whose state is gone; they are as they were made."""
        for name, post in self.posts.items():
            if post.gone:
                self._again(name, _Failed(post.gone), told=post.gone)
                post.gone = ""

    def renew(self, name: str) -> None:
        """Another actor, as it was made, for one that nothing is wrong with."""
        self._end(self.posts[name])
        self._start([name])

    def progressed(self) -> None:
        """An iteration is done that was not before: who was started again for it may be so for the next."""
        for post in self.posts.values():
            post.restarts = 0

    def close(self) -> None:
        """End every actor."""
        for post in self.posts.values():  # all are asked before one is waited for
            if post.handle is not None:
                ray.kill(post.handle)
        for post in self.posts.values():
            self._end(post)

    def _issue(self, pending: dict[Any, _Open], number: int, ask: Ask) -> None:
        handle = self._there(ask.actor)
        said, rest = ask.to(handle)
        pending[said] = _Open(number, ask, handle, rest, time.monotonic())

    def _next(self, pending: dict[Any, _Open]) -> tuple[_Open, Any]:
        """One of the pending calls, which is answered then, and its result."""
        while True:
            until = min(call.since for call in pending.values()) + self.timeout
            ready, _ = ray.wait(list(pending), num_returns=1, timeout=max(0.0, until - time.monotonic()))
            said = ready[0] if ready else min(pending, key=lambda ref: pending[ref].since)
            call = pending.pop(said)
            try:
                if not ready:
                    raise _Failed(f"no answer within {self.section}.timeout={self.timeout:g} seconds")
                return call, self._result(call.ask, said, call.rest)
            except _Failed as failed:
                waited = f" after {time.monotonic() - call.since:.1f} seconds" if ready else ""
                failed.why = f"{call.ask.actor}.{call.ask.method}: {failed.why}{waited}"
                self._replace(call, failed)
                self._issue(pending, call.number, call.ask)

    def _there(self, name: str) -> ActorHandle:
        post = self.posts[name]
        if post.gone:
            raise Lost(post.gone)
        if post.handle is None:
            raise ActorFailed(f"{name}: it was ended")
        return post.handle

    def _result(self, ask: Ask, said: Any, rest: Any) -> Any:
        """What a call that is answered gave."""
        try:
            found = ray.get(said)
        except RayError as error:
            raise _Failed(reason(error), error) from error
        if why := ask.unfit(found):
            raise _Failed(why)
        return rest if ask.kept else found

    def _replace(self, call: _Open, failed: _Failed) -> None:
        """See to it that the call can be made again."""
        post = self.posts[call.ask.actor]
        if post.state:
            if failed.error is not None and (theirs := refused(failed.error)):
                raise theirs from failed.error
            rank_lost = isinstance(failed.error, RankLost)
            if isinstance(failed.error, RayTaskError) and not rank_lost:  # what it raised once it would raise again
                raise failed.error
            if post.handle is call.handle:
                post.gone = f"{failed.why}; {last_lines(post.place)}"
                self._end(post)
            raise Lost(post.gone or failed.why) from failed.error
        if post.handle is call.handle:  # else another of its calls has seen to it
            self._again(call.ask.actor, failed, told=f"{failed.why}; {last_lines(post.place)}")

    def _again(self, name: str, failed: _Failed, told: str) -> None:
        """Another actor for one that failed. Raises what it failed with where that happened too often."""
        post = self.posts[name]
        while True:
            self._end(post)
            knob = f"{self.section}.restarts={self.restarts}"
            if post.restarts >= self.restarts:
                theirs = refused(failed.error) if failed.error else None
                raise theirs or ActorFailed(f"{told}; {knob} does not allow another") from failed.error
            post.restarts += 1
            count = f"{post.restarts} of {knob}"
            print(f"{told}; it is started again ({count})", file=sys.stderr, flush=True)
            try:
                self._make([name])
                self._settle(name, time.monotonic() + self.start_timeout)
                return
            except _Failed as another:
                failed, told = another, f"{another.why}; {last_lines(post.place)}"

    def _start(self, names: Sequence[str]) -> None:
        self._make(names)
        until = time.monotonic() + self.start_timeout
        for name in names:
            try:
                self._settle(name, until)
            except _Failed as failed:
                self._again(name, failed, told=f"{failed.why}; {last_lines(self.posts[name].place)}")

    def _make(self, names: Sequence[str]) -> None:
        for name in names:
            self.posts[name].handle, self.posts[name].place = self.posts[name].make(), None

    def _settle(self, name: str, until: float) -> None:
        """Wait for a new actor, and bring it to where the one before it was."""
        post = self.posts[name]
        assert post.handle is not None
        first = Ask(name, "__ray_call__", (whereabouts,))
        for ask in [first, *self._fresh(name)]:
            start = ask is first or ask.starts
            within = until - time.monotonic() if start else self.timeout
            title = f"{name}.start" if ask is first else f"{name}.{ask.method}"
            knob = f"cluster.start_timeout={self.start_timeout:g}" if start else f"{self.section}.timeout={within:g}"
            said, rest = ask.to(post.handle)
            if not ray.wait([said], timeout=max(0.0, within))[0]:
                raise _Failed(f"{title}: no answer within {knob} seconds")
            try:
                found = self._result(ask, said, rest)
            except _Failed as failed:
                if failed.error is not None and ask is first and (theirs := refused(failed.error)):
                    raise theirs from failed.error
                failed.why = f"{title}: {failed.why}"
                raise
            if ask is first:
                post.place = found

    def _end(self, post: Post) -> None:
        """End the actor, a stopped one too."""
        if post.handle is not None:
            ray.kill(post.handle)
            if post.place is not None and post.place.node == ray.get_runtime_context().get_node_id():
                kill(post.place)
        post.handle = None


def surviving(work: Callable[[], None], *, ended: Callable[[], bool] = lambda: False) -> None:
    """Do `work`, which goes on from the newest checkpoint, again as often as an actor with state is lost in it, unless
    it is to have `ended` by then."""
    while True:
        try:
            return work()
        except Lost:
            if ended():  # how often is for `Supervisor.mend` to say
                return
        except ActorFailed as failed:
            raise ActorFailed(f"{failed}; the same command continues from the newest checkpoint") from failed
