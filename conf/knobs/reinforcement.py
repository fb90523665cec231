"""Reinforcement learning: the loop, what an answer earns, and what is looked at afterwards."""

from dataclasses import dataclass, field, replace
from enum import Enum
from math import ceil, isfinite

from conf.errors import InputError
from conf.knobs.checks import positive, share


class Start(Enum):
    chat = "chat"
    hfft = "hfft"
    cohft = "cohft"


class Advantages(Enum):
    gae = "gae"  # each token against a critic's values (Schulman et al. 2016)
    group = "group"  # each answer against the mean of its query's, in their deviations: GRPO (Shao et al. 2024)
    leave_one_out = "leave_one_out"  # each answer against the mean of its query's others: RLOO (Ahmadian et al. 2024)


class KlIn(Enum):
    reward = "reward"  # taken off each token's reward (Ouyang et al. 2022)
    loss = "loss"  # added to the loss, by the estimator that is never below 0 (Shao et al. 2024, eq. 4)


@dataclass(kw_only=True)
class Ppo:
    """Proximal policy optimisation (Schulman et al. 2017) with a KL tether to the model that it starts from; with
    `advantages=group` or `leave_one_out` there is no critic."""

    start: Start = Start.chat  # the stage whose model policy and reference begin as: chat, hfft, cohft
    iterations: int = 20
    prompts: int = 64  # queries per iteration
    samples: int = 4  # answers per query
    keep: int = 2  # of a query's answers, so many are learnt from: the best and the worst (see rlhf.ppo.worth); 0: all
    max_new_tokens: int = 96
    rewards: dict[str, float] = field(default_factory=lambda: {"model": 1.0, "rules": 1.0})  # terms and their weights
    advantages: Advantages = Advantages.gae
    epochs: int = 2
    minibatches: int = 4
    accumulate: int = 1  # micro-batches per minibatch
    lr: float = 1e-4  # not given, or 0: this for a model of ours, 3e-6 with parent.model
    critic_lr: float = 3e-4  # not given, or 0: this for a model of ours, 1e-5 with parent.model
    clip: float = 0.2
    value_clip: float = 0.2
    gamma: float = 1.0
    lam: float = 0.95
    kl_coef: float = 0.05  # weight of the distance from the model that it starts from
    kl_in: KlIn = KlIn.reward
    grad_clip: float = 1.0
    critic_warmup: int = 1  # iterations in which only the critic learns; without a critic there are none
    replay: int = 0  # instruction samples learnt beside each minibatch, the tasks by turns, against forgetting
    replay_tasks: list[str] = field(default_factory=list)  # of these tasks; empty: of all
    replay_weight: float = 0.5  # of their loss
    rollouts: int = 2  # rollout actors
    save_every: int = 5
    timeout: float = 600.0  # seconds; deadline of one remote call
    keep_samples: int = 100  # iterations whose samples are kept in rl/iterations, the newest; 0: none
    keep_samples_mb: float = 500.0  # as far as they take so much room
    restarts: int = 2  # times that an actor which dies, hangs or fails is started again, within an iteration

    def __post_init__(self) -> None:
        positive("ppo", self, "iterations", "prompts", "samples", "max_new_tokens", "epochs", "minibatches")
        positive(
            "ppo",
            self,
            *(name for name in ("lr", "critic_lr") if getattr(self, name) != 0),
            "clip",
            "value_clip",
            "grad_clip",
            "rollouts",
            "save_every",
            "timeout",
            "keep_samples_mb",
        )
        positive("ppo", self, "accumulate")
        share("ppo", self, "gamma", "lam")
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
        if answers < self.rollouts:
            raise InputError(f"ppo.rollouts={self.rollouts} must be at most the {answers} answers of an iteration")

    @classmethod
    def left_open(cls) -> "Ppo":
        """What the tree begins with: whether somebody gave the learning rates can be told from it."""
        return cls(lr=0.0, critic_lr=0.0)

    def settled(self, *, parent: bool) -> "Ppo":
        """With the learning rates where they were left open: a trained `parent` is moved gently."""
        lr, critic_lr = PARENT_LR if parent else (type(self)().lr, type(self)().critic_lr)
        return replace(self, lr=self.lr or lr, critic_lr=self.critic_lr or critic_lr)

    @property
    def weights(self) -> dict[str, float]:
        """The terms of the reward that count."""
        return {name: weight for name, weight in self.rewards.items() if weight}


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
