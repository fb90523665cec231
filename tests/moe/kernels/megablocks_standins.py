"""Plain torch in the place of MegaBlocks' compiled CUDA code, as strict about dtypes and layout, for a CPU.

Only what a dropless layer calls; the rest of `megablocks`, autograd wrappers and Triton kernels, stays the real one.
"""

import sys
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

INTEGERS = (torch.int16, torch.int32, torch.int64)


def sort(x: Tensor, end_bit: int, x_out: Tensor, iota_out: Tensor) -> None:
    """Stable radix sort of x [A] by its lowest `end_bit` bits."""
    assert x.dim() == 1 and x.dtype in INTEGERS and x_out.dtype == iota_out.dtype == x.dtype
    order = (x & (2**end_bit - 1)).argsort(stable=True)
    x_out.copy_(x[order])
    iota_out.copy_(order)


def histogram(x: Tensor, bins: int) -> Tensor:
    assert x.dim() == 1 and x.dtype in INTEGERS
    return torch.bincount(x, minlength=bins)[:bins].int()


def inclusive_cumsum(x: Tensor, dim: int, out: Tensor) -> None:
    assert x.dim() == 2 and dim == 1 and x.dtype in INTEGERS and out.dtype == x.dtype
    out.copy_(x.cumsum(1))


def indices(padded_bins: Tensor, block: int, block_rows: int, block_columns: int, out: Tensor) -> None:
    """Column of each block of the block-diagonal [tokens, E*I] activations, row by row."""
    assert padded_bins.dtype == torch.int32 and out.dtype == torch.int16 and out.numel() == block_rows * block_columns
    ends = padded_bins // block
    expert = torch.searchsorted(ends, torch.arange(block_rows, dtype=ends.dtype), right=True)
    out.copy_((expert.unsqueeze(1) * block_columns + torch.arange(block_columns)).flatten())


def grouped_product(a: Tensor, b: Tensor, sizes: Tensor, trans_a: bool = False, trans_b: bool = False) -> Tensor:
    """One product per expert over its rows of a [A, K], which has `sizes` [E] rows of each.

    b [E, K, N], or [E, N, K] if `trans_b` -> [A, N]; with `trans_a` b is [A, N] -> [E, K, N].
    """
    assert sizes.dtype == torch.int64 and sizes.device.type == "cpu" and int(sizes.sum()) == a.shape[0]
    assert a.dtype == b.dtype and a.is_contiguous() and b.is_contiguous() and not (trans_a and trans_b)
    rows = a.split(sizes.tolist())
    if trans_a:
        return torch.stack([x.t() @ y for x, y in zip(rows, b.split(sizes.tolist()), strict=True)])
    return torch.cat([x @ (w.t() if trans_b else w) for x, w in zip(rows, b, strict=True)])


class GroupedProduct(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor, sizes: Tensor, trans_b: bool) -> Tensor:
        ctx.save_for_backward(a, b, sizes)
        ctx.trans_b = trans_b
        return grouped_product(a, b, sizes, trans_b=trans_b)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        a, b, sizes = ctx.saved_tensors
        grad = grads[0].contiguous()
        left, right = (grad, a) if ctx.trans_b else (a, grad)
        da = grouped_product(grad, b, sizes, trans_b=not ctx.trans_b)
        return da, grouped_product(left, right, sizes, trans_a=True), None, None


def gmm(a: Tensor, b: Tensor, batch_sizes: Tensor, trans_b: bool = False) -> Tensor:
    """`grouped_gemm.ops.gmm`."""
    return GroupedProduct.apply(a, b, batch_sizes, trans_b)


def module(name: str, **members: object) -> ModuleType:
    made = ModuleType(name)
    vars(made).update(members)
    sys.modules[name] = made
    return made


def install() -> None:
    """Must run before `megablocks` is imported."""
    module("megablocks_ops", sort=sort, histogram=histogram, inclusive_cumsum=inclusive_cumsum, indices=indices)
    ops, backend = module("grouped_gemm.ops", gmm=gmm), module("grouped_gemm.backend", gmm=grouped_product)
    module("grouped_gemm", __path__=[], ops=ops, backend=backend)
