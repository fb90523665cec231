"""Reinforcement learning: the loop, what an answer earns, and what is looked at afterwards."""

import re
from dataclasses import dataclass, field, fields, replace
from enum import Enum
from math import ceil, inf, isfinite
from typing import Any

from conf.errors import InputError
from conf.knobs.checks import positive, share


class KlEstimate(Enum):
    auto = "auto"  # k1 in the reward, k3 in the loss
    k1 = "k1"  # log-ratio: right in the mean, of either sign (Schulman 2020)
    k2 = "k2"  # half its square: never below 0, a little off; its gradient is that of the KL
    k3 = "k3"  # ratio - 1 - log-ratio: right in the mean and never below 0


class CutOff(Enum):
    learn = "learn"  # an answer that did not end is learnt from as any other
    mask = "mask"  # nothing is learnt from it by the policy: no limit is its fault (DAPO, Yu et al. 2025)


class Start(Enum):
    chat = "chat"
    hfft = "hfft"
    cohft = "cohft"


class Routes(Enum):
    own = "own"  # those that its router chooses
    rollout = "rollout"  # those that the policy went through when it answered (R3, Ma et al. 2025)


class Advantages(Enum):
    gae = "gae"  # each token against a critic's values (Schulman et al. 2016)
    group = "group"  # each answer against the mean of its query's, in their deviations: GRPO (Shao et al. 2024)
    leave_one_out = "leave_one_out"  # each answer against the mean of its query's others: RLOO (Ahmadian et al. 2024)


class KlIn(Enum):
    reward = "reward"  # taken off each token's reward (Ouyang et al. 2022)
    loss = "loss"  # added to the loss, by the estimator that is never below 0 (Shao et al. 2024, eq. 4)


@dataclass(kw_only=True)
class Seat:
    """What a process of a role in the PPO graph asks the cluster for."""

    cpus: float = 0.0  # logical CPUs that each asks Ray for; 0: cluster.cpus_per_worker
    gpus: float | None = None  # GPUs of each, or a part of one that it shares; null: cluster.gpus_per_worker


@dataclass(kw_only=True)
class Seats(Seat):
    count: int = 1  # processes; those of learner or critic share each update, as cluster.shard, ... say


@dataclass(kw_only=True)
class Rollouts(Seats):
    count: int = 2  # processes that answer, each by itself


@dataclass(kw_only=True)
class Actors:
    """The roles of the PPO graph: how many processes each has, and where they run."""

    rollout: Rollouts = field(default_factory=Rollouts)
    reward: Seat = field(default_factory=Seat)
    reference: Seat = field(default_factory=Seat)
    learner: Seats = field(default_factory=Seats)
    critic: Seats = field(default_factory=Seats)

    def __post_init__(self) -> None:
        for role, seat in vars(self).items():
            if isinstance(seat, Seats):
                positive(f"ppo.actors.{role}", seat, "count")
            if seat.gpus and seat.gpus > 1 and seat.gpus % 1:
                raise InputError(f"ppo.actors.{role}.gpus={seat.gpus:g} must be whole GPUs, or a part of one")


@dataclass(kw_only=True)
class Ppo:
    """Proximal policy optimisation (Schulman et al. 2017) with a KL tether to the model that it starts from; with
    `advantages=group` or `leave_one_out` there is no critic."""

    name: str = ""  # of another stage than rl, beside it: grpo writes into rl-grpo, which compared finds
    start: Start = Start.chat  # the stage whose model policy and reference begin as: chat, hfft, cohft
    iterations: int = 20
    prompts: int = 64  # queries per iteration
    samples: int = 4  # answers per query
    keep: int = 2  # of a query's answers, so many are learnt from: the best and the worst (see rlhf.ppo.worth); 0: all
    max_new_tokens: int = 96
    segment: int = 0  # of them in one iteration; a longer answer goes on in the next, with its weights. 0: all of them
    rewards: dict[str, float] = field(default_factory=lambda: {"model": 1.0, "rules": 1.0})  # terms and their weights
    terms: dict[str, str] = field(default_factory=dict)  # terms of your own by name: <module>.<function>
    normalise: bool = False  # each term less its mean and in its deviations, over all answers learnt from so far
    ensemble: list[str] = field(
        default_factory=list
    )  # folders of more reward models: their mean is `model`, what they differ by `spread`
    advantages: Advantages = Advantages.gae
    epochs: int = 2
    minibatches: int = 4
    accumulate: int = 1  # micro-batches per minibatch
    staleness: int = 0  # iterations ahead that answers are made, while others are learnt from; 0: one after the other
    importance_cap: float = 2.0  # of a token's weight where it is of an older policy than the one that learns (IMPALA)
    pool_mb: float = 1000.0  # of memory for answers that wait; more of them lie on the disk
    routes: Routes = Routes.own  # the experts through which the learner goes
    micro_tokens: int = 0  # or as many as hold so many tokens each, padding counted; 0: by accumulate
    lr: float = 1e-4  # not given, or 0: this for a model of ours, 3e-6 with parent.model
    critic_lr: float = 3e-4  # not given, or 0: this for a model of ours, 1e-5 with parent.model
    clip: float = 0.2
    dual_clip: float = 0.0  # of a bad token at most so many advantages are lost, such as 3 (Ye et al. 2020); 0: any
    value_clip: float = 0.2
    gamma: float = 1.0
    lam: float = 0.95
    whiten: bool = True  # advantages=gae: to mean 0 and variance 1 over the answers that are learnt from
    cut_off: CutOff = CutOff.learn  # what an answer that did not end is for the policy; see the term overlong, too
    kl_coef: float = 0.05  # weight of the distance from the model that it starts from
    kl_in: KlIn = KlIn.reward
    kl_estimate: KlEstimate = KlEstimate.auto  # of that distance, at each token
    kl_target: float = 0.0  # nats an answer, to which kl_coef is moved (Ziegler et al. 2019); 0: kl_coef stays
    kl_horizon: float = 10_000.0  # answers in which it is moved by the most: less is faster
    entropy_coef: float = 0.0  # weight of the policy's entropy in the loss, which it raises
    stop_kl: float = 0.0  # nats a token from the policy that answered: beyond it an iteration's updates end; 0: none
    max_kl: float = 0.0  # nats an answer from the model that it starts from: beyond it the run stops; 0: never
    max_disagreement: float = 0.1  # nats a token between rollout and learner in the mean: above it the run stops; 0: no
    grad_clip: float = 1.0
    critic_warmup: int = 1  # iterations in which only the critic learns; without a critic there are none
    replay: int = 0  # instruction samples learnt beside each minibatch, the tasks by turns, against forgetting
    replay_tasks: list[str] = field(default_factory=list)  # of these tasks; empty: of all
    replay_weight: float = 0.5  # of their loss
    actors: Actors = field(default_factory=Actors)
    save_every: int = 5
    timeout: float = 600.0  # seconds; deadline of one remote call
    keep_samples: int = 100  # iterations whose samples are kept in rl/iterations, the newest; 0: none
    keep_samples_mb: float = 500.0  # as far as they take so much room
    restarts: int = 2  # times that an actor which dies, hangs or fails is started again, within an iteration

    def __post_init__(self) -> None:
        if self.name and not re.fullmatch(r"[a-z0-9][a-z0-9-]*", self.name):
            raise InputError(f"ppo.name={self.name!r} must be small letters, digits and -, such as grpo")
        positive("ppo", self, "iterations", "prompts", "samples", "max_new_tokens", "epochs", "minibatches")
        positive(
            "ppo",
            self,
            *(name for name in ("lr", "critic_lr") if getattr(self, name) != 0),
            "clip",
            "value_clip",
            "grad_clip",
            "save_every",
            "timeout",
            "keep_samples_mb",
        )
        positive("ppo", self, "accumulate")
        share("ppo", self, "gamma", "lam")
        positive("ppo", self, "kl_horizon")
        for name in ("dual_clip", "kl_target", "entropy_coef", "stop_kl", "max_kl", "max_disagreement", "micro_tokens"):
            if not 0 <= getattr(self, name) < inf:
                raise InputError(f"ppo.{name}={getattr(self, name)} must not be negative")
        if 0 < self.dual_clip <= 1:
            raise InputError(f"ppo.dual_clip={self.dual_clip} must be greater than 1, such as 3; 0: none")
        if self.kl_target and self.kl_in is not KlIn.reward:
            raise InputError("ppo.kl_target moves the distance's weight in the reward; it needs ppo.kl_in=reward")
        positive("ppo", self, "importance_cap", "pool_mb")
        if self.staleness < 0 or (self.staleness and self.segment):
            raise InputError(
                f"ppo.staleness={self.staleness} must be 0 or more, and 0 with ppo.segment={self.segment}: an answer "
                "that goes on does so with the newest weights"
            )
        if self.segment < 0:
            raise InputError(f"ppo.segment={self.segment} must not be negative")
        if self.segment and (self.advantages is not Advantages.gae or self.keep or self.normalise):
            raise InputError(
                f"ppo.segment={self.segment} learns from answers that are not done by what a critic expects of "
                "them; it needs ppo.advantages=gae ppo.keep=0 ppo.normalise=false"
            )
        if self.micro_tokens and self.accumulate > 1:
            raise InputError("ppo.micro_tokens and ppo.accumulate both say how a minibatch is split; give one")
        if self.normalise and self.advantages is not Advantages.gae:
            raise InputError("ppo.normalise changes nothing where answers to one query are compared; leave it out")
        if self.rewards.get("spread") and not self.ensemble:
            raise InputError("ppo.rewards.spread is how far reward models differ; it needs ppo.ensemble=[<folder>]")
        for name in ("replay", "replay_weight", "kl_coef", "critic_warmup", "restarts", "keep_samples"):
            if not getattr(self, name) >= 0:
                raise InputError(f"ppo.{name}={getattr(self, name)} must not be negative")
        if not any(self.rewards.values()):
            raise InputError("ppo.rewards has no term with a weight; try ppo.rewards.rules=1")
        for name, weight in self.rewards.items():
            if not isfinite(weight):
                raise InputError(f"ppo.rewards.{name}={weight} must be a number")
        if not 0 <= self.keep <= self.samples:
            raise InputError(f"ppo.keep={self.keep} must lie in [0, ppo.samples={self.samples}]")
        if self.advantages is not Advantages.gae and min(self.samples, self.keep or self.samples) < 2:
            raise InputError(
                f"ppo.advantages={self.advantages.name} compares the answers to a query, and "
                f"ppo.samples={self.samples} ppo.keep={self.keep} leave one alone; try ppo.samples=4 ppo.keep=0"
            )
        learnt = self.prompts * (self.keep or self.samples)
        if learnt % self.minibatches:
            raise InputError(
                f"an iteration learns from {learnt} answers (ppo.prompts * ppo.keep), which must divide by "
                f"ppo.minibatches={self.minibatches}; "
                f"try ppo.prompts={ceil(self.prompts / self.minibatches) * self.minibatches}"
            )
        answers = self.prompts * self.samples
        if answers < (rollouts := self.actors.rollout.count):
            raise InputError(
                f"ppo.actors.rollout.count={rollouts} must be at most the {answers} answers of an iteration"
            )

    @classmethod
    def left_open(cls) -> "Ppo":
        """What the tree begins with: whether somebody gave the learning rates can be told from it."""
        return cls(lr=0.0, critic_lr=0.0)

    def settled(self, *, parent: bool) -> "Ppo":
        """With the learning rates where they were left open: a trained `parent` is moved gently."""
        lr, critic_lr = PARENT_LR if parent else (type(self)().lr, type(self)().critic_lr)
        return replace(self, lr=self.lr or lr, critic_lr=self.critic_lr or critic_lr)

    @property
    def decisive(self) -> dict[str, Any]:
        """The knobs as the stage's settings: by its name the stage is known already."""
        knobs = {item.name: getattr(self, item.name) for item in fields(self) if item.name != "name"}
        return knobs | {"rewards": self.weights}

    @property
    def stage(self) -> str:
        """What it writes into."""
        return f"rl-{self.name}" if self.name else "rl"

    @property
    def weights(self) -> dict[str, float]:
        """The terms of the reward that count."""
        return {name: weight for name, weight in self.rewards.items() if weight}


class Wins(Enum):
    auto = "auto"  # ai where judge.url or judge.folder is given, else reward where that is, else rules
    ai = "ai"  # the model of `judge`, asked about both answers in both orders
    reward = "reward"  # a reward model of another run
    rules = "rules"  # the domain's


@dataclass(kw_only=True)
class Compare:
    """`rlhf.compare`: models beside each other, and how often each is better than the chat model."""

    models: dict[str, str] = field(default_factory=dict)  # more models than the run's own: a name and a folder each
    wins: Wins = Wins.auto  # who says which of two answers is better; the report says what training has used it
    reward: str = ""  # folder of a reward model that no training used, such as runs/other/reward

    def __post_init__(self) -> None:
        if self.wins is Wins.reward and not self.reward:
            raise InputError("compare.wins=reward needs compare.reward=<folder of a reward model>")
        for name in self.models:
            if name == "chat":
                raise InputError("compare.models.chat: chat is the run's own model, which others are compared with")


@dataclass(kw_only=True)
class Inspect:
    """`rlhf.inspect`: an iteration of the stage rl to look at."""

    step: int = 0  # as metrics.jsonl counts; 0: the newest
    queries: int = 4  # so many of them, with every answer
    query: str = ""  # or the one of this id

    def __post_init__(self) -> None:
        positive("inspect", self, "queries")


@dataclass(kw_only=True)
class Replay:
    """`rlhf.replay`: an update of the stage rl to make again."""

    step: int = 0  # as metrics.jsonl counts; 0: the newest


PARENT_LR = 3e-6, 1e-5  # of policy and critic: what TRL's and verl's recipes give models that are trained already
