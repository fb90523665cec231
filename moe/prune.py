"""Drop the least used experts of every layer."""

from dataclasses import replace

from torch import Tensor

from conf.errors import InputError
from moe.decoder import Decoder


def prune(model: Decoder, load: Tensor, keep: int) -> Decoder:
    """A model with the `keep` busiest experts of each layer, in their old order, with their rows of the router.

    load [layers, E] is what share of the assignments went to each expert (`Hidden.load`). Every layer keeps the same
    number, so that the result is an ordinary model; the router's weights renormalise by themselves.
    """
    cfg = model.cfg
    if not cfg.top_k <= keep <= cfg.experts:
        raise InputError(f"prune.keep={keep} must lie in [{cfg.top_k}, {cfg.experts}]: top_k, and all experts")
    state = model.state_dict()
    for layer, shares in enumerate(load):
        kept = shares.argsort(descending=True, stable=True)[:keep].sort().values
        for part in ("gate.weight", "experts.gate_up_proj", "experts.down_proj"):
            name = f"model.layers.{layer}.mlp.{part}"
            state[name] = state[name][kept]
    pruned = Decoder(replace(cfg, experts=keep), model.vocab_size, model.head)
    pruned.load_state_dict(state)
    return pruned.eval()
