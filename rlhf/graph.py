"""The PPO graph on Ray: its actors by role, started as the algorithm needs them, and what is asked of them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from ray.actor import ActorHandle
from torch import Tensor

from cluster.room import bundle, check_room
from conf.knobs.alignment import Advantages
from conf.knobs.model import Precision
from conf.schema import Config
from moe.generation.engine import Sampling
from moe.tasks.task import Sample, Verdict
from rlhf.actors.critic import Critic
from rlhf.actors.learner import Learner
from rlhf.actors.reference import Reference
from rlhf.actors.reward import Reward, Scale
from rlhf.actors.rollout import Rollout
from rlhf.calls import Call, wait
from rlhf.messages import Batch, Request, Response

LESS = "ppo.rollouts, cluster.cpus_per_worker or cluster.gpus_per_worker"  # knobs that lower what is asked for
START_WITHIN = 600.0  # seconds for all actors together, whatever a call may take later


@dataclass(frozen=True)
class Assessed:
    """What the models say of the answers that are learnt from."""

    reference: Tensor  # [B, T] the chat model's log-probs
    model: Tensor | None  # [B] the reward model's scores
    values: Tensor | None  # [B, T] the critic's


@dataclass(frozen=True)
class Graph:
    rollouts: list[ActorHandle]
    reward: ActorHandle
    reference: ActorHandle
    critic: ActorHandle | None  # where advantages need one
    learner: ActorHandle
    scored: bool  # whether the reward actor has a reward model
    timeout: float

    @property
    def trained(self) -> dict[str, ActorHandle]:
        """The actors that hold state."""
        return {"learner": self.learner} | ({"critic": self.critic} if self.critic is not None else {})

    @property
    def roles(self) -> dict[str, ActorHandle]:
        """Every actor by its name."""
        rollouts = {f"rollout {number}": actor for number, actor in enumerate(self.rollouts)}
        return rollouts | {"reward": self.reward, "reference": self.reference} | self.trained

    def rollout(self, requests: Sequence[Request], sampling: Sampling) -> list[Response]:
        """Answers in the order of the requests, which are dealt over the rollout actors."""
        count = len(self.rollouts)
        shares = [list(requests[first::count]) for first in range(count)]
        calls = [
            Call(f"rollout {number}", "generate", actor.generate.remote(share, sampling))
            for number, (actor, share) in enumerate(zip(self.rollouts, shares, strict=True))
            if share
        ]
        made = {response.key: response for responses in self.wait(calls) for response in responses}
        return [made[request.key] for request in requests]

    def judge(self, queries: Sequence[Sample], responses: Sequence[Response]) -> list[Verdict]:
        """The rules' verdict on each answer."""
        (verdicts,) = self.wait([Call("reward", "judge", self.reward.judge.remote(queries, responses))])
        return verdicts

    def score(self, batch: Batch) -> Tensor:
        """The reward model's scores [B]."""
        (scores,) = self.wait([Call("reward", "score", self.reward.score.remote(batch))])
        return scores

    def assess(self, batch: Batch, model: Tensor | None = None) -> Assessed:
        """All models at once; the reward model only where its scores are not there already."""
        shared = ray.put(batch)
        calls = {"reference": Call("reference", "logprobs", self.reference.logprobs.remote(shared))}
        if self.scored and model is None:
            calls["reward"] = Call("reward", "score", self.reward.score.remote(shared))
        if self.critic is not None:
            calls["critic"] = Call("critic", "values", self.critic.values.remote(shared))
        said = dict(zip(calls, self.wait(list(calls.values())), strict=True))
        return Assessed(said["reference"], said.get("reward", model), said.get("critic"))

    def update(self, batch: Batch, advantages: Tensor, returns: Tensor | None, said: Assessed) -> dict[str, float]:
        """One iteration of policy and critic, side by side."""
        shared = ray.put(batch)
        calls = [Call("learner", "update", self.learner.update.remote(shared, advantages, said.reference))]
        if self.critic is not None:
            calls.append(Call("critic", "update", self.critic.update.remote(shared, said.values, returns)))
        stats: dict[str, float] = {}
        for part in self.wait(calls):
            stats |= part
        return stats

    def broadcast(self) -> None:
        """The learner's weights to every rollout actor."""
        weights = self.learner.weights.remote()  # a reference: the array goes from actor to actor
        calls = [
            Call(f"rollout {number}", "load_weights", actor.load_weights.remote(weights))
            for number, actor in enumerate(self.rollouts)
        ]
        self.wait(calls, before=[Call("learner", "weights", weights)])

    def writer(self) -> Callable[[Path], None]:
        """Take a copy of all state now; the function that writes it into a folder, a folder to each role."""
        self.wait([Call(role, "take", actor.take.remote()) for role, actor in self.trained.items()])

        def write(folder: Path) -> None:
            self.wait([Call(role, "write", actor.write.remote(folder / role)) for role, actor in self.trained.items()])

        return write

    def load(self, folder: Path, version: int) -> None:
        self.wait(
            [Call(role, "load", actor.load.remote(folder / role, version)) for role, actor in self.trained.items()]
        )

    def export(self, folder: Path) -> None:
        self.wait([Call("learner", "export", self.learner.export.remote(folder))])

    def wait(self, calls: Sequence[Call], before: Sequence[Call] = ()) -> list[Any]:
        return wait(calls, self.timeout, knob="ppo.timeout", before=before)

    def close(self) -> None:
        """End every actor."""
        for actor in self.roles.values():
            ray.kill(actor)


def start(
    cfg: Config, *, chat: Path, tasks: Path, reward: Path | None, scale: Scale | None, precision: Precision
) -> Graph:
    """Start every actor that the algorithm needs. Each has one torch thread: it is the actors that run side by side.

    Raises `InputError` when the cluster has too little for them, saying what is asked for and what is there.
    """
    threads = cfg.cluster.threads or 1
    critic = cfg.ppo.advantages is Advantages.gae
    check_room(cfg.cluster, [bundle(cfg.cluster)] * (cfg.ppo.rollouts + 3 + critic), "stage rl", less=LESS)
    options: dict[str, Any] = {
        "num_cpus": cfg.cluster.cpus_per_worker,
        "num_gpus": cfg.cluster.gpus_per_worker,
        "max_restarts": 0,  # a restarted actor would have lost its weights: the run continues from its manifest instead
        "runtime_env": {"env_vars": {"OMP_NUM_THREADS": str(threads)}},
    }

    def put(kind: type, *args: Any) -> ActorHandle:
        return ray.remote(kind).options(**options).remote(*args)

    trained, device = (cfg.ppo, precision, cfg.run.seed, threads), cfg.cluster.device
    graph = Graph(
        rollouts=[put(Rollout, chat, threads, "ours", device) for _ in range(cfg.ppo.rollouts)],
        reward=put(Reward, tasks, cfg.tasks, chat, threads, reward, scale, device),
        reference=put(Reference, chat, threads, device),
        critic=put(Critic, reward or chat, *trained, device) if critic else None,
        learner=put(Learner, chat, *trained, tasks / "train.jsonl", device),
        scored=reward is not None,
        timeout=cfg.ppo.timeout,
    )
    try:
        ready = [Call(role, "start", actor.__ray_ready__.remote()) for role, actor in graph.roles.items()]
        wait(ready, START_WITHIN, knob="the start's limit of ")
    except BaseException:
        graph.close()
        raise
    return graph
