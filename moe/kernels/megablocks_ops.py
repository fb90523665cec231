"""Torch in the place of the code that MegaBlocks compiles, which CUDA 13 no longer builds and a CPU never had.

As strict about dtypes and layout as the compiled code, and only what a dropless layer calls. The rest of `megablocks`,
autograd wrappers and Triton kernels, stays the real one.

Letters: A assignments in the order of their experts, E experts, I inner width.
"""

import sys
from importlib import import_module
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from moe.kernels.grouped import grouped_product

_INTEGERS = (torch.int16, torch.int32, torch.int64)


def sort(x: Tensor, end_bit: int, x_out: Tensor, iota_out: Tensor) -> None:
    """Stable radix sort of x [A] by its lowest `end_bit` bits."""
    assert x.dim() == 1 and x.dtype in _INTEGERS and x_out.dtype == iota_out.dtype == x.dtype
    order = (x & (2**end_bit - 1)).argsort(stable=True)
    x_out.copy_(x[order])
    iota_out.copy_(order)


def histogram(x: Tensor, bins: int) -> Tensor:
    """How often each of 0 .. bins - 1 is in x [A]."""
    assert x.dim() == 1 and x.dtype in _INTEGERS
    return torch.bincount(x, minlength=bins)[:bins].int()


def inclusive_cumsum(x: Tensor, dim: int, out: Tensor) -> None:
    """Running sums along the rows of x."""
    assert x.dim() == 2 and dim == 1 and x.dtype in _INTEGERS and out.dtype == x.dtype
    out.copy_(x.cumsum(1))


def indices(padded_bins: Tensor, block: int, block_rows: int, block_columns: int, out: Tensor) -> None:
    """Column of each block of the block-diagonal [A, E*I] activations, row by row."""
    assert padded_bins.dtype == torch.int32 and out.dtype == torch.int16 and out.numel() == block_rows * block_columns
    ends = padded_bins // block
    rows = torch.arange(block_rows, dtype=ends.dtype, device=ends.device)
    expert = torch.searchsorted(ends, rows, right=True)
    out.copy_((expert.unsqueeze(1) * block_columns + torch.arange(block_columns, device=ends.device)).flatten())


def multiply(a: Tensor, b: Tensor, sizes: Tensor, trans_a: bool = False, trans_b: bool = False) -> Tensor:
    """`grouped_gemm.backend.gmm`: one product per expert over its rows of a [A, K], which has `sizes` [E] of each.

    b [E, K, N], or [E, N, K] if `trans_b` -> [A, N]; with `trans_a` b is [A, N] -> [E, K, N].
    """
    assert sizes.dtype == torch.int64 and sizes.device.type == "cpu" and int(sizes.sum()) == a.shape[0]
    assert a.dtype == b.dtype and a.is_contiguous() and b.is_contiguous() and not (trans_a and trans_b)
    ends = sizes.cumsum(0).int().to(a.device)
    return grouped_product(a.t() if trans_a else a, b.mT if trans_b else b, ends)


class _Multiply(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor, sizes: Tensor, trans_b: bool) -> Tensor:
        ctx.save_for_backward(a, b, sizes)
        ctx.trans_b = trans_b
        return multiply(a, b, sizes, trans_b=trans_b)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        a, b, sizes = ctx.saved_tensors
        grad = grads[0].contiguous()
        left, right = (grad, a) if ctx.trans_b else (a, grad)
        da = multiply(grad, b, sizes, trans_b=not ctx.trans_b)
        return da, multiply(left, right, sizes, trans_a=True), None, None


def gmm(a: Tensor, b: Tensor, batch_sizes: Tensor, trans_b: bool = False) -> Tensor:
    """`grouped_gemm.ops.gmm`: `multiply` with gradients."""
    return _Multiply.apply(a, b, batch_sizes, trans_b)


def install() -> None:
    """Stand in for what cannot be imported. Must run before `megablocks` is."""
    if not _there("megablocks_ops"):
        _module("megablocks_ops", sort=sort, histogram=histogram, inclusive_cumsum=inclusive_cumsum, indices=indices)
    if not _there("grouped_gemm"):
        ops, backend = _module("grouped_gemm.ops", gmm=gmm), _module("grouped_gemm.backend", gmm=multiply)
        _module("grouped_gemm", __path__=[], ops=ops, backend=backend)


def _there(name: str) -> bool:
    try:
        import_module(name)
    except (ImportError, OSError, RuntimeError):  # a build for another torch or CUDA cannot be loaded either
        return False
    return True


def _module(name: str, **members: object) -> ModuleType:
    made = ModuleType(name)
    vars(made).update(members)
    sys.modules[name] = made
    return made
