"""A device that is not the CPU, for machines that have no other: its arithmetic is the CPU's, its manners a GPU's.

Tensors on it meet none of the CPU's, take no dice of the CPU's generator, and are no arrays of numpy. It is PyTorch's
private device under a name of its own, and tensors on it wrap those that hold the numbers. Importing this changes torch
for good: only `tests.gpu.strict` does, in a process of its own.
"""

# mypy: ignore-errors
# It changes torch behind the back of its types.

import contextlib
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch.overrides import _get_current_function_mode_stack
from torch.utils._device import DeviceContext
from torch.utils._pytree import tree_flatten, tree_map

NAME = "card"
torch.inference_mode = torch.no_grad  # wrapped tensors know no other

_aten = torch.ops.aten
_WITH_INDICES = {_aten.index.Tensor, _aten.index_put.default, _aten.index_put_.default, _aten._index_put_impl_.default}
_COPIES = {_aten.copy_.default, _aten._to_copy.default}
_FACTORIES = (
    "empty empty_strided ones arange eye full linspace rand randn randint randperm zeros tensor as_tensor asarray "
    "scalar_tensor"
).split()


def there(device: Any) -> bool:
    return device is not None and torch.device(device).type == NAME


def _current() -> Any:
    """Where what names no device is made."""
    modes = reversed(_get_current_function_mode_stack())
    return next((mode.device for mode in modes if isinstance(mode, DeviceContext)), None)


def plain(value: Any) -> Any:
    """What is there brought here, in the same memory."""
    return tree_map(lambda one: one.held if isinstance(one, Card) else one, value)


class Card(torch.Tensor):
    """A tensor that lies there."""

    held: torch.Tensor
    is_cuda = property(lambda self: True)
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls: Any, inner: torch.Tensor) -> Any:
        like = {"strides": inner.stride(), "storage_offset": inner.storage_offset(), "dtype": inner.dtype}
        return torch.Tensor._make_wrapper_subclass(cls, inner.size(), device=f"{NAME}:0", requires_grad=False, **like)

    def __init__(self, inner: torch.Tensor) -> None:
        self.held = inner.detach()

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        tensors = [one for one in tree_flatten((args, kwargs))[0] if isinstance(one, torch.Tensor)]
        _refuse(func, tensors, args, kwargs)
        lies = True
        if kwargs.get("device") is not None:
            lies, kwargs["device"] = there(kwargs["device"]), torch.device("cpu")
        elif func in _COPIES:
            lies = isinstance(args[0], Card)
        made = func(*plain(args), **plain(kwargs))
        known = {id(one.held): one for one in tensors if isinstance(one, Card)}

        def wrapped(one: Any) -> Any:
            if id(one) in known:  # an operator in place
                return known[id(one)]
            return Card(one) if lies and isinstance(one, torch.Tensor) else one

        return tree_map(wrapped, made)


def _refuse(func: Any, tensors: list[torch.Tensor], args: Any, kwargs: dict[str, Any]) -> None:
    """What CUDA refuses, too. It takes scalars and indices from the CPU."""
    if func not in _COPIES:
        indices = {id(one) for one in args[1] if one is not None} if func in _WITH_INDICES else set()
        for one in tensors:
            if not isinstance(one, Card) and one.dim() and id(one) not in indices:
                raise RuntimeError(f"{func}: tensors on two devices, {NAME}:0 and cpu {tuple(one.shape)}")
    _refuse_dice(str(func), kwargs)


def _refuse_dice(what: str, kwargs: dict[str, Any]) -> None:
    if (dice := kwargs.get("generator")) is not None and dice.device.type == "cpu":
        raise RuntimeError(f"{what}: a generator of the CPU's for a tensor on {NAME}:0")


class _Move(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: torch.Tensor, away: bool, dtype: torch.dtype) -> Any:
        ctx.lay, ctx.dtype = isinstance(tensor, Card), tensor.dtype
        inner = plain(tensor).detach().to(dtype, copy=True)
        return Card(inner) if away else inner

    @staticmethod
    def backward(ctx: Any, *slopes: Any) -> Any:
        inner = plain(slopes[0]).to(ctx.dtype)
        return Card(inner) if ctx.lay else inner, None, None


def _moved(real: Callable[..., Any]) -> Callable[..., Any]:
    def to(tensor: torch.Tensor, *rest: Any, **kwargs: Any) -> Any:
        device, dtype = kwargs.get("device"), kwargs.get("dtype")
        for one in rest:
            if isinstance(one, torch.Tensor):
                device, dtype = one.device, one.dtype
            elif isinstance(one, str | torch.device):
                device = one
            elif isinstance(one, torch.dtype):
                dtype = one
        lies = isinstance(tensor, Card)
        away = lies if device is None else there(device)
        if lies == away:
            return real(tensor, dtype or tensor.dtype, copy=kwargs.get("copy", False))
        return _Move.apply(tensor, away, dtype or tensor.dtype)

    return to


def _made(real: Callable[..., Any]) -> Callable[..., Any]:
    def make(*args: Any, **kwargs: Any) -> Any:
        if not there(kwargs.get("device") or _current()):
            return real(*args, **kwargs)
        _refuse_dice(real.__name__, kwargs)
        if args and isinstance(args[0], Card):  # as_tensor
            return args[0]
        learnt = kwargs.pop("requires_grad", False)
        return Card(real(*args, **kwargs | {"device": "cpu"})).requires_grad_(learnt)

    return make


def _attend(real: Callable[..., Any]) -> Callable[..., Any]:
    def attend(q: Any, k: Any, v: Any, attn_mask: Any = None, is_causal: bool = False, enable_gqa: bool = False) -> Any:
        if not isinstance(q, Card):
            return real(q, k, v, attn_mask, is_causal=is_causal, enable_gqa=enable_gqa)
        k, v = (one.repeat_interleave(q.shape[-3] // one.shape[-3], -3) for one in (k, v))
        scores = (q @ k.transpose(-2, -1)) * q.shape[-1] ** -0.5
        if is_causal:
            attn_mask = torch.ones(q.shape[-2], k.shape[-2], dtype=torch.bool, device=NAME).tril()
        return scores.masked_fill(~attn_mask, float("-inf")).softmax(-1) @ v

    return attend


def _bag(real: Callable[..., Any]) -> Callable[..., Any]:
    def bag(places: Any, rows: Any, per_sample_weights: Any = None, mode: str = "mean") -> Any:
        if not isinstance(rows, Card):
            return real(places, rows, per_sample_weights=per_sample_weights, mode=mode)
        picked = rows[places]
        return (picked if per_sample_weights is None else picked * per_sample_weights.unsqueeze(-1)).sum(1)

    return bag


def _setting(real: Callable[..., Any]) -> Callable[..., Any]:
    def put(tensor: Any, at: Any, value: Any) -> None:
        real(plain(tensor), plain(at), plain(value))

    return put


def _refusing(real: Callable[..., Any]) -> Callable[..., Any]:
    def refuse(tensor: Any, *args: Any, **kwargs: Any) -> Any:
        if isinstance(tensor, Card):
            raise TypeError(f"{real.__name__} of a tensor on {NAME}:0; bring it to the CPU first")
        return real(tensor, *args, **kwargs)

    return refuse


class _Guard(torch._C._acc.DeviceGuard):
    def type_(self) -> Any:
        return torch._C._autograd.DeviceType.PrivateUse1


class _Hooks(torch._C._acc.PrivateUse1Hooks):
    def is_available(self) -> bool:
        return True

    def has_primary_context(self, index: int) -> bool:
        return True

    def is_built(self) -> bool:
        return True


class _Module:
    is_available = staticmethod(lambda: True)
    device_count = staticmethod(lambda: 1)
    current_device = staticmethod(lambda: 0)
    manual_seed_all = staticmethod(lambda seed: None)
    _is_in_bad_fork = staticmethod(lambda: False)


_autocast = torch.autocast


class _Autocast(_autocast):
    """There everything is computed as it comes."""

    def __new__(cls, device_type: str, *args: Any, **kwargs: Any) -> Any:
        return contextlib.nullcontext() if device_type == NAME else super().__new__(cls)


def _install() -> torch.library.Library:
    torch.utils.rename_privateuse1_backend(NAME)
    torch._register_device_module(NAME, _Module)
    torch._C._acc.register_python_privateuseone_device_guard(_Guard())
    torch._C._acc.register_python_privateuseone_hook(_Hooks())
    for name in _FACTORIES:
        setattr(torch, name, _made(getattr(torch, name)))
    to, to_list = torch.Tensor.to, torch.Tensor.tolist
    changed = {
        "to": _moved(to),
        "cpu": lambda tensor: tensor.to("cpu"),
        "tolist": lambda tensor: to_list(plain(tensor)),
        "numpy": _refusing(torch.Tensor.numpy),
        "data_ptr": _refusing(torch.Tensor.data_ptr),
        "__setitem__": _setting(torch.Tensor.__setitem__),
    }
    for name, method in changed.items():
        setattr(torch.Tensor, name, method)
    F.scaled_dot_product_attention, F.embedding_bag = _attend(F.scaled_dot_product_attention), _bag(F.embedding_bag)
    torch.autocast = _Autocast
    made_there = torch.library.Library("aten", "IMPL")  # what torch's own code makes there
    made_there.impl("empty.memory_format", _empty, "PrivateUse1")
    made_there.impl("empty_strided", _empty_strided, "PrivateUse1")
    made_there.impl("_copy_from", _copy_from, "PrivateUse1")
    return made_there


def _empty(size: Any, dtype: Any = None, *where: Any, **how: Any) -> Card:
    return Card(_aten.empty.memory_format(size, dtype=dtype or how.get("dtype"), device="cpu"))


def _empty_strided(size: Any, stride: Any, dtype: Any = None, *where: Any, **how: Any) -> Card:
    return Card(_aten.empty_strided(size, stride, dtype=dtype or how.get("dtype"), device="cpu"))


def _copy_from(tensor: Any, to: Any, *how: Any) -> Any:
    plain(to).copy_(plain(tensor))
    return to


_LIBRARY = _install()
