"""Matrix products on the CPU, through whichever of torch's two libraries is faster there.

torch gives fp32 products to MKL; `processor` says where oneDNN, which torch carries too, is the faster. It compiles
a kernel for every shape it meets, so it is asked only where every side is a multiple of `TILE`; callers pad the side
that varies from step to step.
"""

from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from moe.kernels import native
from moe.kernels.int8 import Int8
from moe.kernels.processor import processor

TILE = 64


def product_dtype(x: Tensor) -> torch.dtype:
    """In what products with x are computed: autocast's dtype where that is on."""
    device = x.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype


def tile(like: Tensor, rows: int) -> int:
    """The multiple to which about `rows` rows of the kind of `like` are best padded; 1 where padding gains nothing."""
    if like.device.type != "cpu" or rows < TILE:
        return 1
    half = like.dtype in (torch.bfloat16, torch.float16)  # torch gives these to oneDNN itself
    return TILE if half or (like.dtype == torch.float32 and processor().onednn) else 1


def product(a: Tensor, b: Tensor, out: Tensor | None = None) -> Tensor:
    """a [n, m] @ b [m, p] -> [n, p], of any strides, without autograd."""
    tiled = not (a.shape[0] % TILE or a.shape[1] % TILE or b.shape[1] % TILE)
    if not (tiled and a.numel() and a.dtype == torch.float32 and a.device.type == "cpu" and processor().onednn):
        return torch.mm(a, b, out=out)
    if native.ready(a.t()):
        a = native.transpose(a.t())  # oneDNN's operator would, at half the speed
    made = torch.ops.mkldnn._linear_pointwise(a, b.t(), None, "none", [], "")
    return made if out is None else out.copy_(made)


def pad_rows(x: Tensor, rows: int | None = None) -> Tensor:
    """x [n, m] with rows of zeros below, up to `rows`, or else to whole tiles."""
    n = x.shape[0]
    rows = n + -n % tile(x, n) if rows is None else rows
    return F.pad(x, (0, 0, 0, rows - n)) if rows > n else x


class _Linear(torch.autograd.Function):
    """x @ w^T for several w that share x: one product, their gradients cut from one product."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, *weights: Tensor) -> Tensor:
        weight = torch.cat(weights) if len(weights) > 1 else weights[0]
        n = x.shape[0]
        x = pad_rows(x)
        ctx.save_for_backward(x, weight)
        ctx.sizes = [w.shape[0] for w in weights]
        return product(x, weight.t())[:n]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        n = grads[0].shape[0]
        dy = pad_rows(grads[0], x.shape[0])
        dx = product(dy, weight)[:n] if ctx.needs_input_grad[0] else None
        if not any(ctx.needs_input_grad[1:]):
            return dx, *[None] * len(ctx.sizes)
        return dx, *product(dy.t(), x).split(ctx.sizes)


def linear(x: Tensor, *weights: Tensor | Int8) -> Tensor:
    """x [n, m] times each weight [p_i, m] transposed, side by side -> [n, sum p_i]. Obeys `torch.autocast`."""
    if isinstance(weights[0], Int8):
        return torch.cat([cast(Int8, weight)(x) for weight in weights], dim=1)
    plain = cast(tuple[Tensor, ...], weights)
    dtype = product_dtype(x)
    x, plain = x.to(dtype), tuple(weight.to(dtype) for weight in plain)
    if not torch.is_grad_enabled() and x.shape[0] < x.shape[1]:  # joining outputs is less than joining weights
        rows = pad_rows(x)
        outputs = [product(rows, weight.t()) for weight in plain]
        return (outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=1))[: x.shape[0]]
    return _Linear.apply(x, *plain)
