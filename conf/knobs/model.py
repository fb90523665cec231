"""What a model is, how it computes, and what it can start from or be made into."""

from dataclasses import dataclass, field
from enum import Enum
from math import ceil

from conf.errors import InputError
from conf.knobs.checks import positive, share


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
    # Load-balancing loss (Switch Transformer), over the tokens of all workers that go through the model at once: with
    # `accumulate` each micro-batch is balanced for itself, for nobody knows the load of the step before its last one.
    balance_coef: float = 0.01  # of the load-balancing loss, divided by the number of layers
    z_coef: float = 0.001  # router z-loss (ST-MoE), divided by the number of layers
    # In training the router's input is multiplied by noise from [1 - jitter, 1 + jitter] (Switch Transformer). Later
    # stages know of it by Mixtral's config.json; Qwen3-MoE's has no field for it, and only the first stage has noise.
    jitter: float = 0.0

    def __post_init__(self) -> None:
        names = "hidden_size layers heads kv_heads head_dim experts top_k expert_size context rope_theta norm_eps"
        positive("model", self, *names.split(), "init_std")
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
        share("model", self, "jitter")
        for name in ("balance_coef", "z_coef"):
            if getattr(self, name) < 0:
                raise InputError(f"model.{name}={getattr(self, name)} must not be negative")


class Precision(Enum):
    auto = "auto"  # the fastest on this machine, measured once; a run keeps what it began with
    fp32 = "fp32"
    bf16 = "bf16"  # matrix products; weights, router, norms, losses and the optimizer stay in fp32
    fp16 = "fp16"  # as bf16


class ExpertsBackend(Enum):
    auto = "auto"  # on CUDA grouped where it is one kernel, else megablocks where it is installed; elsewhere torch
    torch = "torch"
    grouped = "grouped"  # torch's grouped product: on CUDA bf16 on Hopper and Blackwell, on a CPU a plain loop
    megablocks = "megablocks"


@dataclass(kw_only=True)
class Compute:
    """How the supervised stages compute; what they learn is the same to rounding."""

    precision: Precision = Precision.fp32
    experts: ExpertsBackend = ExpertsBackend.auto
    checkpointing: bool = False  # forget a block's activations and compute them again in the backward pass


@dataclass(kw_only=True)
class Parent:
    """A checkpoint that a run begins with, instead of `model` and random weights: pretraining continues it; without
    pretraining SFT, rankings and reinforcement learning take it as the stage `parent`. A dense one is upcycled."""

    model: str = ""  # a Hugging Face folder or a .gguf file; empty: from scratch
    experts: int = 8  # an upcycled parent's MLP becomes so many experts
    top_k: int = 2
    granularity: int = 1  # each copy of the MLP is cut into so many finer experts (He et al. 2024)
    noise: float = 0.0  # added to the copies, in units of each matrix's standard deviation

    def __post_init__(self) -> None:
        positive("parent", self, "experts", "top_k", "granularity")
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
        positive("adapt", self, "lora_alpha")
        if self.lora_rank and not self.lora_targets:
            raise InputError("adapt.lora_targets=[] leaves LoRA nothing to adapt; there are attention, experts")
        if self.lora_rank and self.only_new_rows:
            raise InputError(
                f"adapt.only_new_rows=true trains no LoRA factors, and adapt.lora_rank={self.lora_rank} asks for them"
            )


@dataclass(kw_only=True)
class Prune:
    """`trainers.prune`: a model without the least used experts of each layer, and what that costs."""

    model: str = ""  # a model folder; empty: the best of rl, hfft, cohft, chat, base in the run
    target: str = ""  # the folder to write; must not exist
    keep: int = 4  # experts of each layer

    def __post_init__(self) -> None:
        positive("prune", self, "keep")


@dataclass(kw_only=True)
class Planner:
    """`moe.plan`."""

    detail: bool = False  # below the answer, the tables that it comes from


@dataclass(kw_only=True)
class Gpu:
    """One accelerator, for `moe.plan`."""

    memory: str = "80GB"  # GB and MB are powers of ten, GiB and MiB of two
    tflops: float = 989.0  # dense bf16 matrix products, in 10^12 operations a second (H100 SXM)
    bandwidth: float = 3.35  # of its memory, in 10^12 bytes a second
    mfu: float = 0.35  # share of tflops that a training step is taken to reach, recomputed operations included

    def __post_init__(self) -> None:
        positive("gpu", self, "tflops", "bandwidth", "mfu")
        share("gpu", self, "mfu")
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
