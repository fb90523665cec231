"""Whether the cluster has room for what a stage asks for: told at once, where Ray would wait for ever in silence."""

import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence

import ray
from ray.util.placement_group import placement_group, remove_placement_group

from conf.errors import InputError
from conf.knobs.running import Cluster

Bundle = Mapping[str, float]  # what one worker or actor asks for, all of it of one node


def bundle(cfg: Cluster) -> dict[str, float]:
    """What each worker and actor of the run asks for."""
    return {"CPU": cfg.cpus_per_worker} | ({"GPU": cfg.gpus_per_worker} if cfg.gpus_per_worker else {})


def check_room(cfg: Cluster, asked: Sequence[Bundle], who: str, *, less: str) -> None:
    """Return when the cluster's nodes could hold everything in `asked` side by side, were they free.

    Where they cannot, wait up to `cluster.wait` seconds for nodes to come, which an autoscaler is asked for; then raise
    `InputError` saying what `who` asks for, what is there and which knobs ask for `less`.
    """
    if fits(asked, nodes()):
        return
    told = f"{who} asks for {in_words(asked)}, and the cluster has {there(nodes())}"
    if cfg.wait:
        print(f"{told}; waiting up to {cfg.wait:g} seconds for more nodes", file=sys.stderr, flush=True)
        if _come(asked, cfg.wait):
            return
    raise InputError(f"{told}; ask for less by {less}, give it more nodes, or wait for them by cluster.wait=600")


def _come(asked: Sequence[Bundle], within: float) -> bool:
    wanted = placement_group([dict(one) for one in asked])  # what an autoscaler looks at
    until = time.monotonic() + within
    try:
        while time.monotonic() < until:
            if wanted.wait(1) or fits(asked, nodes()):
                return True
        return False
    finally:
        remove_placement_group(wanted)


def nodes() -> list[dict[str, float]]:
    """What each living node has in all."""
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def fits(asked: Sequence[Bundle], nodes: Sequence[Bundle]) -> bool:
    """Whether the nodes can hold all of `asked` at once: the largest first, each where it fits first."""
    free = [dict(node) for node in nodes]
    for one in sorted(asked, key=lambda one: (one.get("GPU", 0.0), one.get("CPU", 0.0)), reverse=True):
        place = next(
            (node for node in free if all(node.get(name, 0.0) + 1e-6 >= much for name, much in one.items())), None
        )
        if place is None:
            return False
        place |= {name: place.get(name, 0.0) - much for name, much in one.items()}
    return True


def in_words(asked: Sequence[Bundle]) -> str:
    """'2 x CPU 5 GPU 1, 1 x CPU 0.25'."""
    kinds = Counter(" ".join(f"{name} {much:g}" for name, much in one.items() if much) or "nothing" for one in asked)
    return ", ".join(f"{count} x {kind}" for kind, count in kinds.items())


def there(nodes: Sequence[Bundle]) -> str:
    """'CPU 8 GPU 0', or with several nodes 'CPU 8 GPU 0, CPU 4 GPU 1 on 2 nodes'."""
    have = [f"CPU {node.get('CPU', 0.0):g} GPU {node.get('GPU', 0.0):g}" for node in nodes]
    return ", ".join(have) + (f" on {len(have)} nodes" if len(have) != 1 else "")
