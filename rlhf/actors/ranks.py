"""An actor that is one of several processes: rank 0, which the graph asks, asks the others, actors of its own that end
with it. They share each update as the workers of a supervised stage share a step."""

from collections.abc import Callable, Mapping, Sequence
from functools import wraps
from typing import Any, Concatenate, ParamSpec, TypeVar, cast

import ray
import torch.distributed as dist
from ray.actor import ActorHandle
from ray.exceptions import RayActorError
from torch.distributed.distributed_c10d import Store

from conf.errors import InputError
from moe.training.parallel import own_rank
from rlhf.actors.calls import RankLost, reason

_HEARD = 10.0  # seconds in which Ray tells of a death that the connection has told of at once
P = ParamSpec("P")
R = TypeVar("R")
A = TypeVar("A", bound="Ranked")


class Ranked:
    """What can become rank 0 of several by `lead`. Alone it is as any other actor."""

    others: Sequence[ActorHandle] = ()  # of rank 0: ranks 1 and up

    def lead(self, kind: type, args: Sequence[Any], options: Sequence[Mapping[str, Any]], device: str) -> int:
        """Make the other ranks, each a `kind(*args)` with its `options` for Ray, and form a process group with them;
        returns how many ranks there are. Whoever fails on the way fails this call."""
        world = 1 + len(options)
        self.others = [ray.remote(kind).options(**each).remote(*args) for each in options]
        ray.get([other.__ray_ready__.remote() for other in self.others])
        host = ray.util.get_node_ip_address()
        self._store = _store(host, 0, world, is_master=True)
        joined = [
            other.join.remote((host, self._store.port), rank, world, device)
            for rank, other in enumerate(self.others, 1)
        ]
        self._join(self._store, 0, world, device)
        ray.get(joined)
        return world

    def join(self, address: tuple[str, int], rank: int, world: int, device: str) -> None:
        """Become one of the other ranks."""
        self._store = _store(*address, world, is_master=False)
        self._join(self._store, rank, world, device)

    def _join(self, store: Store, rank: int, world: int, device: str) -> None:
        backend = "gloo" if device == "cpu" else "cpu:gloo,cuda:nccl"
        dist.init_process_group(backend, store=store, rank=rank, world_size=world)
        self.joined()

    def joined(self) -> None:
        """Called on every rank when the group is there."""


def _store(host: str, port: int, world: int, *, is_master: bool) -> Any:
    """Where the ranks find each other; of the master's `port` 0 becomes one that is free."""
    return dist.TCPStore(host, port, world, is_master=is_master, wait_for_workers=False)  # type: ignore[attr-defined]


def together(method: Callable[Concatenate[A, P], R]) -> Callable[Concatenate[A, P], R]:
    """A method of a `Ranked` that every rank takes part in; what it gives is rank 0's, the others send nothing. Raises
    `RankLost` on rank 0 where another rank died."""

    @wraps(method)
    def on_all(self: A, *args: P.args, **kwargs: P.kwargs) -> R:
        shared = [ray.put(arg) for arg in args] if self.others else []
        pending = [getattr(other, method.__name__).remote(*shared, **kwargs) for other in self.others]
        try:
            made = method(self, *args, **kwargs)
        except Exception as error:
            if self.others and not isinstance(error, InputError):  # that one every rank raises alike
                raise _cause(pending) or error from error
            if dist.is_initialized() and not self.others:
                dist.destroy_process_group()  # that the ranks which wait for this one learn of it
            raise
        if pending:  # to wait for nothing would start a Ray of its own where there is none
            _all_ended(pending)
        return made if own_rank() == 0 else cast(R, None)

    return on_all


def _all_ended(pending: Sequence[Any]) -> None:
    try:
        ray.get(pending)
    except RayActorError:
        raise _cause(pending) or RankLost("a rank died") from None


def _cause(pending: Sequence[Any]) -> Exception | None:
    """Why the other ranks could not go on: what one of them raised, or that one died."""
    left = list(pending)
    while left:
        ready, left = ray.wait(left, num_returns=1, timeout=_HEARD)
        if not ready:
            return None
        try:
            ray.get(ready[0])
        except RayActorError as died:
            return RankLost(f"rank {1 + pending.index(ready[0])} of {1 + len(pending)}: {reason(died)}")
        except Exception as raised:
            if not _broken(raised):
                return raised
    return None


def _broken(error: Exception) -> bool:
    """Whether it only tells that another rank has gone."""
    return isinstance(error, RuntimeError) and any(word in str(error) for word in ("gloo", "NCCL", "Connection"))
