"""Causal grouped-query attention over grid rows that may hold several documents.

Letters: D head size; a joined tensor holds queries, keys and values side by side: [rows, width, heads + 2 kv_heads, D].
N tokens of S documents one after another.
"""

from dataclasses import dataclass
from functools import cache, cached_property
from inspect import signature
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from moe.kernels import native
from moe.kernels.gemm import product_dtype
from moe.kernels.processor import processor


@dataclass(frozen=True)
class Documents:
    """The first position that each position of a row may see: where its document begins."""

    starts: Tensor  # [rows, width] int64, never falling along a row

    @cached_property
    def mask(self) -> Tensor:
        """[rows, 1, width, width] True where a query may look."""
        at = torch.arange(self.starts.shape[1], device=self.starts.device)
        return ((at >= self.starts.unsqueeze(2)) & (at <= at.unsqueeze(1))).unsqueeze(1)


class _Native(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, joined: Tensor, heads: int, kv_heads: int, starts: Tensor | None, half: bool) -> Tensor:
        out, lse = native.attention(joined, heads, kv_heads, starts, half)
        ctx.heads, ctx.kv_heads, ctx.half = heads, kv_heads, half
        ctx.save_for_backward(joined, starts, out, lse)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        joined, starts, out, lse = ctx.saved_tensors
        d_out = grads[0].contiguous()
        made = native.attention_backward(d_out, joined, ctx.heads, ctx.kv_heads, starts, out, lse, ctx.half)
        return made, None, None, None, None


def attention(joined: Tensor, heads: int, kv_heads: int, documents: Documents | None = None) -> Tensor:
    """softmax(q k / sqrt(D)) v over the positions up to a query's own, or those of its document.

    joined [rows, width, heads + 2 kv_heads, D] -> [rows, width, heads, D].
    """
    if native.ready(joined):
        half = product_dtype(joined) is torch.bfloat16 and processor().tiles
        return _Native.apply(joined, heads, kv_heads, None if documents is None else documents.starts, half)
    q, k, v = joined.transpose(1, 2).split((heads, kv_heads, kv_heads), 1)
    mask = None if documents is None else documents.mask
    out = F.scaled_dot_product_attention(q, k, v, mask, is_causal=mask is None, enable_gqa=heads != kv_heads)
    return out.transpose(1, 2)


def packs(joined: Tensor) -> bool:
    """Whether `attend_packed` takes tokens like these: on CUDA in half precision. There a mask would drop torch's
    attention to its slow kernels, and a grid row for each document would compute on padding."""
    if not joined.is_cuda or not joined.numel():
        return False
    half = product_dtype(joined) in (torch.bfloat16, torch.float16)
    wide = joined.shape[-1] % 8 or joined.shape[-1] > 256  # what FlashAttention 2 has no kernel for
    return half and not wide and torch.cuda.get_device_capability(joined.device) >= (8, 0) and _varlen() is not None


def attend_packed(joined: Tensor, heads: int, kv_heads: int, ends: Tensor, longest: int) -> Tensor:
    """`attention` on documents that lie one after another, without a grid: by torch's FlashAttention (Dao 2023).

    joined [N, heads + 2 kv_heads, D], ends [S + 1] int32 where documents begin, and N, longest in tokens ->
    [N, heads, D] in the products' dtype.
    """
    found = _varlen()
    assert found is not None, "this torch has no attention over documents of different lengths"
    attend, knows = found
    q, k, v = joined.to(product_dtype(joined)).split((heads, kv_heads, kv_heads), 1)
    causal: dict[str, Any] = {"window_size": (-1, 0)} if "window_size" in knows else {"is_causal": True}
    if "enable_gqa" in knows:
        causal["enable_gqa"] = heads != kv_heads
    elif heads != kv_heads:
        k, v = (each.repeat_interleave(heads // kv_heads, 1) for each in (k, v))
    return cast(Tensor, attend(q.contiguous(), k.contiguous(), v.contiguous(), ends, ends, longest, longest, **causal))


@cache
def _varlen() -> tuple[Any, frozenset[str]] | None:
    """(torch's function, the arguments that it knows: they changed from release to release); None in an older torch."""
    try:
        from torch.nn.attention.varlen import varlen_attn  # here: it loads the compiler, which takes a second
    except ImportError:
        return None
    return varlen_attn, frozenset(signature(varlen_attn).parameters)
