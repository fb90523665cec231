"""The PPO graph on Ray: its actors by role, started as the algorithm needs them, and what is asked of them."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import ray
import torch
from ray.actor import ActorHandle
from torch import Tensor

from conf.knobs.model import Precision
from conf.knobs.reinforcement import Advantages, Ppo
from conf.schema import Config
from moe.generation.engine import Sampling
from moe.tasks.task import Sample, Verdict
from rlhf.actors.critic import Critic
from rlhf.actors.learner import Learner
from rlhf.actors.placement import TRAINED, Placement, count, place
from rlhf.actors.reference import Reference
from rlhf.actors.reward import Reward
from rlhf.actors.rollout import Rollout
from rlhf.losses import at_the_end
from rlhf.messages import Assessed, Batch, Request, Response, Scored
from rlhf.rewards import Earned, Judged, Running, Scale
from rlhf.rollouts import other_keys
from rlhf.supervisor import Ask, Post, Supervisor


class Graph:
    """What is asked of the actors in `posts`; `rlhf.supervisor` sees to it that it is answered."""

    def __init__(
        self,
        posts: dict[str, Post],
        *,
        scored: bool,
        timeout: float,
        restarts: int,
        start_timeout: float,
        origin: Mapping[str, str],
        placement: Placement | None = None,
        led: Mapping[str, Ask] | None = None,
        ahead: bool = False,
    ) -> None:
        """`scored`: whether the reward actor has a reward model; `origin`: the stages whose models policy and critic
        begin as; `led`: what makes an actor the first of several; `ahead`: requests of several versions are under way,
        so that each brings its weights."""
        self.supervisor = Supervisor(
            posts, timeout=timeout, restarts=restarts, start_timeout=start_timeout, fresh=self._fresh
        )
        self.scored, self.origin, self.ahead = scored, dict(origin), ahead
        self.rollouts = [name for name in posts if name.startswith("rollout ")]
        self._placement, self._led = placement, led or {}
        self._weights: Any = None  # a reference to what the rollout actors hold
        self._done = -1  # the furthest iteration that was learnt
        self.supervisor.start()

    @property
    def roles(self) -> dict[str, ActorHandle]:
        """Every actor by its name."""
        return {name: post.handle for name, post in self.supervisor.posts.items() if post.handle is not None}

    @property
    def trained(self) -> list[str]:
        """The actors that hold state."""
        return [name for name, post in self.supervisor.posts.items() if post.state]

    def rollout(self, requests: Sequence[Request], sampling: Sampling) -> list[Response]:
        """Answers in the order of the requests, which are dealt over the rollout actors."""
        return self.answers(requests, self.begin_rollout(requests, sampling))

    def begin_rollout(self, requests: Sequence[Request], sampling: Sampling) -> Any:
        """Have the requests answered by the weights that were broadcast last, for `answers`."""
        first = ("load_weights", (self._weights,)) if self.ahead else None
        count = len(self.rollouts)
        shares = {name: list(requests[first::count]) for first, name in enumerate(self.rollouts)}
        asks = [
            Ask(name, "generate", (share, sampling), unfit=partial(other_keys, share), first=first)
            for name, share in shares.items()
            if share
        ]
        return self.supervisor.begin(asks)

    def answers(self, requests: Sequence[Request], begun: Any) -> list[Response]:
        """What `begin_rollout` began."""
        made = {response.key: response for responses in self.supervisor.finish(begun) for response in responses}
        return [made[request.key] for request in requests]

    def judge(self, queries: Sequence[Sample], responses: Sequence[Response]) -> list[Verdict]:
        """The rules' verdict on each answer."""
        unfit = partial(_other_count, len(responses))
        (verdicts,) = self.supervisor.ask([Ask("reward", "judge", (queries, responses), unfit=unfit)])
        return list(verdicts)

    def score(self, batch: Batch) -> Scored:
        """What the reward model says of the answers."""
        (scored,) = self.supervisor.ask([_scores(batch, batch)])
        return scored

    def earn(self, judged: Judged, cfg: Ppo, running: Mapping[str, Running]) -> Earned:
        """`rlhf.rewards.total`, on the reward actor: a term may be anybody's code."""
        asked = (judged, cfg.weights, cfg.terms, running if cfg.normalise else None)
        (earned,) = self.supervisor.ask([Ask("reward", "earn", asked)])
        return earned

    def assess(self, batch: Batch, model: Scored | None = None) -> Assessed:
        """All models at once; the reward model only where its scores are not there already."""
        shared = ray.put(batch)
        asks = {"reference": Ask("reference", "logprobs", (shared,))}
        if self.scored and model is None:
            asks["reward"] = _scores(batch, shared)
        if "critic" in self.trained:
            asks["critic"] = Ask("critic", "values", (shared,))
        said = dict(zip(asks, self.supervisor.ask(list(asks.values())), strict=True))
        return Assessed(said["reference"], said.get("reward", model), said.get("critic"))

    def beyond(self, batch: Batch, going: Sequence[bool]) -> Tensor:
        """What the critic expects after the last tokens of the rows that are `going` on, put there [B, T]."""
        if not any(going):
            return torch.zeros_like(batch.mask)
        (values,) = self.supervisor.ask([Ask("critic", "edges", (batch,))])
        return at_the_end(values * torch.tensor(going), batch.mask)

    def update(self, batch: Batch, advantages: Tensor, returns: Tensor | None, said: Assessed) -> dict[str, float]:
        """One iteration of policy and critic, side by side."""
        shared = ray.put(batch)
        asks = [Ask("learner", "update", (shared, advantages, said.reference))]
        if "critic" in self.trained:
            asks.append(Ask("critic", "update", (shared, said.values, returns)))
        stats: dict[str, float] = {}
        for part in self.supervisor.ask(asks):
            stats |= part
        if batch.iteration > self._done:
            self._done = batch.iteration
            self.supervisor.progressed()
        return stats

    def broadcast(self) -> None:
        """The learner's weights to every rollout actor: the array goes from actor to actor."""
        self._weights = None
        (self._weights,) = self.supervisor.ask([Ask("learner", "publish", kept=True)])
        self.supervisor.ask([ask for name in self.rollouts for ask in self._fresh(name)])  # none where `ahead`

    def writer(self) -> Callable[[Path], None]:
        """Take a copy of all state now; the function that writes it into a folder, a folder to each role."""
        self.supervisor.ask([Ask(role, "take") for role in self.trained])

        def write(folder: Path) -> None:
            self.supervisor.ask([Ask(role, "write", (folder / role,)) for role in self.trained])

        return write

    def begin(self, found: tuple[int, Path] | None) -> None:
        """Learner and critic, whatever became of them, as the checkpoint `found` (its iteration, its folder) has them,
        or without one as they were made."""
        self.supervisor.mend()
        self._weights = None
        if found:
            self.load(found[1], version=found[0])
            return
        versions = self.supervisor.ask([Ask(role, "ready") for role in self.trained])
        for role, version in zip(self.trained, versions, strict=True):
            if version:
                self.supervisor.renew(role)

    def load(self, folder: Path, version: int) -> None:
        self.supervisor.ask([Ask(role, "load", (folder / role, version)) for role in self.trained])

    def export(self, folder: Path) -> None:
        self.supervisor.ask([Ask("learner", "export", (folder,))])

    def close(self) -> None:
        """End every actor."""
        self.supervisor.close()
        if self._placement is not None:
            self._placement.release()

    def _fresh(self, name: str) -> list[Ask]:
        """What brings a new actor to where the others are."""
        if name in self._led:
            return [self._led[name]]
        held = name in self.rollouts and self._weights is not None and not self.ahead
        return [Ask(name, "load_weights", (self._weights,))] if held else []


def start(
    cfg: Config,
    *,
    chat: Path,
    tasks: Path,
    reward: Path | None,
    scale: Scale | None,
    precision: Precision,
    ensemble: Sequence[tuple[Path, Scale]] = (),
) -> Graph:
    """Start every actor that the algorithm needs. Each has one torch thread unless `cluster.threads` says otherwise: it
    is the actors that run side by side.

    Raises `InputError` when the cluster has too little for them, saying what is asked for and what is there.
    """
    threads = cfg.cluster.threads or 1
    critic = cfg.ppo.advantages is Advantages.gae
    placement = place(cfg, ["rollout", "reward", "reference", "learner", *["critic"] * critic])
    led: dict[str, Ask] = {}

    def post(kind: type, role: str, *args: Any, number: int = 0) -> Post:
        ranks = placement.ranks(role) if role in TRAINED else []
        if ranks:
            led[role] = Ask(role, "lead", (kind, args, ranks, placement.device(role)), starts=True)
        return Post(partial(ray.remote(kind).options(**placement.options(role, number)).remote, *args), role in TRAINED)

    device, trained = placement.device, (cfg.ppo, precision, cfg.run.seed, threads)
    answering = (chat, threads, "ours", device("rollout"))
    posts = {
        f"rollout {number}": post(Rollout, "rollout", *answering, number=number)
        for number in range(count(cfg.ppo, "rollout"))
    }
    judging = (tasks, cfg.tasks, chat, threads, reward, scale, device("reward"), ensemble)
    posts["reward"] = post(Reward, "reward", *judging)
    posts["reference"] = post(Reference, "reference", chat, threads, device("reference"))
    learning = (chat, *trained, tasks / "train.jsonl", device("learner"), cfg.cluster)
    posts["learner"] = post(Learner, "learner", *learning)
    if critic:
        posts["critic"] = post(Critic, "critic", reward or chat, *trained, device("critic"), cfg.cluster)
    try:
        return Graph(
            posts,
            scored=reward is not None,
            timeout=cfg.ppo.timeout,
            restarts=cfg.ppo.restarts,
            start_timeout=cfg.cluster.start_timeout,
            origin={"policy": chat.name, "critic": (reward or chat).name if critic else ""},
            placement=placement,
            led=led,
            ahead=cfg.ppo.staleness > 0,
        )
    except BaseException:
        placement.release()
        raise


def _scores(batch: Batch, given: Any) -> Ask:
    """The reward model's scores of a batch, which is `given` as it is or as a reference."""
    return Ask("reward", "score", (given,), unfit=partial(_no_scores, len(batch.tokens)))


def _no_scores(count: int, scored: Scored) -> str:
    scores = scored.mean + scored.spread
    if tuple(scores.shape) != (count,):
        return f"scores of shape {list(scores.shape)} for {count} answers"
    bad = int((~scores.isfinite()).sum())
    return f"{bad} of {count} scores are not finite" if bad else ""


def _other_count(count: int, verdicts: Sequence[Verdict]) -> str:
    """Each verdict is checked where it is made (`moe.tasks.domain`)."""
    return "" if len(verdicts) == count else f"{len(verdicts)} verdicts for {count} answers"
