"""The graph without Ray: each actor is an object of this process, which does at once what is asked of it.

What the loop makes of its actors' answers takes a second this way; that they may die is tested with Ray.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest

from conf.schema import Config
from rlhf import graph as graph_module
from rlhf.graph import Graph
from rlhf.messages import Weights
from rlhf.supervisor import Ask, Post
from tests.rlhf.graphs import Before


class Obedient:
    """As `rlhf.supervisor.Supervisor`, of actors that never fail."""

    def __init__(self, posts: Mapping[str, Post], **_: Any) -> None:
        self.posts = dict(posts)
        self.asked: list[Ask] = []

    def start(self) -> None:
        for name in self.posts:
            self.renew(name)

    def renew(self, name: str) -> None:
        self.posts[name].handle = self.posts[name].make()

    def ask(self, asks: Sequence[Ask]) -> list[Any]:
        return self.finish(self.begin(asks))

    def finish(self, begun: list[Any]) -> list[Any]:
        return begun

    def begin(self, asks: Sequence[Ask]) -> list[Any]:
        results = []
        for ask in asks:
            self.asked.append(ask)
            actor = self.posts[ask.actor].handle
            if ask.first:
                getattr(actor, ask.first[0])(*ask.first[1])
            found = getattr(actor, ask.method)(*ask.args)
            found = found[1] if ask.kept else found
            assert not (why := ask.unfit(found)), why
            results.append(found)
        return results

    def mend(self) -> None: ...

    def progressed(self) -> None: ...

    def close(self) -> None: ...


class _Remote:
    def __init__(self, kind: Callable[..., Any]) -> None:
        self.remote = kind

    def options(self, **_: Any) -> "_Remote":
        return self


class Nowhere:
    """A placement without a cluster."""

    def __init__(self, on: str = "cpu") -> None:
        self._on = on

    def device(self, role: str) -> str:
        return self._on

    def options(self, role: str, number: int = 0) -> dict[str, Any]:
        return {}

    def ranks(self, role: str) -> list[dict[str, Any]]:
        return []

    def release(self) -> None:
        """There is nothing to give back."""


@contextmanager
def alone(before: Before, cfg: Config, on: str = "cpu") -> Iterator[Graph]:
    """A graph that `cfg` asks for, its actors `on` a device."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(graph_module, "ray", SimpleNamespace(remote=_Remote, put=lambda value: value))
        patched.setattr(graph_module, "Supervisor", Obedient)
        patched.setattr(graph_module, "place", lambda *_: Nowhere(on))
        yield before.start(cfg)


def weights(graph: Graph) -> Weights:
    """The policy's."""
    made: Weights = graph.supervisor.posts["learner"].handle.weights()  # type: ignore[union-attr]
    return made
