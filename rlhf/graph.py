"""The PPO graph on Ray: starts the actors, calls them with deadlines, and names the one that failed."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from ray.actor import ActorHandle
from ray.exceptions import GetTimeoutError, RayActorError

from conf.schema import Cluster, Ppo
from moe.engine import Sampling
from rlhf.actors import Critic, Judge, Learner, Reference, Rollout, Scores
from rlhf.messages import Batch, Request, Sample
from rlhf.principles import Query


class ActorFailed(RuntimeError):
    """An actor died or did not answer in time. The message names it and the call."""


@dataclass(frozen=True)
class Call:
    actor: str
    method: str
    ref: Any


@dataclass(frozen=True)
class Graph:
    rollouts: list[ActorHandle]
    judge: ActorHandle
    reference: ActorHandle
    critic: ActorHandle
    learner: ActorHandle
    timeout: float

    def rollout(self, requests: Sequence[Request], sampling: Sampling) -> list[Sample]:
        """Answers in the order of the requests, which are dealt over the rollout actors."""
        shares = [list(requests[i :: len(self.rollouts)]) for i in range(len(self.rollouts))]
        calls = [
            Call(f"rollout {i}", "generate", actor.generate.remote(share, sampling))
            for i, (actor, share) in enumerate(zip(self.rollouts, shares, strict=True))
            if share
        ]
        made = {sample.key: sample for samples in self.wait(calls) for sample in samples}
        return [made[request.key] for request in requests]

    def rules(self, queries: Sequence[Query], samples: Sequence[Sample]) -> list[float]:
        """The rules' verdict on each answer."""
        (verdicts,) = self.wait([Call("judge", "rules", self.judge.rules.remote(queries, samples))])
        return verdicts

    def assess(self, queries: Sequence[Query], samples: Sequence[Sample], batch: Batch) -> tuple[Scores, Any, Any]:
        """(scores, reference log-probs [B, T], values [B, T]), all three at once."""
        shared = ray.put(batch)
        scores, reference, values = self.wait(
            [
                Call("judge", "score", self.judge.score.remote(queries, samples)),
                Call("reference", "logprobs", self.reference.logprobs.remote(shared)),
                Call("critic", "values", self.critic.values.remote(shared)),
            ]
        )
        return scores, reference, values

    def update(self, batch: Batch, advantages: Any, values: Any, returns: Any) -> dict[str, float]:
        """One PPO iteration of policy and critic, side by side."""
        shared = ray.put(batch)
        policy, critic = self.wait(
            [
                Call("learner", "update", self.learner.update.remote(shared, advantages)),
                Call("critic", "update", self.critic.update.remote(shared, values, returns)),
            ]
        )
        return policy | critic

    def broadcast(self, version: int) -> None:
        """The learner's weights to every rollout actor, as policy `version`."""
        weights = self.learner.weights.remote()  # a reference: the array goes from actor to actor
        self.wait(
            [
                Call(f"rollout {i}", "load_weights", actor.load_weights.remote(version, weights))
                for i, actor in enumerate(self.rollouts)
            ]
        )

    def save(self, folder: Path) -> None:
        for part in ("learner", "critic"):
            (folder / part).mkdir()
        self.wait(
            [
                Call("learner", "save", self.learner.save.remote(folder / "learner")),
                Call("critic", "save", self.critic.save.remote(folder / "critic")),
            ]
        )

    def load(self, folder: Path, version: int) -> None:
        self.wait(
            [
                Call("learner", "load", self.learner.load.remote(folder / "learner", version)),
                Call("critic", "load", self.critic.load.remote(folder / "critic", version)),
            ]
        )

    def export(self, folder: Path) -> None:
        self.wait([Call("learner", "export", self.learner.export.remote(folder))])

    def wait(self, calls: Sequence[Call]) -> list[Any]:
        """The results, in order. Raises `ActorFailed` naming actor and call when one dies or the deadline passes."""
        results = []
        for call in calls:
            try:
                results.append(ray.get(call.ref, timeout=self.timeout))
            except GetTimeoutError:
                raise ActorFailed(
                    f"{call.actor}.{call.method}: no answer within ppo.timeout={self.timeout:g} seconds"
                ) from None
            except RayActorError as error:
                raise ActorFailed(f"{call.actor}.{call.method}: the actor died ({_first_line(error)})") from error
        return results

    def close(self) -> None:
        """End every actor."""
        for actor in (*self.rollouts, self.judge, self.reference, self.critic, self.learner):
            ray.kill(actor)


def start(
    *, chat: Path, reward: Path, tasks: Path, mean: float, std: float, cfg: Ppo, cluster: Cluster, seed: int
) -> Graph:
    """Start every actor. Each has one torch thread: it is the actors that run side by side."""
    threads = cluster.threads or 1
    options: dict[str, Any] = {
        "num_cpus": cluster.cpus_per_worker,
        "max_restarts": 0,  # a restarted actor would have lost its weights: the run continues from its manifest instead
        "runtime_env": {"env_vars": {"OMP_NUM_THREADS": str(threads)}},
    }

    def put(kind: type, *args: Any) -> ActorHandle:
        return ray.remote(kind).options(**options).remote(*args)

    return Graph(
        rollouts=[put(Rollout, chat, threads) for _ in range(cfg.rollouts)],
        judge=put(Judge, reward, tasks / "copies.npy", mean, std, cfg, threads),
        reference=put(Reference, chat, threads),
        critic=put(Critic, reward, cfg, seed, threads),
        learner=put(Learner, chat, cfg, seed, threads, tasks / "train.jsonl"),
        timeout=cfg.timeout,
    )


def _first_line(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
