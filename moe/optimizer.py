"""AdamW and Muon, the learning-rate schedule, and the optimizer's state as named tensors."""

from collections import defaultdict
from math import cos, pi
from typing import Any

import torch
from torch import Tensor, nn

from conf.schema import Optim
from conf.schema import Optimizer as Kind
from moe.parallel import by_mesh, own, spread_as, whole


def new_optimizer(model: nn.Module, cfg: Optim) -> torch.optim.Optimizer:
    """The optimizer of `cfg.kind`. Matrices decay, norm gains do not; `learning_rate` is put into every group."""
    named = list(model.named_parameters())
    gains = [p for _, p in named if p.dim() <= 1]
    matrices = [p for name, p in named if p.dim() > 1 and _is_hidden_matrix(name)]
    others = [p for name, p in named if p.dim() > 1 and not _is_hidden_matrix(name)]
    decaying = others if cfg.kind is Kind.muon else matrices + others
    groups = [{"params": part, "weight_decay": cfg.weight_decay} for part in by_mesh(decaying)]
    groups += [{"params": part, "weight_decay": 0.0} for part in by_mesh(gains)]
    if cfg.kind is Kind.muon:
        return Muon(matrices, groups, cfg)
    return torch.optim.AdamW(groups, lr=cfg.lr, betas=(cfg.beta1, cfg.beta2), eps=cfg.eps, fused=True)


def _is_hidden_matrix(name: str) -> bool:
    """Attention and experts. The router, the embedding and the heads are lookups rather than maps: AdamW suits them."""
    return ".self_attn." in name or ".experts." in name


class Muon(torch.optim.AdamW):
    """Momentum orthogonalised by Newton-Schulz for hidden matrices (Jordan et al. 2024), AdamW for the rest.

    An update's root mean square is `muon_rms` x lr whatever the matrix's shape (Liu et al. 2025, "Muon is scalable").
    A fused parameter [E, m, n] is E matrices.
    """

    def __init__(self, matrices: list[nn.Parameter], others: list[dict[str, Any]], cfg: Optim) -> None:
        super().__init__(others, lr=cfg.lr, betas=(cfg.beta1, cfg.beta2), eps=cfg.eps, fused=True)
        self._cfg = cfg
        self._matrices: dict[str, Any] = {"params": matrices, "lr": cfg.lr, "weight_decay": cfg.weight_decay}

    @property
    def groups(self) -> list[dict[str, Any]]:
        return [*self.param_groups, self._matrices]

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        super().step()
        group = self._matrices
        by_shape: dict[tuple[int, int], list[tuple[nn.Parameter, Tensor]]] = defaultdict(list)
        for p in group["params"]:
            if p.grad is not None:
                state = self.state[p]
                momentum = state.setdefault("momentum", torch.zeros_like(p))
                momentum.lerp_(p.grad, 1 - self._cfg.muon_momentum)
                ahead = p.grad.lerp(momentum, self._cfg.muon_momentum)  # Nesterov
                ahead = own(ahead) if p.dim() > 2 else whole(ahead)  # a spread fused parameter keeps its matrices whole
                by_shape[p.shape[-2], p.shape[-1]].append((p, ahead))
        for shape, members in by_shape.items():
            stacked = orthogonalise(torch.cat([ahead.reshape(-1, *shape) for _, ahead in members]))
            counts = [ahead.numel() // (shape[0] * shape[1]) for _, ahead in members]
            for (p, _), update in zip(members, stacked.split(counts), strict=True):
                mine = own(p)
                update = update.view_as(mine) if p.dim() > 2 else own(spread_as(p, update[0]))
                mine.mul_(1 - group["lr"] * group["weight_decay"])
                mine.add_(update, alpha=-group["lr"] * self._cfg.muon_rms * max(shape) ** 0.5)

    def zero_grad(self, set_to_none: bool = True) -> None:
        super().zero_grad(set_to_none)
        for p in self._matrices["params"]:
            p.grad = None


def orthogonalise(matrices: Tensor, *, steps: int = 5) -> Tensor:
    """The nearest semi-orthogonal matrix of each of [n, a, b], roughly: singular values end in about [0.7, 1.2].

    Newton-Schulz in bf16 where the processor multiplies it natively, which the iteration is known to bear.
    """
    x = matrices if matrices.shape[-2] <= matrices.shape[-1] else matrices.mT
    if x.device.type != "cpu" or torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported():
        x = x.bfloat16()
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(steps):
        gram = torch.bmm(x, x.mT)
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=-4.7750, alpha=2.0315), x, beta=3.4445)
    x = x.to(matrices.dtype)
    return x if matrices.shape[-2] <= matrices.shape[-1] else x.mT


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    for group in optimizer.groups if isinstance(optimizer, Muon) else optimizer.param_groups:
        group["lr"] = rate


def learning_rate(step: int, steps: int, cfg: Optim, *, scale: float = 1.0) -> float:
    """Linear warm-up over `cfg.warmup` of the steps, then cosine down to `cfg.min_lr_ratio` of the peak at `steps`."""
    peak = cfg.lr * scale
    warm = max(1, round(cfg.warmup * steps))
    if step < warm:
        return peak * (step + 1) / warm
    progress = min(1.0, (step - warm) / max(1, steps - warm))
    return peak * (cfg.min_lr_ratio + (1 - cfg.min_lr_ratio) * 0.5 * (1 + cos(pi * progress)))


def state_tensors(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimizer's state as {"<kind>.<parameter name>": tensor}, in the optimizer's own memory."""
    out = {}
    for name, parameter in model.named_parameters():
        for kind, value in optimizer.state.get(parameter, {}).items():
            out[f"{kind}.{name}"] = value.detach()
    return out


def load_state_tensors(model: nn.Module, optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    """Put back what `state_tensors` took, gathered."""
    for name, parameter in model.named_parameters():
        found = {key.partition(".")[0]: value for key, value in tensors.items() if key.partition(".")[2] == name}
        if found:
            own_copies = {kind: value.to(parameter.device, copy=True) for kind, value in found.items()}
            optimizer.state[parameter] = {
                kind: spread_as(parameter, value) if value.shape == parameter.shape else value
                for kind, value in own_copies.items()
            }
