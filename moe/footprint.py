"""What a model costs: parameters, floating-point operations, bytes. Arithmetic alone: no torch is loaded.

Bytes are those of tensors. On a CPU a process holds up to a quarter more, for buffers that are kept for the next step
(`moe.kernels.allocator`) leave gaps in the heap.

Letters: H hidden size, I inner width of an expert, E experts, k experts per token, V vocabulary, N tokens of a
micro-batch on one device.
"""

from dataclasses import dataclass

from conf.knobs.model import Model
from conf.knobs.training import Optimizer

FULL, HALF = 4, 2  # bytes of fp32, and of bf16 or fp16
TILE = 64  # rows to which an expert's share of the tokens is padded
CHUNK = 512  # rows of logits that exist at once


@dataclass(frozen=True)
class Work:
    """What one device holds and does in a training step."""

    rows: int  # of a micro-batch
    length: int
    optimizer: Optimizer
    accumulate: int = 1
    half: bool = False  # matrix products in bf16 or fp16; weights and optimizer stay in fp32
    checkpointing: bool = False
    shards: int = 1  # devices over which weights, gradients and optimizer are split (FSDP2)
    # Devices over which the experts are spread. With `shards` too these are split over the replicas of their owners: of
    # every weight a device then holds 1/shards, and gathers of the experts only its own.
    expert_parallel: int = 1

    @property
    def tokens(self) -> int:
        return self.rows * self.length


def parameters(cfg: Model, vocab: int) -> dict[str, int]:
    """Numbers of the model by part."""
    hidden, width = cfg.hidden_size, (2 * cfg.heads + 2 * cfg.kv_heads) * cfg.head_dim
    gains = 2 * hidden + (2 * cfg.head_dim if cfg.qk_norm else 0)
    return {
        "embedding": vocab * hidden,
        "attention": cfg.layers * hidden * width,
        "router": cfg.layers * cfg.experts * hidden,
        "experts": cfg.layers * cfg.experts * 3 * hidden * cfg.expert_size,
        "norms": cfg.layers * gains + hidden,
        "head": vocab * hidden,
    }


def active_parameters(cfg: Model, vocab: int) -> dict[str, int]:
    """Of those, what one token passes through."""
    parts = parameters(cfg, vocab)
    return parts | {"experts": parts["experts"] // cfg.experts * cfg.top_k}


def forward_flops(cfg: Model, vocab: int, *, seen: float | None = None, targets: float = 1.0) -> dict[str, float]:
    """Floating-point operations per token of a forward pass; a backward pass has twice as many. A multiplication and
    its addition are two.

    `seen` is how many tokens one attends to on average: half of `context` unless given, as if each row were one
    document. `targets` is the share of the tokens that go through the head.
    """
    active = active_parameters(cfg, vocab)
    multiplied = {name: 2.0 * active[name] for name in ("attention", "router", "experts")}
    scores = 4.0 * cfg.layers * cfg.heads * cfg.head_dim * (cfg.context / 2 if seen is None else seen)
    return multiplied | {"head": 2.0 * active["head"] * targets, "attention scores": scores}


def training_flops(
    cfg: Model, vocab: int, *, checkpointing: bool, seen: float | None = None, targets: float = 1.0
) -> float:
    """Per token, forward and backward; checkpointing computes the blocks' forward pass twice."""
    parts = forward_flops(cfg, vocab, seen=seen, targets=targets)
    whole = sum(parts.values())
    return 3 * whole + (whole - parts["head"] if checkpointing else 0.0)


def kept_by_a_block(cfg: Model, tokens: int, *, half: bool) -> dict[str, float]:
    """Bytes that the forward pass of one block keeps for its backward pass, by what keeps them."""
    hidden, queries, keys = cfg.hidden_size, cfg.heads * cfg.head_dim, cfg.kv_heads * cfg.head_dim
    product = HALF if half else FULL  # what goes into and comes out of a matrix product
    return {
        "norms: x before each": tokens * 2 * hidden * FULL,
        "attention: x": tokens * hidden * product,
        "attention: heads before norm and rotation": tokens * (queries + 2 * keys) * FULL,
        "attention: heads": tokens * (queries + 2 * keys) * FULL,
        "attention: mixed heads": tokens * queries * (FULL + HALF if half else FULL),
        "attention: joined weights": hidden * (queries + 2 * keys) * product,
        "router: x": tokens * hidden * FULL,
        "router: logits and probabilities": tokens * 2 * cfg.experts * FULL,
        "experts: x": tokens * hidden * HALF if half else 0.0,  # in fp32 the router's
        "experts: gate and up": slots(cfg, tokens) * 2 * cfg.expert_size * product,
    }


def slots(cfg: Model, tokens: int) -> int:
    """Rows that the experts of a layer compute, padding included."""
    return tokens * cfg.top_k + cfg.experts * TILE // 2


def training_memory(cfg: Model, vocab: int, work: Work) -> dict[str, dict[str, float]]:
    """{moment: {part: bytes}} on one device; the moment with the largest sum is the peak.

    Gradients come to be while activations go, block by block, so their common peak is at one end of the backward pass.
    """
    parts = parameters(cfg, vocab)
    experts = parts["experts"] / work.expert_parallel
    matrices = parts["attention"] + experts
    spread = work.expert_parallel if work.shards == 1 else 1  # what `shards` does not do already
    total = sum(parts.values()) - parts["experts"] + parts["experts"] / spread
    product, stream = HALF if work.half else FULL, FULL * work.tokens * cfg.hidden_size
    muon = work.optimizer is Optimizer.muon

    block = sum(kept_by_a_block(cfg, work.tokens, half=work.half).values())
    activations = cfg.layers * block
    if work.checkpointing:  # what each block is given, and all of the one at work
        activations = cfg.layers * stream + block
    always = {
        "weights": FULL * total / work.shards,
        "optimizer": FULL * (2 * total - (parts["attention"] + parts["experts"] / spread) * muon) / work.shards,
    }
    if work.half:
        alive = 1 if work.shards > 1 or work.checkpointing else cfg.layers
        always["half-precision weights"] = HALF * matrices * alive / cfg.layers
    if work.shards > 1:
        always["gathered blocks"] = 2 * FULL * matrices / cfg.layers  # the one at work and the next
    if work.expert_parallel > 1:
        # sent to the experts and received from others, there and back
        always["exchanged tokens"] = 4 * slots(cfg, work.tokens) * cfg.hidden_size * product
    gradients = {"gradients": FULL * total / work.shards}
    before = {"gradients": gradients["gradients"] if work.accumulate > 1 else 0.0}
    first = {"gradients": before["gradients"] or FULL * (parts["head"] + matrices / cfg.layers) / work.shards}
    backward = {
        "MoE buffers": _expert_buffers(cfg, work, product),
        "residual stream": 3 * stream,
    }
    head = {"loss and head": 2 * FULL * parts["head"] + 2 * stream + 3 * FULL * CHUNK * vocab}
    step = (
        {"Muon's work": _muon_buffers(cfg, parts["attention"] + parts["experts"] / spread) / work.shards}
        if muon
        else {}
    )
    return {
        "loss": always | before | {"activations": activations} | head,
        "backward begins": always | first | {"activations": activations} | backward,
        "backward ends": always | gradients | {"activations": block} | backward,
        "optimizer step": always | gradients | step,
    }


def _expert_buffers(cfg: Model, work: Work, size: int) -> float:
    """The gradients of the experts' rows, and what one expert after the other gathers and computes again."""
    rows = work.tokens * cfg.top_k
    of_one = rows * work.expert_parallel / cfg.experts
    return size * (rows * cfg.hidden_size + of_one * (2 * cfg.hidden_size + 3 * cfg.expert_size))


def _muon_buffers(cfg: Model, matrices: float) -> float:
    """The momentum ahead of every matrix, and of the most of one shape the stack, what a step of the iteration begins
    and ends with, and two products of the shorter side. In fp32, as on a CPU; a GPU's iteration takes half as much."""
    hidden, inner = cfg.hidden_size, cfg.expert_size
    per_expert, heads = 3 * hidden * inner, (2 * cfg.heads + 2 * cfg.kv_heads) * cfg.head_dim
    experts = matrices * cfg.experts * per_expert / (cfg.experts * per_expert + hidden * heads)
    gate_up, products = 2 / 3 * experts, 2 * min(hidden, 2 * inner) ** 2 * experts / per_expert
    return FULL * (matrices + 3 * gate_up + products)


def peak(moments: dict[str, dict[str, float]]) -> float:
    return max(sum(parts.values()) for parts in moments.values())


def peak_of(moments: dict[str, dict[str, float]], *, trained: float) -> float:
    """The peak where only a share of the weights is trained: the others have neither gradient nor optimizer."""
    own = ("optimizer", "gradients", "Muon's work")
    return max(
        sum(size * (trained if part in own else 1.0) for part, size in held.items()) for held in moments.values()
    )


def inference_memory(cfg: Model, vocab: int, *, sequences: int, half: bool) -> dict[str, float]:
    """Bytes by part when `sequences` of `context` tokens are decoded together."""
    size = HALF if half else FULL
    cache = 2 * cfg.layers * cfg.kv_heads * cfg.head_dim * cfg.context
    return {
        "weights": size * sum(parameters(cfg, vocab).values()),
        "KV cache": size * sequences * cache,
        "logits": FULL * 3 * sequences * vocab,
        "prefill": sum(kept_by_a_block(cfg, cfg.context, half=half).values()),
    }


def compute_bound_tokens(cfg: Model, operations_per_byte: float) -> float:
    """Tokens per expert from which its matrix products are bound by arithmetic, not by memory; infinite if never.

    A product of n tokens with an [H, I] matrix in 16 bits has n*H*I / (H*I + n*(H + I)) operations per byte, at most
    H*I / (H + I).
    """
    weight, sides = cfg.hidden_size * cfg.expert_size, cfg.hidden_size + cfg.expert_size
    rest = weight - operations_per_byte * sides
    return operations_per_byte * weight / rest if rest > 0 else float("inf")
