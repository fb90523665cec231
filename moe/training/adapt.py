"""Train less than everything: freeze by name, train the rows of added vocabulary only, or low-rank factors (LoRA).

What is trained is a parametrisation of an ordinary `Decoder`: whoever reads a weight gets the adapted one, so every
backend of the experts, checkpoints and optimizers work as they are, and `merge` leaves an ordinary model. LoRA is our
own here because peft adapts modules that are called: its `target_parameters` put a wrapper without `gate_up_proj` in
the place of the experts, and hold the factors of all experts in one matrix, which Muon would orthogonalise as one.

LoRA saves the optimizer's state and kept gradients, not compute: a layer's adapted weights are made anew at each use.
"""

from collections.abc import Iterable
from fnmatch import fnmatchcase

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import register_parametrization, remove_parametrizations

from conf.errors import InputError
from conf.knobs.model import Adapt, LoraTarget
from moe.decoder import Decoder

_TARGETS = {
    LoraTarget.attention: ("q_proj.weight", "k_proj.weight", "v_proj.weight", "o_proj.weight"),
    LoraTarget.experts: ("experts.gate_up_proj", "experts.down_proj"),
}


def adapt(model: Decoder, cfg: Adapt, *, old_rows: int = 0, seed: int = 0) -> Decoder:
    """Leave only what `cfg` names to be trained, in place; the outputs stay bitwise the same.

    `old_rows` of the vocabulary were there before it was extended; at 0, in stages that extend nothing,
    `only_new_rows` does not apply. Frozen weights get no LoRA factors. A new head of scores is trained unless
    `freeze` names it. Raises InputError for a glob that matches no parameter, or when nothing is left to train.
    """
    named = dict(model.named_parameters())
    for glob in cfg.freeze:
        matched = [parameter for name, parameter in named.items() if fnmatchcase(name, glob)]
        if not matched:
            raise InputError(f"adapt.freeze: {glob} matches no parameter; there are {', '.join(kinds(named))}")
        for parameter in matched:
            parameter.requires_grad_(False)
    if cfg.only_new_rows and old_rows:
        _only_new_rows(model, old_rows)
    if cfg.lora_rank:
        _only_factors(model, cfg, seed)
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise InputError(f"adapt.freeze=[{', '.join(cfg.freeze)}] leaves nothing to train")
    return model


def merge(model: Decoder) -> Decoder:
    """Put what was trained into the weights, in place: an ordinary model with the same outputs."""
    for module in list(model.modules()):
        for name in list(getattr(module, "parametrizations", {})):
            remove_parametrizations(module, name)
    return model.requires_grad_(True)


class _LowRank(nn.Module):
    """W + scale * B A (Hu et al. 2021), a pair of factors for each matrix of W [..., m, n]. B starts at zero."""

    def __init__(self, weight: Tensor, rank: int, scale: float, generator: torch.Generator) -> None:
        super().__init__()
        *experts, m, n = weight.shape
        self.scale = scale
        if weight.is_meta:  # a shape alone needs no dice
            drawn = torch.empty(*experts, rank, n, device="meta")
        else:  # the same for weights anywhere
            drawn = torch.randn(*experts, rank, n, generator=generator, device="cpu").to(weight.device)
        self.a = nn.Parameter(drawn * n**-0.5)
        self.b = nn.Parameter(torch.zeros(*experts, m, rank))

    def forward(self, weight: Tensor) -> Tensor:
        kind = "cpu" if weight.is_meta else weight.device.type
        with torch.autocast(kind, enabled=False):  # else training and `merge` would round differently
            return weight.add(self.b @ self.a, alpha=self.scale)


class _NewRows(nn.Module):
    """A matrix whose first rows are constants: neither gradients nor weight decay reach them."""

    old: Tensor  # [old rows, H]

    def __init__(self, old: Tensor) -> None:
        super().__init__()
        self.register_buffer("old", old.detach().clone())

    def forward(self, new: Tensor) -> Tensor:
        return torch.cat((self.old, new))

    def right_inverse(self, weight: Tensor) -> Tensor:
        return weight[self.old.shape[0] :].clone()


def _only_new_rows(model: Decoder, old_rows: int) -> None:
    assert old_rows < model.vocab_size, "no row is new"
    ends = [module for module in (model.model.embed_tokens, getattr(model, "lm_head", None)) if module is not None]
    wanted = [module for module in ends if module.weight.requires_grad]
    model.requires_grad_(False)
    for module in wanted:
        module.weight.requires_grad_(True)
        register_parametrization(module, "weight", _NewRows(module.weight[:old_rows]))


def _only_factors(model: Decoder, cfg: Adapt, seed: int) -> None:
    suffixes = tuple(suffix for target in cfg.lora_targets for suffix in _TARGETS[target])
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad and name.endswith(suffixes)]
    score = bool(model.head) and model.score.weight.requires_grad
    model.requires_grad_(False)
    generator = torch.Generator().manual_seed(seed)
    for name, weight in named:
        owner, _, attribute = name.rpartition(".")
        factors = _LowRank(weight, cfg.lora_rank, cfg.lora_alpha / cfg.lora_rank, generator)
        register_parametrization(model.get_submodule(owner), attribute, factors)
    if score:
        model.score.weight.requires_grad_(True)


def kinds(names: Iterable[str]) -> list[str]:
    """The parameter names with a * for the layer's number."""
    return list(dict.fromkeys(".".join("*" if part.isdigit() else part for part in name.split(".")) for name in names))
