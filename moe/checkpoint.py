"""Training state in a folder: weights, optimizer, random number generator. safetensors only, nothing is pickled.

What is on disk is whole, however the model is spread over the workers, so that any other number of them can go on.
"""

from pathlib import Path

import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file
from torch import Tensor

from moe.decoder import Decoder
from moe.optimizer import load_state_tensors, state_tensors
from moe.parallel import spread_as, whole

WEIGHTS, OPTIMIZER, RANDOM = "weights.safetensors", "optimizer.safetensors", "random.safetensors"


def state(model: Decoder, optimizer: torch.optim.Optimizer) -> dict[str, dict[str, Tensor]]:
    """The state of a step as {file name: tensors}. All workers must call, and the first gets it."""
    # The weights come first: asking for them lets FSDP2 put away what the last forward pass has gathered.
    weights = _gathered(model.state_dict())
    moments = _gathered(state_tensors(model, optimizer))
    return {WEIGHTS: weights, OPTIMIZER: moments, RANDOM: {"torch": torch.get_rng_state()}}


def _gathered(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    first = not dist.is_initialized() or dist.get_rank() == 0
    kept = {}
    for name, tensor in tensors.items():
        full = whole(tensor)
        if first:  # the others let it go before the next one comes
            kept[name] = full.contiguous()
    return kept


def write(folder: Path, tensors: dict[str, dict[str, Tensor]]) -> None:
    """Write what `state` took into `folder`, which exists."""
    for name, named in tensors.items():
        save_file(named, folder / name)


def save(folder: Path, model: Decoder, optimizer: torch.optim.Optimizer) -> None:
    """`state` and `write` of a process that works alone."""
    write(folder, state(model, optimizer))


def load(folder: Path, model: Decoder, optimizer: torch.optim.Optimizer | None = None) -> None:
    """Put the state back: the weights, and with an optimizer all the rest."""
    weights = load_file(folder / WEIGHTS)
    spread = model.state_dict()
    model.load_state_dict({name: spread_as(spread.get(name), tensor) for name, tensor in weights.items()})
    if optimizer is not None:
        load_state_tensors(model, optimizer, load_file(folder / OPTIMIZER))
        torch.set_rng_state(load_file(folder / RANDOM)["torch"])
