"""Upcycling: a dense model becomes a mixture of experts that computes the same (Komatsuzaki et al. 2022).

Every expert is a copy of the dense MLP and the weights of the chosen ones sum to one, so the router may say anything.
With granularity G each copy is cut into G experts of I/G inner width (He et al. 2024, "Upcycling Large Language Models
into Mixture of Experts"): the G slices of a copy share a router row and are chosen together, with a G-th of its weight
each, which `down` makes up for.

Letters: E experts, G granularity, I inner width of the dense MLP, H hidden size.
"""

from dataclasses import replace

import torch
from torch import Tensor

from conf.errors import InputError
from conf.knobs.model import Model, Parent
from moe.decoder import Decoder

ROUTER_STD = 0.02


def upcycled(dense: Model, cfg: Parent) -> Model:
    """The shape of what `upcycle` makes of a dense model."""
    if dense.expert_size % cfg.granularity:
        raise InputError(
            f"parent.granularity={cfg.granularity} must divide the inner width {dense.expert_size} of {cfg.model}"
        )
    width = dense.expert_size // cfg.granularity
    return replace(dense, experts=cfg.experts, top_k=cfg.top_k, expert_size=width)


@torch.no_grad()
def upcycle(dense: Decoder, cfg: Parent, *, seed: int) -> Decoder:
    """A mixture of `cfg.experts` from a mixture of one. Router rows and noise depend on `seed` alone."""
    assert dense.cfg.experts == 1
    parts = cfg.granularity
    model = Decoder(upcycled(dense.cfg, cfg), dense.vocab_size, dense.head)
    if model.model.embed_tokens.weight.is_meta:
        return model.eval()
    generator = torch.Generator().manual_seed(seed)

    def copies(tensor: Tensor) -> Tensor:  # [G, ...] -> [E, ...]
        out = tensor.repeat(cfg.experts // parts, 1, 1)
        if cfg.noise:
            out.add_(
                torch.randn(out.shape, generator=generator, device="cpu").to(out), alpha=cfg.noise * float(tensor.std())
            )
        return out

    target = model.state_dict()
    for name, tensor in dense.state_dict().items():
        if name.endswith("experts.gate_up_proj"):
            gate, up = tensor[0].chunk(2)
            slices = torch.cat((gate.unflatten(0, (parts, -1)), up.unflatten(0, (parts, -1))), dim=1)
            tensor = copies(slices)  # [G, 2I/G, H]
        elif name.endswith("experts.down_proj"):
            tensor = copies(tensor[0].unflatten(1, (parts, -1)).transpose(0, 1) * parts)  # [G, H, I/G]
        elif name.endswith("mlp.gate.weight"):
            rows = torch.randn(cfg.experts // parts, tensor.shape[1], generator=generator, device="cpu") * ROUTER_STD
            tensor = rows.repeat_interleave(parts, dim=0)
        target[name].copy_(tensor)
    return model.eval()
