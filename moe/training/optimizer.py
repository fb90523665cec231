"""AdamW and Muon, the learning-rate schedules, and the optimizer's state as named tensors."""

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase
from math import cos, pi
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from conf.errors import InputError
from conf.knobs.training import Optim, Schedule
from conf.knobs.training import Optimizer as Kind
from moe.training.adapt import kinds
from moe.training.parallel import by_mesh, own, spread_as, total_norm, whole

_HEADS = ("lm_head.weight", "score.weight")  # a model has one of them: a glob for the other is no mistake


def new_optimizer(model: nn.Module, cfg: Optim) -> torch.optim.Optimizer:
    """The optimizer of `cfg.kind`. Matrices decay but for those of `cfg.no_decay`, norm gains do not.

    `set_learning_rate` reaches every group. Raises InputError for a glob that matches no parameter.
    """
    assert cfg.kind is not Kind.auto and cfg.lr > 0, "Optim.settled says what was left open"
    named = [(_plain(name), p) for name, p in model.named_parameters()]
    for glob in cfg.no_decay:
        if not any(fnmatchcase(name, glob) for name in (*dict(named), *_HEADS)):
            raise InputError(f"optim.no_decay: {glob} matches no parameter; there are {', '.join(kinds(dict(named)))}")
    parts: dict[tuple[bool, bool], list[nn.Parameter]] = defaultdict(list)  # by (of Muon, decays)
    for name, p in named:
        decays = p.dim() > 1 and not any(fnmatchcase(name, glob) for glob in cfg.no_decay)
        parts[cfg.kind is Kind.muon and p.dim() > 1 and _is_hidden_matrix(name), decays].append(p)
    rates = {True: cfg.weight_decay, False: 0.0}
    matrices = [{"params": parts[True, d], "weight_decay": rate} for d, rate in rates.items() if parts[True, d]]
    others = [{"params": part, "weight_decay": rate} for d, rate in rates.items() for part in by_mesh(parts[False, d])]
    if matrices:
        return Muon(matrices, others, cfg)
    return torch.optim.AdamW(others, lr=cfg.lr, betas=(cfg.beta1, cfg.beta2), eps=cfg.eps, fused=True)


def _plain(name: str) -> str:
    """A weight's own name, also of the parameters that adapt it (see moe/training/adapt.py)."""
    return re.sub(r"parametrizations\.(\w+)\..*", r"\1", name)


def _is_hidden_matrix(name: str) -> bool:
    """Attention and experts. The router, the embedding and the heads are lookups rather than maps: AdamW suits them."""
    return ".self_attn." in name or ".experts." in name


class Muon(torch.optim.Optimizer):
    """Momentum orthogonalised by Newton-Schulz for hidden matrices (Jordan et al. 2024), AdamW for the rest.

    An update's root mean square is `muon_rms` x lr whatever the matrix's shape (Liu et al. 2025, "Muon is scalable").
    A fused parameter [E, m, n] is E matrices.
    """

    def __init__(self, matrices: list[dict[str, Any]], others: list[dict[str, Any]], cfg: Optim) -> None:
        self._adamw = torch.optim.AdamW(others, lr=cfg.lr, betas=(cfg.beta1, cfg.beta2), eps=cfg.eps, fused=True)
        own_knobs = {"lr": cfg.lr, "momentum": cfg.muon_momentum, "rms": cfg.muon_rms}
        super().__init__([*(group | own_knobs for group in matrices), *self._adamw.param_groups], {})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        matrices = [group for group in self.param_groups if "momentum" in group]
        self._adamw.param_groups = [group for group in self.param_groups if "momentum" not in group]
        self._adamw.state = self.state
        self._adamw.step()
        by_shape: dict[tuple[int, int], list[tuple[nn.Parameter, Tensor, dict[str, Any]]]] = defaultdict(list)
        for group in matrices:
            for p in group["params"]:
                if p.grad is not None:
                    momentum = self.state[p].setdefault("momentum", torch.zeros_like(p))
                    momentum.lerp_(p.grad, 1 - group["momentum"])
                    ahead = p.grad.lerp(momentum, group["momentum"])  # Nesterov
                    ahead = own(ahead) if p.dim() > 2 else whole(ahead)  # spread experts keep their matrices whole
                    by_shape[p.shape[-2], p.shape[-1]].append((p, ahead, group))
        for shape, members in by_shape.items():
            stacked = orthogonalise(torch.cat([ahead.reshape(-1, *shape) for _, ahead, _ in members]))
            counts = [ahead.numel() // (shape[0] * shape[1]) for _, ahead, _ in members]
            for (p, _, group), update in zip(members, stacked.split(counts), strict=True):
                mine = own(p)
                update = update.view_as(mine) if p.dim() > 2 else own(spread_as(p, update[0]))
                mine.mul_(1 - group["lr"] * group["weight_decay"])
                mine.add_(update, alpha=-group["lr"] * group["rms"] * max(shape) ** 0.5)


def orthogonalise(matrices: Tensor, *, steps: int = 5) -> Tensor:
    """The nearest semi-orthogonal matrix of each of [n, a, b], roughly: singular values end in about [0.7, 1.2].

    Newton-Schulz, on a GPU in bf16, which the iteration is known to bear. On a CPU it would bear it too, but where bf16
    is rounded depends on the order of sums, and so on the number of workers and on the processor.
    """
    x = matrices if matrices.shape[-2] <= matrices.shape[-1] else matrices.mT
    if x.device.type != "cpu":
        x = x.bfloat16()
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(steps):
        gram = torch.bmm(x, x.mT)
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=-4.7750, alpha=2.0315), x, beta=3.4445)
    x = x.to(matrices.dtype)
    return x if matrices.shape[-2] <= matrices.shape[-1] else x.mT


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = rate


def learning_rate(step: int, steps: int, cfg: Optim, *, scale: float = 1.0) -> float:
    """Linear warm-up over `cfg.warmup` of the steps, then down to `cfg.min_lr_ratio` of the peak at `steps`: along a
    cosine or a line from the warm-up's end, or along a line over the last `cfg.decay_share` of the steps (wsd)."""
    peak = cfg.lr * scale
    warm = max(1, round(cfg.warmup * steps))
    if step < warm:
        return peak * (step + 1) / warm
    begin = max(warm, steps - round(cfg.decay_share * steps)) if cfg.schedule is Schedule.wsd else warm
    progress = min(1.0, max(0, step - begin) / max(1, steps - begin))
    left = 0.5 * (1 + cos(pi * progress)) if cfg.schedule is Schedule.cosine else 1 - progress
    return peak * (cfg.min_lr_ratio + (1 - cfg.min_lr_ratio) * left)


def copied_weights(model: nn.Module) -> list[Tensor]:
    """What is trained as it is before a step, for `update_norm`: this worker's copy of its own part."""
    return [p.detach().clone() for p in _trained(model)]


def update_norm(before: list[Tensor], model: nn.Module) -> Tensor:
    """Frobenius norm [] of the change of all trained weights since `copied_weights`, on all workers alike; they call
    it together. Uses up `before`."""
    return total_norm([old.sub_(p.detach()) for old, p in zip(before, _trained(model), strict=True)])


@torch.no_grad()
def measured_step(model: nn.Module, optimizer: torch.optim.Optimizer) -> Tensor:
    """Take a step; the `update_norm` of it. AdamW moves each weight by itself, so that one's old values at a time are
    enough to know it by: all of them would be a second copy of the model."""
    if not isinstance(optimizer, torch.optim.AdamW) or any(isinstance(p, DTensor) for p in _trained(model)):
        before = copied_weights(model)
        optimizer.step()
        return update_norm(before, model)
    groups, norms = optimizer.param_groups, [torch.zeros(())]
    for group in groups:
        for p in group["params"]:
            if p.grad is not None:
                old = p.detach().clone()
                optimizer.param_groups = [{**group, "params": [p]}]
                optimizer.step()
                norms.append(total_norm([old.sub_(p.detach())]))
    optimizer.param_groups = groups
    return total_norm(norms)


def _trained(model: nn.Module) -> Iterable[nn.Parameter]:
    return (p for p in model.parameters() if p.requires_grad)


def state_tensors(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimizer's state as {"<kind>.<parameter name>": tensor}, in the optimizer's own memory."""
    out = {}
    for name, parameter in model.named_parameters():
        for kind, value in optimizer.state.get(parameter, {}).items():
            out[f"{kind}.{name}"] = value.detach()
    return out


def load_state_tensors(model: nn.Module, optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Put back what `state_tensors` took, gathered; a parameter of which it took nothing begins anew."""
    names: defaultdict[str, list[str]] = defaultdict(list)  # of the state of each parameter
    for key in tensors:
        names[key.partition(".")[2]].append(key)
    for name, parameter in model.named_parameters():
        if name in names:
            own_copies = {key.partition(".")[0]: tensors[key].to(parameter.device, copy=True) for key in names[name]}
            optimizer.state[parameter] = {
                kind: spread_as(parameter, value) if value.shape == parameter.shape else value
                for kind, value in own_copies.items()
            }
        else:
            optimizer.state.pop(parameter, None)
