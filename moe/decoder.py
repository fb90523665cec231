"""The sparse-MoE decoder: RMSNorm, rotary grouped-query attention, SwiGLU experts, a language or a scalar head.

Parameter names are those of Hugging Face's Qwen3-MoE with fused experts. Work is done on the N real tokens of a batch;
padding takes no compute outside attention.

Letters: B rows, T positions, N real tokens, H hidden size, E experts, S segments, L longest segment, D head size.
"""

from dataclasses import dataclass
from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from conf.schema import Model
from moe.config import LANGUAGE, SCALAR
from moe.experts import torch_experts
from moe.router import Routes, route


@dataclass(frozen=True)
class Layout:
    """Where the real tokens of packed rows lie, and how attention sees them."""

    index: Tensor  # [N] flat position in [B*T]
    positions: Tensor  # [N] position within its segment: what rotary embedding turns by
    slots: Tensor  # [N] flat position in attention's own [rows*width] grid
    rows: int
    width: int
    mask: Tensor | None  # [rows, 1, width, width] True where a query may look; None: causal is enough


def layout(segments: Tensor) -> Layout:
    """Segment numbers [B, T] (0 is padding) to a layout in which no token sees another segment.

    Attention runs on one grid row per segment when that grid is small, so packed short documents cost no T x T mask;
    else on the rows as they are, with a mask.
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
    longest = int(positions.max()) + 1 if index.numel() else 0
    if count * longest * longest <= batch * length * length:
        return Layout(index, positions, segment * longest + positions, count, longest, None)
    same = segments.unsqueeze(2) == segments.unsqueeze(1)
    causal = torch.ones(length, length, dtype=torch.bool, device=segments.device).tril()
    return Layout(index, positions, index, batch, length, (same & causal).unsqueeze(1))


class Rope(NamedTuple):
    cos: Tensor  # [N, 1, D]
    sin: Tensor  # [N, 1, D]


def rotary(cfg: Model, positions: Tensor) -> Rope:
    """Rotary angles of positions [N] (Su et al. 2021, in the rotate-half layout of Hugging Face)."""
    powers = torch.arange(0, cfg.head_dim, 2, device=positions.device, dtype=torch.float32) / cfg.head_dim
    angles = positions.float().unsqueeze(1) * cfg.rope_theta**-powers
    angles = torch.cat((angles, angles), dim=1).unsqueeze(1)
    return Rope(angles.cos(), angles.sin())


def turn(x: Tensor, rope: Rope) -> Tensor:
    """Rotate the heads x [N, heads, D]."""
    a, b = x.chunk(2, dim=-1)
    return x * rope.cos + torch.cat((-b, a), dim=-1) * rope.sin


class Attention(nn.Module):
    def __init__(self, cfg: Model) -> None:
        super().__init__()
        self.heads, self.kv_heads, self.head_dim = cfg.heads, cfg.kv_heads, cfg.head_dim
        self.q_proj = nn.Linear(cfg.hidden_size, cfg.heads * cfg.head_dim, bias=False)
        self.k_proj = nn.Linear(cfg.hidden_size, cfg.kv_heads * cfg.head_dim, bias=False)
        self.v_proj = nn.Linear(cfg.hidden_size, cfg.kv_heads * cfg.head_dim, bias=False)
        self.o_proj = nn.Linear(cfg.heads * cfg.head_dim, cfg.hidden_size, bias=False)
        self.q_norm = nn.RMSNorm(cfg.head_dim, eps=cfg.norm_eps) if cfg.qk_norm else nn.Identity()
        self.k_norm = nn.RMSNorm(cfg.head_dim, eps=cfg.norm_eps) if cfg.qk_norm else nn.Identity()

    def project(self, x: Tensor, rope: Rope) -> tuple[Tensor, Tensor, Tensor]:
        """x [N, H] -> q [N, heads, D], k and v [N, kv_heads, D], positions applied."""
        n = x.shape[0]
        q = turn(self.q_norm(self.q_proj(x).view(n, self.heads, self.head_dim)), rope)
        k = turn(self.k_norm(self.k_proj(x).view(n, self.kv_heads, self.head_dim)), rope)
        return q, k, self.v_proj(x).view(n, self.kv_heads, self.head_dim)

    def forward(self, x: Tensor, rope: Rope, grid: Layout) -> tuple[Tensor, Tensor, Tensor]:
        """x [N, H] -> (y [N, H], k, v [N, kv_heads, D] for a cache)."""
        q, k, v = self.project(x, rope)

        def spread(t: Tensor) -> Tensor:  # [N, heads, D] -> [rows, heads, width, D]
            cells = t.new_zeros(grid.rows * grid.width, *t.shape[1:]).index_copy(0, grid.slots, t)
            return cells.view(grid.rows, grid.width, *t.shape[1:]).transpose(1, 2)

        out = F.scaled_dot_product_attention(
            spread(q), spread(k), spread(v), attn_mask=grid.mask, is_causal=grid.mask is None, enable_gqa=True
        )
        cells = out.transpose(1, 2).reshape(grid.rows * grid.width, self.heads * self.head_dim)
        return self.o_proj(cells[grid.slots]), k, v

    def step(self, x: Tensor, rope: Rope, keys: Tensor, values: Tensor, at: Tensor, seen: Tensor) -> Tensor:
        """One new token per row against its cache: x [n, H], keys and values [n, kv_heads, width, D] (written in place
        at positions `at` [n]), seen [n, 1, 1, width] True where a position is filled -> y [n, H]."""
        q, k, v = self.project(x, rope)
        rows = torch.arange(x.shape[0], device=x.device)
        keys[rows, :, at] = k
        values[rows, :, at] = v
        n, group = x.shape[0], self.heads // self.kv_heads
        grouped = q.view(n, self.kv_heads, group, self.head_dim)
        scores = torch.matmul(grouped, keys.transpose(2, 3)).mul_(self.head_dim**-0.5)
        weights = scores.masked_fill_(~seen, float("-inf")).softmax(-1)
        return self.o_proj(torch.matmul(weights, values).reshape(n, -1))


class Experts(nn.Module):
    def __init__(self, cfg: Model) -> None:
        super().__init__()
        self.gate_up_proj = nn.Parameter(torch.empty(cfg.experts, 2 * cfg.expert_size, cfg.hidden_size))
        self.down_proj = nn.Parameter(torch.empty(cfg.experts, cfg.hidden_size, cfg.expert_size))


class SparseMlp(nn.Module):
    def __init__(self, cfg: Model) -> None:
        super().__init__()
        self.top_k = cfg.top_k
        self.gate = nn.Linear(cfg.hidden_size, cfg.experts, bias=False)
        self.experts = Experts(cfg)

    def forward(self, x: Tensor) -> tuple[Tensor, Routes]:
        routes = route(x, self.gate.weight, self.top_k)
        owned = self.experts
        return torch_experts(x, routes.experts, routes.weights, owned.gate_up_proj, owned.down_proj), routes


class Layer(nn.Module):
    def __init__(self, cfg: Model) -> None:
        super().__init__()
        self.input_layernorm = nn.RMSNorm(cfg.hidden_size, eps=cfg.norm_eps)
        self.self_attn = Attention(cfg)
        self.post_attention_layernorm = nn.RMSNorm(cfg.hidden_size, eps=cfg.norm_eps)
        self.mlp = SparseMlp(cfg)


@dataclass(frozen=True)
class Hidden:
    """What the trunk says about a batch."""

    states: Tensor  # [N, H] after the final norm, one row per real token in row order
    grid: Layout
    auxiliary: Tensor  # [] load-balancing and z losses with their coefficients, mean over the layers
    load: Tensor  # [layers, E] share of assignments per expert, no gradient
    cache: list[tuple[Tensor, Tensor]]  # per layer: keys and values [N, kv_heads, D]


class Trunk(nn.Module):
    def __init__(self, cfg: Model, vocab_size: int) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(vocab_size, cfg.hidden_size)
        self.layers = nn.ModuleList(Layer(cfg) for _ in range(cfg.layers))
        self.norm = nn.RMSNorm(cfg.hidden_size, eps=cfg.norm_eps)

    def blocks(self) -> list[Layer]:
        return [cast(Layer, layer) for layer in self.layers]


class Decoder(nn.Module):
    """`head` is the vocabulary (`lm_head`) or one fully connected unit (`score`)."""

    def __init__(self, cfg: Model, vocab_size: int, head: str = LANGUAGE) -> None:
        super().__init__()
        self.cfg, self.vocab_size, self.head = cfg, vocab_size, head
        self.model = Trunk(cfg, vocab_size)
        if head == LANGUAGE:
            self.lm_head = nn.Linear(cfg.hidden_size, vocab_size, bias=False)
        else:
            assert head == SCALAR, head
            self.score = nn.Linear(cfg.hidden_size, 1, bias=False)

    def forward(self, tokens: Tensor, segments: Tensor) -> Hidden:
        """tokens, segments [B, T] int64; segment 0 is padding."""
        grid = layout(segments)
        x = self.model.embed_tokens(tokens.flatten()[grid.index])
        rope = rotary(self.cfg, grid.positions)
        auxiliary = x.new_zeros(())
        load, cache = [], []
        for layer in self.model.blocks():
            attended, keys, values = layer.self_attn(layer.input_layernorm(x), rope, grid)
            x = x + attended
            mixed, routes = layer.mlp(layer.post_attention_layernorm(x))
            x = x + mixed
            auxiliary = auxiliary + self.cfg.balance_coef * routes.balance + self.cfg.z_coef * routes.z
            load.append(routes.load)
            cache.append((keys, values))
        states = self.model.norm(x)
        return Hidden(states, grid, auxiliary / self.cfg.layers, torch.stack(load).detach(), cache)

    def logits(self, states: Tensor) -> Tensor:
        """states [N, H] -> [N, V]."""
        return self.lm_head(states)

    def scores(self, states: Tensor) -> Tensor:
        """states [N, H] -> [N]."""
        return self.score(states).squeeze(-1)


def new_decoder(cfg: Model, vocab_size: int, *, head: str = LANGUAGE, seed: int = 0) -> Decoder:
    """A decoder with random weights that depend on `seed` alone; projections into the residual stream start smaller."""
    generator = torch.Generator().manual_seed(seed)
    decoder = Decoder(cfg, vocab_size, head)
    residual = cfg.init_std / (2 * cfg.layers) ** 0.5
    for name, parameter in decoder.named_parameters():
        if parameter.dim() > 1:
            into_residual = name.endswith(("o_proj.weight", "down_proj"))
            nn.init.normal_(parameter, std=residual if into_residual else cfg.init_std, generator=generator)
    return decoder
