"""Where the actors of the graph run: one placement group, a bundle of it for every process."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from cluster.room import Bundle, check_room
from conf.errors import InputError
from conf.knobs.reinforcement import Ppo, Seat, Seats
from conf.knobs.running import Cluster
from conf.schema import Config

LESS = "ppo.actors.<role>.count, .cpus or .gpus, cluster.cpus_per_worker or cluster.gpus_per_worker"
TRAINED = ("learner", "critic")


@dataclass(frozen=True)
class Placement:
    """What every process of the graph has of the cluster, for as long as the graph is there."""

    cfg: Config
    bundles: dict[tuple[str, int], Bundle]  # by role and number
    group: PlacementGroup

    def device(self, role: str) -> str:
        return "cuda" if self.bundles[role, 0].get("GPU") else "cpu"

    def options(self, role: str, number: int = 0) -> dict[str, Any]:
        """An actor's, for Ray."""
        bundle = self.bundles[role, number]
        index = list(self.bundles).index((role, number))
        return {
            "num_cpus": bundle["CPU"],
            "num_gpus": bundle.get("GPU", 0.0),
            "max_restarts": 0,  # Ray's restart would lose the weights; ours gives them back
            "runtime_env": {"env_vars": {"OMP_NUM_THREADS": str(self.cfg.cluster.threads or 1)}},
            "scheduling_strategy": PlacementGroupSchedulingStrategy(self.group, index),
        }

    def ranks(self, role: str) -> list[dict[str, Any]]:
        """The options of a role's processes beside the first."""
        return [self.options(role, number) for name, number in self.bundles if name == role and number]

    def release(self) -> None:
        remove_placement_group(self.group)


def place(cfg: Config, roles: Sequence[str]) -> Placement:
    """Ask the cluster for what the processes of `roles` need, all at once and close together.

    Raises `InputError` when it has too little, saying what is asked for and what is there.
    """
    bundles: dict[tuple[str, int], Bundle] = {
        (role, number): _bundle(getattr(cfg.ppo.actors, role), cfg.cluster)
        for role in roles
        for number in range(count(cfg.ppo, role))
    }
    check_room(cfg.cluster, list(bundles.values()), "stage rl", less=LESS)
    return Placement(cfg, bundles, placement_group([dict(one) for one in bundles.values()], strategy="PACK"))


def count(cfg: Ppo, role: str) -> int:
    asked = getattr(cfg.actors, role)
    return asked.count if isinstance(asked, Seats) else 1


def check(cfg: Config) -> None:
    """Raise `InputError` for ranks of learner or critic that cannot work together."""
    for role in TRAINED:
        knob, ranks = f"ppo.actors.{role}.count", count(cfg.ppo, role)
        if ranks == 1:
            continue
        if 0 < _bundle(getattr(cfg.ppo.actors, role), cfg.cluster).get("GPU", 0.0) < 1:
            raise InputError(f"{knob}={ranks} needs a GPU or more for each, or none; try ppo.actors.{role}.gpus=1")
        if cfg.cluster.deterministic and cfg.cluster.slots % ranks:
            raise InputError(f"{knob}={ranks} must divide cluster.slots={cfg.cluster.slots}")
        if ranks % cfg.cluster.expert_parallel:
            raise InputError(f"{knob}={ranks} must divide by cluster.expert_parallel={cfg.cluster.expert_parallel}")
        if cfg.ppo.micro_tokens and not cfg.cluster.deterministic:
            raise InputError(
                f"ppo.micro_tokens makes each of {knob}={ranks} ranks its own number of micro-batches, which needs "
                "cluster.deterministic=true; or give ppo.accumulate"
            )


def _bundle(place: Seat, cluster: Cluster) -> dict[str, float]:
    gpus = cluster.gpus_per_worker if place.gpus is None else place.gpus
    return {"CPU": place.cpus or cluster.cpus_per_worker} | ({"GPU": gpus} if gpus else {})
