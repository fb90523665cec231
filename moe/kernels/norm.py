"""RMSNorm, and its union with the rotary embedding for queries and keys, as one autograd node each.

Composed of torch's operators either is a dozen passes over the tokens and as many in the backward pass.

Letters: N tokens, H hidden size, D head size.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from moe.kernels import native


class Rope(NamedTuple):
    cos: Tensor  # [N, 1, D/2]
    sin: Tensor  # [N, 1, D/2]


def _scale(x: Tensor, eps: float) -> Tensor:
    """1 / root mean square over the last dimension, kept as 1."""
    norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    return norm.square_().div_(x.shape[-1]).add_(eps).rsqrt_()


def _normalised_slope(dy: Tensor, normalised: Tensor, scale: Tensor, weight: Tensor, product: Tensor) -> Tensor:
    """dL/dx of y = weight * normalised, normalised = scale * x; `product` is dy * normalised."""
    mean = (product * weight).sum(-1, keepdim=True).div_(dy.shape[-1])
    return (dy * weight).addcmul_(normalised, mean, value=-1).mul_(scale)


def _normalised(x: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    if native.ready(x, weight):
        return native.rms_norm(x, weight, eps)
    scale = _scale(x, eps)
    return (x * scale).mul_(weight), scale


class _RmsNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        y, scale = _normalised(x, weight, eps)
        ctx.save_for_backward(x, weight, scale)
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, scale = ctx.saved_tensors
        if native.ready(x, weight):
            return *native.rms_norm_backward(grads[0].contiguous(), x, weight, scale), None
        normalised = x * scale
        product = grads[0] * normalised
        return _normalised_slope(grads[0], normalised, scale, weight, product), product.sum(0), None


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """weight * x / sqrt(mean(x^2) + eps) (Zhang and Sennrich 2019). x [N, H], weight [H] -> [N, H]."""
    if not torch.is_grad_enabled():
        return _normalised(x, weight, eps)[0]
    return _RmsNorm.apply(x, weight, eps)


def _turn(x: Tensor, rope: Rope, out: Tensor, *, back: bool = False) -> None:
    """Rotate [N, heads, D] by the angles, or back by them, into `out`."""
    half = x.shape[-1] // 2
    a, b = x[..., :half], x[..., half:]
    sign = -1 if back else 1
    torch.mul(a, rope.cos, out=out[..., :half]).addcmul_(b, rope.sin, value=-sign)
    torch.mul(b, rope.cos, out=out[..., half:]).addcmul_(a, rope.sin, value=sign)


class _NormTurn(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, turned: int, rope: Rope, weight: Tensor | None, eps: float) -> Tensor:
        ctx.turned, ctx.rope = turned, rope
        ctx.native = native.ready(x, *rope) and (weight is None or native.ready(weight))
        if ctx.native:
            out, scale = native.norm_turn(x, turned, *rope, weight, eps)
            if weight is not None:
                ctx.save_for_backward(x, weight, scale)
            return out
        kept = x[:, :turned]
        out = torch.empty_like(x)
        out[:, turned:] = x[:, turned:]
        if weight is None:
            _turn(kept, rope, out[:, :turned])
            return out
        scale = _scale(kept, eps)
        ctx.save_for_backward(kept, weight, scale)
        _turn((kept * scale).mul_(weight), rope, out[:, :turned])
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        dy = grads[0]
        saved = ctx.saved_tensors  # once: under checkpointing reading computes the block again
        if ctx.native:
            kept, weight, scale = saved or (None, None, None)
            cos, sin = ctx.rope
            dx, dw = native.norm_turn_backward(dy.contiguous(), kept, ctx.turned, cos, sin, weight, scale)
            return dx, None, None, dw, None
        dx = torch.empty_like(dy)
        dx[:, ctx.turned :] = dy[:, ctx.turned :]
        _turn(dy[:, : ctx.turned], ctx.rope, dx[:, : ctx.turned], back=True)
        if not saved:
            return dx, None, None, None, None
        kept, weight, scale = saved
        normalised = kept * scale
        product = dx[:, : ctx.turned] * normalised
        dx[:, : ctx.turned] = _normalised_slope(dx[:, : ctx.turned], normalised, scale, weight, product)
        return dx, None, None, product.sum(0), None


def norm_turn(x: Tensor, turned: int, rope: Rope, weight: Tensor | None, eps: float) -> Tensor:
    """The first `turned` heads of x [N, heads, D] normalised (by weight [turned, D], if there is one) and rotated by
    their positions (Su et al. 2021, in the rotate-half layout of Hugging Face); the others as they are. Computed in
    fp32, and returned in it under autocast where the C kernels go on with it, else in the dtype of x."""
    made = _NormTurn.apply(x.float(), turned, rope, weight, eps)
    return made if torch.is_autocast_enabled(x.device.type) and native.ready(made) else made.to(x.dtype)
