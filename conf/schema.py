"""Every knob of Conclave: plain dataclasses, validated where they are read.

One tree serves every job. A field is documented beside it; a value that cannot work raises `InputError` with the knob,
the value and what to do. Nothing here loads torch or ray, so a typo is refused at once.
"""

from dataclasses import dataclass, field
from enum import Enum
from math import ceil
from pathlib import Path


class InputError(ValueError):
    """What the user gave cannot work. The message names the knob or the file, the value, and the fix."""


def _positive(prefix: str, section: object, *names: str) -> None:
    for name in names:
        value = getattr(section, name)
        if value <= 0:
            raise InputError(f"{prefix}.{name}={value} must be greater than 0")


def _share(prefix: str, section: object, *names: str) -> None:
    for name in names:
        value = getattr(section, name)
        if not 0 <= value <= 1:
            raise InputError(f"{prefix}.{name}={value} must lie in [0, 1]")


@dataclass(kw_only=True)
class Run:
    name: str = "default"  # the folder under `dir`
    dir: str = "runs"
    seed: int = 0
    rebuild: bool = False  # a stage whose config or inputs changed: false refuses, true sets the old one aside
    faults: bool = False  # let FAULT=<point>:<count>:<action> in the environment hurt this run; for tests

    def __post_init__(self) -> None:
        if not self.name or Path(self.name).name != self.name or self.name in {".", ".."}:
            raise InputError(f"run.name={self.name!r} must be one folder name, without '/'")

    @property
    def folder(self) -> Path:
        return Path(self.dir).absolute() / self.name


@dataclass(kw_only=True)
class Model:
    """A sparse-MoE decoder: Qwen3-MoE when `qk_norm`, Mixtral when not. Presets: tiny, demo, small, base."""

    hidden_size: int = 256
    layers: int = 4
    heads: int = 4
    kv_heads: int = 2
    head_dim: int = 64
    experts: int = 8
    top_k: int = 2
    expert_size: int = 256  # the inner width of one expert
    context: int = 512  # positions
    rope_theta: float = 10000.0
    norm_eps: float = 1e-6
    qk_norm: bool = True
    init_std: float = 0.02
    balance_coef: float = 0.01  # load-balancing loss (Switch Transformer), divided by the number of layers
    z_coef: float = 0.001  # router z-loss (ST-MoE), divided by the number of layers
    # In training the router's input is multiplied by noise from [1 - jitter, 1 + jitter] (Switch Transformer). Later
    # stages know of it by Mixtral's config.json; Qwen3-MoE's has no field for it, and only the first stage has noise.
    jitter: float = 0.0

    def __post_init__(self) -> None:
        names = "hidden_size layers heads kv_heads head_dim experts top_k expert_size context rope_theta norm_eps"
        _positive("model", self, *names.split(), "init_std")
        if self.heads % self.kv_heads:
            fix = ceil(self.heads / self.kv_heads) * self.kv_heads
            raise InputError(
                f"model.heads={self.heads} must divide by model.kv_heads={self.kv_heads}; try model.heads={fix}"
            )
        if self.head_dim % 2:
            raise InputError(f"model.head_dim={self.head_dim} must be even: rotary embedding turns pairs of numbers")
        if self.top_k > self.experts:
            raise InputError(
                f"model.top_k={self.top_k} must be at most model.experts={self.experts}; try model.top_k={self.experts}"
            )
        _share("model", self, "jitter")
        for name in ("balance_coef", "z_coef"):
            if getattr(self, name) < 0:
                raise InputError(f"model.{name}={getattr(self, name)} must not be negative")


class Precision(Enum):
    auto = "auto"  # the fastest on this machine, measured once; a run keeps what it began with
    fp32 = "fp32"
    bf16 = "bf16"  # matrix products; weights, router, norms, losses and the optimizer stay in fp32
    fp16 = "fp16"  # as bf16


class ExpertsBackend(Enum):
    auto = "auto"  # megablocks on CUDA where it is installed, else torch
    torch = "torch"
    megablocks = "megablocks"


@dataclass(kw_only=True)
class Compute:
    """How the supervised stages compute; what they learn is the same to rounding."""

    precision: Precision = Precision.fp32
    experts: ExpertsBackend = ExpertsBackend.auto
    checkpointing: bool = False  # forget a block's activations and compute them again in the backward pass


@dataclass(kw_only=True)
class Parent:
    """A checkpoint that pretraining continues, instead of `model` and random weights. A dense one is upcycled."""

    model: str = ""  # a Hugging Face folder or a .gguf file; empty: from scratch
    experts: int = 8  # an upcycled parent's MLP becomes so many experts
    top_k: int = 2
    granularity: int = 1  # each copy of the MLP is cut into so many finer experts (He et al. 2024)
    noise: float = 0.0  # added to the copies, in units of each matrix's standard deviation

    def __post_init__(self) -> None:
        _positive("parent", self, "experts", "top_k", "granularity")
        if self.noise < 0:
            raise InputError(f"parent.noise={self.noise} must not be negative")
        for name in ("experts", "top_k"):
            if getattr(self, name) % self.granularity:
                fix = ceil(getattr(self, name) / self.granularity) * self.granularity
                raise InputError(
                    f"parent.{name}={getattr(self, name)} must divide by parent.granularity={self.granularity}; "
                    f"try parent.{name}={fix}"
                )
        if self.top_k > self.experts:
            raise InputError(f"parent.top_k={self.top_k} must be at most parent.experts={self.experts}")


class Form(Enum):
    hugging_face = "hugging_face"
    gguf = "gguf"


@dataclass(kw_only=True)
class Convert:
    """`moe.convert`: any checkpoint in, an ordinary Hugging Face folder or a GGUF file out, with a certificate."""

    source: str = ""  # a Hugging Face folder or a .gguf file
    target: str = ""  # the folder to write; must not exist
    forms: list[Form] = field(default_factory=lambda: [Form.hugging_face])
    upcycle: bool = False  # turn a dense source into a mixture of experts as `parent` says; required for a dense one


class LoraTarget(Enum):
    attention = "attention"
    experts = "experts"


@dataclass(kw_only=True)
class Adapt:
    """Train less than everything, in the supervised stages that begin with trained weights (`base` does when it has a
    parent). What is trained is merged into the weights when a stage ends."""

    lora_rank: int = 0  # 0: no LoRA (Hu et al. 2021)
    lora_alpha: float = 16.0
    lora_targets: list[LoraTarget] = field(default_factory=lambda: [LoraTarget.attention, LoraTarget.experts])
    freeze: list[str] = field(default_factory=list)  # globs over parameter names, such as model.layers.0.* or *.gate.*
    only_new_rows: bool = False  # in `base`, train nothing but added vocabulary's rows of the embedding and the head

    def __post_init__(self) -> None:
        if self.lora_rank < 0:
            raise InputError(f"adapt.lora_rank={self.lora_rank} must not be negative")
        _positive("adapt", self, "lora_alpha")
        if self.lora_rank and not self.lora_targets:
            raise InputError("adapt.lora_targets=[] leaves LoRA nothing to adapt; there are attention, experts")
        if self.lora_rank and self.only_new_rows:
            raise InputError(
                f"adapt.only_new_rows=true trains no LoRA factors, and adapt.lora_rank={self.lora_rank} asks for them"
            )


@dataclass(kw_only=True)
class Doctor:
    """When the router of a layer counts as collapsed, and what is then done. It looks at the steps that are logged."""

    max_load: float = 4.0  # busiest expert's load over the mean; less where top_k is so large that none can reach it
    min_entropy: float = 0.3  # of the load: 1 when it is even, 0 when the same top_k experts take every token
    min_balance: float = 0.95  # of the balance loss, whose floor is 1 as long as the router does not cheat
    window: int = 20  # steps in a row that must be ill before the alarm
    stop: bool = False  # end the stage at an alarm, instead of only logging it

    def __post_init__(self) -> None:
        _positive("doctor", self, "max_load", "window")
        _share("doctor", self, "min_entropy", "min_balance")


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
        _positive("spikes", self, "window", "loss_deviations", "norm_deviations", "rollback_steps", "limit")
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
    best: bool = False  # also keep the one with the lowest held-out loss
    every: int = 0  # also keep those whose step this number divides; 0: none
    on_error: OnError = OnError.stop  # when a checkpoint cannot be written

    def __post_init__(self) -> None:
        if self.every < 0:
            raise InputError(f"checkpoints.every={self.every} must not be negative")


@dataclass(kw_only=True)
class Corpus:
    """Raw text to clean documents: read, normalise, drop exact duplicates, split by hash."""

    files: list[str] = field(default_factory=lambda: ["data/poems.jsonl.gz"])  # .txt .jsonl .jsonl.gz .parquet; globs
    template: str = "{text}"  # how a record becomes a document; {field} names a field of the record
    max_documents: int = 0  # 0: all
    max_bad_fraction: float = 0.0  # share of bad records set aside in rejects.jsonl; above it the job stops
    max_line_bytes: int = 8 * 2**20
    val_fraction: float = 0.01
    test_fraction: float = 0.01

    def __post_init__(self) -> None:
        if not self.files:
            raise InputError("corpus.files=[] names no file; try corpus.files=[data/poems.jsonl.gz]")
        _share("corpus", self, "max_bad_fraction", "val_fraction", "test_fraction")
        _positive("corpus", self, "max_line_bytes")
        if self.val_fraction + self.test_fraction >= 1:
            raise InputError(
                f"corpus.val_fraction={self.val_fraction} and corpus.test_fraction={self.test_fraction} "
                "leave nothing to train on; their sum must be below 1"
            )


@dataclass(kw_only=True)
class Tokenizer:
    """Byte-fallback BPE, trained on the training split, or an existing tokenizer folder."""

    path: str = ""  # an existing tokenizer folder; empty: train one, or take that of parent.model
    extend: int = 0  # add so many of the corpus's most frequent characters that the existing tokenizer has no piece for
    merge: str = ""  # a second tokenizer folder, whose pieces are added
    vocab_size: int = 4608  # pieces, special tokens and the 256 bytes included
    isolate_han: bool = True  # every Han character is a piece of its own; merges join other scripts only
    min_frequency: int = 2

    def __post_init__(self) -> None:
        if self.extend < 0:
            raise InputError(f"tokenizer.extend={self.extend} must not be negative")
        if self.vocab_size < 300:
            raise InputError(
                f"tokenizer.vocab_size={self.vocab_size} must be at least 300: "
                "256 bytes and the special tokens come first"
            )


@dataclass(kw_only=True)
class Tokens:
    """Documents to packed rows of token ids."""

    row_length: int = 256
    rows_per_shard: int = 16384
    actors: int = 2  # tokenising actors

    def __post_init__(self) -> None:
        _positive("tokens", self, "row_length", "rows_per_shard", "actors")


@dataclass(kw_only=True)
class Tasks:
    """Instruction tasks made from the poems; a user's own files go to `sft.files`."""

    per_task: dict[str, int] = field(
        default_factory=lambda: {
            "compose": 20000,
            "continue": 8000,
            "next_line": 8000,
            "form": 4000,
            "dynasty": 4000,
            "author": 4000,
            "dialogue": 1500,
        }
    )
    held_out: int = 256  # validation samples per task, made of poems that no training sample uses
    prompts: int = 2048  # queries for ranking and RL, apart from the SFT samples

    def __post_init__(self) -> None:
        _positive("tasks", self, "held_out", "prompts")
        for name, count in self.per_task.items():
            if count < 0:
                raise InputError(f"tasks.per_task.{name}={count} must not be negative")


class Optimizer(Enum):
    adamw = "adamw"
    muon = "muon"


class Schedule(Enum):
    cosine = "cosine"
    linear = "linear"
    wsd = "wsd"  # warm up, stay, decay over the last `optim.decay_share` of the steps (Hu et al. 2024)


@dataclass(kw_only=True)
class Optim:
    """Warm-up and decay, shared by the supervised stages (each scales `lr`).

    `muon` moves the matrices of attention and experts by orthogonalised momentum and the rest by AdamW.
    """

    lr: float = 2e-3
    kind: Optimizer = Optimizer.muon
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
        _positive("optim", self, "lr", "eps", "clip", "muon_rms")
        _share("optim", self, "min_lr_ratio", "warmup", "decay_share", "beta1", "beta2", "muon_momentum", "ema")
        if self.ema == 1:
            raise InputError("optim.ema=1.0 would never leave the first weights; try optim.ema=0.999")


@dataclass(kw_only=True)
class Fit:
    """What pretraining, SFT and reward modelling have in common."""

    steps: int
    batch_rows: int  # rows per step over all workers
    batch_tokens: int = 0  # instead of batch_rows: as many rows as hold so many tokens
    ramp: float = 0.0  # the batch grows linearly over this share of the steps, from ramp_from of its size
    ramp_from: float = 0.25
    accumulate: int = 1  # micro-batches per step
    lr_scale: float = 1.0  # times optim.lr
    eval_every: int = 100
    eval_rows: int = 512
    save_every: int = 100
    keep: int = 2  # checkpoints kept while training
    patience: int = 0  # stop after so many evaluations without a lower held-out loss; 0: never
    log_every: int = 5

    def check(self, name: str) -> None:
        _positive(name, self, "steps", "batch_rows", "accumulate", "lr_scale", "eval_every", "eval_rows")
        _positive(name, self, "save_every", "keep", "log_every", "ramp_from")
        _share(name, self, "ramp", "ramp_from")
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

    def __post_init__(self) -> None:
        self.check("pretrain")
        _share("pretrain", self, "replay_share")


@dataclass(kw_only=True)
class Curriculum:
    """SFT from easy to hard. A sample's difficulty is its rank within its task by the base model's loss on its answers
    (see trainers/difficulty.py); each stage trains on an equal part of every task's samples."""

    stages: int = 1  # 1: no curriculum, everything shuffled
    revisit: float = 0.5  # share of a later stage from those before it; of 2 stages the last then has everything alike
    pace: float = 4.0  # a stage is so many times as long as the one before it

    def __post_init__(self) -> None:
        _positive("sft.curriculum", self, "stages")
        _share("sft.curriculum", self, "revisit")
        if not 0.1 <= self.pace <= 10:
            raise InputError(f"sft.curriculum.pace={self.pace} must lie in [0.1, 10]; 1 makes all stages equally long")


@dataclass(kw_only=True)
class Sft(Fit):
    steps: int = 200
    batch_rows: int = 32
    lr_scale: float = 0.5
    row_length: int = 256
    files: list[str] = field(default_factory=list)  # own .jsonl in Alpaca or `messages` form; empty: the tasks stage
    weights: dict[str, float] = field(default_factory=dict)  # task: relative share of samples; unnamed tasks weigh 1
    curriculum: Curriculum = field(default_factory=Curriculum)
    replay: float = 0.0  # share of the rows that are the base model's training text, against forgetting

    def __post_init__(self) -> None:
        self.check("sft")
        _share("sft", self, "replay")
        _positive("sft", self, "row_length")
        for name, weight in self.weights.items():
            if weight < 0:
                raise InputError(f"sft.weights.{name}={weight} must not be negative")


class RewardLoss(Enum):
    pairwise = "pairwise"  # Bradley-Terry on every two answers whose ranks differ (Ouyang et al. 2022)
    margin = "margin"  # pairwise, less the difference of the two answers' scores (Llama 2, Touvron et al. 2023)
    listwise = "listwise"  # Plackett-Luce on the whole ranking


@dataclass(kw_only=True)
class Reward(Fit):
    loss: RewardLoss = RewardLoss.pairwise
    principles: float = 0.5  # weight of the scores under single principles together, beside the total's 1; 0: no such
    files: list[str] = field(default_factory=list)  # own .jsonl (see trainers.rankings); empty: the ranked stage
    steps: int = 100
    batch_rows: int = 8  # a row holds whole rankings
    lr_scale: float = 0.25
    row_length: int = 0  # 0: as long as the longest ranking
    held_out: float = 0.1  # share of the queries whose rankings only test the model

    def __post_init__(self) -> None:
        self.check("reward")
        if self.row_length < 0:
            raise InputError(f"reward.row_length={self.row_length} must not be negative")
        _share("reward", self, "held_out")
        if self.principles < 0:
            raise InputError(f"reward.principles={self.principles} must not be negative")


class Principle(Enum):
    harmless = "harmless"
    helpful = "helpful"
    truthful = "truthful"
    fluent = "fluent"
    clear = "clear"


@dataclass(kw_only=True)
class Rank:
    """Several sampled answers a query, ranked under named principles by rules."""

    prompts: int = 256
    answers: int = 4  # per query
    temperatures: list[float] = field(default_factory=lambda: [0.7, 1.0, 1.0, 1.3])  # cycled over the answers
    max_new_tokens: int = 96
    principles: list[Principle] = field(
        default_factory=lambda: [Principle.helpful, Principle.truthful, Principle.fluent, Principle.clear]
    )
    margin: float = 0.05  # two answers whose scores differ by less are tied: no pair
    actors: int = 2

    def __post_init__(self) -> None:
        _positive("rank", self, "prompts", "max_new_tokens", "actors")
        if self.answers < 2:
            raise InputError(f"rank.answers={self.answers} must be at least 2: one answer has no rank")
        if len(set(self.principles)) < 2:
            names = ", ".join(p.name for p in self.principles)
            raise InputError(f"rank.principles=[{names}] must name at least two of {', '.join(Principle.__members__)}")
        if not self.temperatures or min(self.temperatures) <= 0:
            raise InputError(f"rank.temperatures={self.temperatures} must be one or more numbers above 0")


@dataclass(kw_only=True)
class Ppo:
    """Proximal policy optimisation (Schulman et al. 2017) with a KL tether to the chat model."""

    iterations: int = 20
    prompts: int = 64  # queries per iteration
    samples: int = 4  # answers per query
    keep: int = 2  # of a query's answers, so many are learnt from: the best and the worst under the rules; 0: all
    max_new_tokens: int = 96
    epochs: int = 2
    minibatches: int = 4
    lr: float = 1e-4
    critic_lr: float = 3e-4
    clip: float = 0.2
    value_clip: float = 0.2
    gamma: float = 1.0
    lam: float = 0.95
    kl_coef: float = 0.05  # per-token KL penalty in the reward
    grad_clip: float = 1.0
    critic_warmup: int = 1  # iterations in which only the critic learns
    replay: int = 0  # instruction samples learnt beside each minibatch, the tasks by turns, against forgetting
    replay_tasks: list[str] = field(default_factory=list)  # of these tasks; empty: of all
    replay_weight: float = 0.5  # of their loss
    model_weight: float = 1.0  # of the reward model's score
    rule_weight: float = 1.0  # of the rules' score
    rollouts: int = 2  # rollout actors
    save_every: int = 5
    timeout: float = 600.0  # seconds; deadline of one remote call

    def __post_init__(self) -> None:
        _positive("ppo", self, "iterations", "prompts", "samples", "max_new_tokens", "epochs", "minibatches", "lr")
        _positive("ppo", self, "critic_lr", "clip", "value_clip", "grad_clip", "rollouts", "save_every", "timeout")
        _share("ppo", self, "gamma", "lam")
        for name in ("replay", "replay_weight", "kl_coef", "critic_warmup"):
            if getattr(self, name) < 0:
                raise InputError(f"ppo.{name}={getattr(self, name)} must not be negative")
        if not 0 <= self.keep <= self.samples:
            raise InputError(f"ppo.keep={self.keep} must lie in [0, ppo.samples={self.samples}]")
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


class Suite(Enum):
    perplexity = "perplexity"  # loss, perplexity and bits per byte of text
    tasks = "tasks"  # loss, exact match, accuracy, BLEU and chrF of each task's samples
    verse = "verse"  # whether poems keep their form, and what else the rules say of the run's held-out queries
    samples = "samples"  # an answer of each task, to look at


@dataclass(kw_only=True)
class Evaluate:
    """Held-out evaluation: `trainers.evaluate`, and the closing measurement of the chat and rl stages."""

    model: str = ""  # a model folder; empty: the newest of rl, chat, base in the run
    suites: list[Suite] = field(default_factory=list)  # perplexity, tasks, verse, samples; empty: all with data
    files: list[str] = field(default_factory=list)  # .txt or .jsonl for perplexity; empty: the run's held-out text
    tasks: list[str] = field(default_factory=list)  # .jsonl of samples as in sft.files; empty: the run's held-out ones
    out: str = ""  # a .json file for metrics and answers; empty: none
    prompts: int = 256  # queries to answer, of each task
    rows: int = 1024  # packed rows for perplexity
    max_new_tokens: int = 96
    temperature: float = 0.8  # 0: the likeliest token; the suite tasks always answers so
    top_p: float = 1.0

    def __post_init__(self) -> None:
        _positive("evaluate", self, "prompts", "rows", "max_new_tokens")
        if self.temperature < 0:
            raise InputError(f"evaluate.temperature={self.temperature} must not be negative")
        if not 0 < self.top_p <= 1:
            raise InputError(f"evaluate.top_p={self.top_p} must lie in (0, 1]")

    def measure(self) -> dict[str, float]:
        """The knobs that the closing measurement of a stage depends on, by their names in the tree."""
        names = "prompts rows max_new_tokens temperature top_p".split()
        return {f"evaluate.{name}": getattr(self, name) for name in names}


@dataclass(kw_only=True)
class Prune:
    """`trainers.prune`: a model without the least used experts of each layer, and what that costs."""

    model: str = ""  # a model folder; empty: the newest of rl, chat, base in the run
    target: str = ""  # the folder to write; must not exist
    keep: int = 4  # experts of each layer

    def __post_init__(self) -> None:
        _positive("prune", self, "keep")


@dataclass(kw_only=True)
class Serve:
    model: str = ""  # a model folder; empty: the newest of rl, chat in the run
    host: str = "127.0.0.1"
    port: int = 8000
    slots: int = 8  # answers decoded together
    max_new_tokens: int = 256  # an answer's default bound
    queue: int = 64  # waiting requests; more are refused with 503
    max_body_bytes: int = 2**20
    int8: bool = False  # weights in int8: a quarter of the memory

    def __post_init__(self) -> None:
        _positive("serve", self, "slots", "max_new_tokens", "queue", "max_body_bytes")
        if not 0 <= self.port <= 65535:
            raise InputError(f"serve.port={self.port} must lie in [0, 65535]")


@dataclass(kw_only=True)
class Cluster:
    workers: int = 1  # Ray Train workers
    threads: int = 0  # torch threads of one training worker; 0: the machine's cores / workers
    cpus_per_worker: float = 0.5  # logical CPUs that a worker or actor asks Ray for
    gpus_per_worker: float = 0.0
    deterministic: bool = False  # bitwise the same result for any number of workers that divides `slots`
    slots: int = 4  # parts of a batch, a power of two, whose gradients are added in one fixed order
    shard: bool = False  # split weights, gradients and optimizer over the workers (FSDP2)
    expert_parallel: int = 1  # workers over which the experts of a layer are spread
    gpus: int = 0  # for moe.plan: all GPUs of the cluster; 0: workers x gpus_per_worker
    object_store_mb: int = 512
    worker_logs: bool = False  # print the logs of remote workers
    temp_dir: str = ""  # Ray's session folder; empty: Ray's default

    def __post_init__(self) -> None:
        _positive("cluster", self, "workers", "cpus_per_worker", "object_store_mb")
        if self.threads < 0:
            raise InputError(f"cluster.threads={self.threads} must not be negative")
        _positive("cluster", self, "expert_parallel", "slots")
        if self.slots & (self.slots - 1):
            raise InputError(f"cluster.slots={self.slots} must be a power of two; try {1 << self.slots.bit_length()}")
        if self.deterministic and self.slots % self.workers:
            raise InputError(
                f"cluster.workers={self.workers} must divide cluster.slots={self.slots} when cluster.deterministic=true"
            )
        if self.deterministic and (self.shard or self.expert_parallel > 1):
            raise InputError(
                "cluster.deterministic=true adds whole gradients in a fixed order; it needs cluster.shard=false and "
                "cluster.expert_parallel=1"
            )
        if self.workers % self.expert_parallel:
            raise InputError(
                f"cluster.workers={self.workers} must divide by cluster.expert_parallel={self.expert_parallel}; "
                f"try cluster.workers={ceil(self.workers / self.expert_parallel) * self.expert_parallel}"
            )


@dataclass(kw_only=True)
class Gpu:
    """One accelerator, for `moe.plan`."""

    memory: str = "80GB"  # GB and MB are powers of ten, GiB and MiB of two
    tflops: float = 989.0  # dense bf16 matrix products, in 10^12 operations a second (H100 SXM)
    bandwidth: float = 3.35  # of its memory, in 10^12 bytes a second
    mfu: float = 0.35  # share of tflops that a training step is taken to reach

    def __post_init__(self) -> None:
        _positive("gpu", self, "tflops", "bandwidth", "mfu")
        _share("gpu", self, "mfu")
        if self.bytes <= 0:
            raise InputError(f"gpu.memory={self.memory!r} must be greater than 0")

    @property
    def bytes(self) -> float:
        units = {"MB": 1e6, "GB": 1e9, "MiB": 2**20, "GiB": 2**30}
        number = self.memory.rstrip("GMiB")
        try:
            return float(number) * units[self.memory[len(number) :].strip()]
        except (KeyError, ValueError):
            raise InputError(f"gpu.memory={self.memory!r} must be a size such as 80GB or 24GiB") from None


class TrackerKind(Enum):
    none = "none"
    wandb = "wandb"


class WandbMode(Enum):
    online = "online"
    offline = "offline"


@dataclass(kw_only=True)
class Tracker:
    """metrics.jsonl is always written; `tracker=wandb` also sends it to Weights & Biases."""

    kind: TrackerKind = TrackerKind.none
    project: str = "conclave"
    entity: str = ""
    mode: WandbMode = WandbMode.offline


@dataclass(kw_only=True)
class Pipeline:
    stages: list[str] = field(
        default_factory=lambda: "corpus tokenizer tokens tasks base chat ranked reward rl report".split()
    )
    samples: int = 3  # sample chats shown at the end


@dataclass(kw_only=True)
class Config:
    run: Run = field(default_factory=Run)
    model: Model = field(default_factory=Model)
    compute: Compute = field(default_factory=Compute)
    parent: Parent = field(default_factory=Parent)
    convert: Convert = field(default_factory=Convert)
    adapt: Adapt = field(default_factory=Adapt)
    doctor: Doctor = field(default_factory=Doctor)
    spikes: Spikes = field(default_factory=Spikes)
    checkpoints: Checkpoints = field(default_factory=Checkpoints)
    gpu: Gpu = field(default_factory=Gpu)
    corpus: Corpus = field(default_factory=Corpus)
    tokenizer: Tokenizer = field(default_factory=Tokenizer)
    tokens: Tokens = field(default_factory=Tokens)
    tasks: Tasks = field(default_factory=Tasks)
    optim: Optim = field(default_factory=Optim)
    pretrain: Pretrain = field(default_factory=Pretrain)
    sft: Sft = field(default_factory=Sft)
    rank: Rank = field(default_factory=Rank)
    reward: Reward = field(default_factory=Reward)
    ppo: Ppo = field(default_factory=Ppo)
    evaluate: Evaluate = field(default_factory=Evaluate)
    prune: Prune = field(default_factory=Prune)
    serve: Serve = field(default_factory=Serve)
    cluster: Cluster = field(default_factory=Cluster)
    tracker: Tracker = field(default_factory=Tracker)
    pipeline: Pipeline = field(default_factory=Pipeline)

    def __post_init__(self) -> None:
        if self.parent.model:  # whose own context counts, and is known once its files are read
            return
        for section, length in (("tokens", self.tokens), ("sft", self.sft)):
            if length.row_length > self.model.context:
                raise InputError(
                    f"{section}.row_length={length.row_length} must be at most model.context={self.model.context}"
                )
