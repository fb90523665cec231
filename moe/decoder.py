"""The sparse-MoE decoder: RMSNorm, rotary grouped-query attention, SwiGLU experts, a vocabulary or scores as head.

Parameter names are those of Hugging Face's Qwen3-MoE with fused experts. Work is done on the N real tokens of a batch;
padding takes no compute outside attention.

Letters: B rows, T positions, N real tokens, H hidden size, E experts, S segments, L longest segment, D head size.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from conf.knobs.model import Compute, Model
from moe.experts import Backend, backend, by_tokens
from moe.kernels.attention import Documents, attend_packed, attention, packs
from moe.kernels.gemm import linear
from moe.kernels.norm import Rope, norm_turn, rms_norm
from moe.router import Routes, choose, jittered, route

Head = tuple[str, ...]  # what a model puts out: () the vocabulary, else the names of its scores, the total first
LANGUAGE: Head = ()
SCALAR: Head = ("total",)


@dataclass(frozen=True)
class Layout:
    """Where the real tokens of packed rows lie, and how attention sees them."""

    index: Tensor  # [N] flat position in [B*T]
    positions: Tensor  # [N] position within its segment: what rotary embedding turns by
    slots: Tensor  # [N] flat position in attention's own [rows*width] grid
    rows: int
    width: int
    documents: Documents | None  # where rows hold several; None: causal is enough
    ends: Tensor  # [S + 1] int32: where the segments begin among the N tokens, and N
    longest: int  # tokens of a segment


def layout(segments: Tensor) -> Layout:
    """Segment numbers [B, T] (0 is padding) to a layout in which no token sees another segment.

    Attention runs on one grid row per segment when that grid is small, so packed short documents cost no T x T pass;
    else on the rows as they are, which then know where their documents start.
    """
    batch, length = segments.shape
    flat = segments.flatten()
    index = flat.nonzero().squeeze(1)
    before = torch.full_like(segments, -1)
    before[:, 1:] = segments[:, :-1]
    starts = ((segments != before) & (segments > 0)).flatten()[index]  # [N] bool
    segment = starts.long().cumsum(0) - 1  # [N] number of the token's segment over the whole batch
    first = starts.nonzero().squeeze(1)  # [S]
    ordinal = torch.arange(index.shape[0], device=segments.device)
    positions = ordinal - first[segment] if index.numel() else index
    count = first.shape[0]
    ends = torch.cat((first, first.new_tensor([index.shape[0]]))).int()
    longest = int(positions.max()) + 1 if index.numel() else 0
    if count * longest * longest <= batch * length * length:
        return Layout(index, positions, segment * longest + positions, count, longest, None, ends, longest)
    at = torch.arange(length, device=segments.device).expand_as(segments)
    documents = Documents(torch.where(segments != before, at, 0).cummax(1).values)
    return Layout(index, positions, index, batch, length, documents, ends, longest)


def rotary(cfg: Model, positions: Tensor) -> Rope:
    """Rotary angles of positions [N]."""
    powers = torch.arange(0, cfg.head_dim, 2, device=positions.device, dtype=torch.float32) / cfg.head_dim
    angles = (positions.float().unsqueeze(1) * cfg.rope_theta**-powers).unsqueeze(1)
    return Rope(angles.cos(), angles.sin())


class Attention(nn.Module):
    def __init__(self, cfg: Model) -> None:
        super().__init__()
        self.heads, self.kv_heads, self.head_dim, self.eps = cfg.heads, cfg.kv_heads, cfg.head_dim, cfg.norm_eps
        self.q_proj = nn.Linear(cfg.hidden_size, cfg.heads * cfg.head_dim, bias=False)
        self.k_proj = nn.Linear(cfg.hidden_size, cfg.kv_heads * cfg.head_dim, bias=False)
        self.v_proj = nn.Linear(cfg.hidden_size, cfg.kv_heads * cfg.head_dim, bias=False)
        self.o_proj = nn.Linear(cfg.heads * cfg.head_dim, cfg.hidden_size, bias=False)
        self.q_norm = nn.RMSNorm(cfg.head_dim, eps=cfg.norm_eps) if cfg.qk_norm else None
        self.k_norm = nn.RMSNorm(cfg.head_dim, eps=cfg.norm_eps) if cfg.qk_norm else None

    def project(self, x: Tensor, rope: Rope) -> Tensor:
        """x [N, H] -> queries, keys (normalised, positions applied) and values [N, heads + 2 kv_heads, D]."""
        heads = self.heads + 2 * self.kv_heads
        joined = linear(x, self.q_proj.weight, self.k_proj.weight, self.v_proj.weight)
        joined = joined.view(x.shape[0], heads, self.head_dim)
        gains = None
        if self.q_norm is not None and self.k_norm is not None:
            of_heads = self.q_norm.weight.expand(self.heads, -1), self.k_norm.weight.expand(self.kv_heads, -1)
            gains = torch.cat(of_heads)
        return norm_turn(joined, self.heads + self.kv_heads, rope, gains, self.eps)

    def split(self, joined: Tensor, dim: int) -> tuple[Tensor, Tensor, Tensor]:
        """What `project` joined: queries, keys, values."""
        q, k, v = joined.split((self.heads, self.kv_heads, self.kv_heads), dim=dim)
        return q, k, v

    def forward(self, x: Tensor, rope: Rope, grid: Layout) -> tuple[Tensor, Tensor, Tensor]:
        """x [N, H] -> (y [N, H], k, v [N, kv_heads, D] for a cache)."""
        joined = self.project(x, rope)
        _, keys, values = self.split(joined, 1)
        if packs(joined):
            mixed = attend_packed(joined, self.heads, self.kv_heads, grid.ends, grid.longest)
            return linear(mixed.reshape(x.shape[0], -1), self.o_proj.weight), keys, values
        cells, size = joined, grid.rows * grid.width
        if size != x.shape[0]:
            cells = joined.new_zeros(size, *joined.shape[1:]).index_copy(0, grid.slots, joined)
        cells = cells.view(grid.rows, grid.width, *joined.shape[1:])
        mixed = attention(cells, self.heads, self.kv_heads, grid.documents)
        mixed = mixed.reshape(size, self.heads * self.head_dim)
        if size != x.shape[0]:
            mixed = mixed[grid.slots]
        return linear(mixed, self.o_proj.weight), keys, values

    def step(
        self, x: Tensor, rope: Rope, keys: Tensor, values: Tensor, at: tuple[Tensor, Tensor], seen: Tensor
    ) -> Tensor:
        """One new token per row against its cache: x [n, H], keys and values [n, kv_heads, width, D] (written in place
        at rows and positions `at` [n]), seen [n, 1, 1, width] True where a position is filled -> y [n, H]."""
        q, k, v = self.split(self.project(x, rope), 1)
        rows, positions = at
        keys[rows, :, positions] = k
        values[rows, :, positions] = v
        n, group = x.shape[0], self.heads // self.kv_heads
        grouped = q.reshape(n, self.kv_heads, group, self.head_dim)
        scores = torch.matmul(grouped, keys.transpose(2, 3)).mul_(self.head_dim**-0.5)
        weights = scores.masked_fill_(~seen, float("-inf")).softmax(-1)
        return linear(torch.matmul(weights, values).reshape(n, -1), self.o_proj.weight)


class Experts(nn.Module):
    def __init__(self, cfg: Model) -> None:
        super().__init__()
        self.gate_up_proj = nn.Parameter(torch.empty(cfg.experts, 2 * cfg.expert_size, cfg.hidden_size))
        self.down_proj = nn.Parameter(torch.empty(cfg.experts, cfg.hidden_size, cfg.expert_size))


class SparseMlp(nn.Module):
    def __init__(self, cfg: Model) -> None:
        super().__init__()
        self.top_k, self.jitter = cfg.top_k, cfg.jitter
        self.gate = nn.Linear(cfg.hidden_size, cfg.experts, bias=False)
        self.experts = Experts(cfg)
        self.backend: Backend = by_tokens

    def forward(self, x: Tensor, alone: bool = False, given: Tensor | None = None) -> tuple[Tensor, Routes]:
        noisy = self.jitter and self.training and torch.is_grad_enabled()
        seen = jittered(x, self.jitter) if noisy else x
        routes = route(seen, self.gate.weight, self.top_k, alone=alone, given=given)
        owned = self.experts
        return self.backend(x, routes.experts, routes.weights, owned.gate_up_proj, owned.down_proj), routes

    def step(self, x: Tensor, chosen: list[Tensor] | None = None) -> Tensor:
        """Without what only training asks of a router. x [N, H] -> y [N, H]; the experts [N, k] go to `chosen`."""
        _, _, experts, weights = choose(x, self.gate.weight, self.top_k)
        if chosen is not None:
            chosen.append(experts)
        return self.backend(x, experts, weights, self.experts.gate_up_proj, self.experts.down_proj)


class Norm(nn.RMSNorm):
    def forward(self, x: Tensor) -> Tensor:
        assert self.eps is not None
        return rms_norm(x, self.weight, self.eps)


class Passed(NamedTuple):
    """What a block hands on."""

    x: Tensor  # [N, H]
    routes: Routes
    keys: Tensor  # [N, kv_heads, D]
    values: Tensor  # [N, kv_heads, D]


class Layer(nn.Module):
    def __init__(self, cfg: Model) -> None:
        super().__init__()
        self.input_layernorm = Norm(cfg.hidden_size, eps=cfg.norm_eps)
        self.self_attn = Attention(cfg)
        self.post_attention_layernorm = Norm(cfg.hidden_size, eps=cfg.norm_eps)
        self.mlp = SparseMlp(cfg)

    def step(
        self,
        x: Tensor,
        rope: Rope,
        keys: Tensor,
        values: Tensor,
        at: tuple[Tensor, Tensor],
        seen: Tensor,
        chosen: list[Tensor] | None = None,
    ) -> Tensor:
        """As `Attention.step`, through the whole block; the experts [n, k] go to `chosen`."""
        x = x + self.self_attn.step(self.input_layernorm(x), rope, keys, values, at, seen)
        return x + self.mlp.step(self.post_attention_layernorm(x), chosen)

    def forward(self, x: Tensor, rope: Rope, grid: Layout, alone: bool, given: Tensor | None = None) -> Passed:
        attended, keys, values = self.self_attn(self.input_layernorm(x), rope, grid)
        x = x + attended
        mixed, routes = self.mlp(self.post_attention_layernorm(x), alone, given)
        return Passed(x + mixed, routes, keys, values)


@dataclass(frozen=True)
class Hidden:
    """What the trunk says about a batch."""

    states: Tensor  # [N, H] after the final norm, one row per real token in row order
    grid: Layout
    auxiliary: Tensor  # [] load-balancing and z losses with their coefficients, mean over the layers (see Routes)
    load: Tensor  # [layers, E] share of assignments per expert, no gradient
    balance: Tensor  # [layers] each layer's load-balancing loss, no gradient
    z: Tensor  # [layers] its z-loss
    entropy: Tensor  # [layers] of its router, in nats
    cache: list[tuple[Tensor, Tensor]]  # per layer: keys and values [N, kv_heads, D]; empty under gradients
    chosen: list[Tensor]  # per layer: the experts [N, k]

    def experts(self) -> Tensor:
        """The experts of all layers [N, layers, k] int16, in main memory."""
        return torch.stack(self.chosen, 1).to("cpu", torch.int16)

    def at(self, positions: Tensor) -> Tensor:
        """The states [n, H] at flat positions [n] of the batch's [B*T], each that of a real token."""
        return self.states[torch.searchsorted(self.grid.index, positions)]

    def before(self, positions: Tensor) -> Tensor:
        """The states [n, H] just before flat positions [n]: those that predict the tokens there."""
        return self.at(positions - 1)


class Trunk(nn.Module):
    def __init__(self, cfg: Model, vocab_size: int) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(vocab_size, cfg.hidden_size)
        self.layers = nn.ModuleList(Layer(cfg) for _ in range(cfg.layers))
        self.norm = Norm(cfg.hidden_size, eps=cfg.norm_eps)

    def blocks(self) -> list[Layer]:
        return [cast(Layer, layer) for layer in self.layers]


class Decoder(nn.Module):
    """`head` is the vocabulary (`lm_head`) or a fully connected layer with a unit for each score (`score`)."""

    def __init__(self, cfg: Model, vocab_size: int, head: Head = LANGUAGE) -> None:
        super().__init__()
        self.cfg, self.vocab_size, self.head = cfg, vocab_size, head
        self.checkpointing = False
        self.balance_alone = False  # the auxiliary losses are of this rank's tokens, not of the global batch
        self.model = Trunk(cfg, vocab_size)
        if head == LANGUAGE:
            self.lm_head = nn.Linear(cfg.hidden_size, vocab_size, bias=False)
        else:
            self.score = nn.Linear(cfg.hidden_size, len(head), bias=False)

    @property
    def device(self) -> torch.device:
        """Where its weights lie, and what it is given must."""
        return self.model.norm.weight.device

    def compute_with(self, cfg: Compute) -> "Decoder":
        """Choose how the experts are computed and what is kept for the backward pass; returns itself."""
        self.checkpointing = cfg.checkpointing
        for layer in self.model.blocks():
            layer.mlp.backend = backend(cfg.experts)
        return self

    def forward(self, tokens: Tensor, segments: Tensor, experts: Tensor | None = None) -> Hidden:
        """tokens, segments [B, T] int64; segment 0 is padding. experts [B, T, layers, k] are gone to instead of those
        that the router chooses, by its own odds; -1: its own."""
        grid = layout(segments)
        given: Sequence[Tensor | None] = [None] * self.cfg.layers
        if experts is not None:
            given = experts.flatten(0, 1)[grid.index].long().unbind(1)
        x = self.model.embed_tokens(tokens.flatten()[grid.index])
        rope = rotary(self.cfg, grid.positions)
        routes: list[Routes] = []
        cache = []
        for layer, own in zip(self.model.blocks(), given, strict=True):
            if self.checkpointing and torch.is_grad_enabled():
                passed = checkpoint(layer, x, rope, grid, self.balance_alone, own, use_reentrant=False)
            else:
                passed = layer(x, rope, grid, self.balance_alone, own)
            x = passed.x
            routes.append(passed.routes)
            if not torch.is_grad_enabled():
                cache.append((passed.keys, passed.values))
        balance, z = torch.stack([r.balance for r in routes]), torch.stack([r.z for r in routes])
        return Hidden(
            states=self.model.norm(x),
            grid=grid,
            auxiliary=self.cfg.balance_coef * balance.mean() + self.cfg.z_coef * z.mean(),
            load=torch.stack([r.load for r in routes]).detach(),
            balance=balance.detach(),
            z=z.detach(),
            entropy=torch.stack([r.entropy for r in routes]),
            cache=cache,
            chosen=[r.experts for r in routes],
        )

    def logits(self, states: Tensor) -> Tensor:
        """states [N, H] -> [N, V]."""
        return linear(states, self.lm_head.weight)

    def scores(self, states: Tensor) -> Tensor:
        """states [N, H] -> the first score [N], a reward model's total."""
        return self.principle_scores(states)[:, 0]

    def principle_scores(self, states: Tensor) -> Tensor:
        """states [N, H] -> [N, scores], in the order of `head`."""
        with torch.autocast(states.device.type, enabled=False):
            return self.score(states.float())


def new_decoder(cfg: Model, vocab_size: int, *, head: Head = LANGUAGE, seed: int = 0) -> Decoder:
    """A decoder with random weights that depend on `seed` alone; projections into the residual stream start smaller."""
    generator = torch.Generator().manual_seed(seed)
    decoder = Decoder(cfg, vocab_size, head)
    residual = cfg.init_std / (2 * cfg.layers) ** 0.5
    for name, parameter in decoder.named_parameters():
        if parameter.dim() > 1 and not parameter.is_meta:
            into_residual = name.endswith(("o_proj.weight", "down_proj"))
            std = residual if into_residual else cfg.init_std
            drawn = torch.empty(parameter.shape, device="cpu").normal_(std=std, generator=generator)  # on any device
            parameter.data.copy_(drawn)
    return decoder
