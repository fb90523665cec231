"""What the supervised stages do: steps, optimizer, what is watched, what is saved."""

from dataclasses import dataclass, field, replace
from enum import Enum
from math import ceil

from conf.errors import InputError
from conf.knobs.checks import positive, share


@dataclass(kw_only=True)
class Doctor:
    """When the router of a layer counts as collapsed, and what is then done. It looks at the steps that are logged."""

    max_load: float = 4.0  # busiest expert's load over the mean; less where top_k is so large that none can reach it
    min_entropy: float = 0.3  # of the load: 1 when it is even, 0 when the same top_k experts take every token
    min_balance: float = 0.95  # of the balance loss, whose floor is 1 as long as the router does not cheat
    window: int = 20  # steps in a row that must be ill before the alarm
    stop: bool = False  # end the stage at an alarm, instead of only logging it

    def __post_init__(self) -> None:
        positive("doctor", self, "max_load", "window")
        share("doctor", self, "min_entropy", "min_balance")


class SpikeAction(Enum):
    none = "none"  # only a step that is not finite is skipped
    skip = "skip"  # leave the step's rows out
    rollback = "rollback"  # go back to a checkpoint and leave out all rows since
    stop = "stop"


@dataclass(kw_only=True)
class Spikes:
    """What counts as a spike of the loss or of the gradient's norm in the supervised stages, and what is then done.

    Deviations are from the median of the steps accepted lately, in median absolute differences of neighbouring steps,
    scaled to a normal distribution's standard deviation; norms are compared by their logarithm. Each incident is
    written to <stage>/incidents with the documents of its rows.
    """

    action: SpikeAction = SpikeAction.skip
    window: int = 64  # accepted steps that are remembered
    warmup: int = 20  # of them must be there before a step is judged; what is not finite is always caught
    loss_deviations: float = 10.0
    norm_deviations: float = 20.0  # a norm up to optim.clip is never a spike
    rollback_steps: int = 10  # go back at least so many steps
    limit: int = 20  # incidents in the last `window` steps before the stage ends: data or settings are at fault

    def __post_init__(self) -> None:
        positive("spikes", self, "window", "loss_deviations", "norm_deviations", "rollback_steps", "limit")
        if not 2 <= self.warmup <= self.window:
            raise InputError(f"spikes.warmup={self.warmup} must lie in [2, spikes.window={self.window}]")
        if self.limit > self.window:
            raise InputError(
                f"spikes.limit={self.limit} must be at most spikes.window={self.window}: it counts in there"
            )


class OnError(Enum):
    stop = "stop"
    go_on = "go_on"  # say so and train on; what was saved before stays


@dataclass(kw_only=True)
class Checkpoints:
    """How the supervised stages save; when and how many, say `save_every` and `keep` of each stage."""

    asynchronous: bool = True  # training goes on while a checkpoint is written
    copy_gb: float = 2.0  # of memory, at most, for a worker's copy to be written meanwhile; with more, training waits
    best: bool = False  # also keep the one with the lowest held-out loss
    every: int = 0  # also keep those whose step this number divides; 0: none
    on_error: OnError = OnError.stop  # when a checkpoint cannot be written

    def __post_init__(self) -> None:
        positive("checkpoints", self, "copy_gb")
        if self.every < 0:
            raise InputError(f"checkpoints.every={self.every} must not be negative")


class Optimizer(Enum):
    auto = "auto"  # muon from random weights, adamw where parent.model is given
    adamw = "adamw"
    muon = "muon"


class Schedule(Enum):
    cosine = "cosine"
    linear = "linear"
    wsd = "wsd"  # warm up, stay, decay over the last `optim.decay_share` of the steps (Hu et al. 2024)


@dataclass(kw_only=True)
class Optim:
    """Warm-up and decay, shared by the supervised stages (each scales `lr`).

    `muon` moves the matrices of attention and experts by orthogonalised momentum and the rest by AdamW. The defaults
    are for random weights; see `settled` for those of a run that has `parent.model`.
    """

    lr: float = 2e-3  # not given, or 0: this from random weights, 5e-5 with parent.model
    kind: Optimizer = Optimizer.muon  # not given, or auto: this from random weights, adamw with parent.model
    muon_rms: float = 0.4  # root mean square of a Muon update, in units of lr; 0.2 is what AdamW's updates have
    muon_momentum: float = 0.95
    min_lr_ratio: float = 0.1
    warmup: float = 0.02  # share of the steps
    schedule: Schedule = Schedule.cosine
    decay_share: float = 0.2  # of the steps, for schedule=wsd
    weight_decay: float = 0.1
    no_decay: list[str] = field(default_factory=list)  # globs over names of matrices that do not decay either
    ema: float = 0.0  # average the weights with this decay a step; the average is the stage's model. 0: none
    beta1: float = 0.9
    beta2: float = 0.95
    eps: float = 1e-8
    clip: float = 1.0  # global gradient norm

    def __post_init__(self) -> None:
        if self.lr != 0:
            positive("optim", self, "lr")
        positive("optim", self, "eps", "clip", "muon_rms")
        share("optim", self, "min_lr_ratio", "warmup", "decay_share", "beta1", "beta2", "muon_momentum", "ema")
        for name in ("ema", "beta1", "beta2", "muon_momentum"):
            if getattr(self, name) == 1:
                raise InputError(f"optim.{name}=1.0 would never leave the first value; try optim.{name}=0.999")

    @classmethod
    def left_open(cls) -> "Optim":
        """What the tree begins with: whether somebody gave `lr` and `kind` can be told from these."""
        return cls(lr=0.0, kind=Optimizer.auto)

    def settled(self, *, parent: bool) -> "Optim":
        """With `lr` and `kind` where they were left open. What suits random weights ruins a trained `parent` in ten
        steps: a Muon update of 2e-3 is hundreds of times what such weights were last moved by."""
        fresh, auto = type(self)(), Optimizer.auto
        lr, kind = (PARENT_LR, Optimizer.adamw) if parent else (fresh.lr, fresh.kind)
        return replace(self, lr=self.lr or lr, kind=kind if self.kind is auto else self.kind)


PARENT_LR = 5e-5  # of a trained parent: the usual one of fine-tuning by AdamW


MOST_EPOCHS = 10_000


@dataclass(kw_only=True)
class Fit:
    """What pretraining, SFT and reward modelling have in common."""

    steps: int
    epochs: float = 0.0  # instead of steps: so many times through the rows; 0: steps
    batch_rows: int  # rows per step over all workers
    batch_tokens: int = 0  # instead of batch_rows: as many rows as hold so many tokens
    ramp: float = 0.0  # the batch grows linearly over this share of the steps, from ramp_from of its size
    ramp_from: float = 0.25
    accumulate: int = 1  # micro-batches per step; the router's balance is that of each, not of the whole step
    lr_scale: float = 1.0  # times optim.lr
    eval_every: int = 100
    eval_rows: int = 512
    save_every: int = 100
    keep: int = 2  # checkpoints kept while training
    patience: int = 0  # stop after so many evaluations without a lower held-out loss; 0: never
    log_every: int = 5

    def rows(self, row_length: int) -> int:
        """Rows of a step that has its full size, over all workers."""
        return ceil(self.batch_tokens / row_length) if self.batch_tokens else self.batch_rows

    def check(self, name: str) -> None:
        positive(name, self, "steps", "batch_rows", "accumulate", "lr_scale", "eval_every", "eval_rows")
        positive(name, self, "save_every", "keep", "log_every", "ramp_from")
        share(name, self, "ramp", "ramp_from")
        if not 0 <= self.epochs <= MOST_EPOCHS:
            raise InputError(f"{name}.epochs={self.epochs} must lie in [0, {MOST_EPOCHS}]; 0 means {name}.steps")
        for knob in ("batch_tokens", "patience"):
            if getattr(self, knob) < 0:
                raise InputError(f"{name}.{knob}={getattr(self, knob)} must not be negative")


@dataclass(kw_only=True)
class Pretrain(Fit):
    """Of random weights, or of `parent.model`: then `optim.warmup` warms the learning rate up again, and `replay` mixes
    in what the parent was trained on, against forgetting it (Ibrahim et al. 2024)."""

    steps: int = 400
    batch_rows: int = 32
    replay: str = ""  # packed rows of an older mix, such as runs/<name>/tokens/train, made with the same tokenizer
    replay_share: float = 0.1  # of all rows
    # general text to measure a parent on before, while and after it is trained: whether it forgets
    retention: list[str] = field(default_factory=lambda: ["data/retention/en.txt", "data/retention/zh.txt"])
    retention_rise: float = 0.3  # nats per token by which the loss on one of them may rise before it is told

    def __post_init__(self) -> None:
        self.check("pretrain")
        positive("pretrain", self, "retention_rise")
        if not self.retention:
            raise InputError("pretrain.retention=[] names no file; leave it out for the text that comes along")
        share("pretrain", self, "replay_share")


@dataclass(kw_only=True)
class Curriculum:
    """SFT from easy to hard. A sample's difficulty is its rank within its task by the base model's loss on its answers
    (see trainers/rows/difficulty.py); each stage trains on an equal part of every task's samples."""

    stages: int = 1  # 1: no curriculum, everything shuffled
    revisit: float = 0.5  # share of a later stage from those before it; of 2 stages the last then has everything alike
    pace: float = 4.0  # a stage is so many times as long as the one before it

    def __post_init__(self) -> None:
        positive("sft.curriculum", self, "stages")
        share("sft.curriculum", self, "revisit")
        if not 0.1 <= self.pace <= 10:
            raise InputError(f"sft.curriculum.pace={self.pace} must lie in [0.1, 10]; 1 makes all stages equally long")


class TooLong(Enum):
    stop = "stop"
    drop = "drop"


@dataclass(kw_only=True)
class Tune(Fit):
    """What the stages have in common that tune a model on conversations."""

    row_length: int
    too_long: TooLong  # of a sample longer than a row: stop, or drop (it is left out and counted)
    replay: float = 0.0  # share of the rows that are the base model's training text, against forgetting


@dataclass(kw_only=True)
class Sft(Tune):
    steps: int = 200
    batch_rows: int = 32
    lr_scale: float = 0.5
    row_length: int = 256
    files: list[str] = field(default_factory=list)  # own .jsonl, .json, datasets (moe.tasks.forms); empty: the tasks
    max_bad_fraction: float = 0.0  # share of bad samples set aside in tasks/rejects.jsonl; above it the job stops
    too_long: TooLong = TooLong.stop
    weights: dict[str, float] = field(default_factory=dict)  # task: relative share of samples; unnamed tasks weigh 1
    curriculum: Curriculum = field(default_factory=Curriculum)

    def __post_init__(self) -> None:
        self.check("sft")
        share("sft", self, "replay", "max_bad_fraction")
        positive("sft", self, "row_length")
        for name, weight in self.weights.items():
            if weight < 0:
                raise InputError(f"sft.weights.{name}={weight} must not be negative")
