"""`moe.kernels.passes` as Triton kernels: each reads its rows once, computes in fp32 and writes once.

Imported on CUDA only, and in the tests by Triton's interpreter. Letters are those of `passes`.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

_BLOCK = 1024  # numbers of a row that a program has in hand


@triton.jit
def _swiglu(hidden, out, inner, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    row = tl.program_id(0).to(tl.int64)  # A * 2I may be more than an int32 holds
    at = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = at < inner
    gate = tl.load(hidden + row * 2 * inner + at, mask=inside).to(tl.float32)
    up = tl.load(hidden + (row * 2 + 1) * inner + at, mask=inside).to(tl.float32)
    tl.store(out + row * inner + at, gate * tl.sigmoid(gate) * up, mask=inside)


@triton.jit
def _swiglu_backward(hidden, slope, weight, d_hidden, weighted, d_weight, inner, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    row = tl.program_id(0).to(tl.int64)
    share = tl.load(weight + row).to(tl.float32)
    total = tl.zeros([BLOCK], dtype=tl.float32)
    for start in range(0, inner, BLOCK):
        at = start + tl.arange(0, BLOCK)
        inside = at < inner
        gate_at, up_at = row * 2 * inner + at, (row * 2 + 1) * inner + at
        gate = tl.load(hidden + gate_at, mask=inside, other=0.0).to(tl.float32)
        up = tl.load(hidden + up_at, mask=inside, other=0.0).to(tl.float32)
        g = tl.load(slope + row * inner + at, mask=inside, other=0.0).to(tl.float32)
        sigmoid = tl.sigmoid(gate)
        silu = gate * sigmoid
        active = silu * up
        total += g * active
        g = g * share
        tl.store(d_hidden + gate_at, g * up * (sigmoid + silu * (1 - sigmoid)), mask=inside)
        tl.store(d_hidden + up_at, g * silu, mask=inside)
        tl.store(weighted + row * inner + at, share * active, mask=inside)
    tl.store(d_weight + row, tl.sum(total, axis=0))


@triton.jit
def _combine(rows, slot, weights, out, width, top_k, WEIGHTED: tl.constexpr, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    token = tl.program_id(0).to(tl.int64)
    at = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = at < width
    total = tl.zeros([BLOCK], dtype=tl.float32)
    for choice in range(0, top_k):
        place = tl.load(slot + token * top_k + choice)  # int64
        row = tl.load(rows + place * width + at, mask=inside, other=0.0).to(tl.float32)
        if WEIGHTED:
            row = row * tl.load(weights + token * top_k + choice).to(tl.float32)
        total += row
    tl.store(out + token * width + at, total, mask=inside)


def swiglu(hidden: Tensor) -> Tensor:
    count, inner = hidden.shape[0], hidden.shape[1] // 2
    out = hidden.new_empty(count, inner)
    _swiglu[count, triton.cdiv(inner, _BLOCK)](hidden, out, inner, BLOCK=_BLOCK)
    return out


def swiglu_backward(hidden: Tensor, slope: Tensor, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    d_hidden, weighted, d_weight = torch.empty_like(hidden), torch.empty_like(slope), torch.empty_like(weight)
    inner = slope.shape[1]
    _swiglu_backward[(len(hidden),)](hidden, slope, weight, d_hidden, weighted, d_weight, inner, BLOCK=_BLOCK)
    return d_hidden, weighted, d_weight


def combine(rows: Tensor, slot: Tensor, weights: Tensor | None = None) -> Tensor:
    (tokens, top_k), width = slot.shape, rows.shape[1]
    out = rows.new_empty(tokens, width)
    given = rows if weights is None else weights.contiguous()  # never read where there are none
    grid = tokens, triton.cdiv(width, _BLOCK)
    _combine[grid](rows, slot, given, out, width, top_k, WEIGHTED=weights is not None, BLOCK=_BLOCK)
    return out
