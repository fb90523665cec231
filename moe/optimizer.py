"""AdamW with decay groups, the learning-rate schedule, and the optimizer's state as named tensors."""

from math import cos, pi

import torch
from torch import Tensor, nn

from conf.schema import Optim


def adamw(model: nn.Module, cfg: Optim, *, lr: float) -> torch.optim.AdamW:
    """AdamW (Loshchilov & Hutter 2019); matrices decay, norm gains do not."""
    matrices = [p for p in model.parameters() if p.dim() > 1]
    gains = [p for p in model.parameters() if p.dim() <= 1]
    groups = [{"params": matrices, "weight_decay": cfg.weight_decay}, {"params": gains, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=lr, betas=(cfg.beta1, cfg.beta2), eps=cfg.eps, fused=True)


def learning_rate(step: int, steps: int, cfg: Optim, *, scale: float = 1.0) -> float:
    """Linear warm-up over `cfg.warmup` of the steps, then cosine down to `cfg.min_lr_ratio` of the peak at `steps`."""
    peak = cfg.lr * scale
    warm = max(1, round(cfg.warmup * steps))
    if step < warm:
        return peak * (step + 1) / warm
    progress = min(1.0, (step - warm) / max(1, steps - warm))
    return peak * (cfg.min_lr_ratio + (1 - cfg.min_lr_ratio) * 0.5 * (1 + cos(pi * progress)))


def state_tensors(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimizer's state as {"<kind>.<parameter name>": tensor}, for safetensors."""
    out = {}
    for name, parameter in model.named_parameters():
        for kind, value in optimizer.state.get(parameter, {}).items():
            out[f"{kind}.{name}"] = value.detach().clone()
    return out


def load_state_tensors(model: nn.Module, optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    """Put back what `state_tensors` took."""
    for name, parameter in model.named_parameters():
        found = {key.partition(".")[0]: value for key, value in tensors.items() if key.partition(".")[2] == name}
        if found:
            optimizer.state[parameter] = {kind: value.clone() for kind, value in found.items()}
