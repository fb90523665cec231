"""Training state in a folder: weights, optimizer, random number generator. safetensors only, nothing is pickled."""

from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from moe.decoder import Decoder
from moe.optimizer import load_state_tensors, state_tensors

WEIGHTS, OPTIMIZER, RANDOM = "weights.safetensors", "optimizer.safetensors", "random.safetensors"


def save(folder: Path, model: Decoder, optimizer: torch.optim.Optimizer) -> None:
    """Write the state of a step into `folder`, which exists."""
    save_file({name: tensor.contiguous() for name, tensor in model.state_dict().items()}, folder / WEIGHTS)
    save_file(state_tensors(model, optimizer), folder / OPTIMIZER)
    save_file({"torch": torch.get_rng_state()}, folder / RANDOM)


def load(folder: Path, model: Decoder, optimizer: torch.optim.Optimizer | None = None) -> None:
    """Put the state back: the weights, and with an optimizer all the rest."""
    model.load_state_dict(load_file(folder / WEIGHTS))
    if optimizer is not None:
        load_state_tensors(model, optimizer, load_file(folder / OPTIMIZER))
        torch.set_rng_state(load_file(folder / RANDOM)["torch"])
