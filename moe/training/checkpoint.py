"""Training state in a folder: weights, their average, optimizer, random numbers. safetensors only, nothing is pickled.

Every tensor is on disk whole, however the model is spread over the workers, and in one file only; the workers share the
files about evenly. So any other number of them can go on. Files are opened by these exact names and no other:
`weights-00000-of-00002.safetensors`, likewise `optimizer` and `average`, and a `random-00000.safetensors` of each rank.
"""

import errno
import os
import random
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from conf.errors import InputError
from moe.decoder import Decoder
from moe.training.average import Average
from moe.training.optimizer import load_state_tensors, state_tensors
from moe.training.parallel import own, own_rank, spread_as, whole, world_size

Taken = Mapping[str, Mapping[str, Tensor]]  # by kind of file, then by name
_RANDOM = "random"


def take(
    model: Decoder, optimizer: torch.optim.Optimizer, average: Average | None = None, *, copies: bool = True
) -> Taken:
    """This rank's share of the state, about 1/world of its bytes, as copies on the CPU that later steps do not change;
    without `copies` what lies on the CPU whole is given in its own memory, to be written before the next step.

    All ranks must call. None holds more than its share and one gathered tensor.
    """
    rank, world = own_rank(), world_size()
    # The weights come first: asking for them lets FSDP2 put away what the last forward pass has gathered.
    state = {"weights": model.state_dict(), "optimizer": state_tensors(model, optimizer)}
    if average is not None:
        state["average"] = average.tensors()
    owner = _owners({(kind, name): t.numel() * t.itemsize for kind in state for name, t in state[kind].items()}, world)
    share: dict[str, dict[str, Tensor]] = {kind: {} for kind in state}
    for kind, tensors in state.items():
        for name, tensor in tensors.items():
            full = whole(tensor.detach())
            if owner[kind, name] != rank:
                continue
            if not copies and not full.is_cuda:
                share[kind][name] = full
                continue
            copy = torch.empty(full.shape, dtype=full.dtype, device="cpu")
            share[kind][name] = copy.copy_(full)
    return share | {_RANDOM: _random_state()}


def _owners(sizes: dict[tuple[str, str], int], world: int) -> dict[tuple[str, str], int]:
    """The rank that writes each tensor: the largest first, each to the rank with the fewest bytes so far."""
    held = [0] * world
    owner = {}
    for key in sorted(sizes, key=lambda key: (-sizes[key], key)):
        owner[key] = held.index(min(held))
        held[owner[key]] += sizes[key]
    return owner


def write(folder: Path, taken: Taken, rank: int = 0, world: int = 1) -> None:
    """Write what `take` took on this rank into `folder`, which exists. Raises `OSError` where the disk refuses."""
    for kind, tensors in taken.items():
        path = folder / (_random_file(rank) if kind == _RANDOM else f"{kind}-{rank:05d}-of-{world:05d}.safetensors")
        try:
            path.touch()
            mode = path.stat().st_mode  # what the umask leaves; the library would take it from all but the owner
            save_file(dict(tensors), path)
            path.chmod(mode)
        except SafetensorError as error:  # an OSError in other clothes
            number = re.search(r"os error (\d+)", str(error))
            code = int(number[1]) if number else errno.EIO
            raise OSError(code, os.strerror(code), str(path)) from error


def save(folder: Path, model: Decoder, optimizer: torch.optim.Optimizer) -> None:
    """`take` and `write` of a process that works alone."""
    write(folder, take(model, optimizer))


def load(
    folder: Path,
    model: Decoder,
    optimizer: torch.optim.Optimizer | None = None,
    average: Average | None = None,
) -> None:
    """Put back the weights and, where given, the optimizer's state and the average; random numbers: `load_random`.

    Any number of ranks may have written the files. They are read tensor by tensor, and each rank copies its part.
    Raises `InputError` naming the file and the tensor where they are not those of this model.
    """
    spread = model.state_dict()
    stored = _Stored(folder, "weights")
    _check_names(folder, "weights", set(stored), set(spread))
    for name, tensor in stored.items():
        target = spread[name]
        if tensor.shape != target.shape:
            path = stored.files[name]
            raise InputError(f"{path}: {name} has shape {[*tensor.shape]}, but the model's is {[*target.shape]}")
        own(target).copy_(own(spread_as(target, tensor)))
    if optimizer is not None:
        stored = _Stored(folder, "optimizer")
        parameters = dict(model.named_parameters())
        for name, path in stored.files.items():
            if name.partition(".")[2] not in parameters:
                raise InputError(f"{path}: {name} belongs to no parameter of this model; it is another model's state")
        load_state_tensors(model, optimizer, stored)
    if average is not None:
        stored = _Stored(folder, "average")
        _check_names(folder, "average", set(stored), set(average.tensors()))
        average.load(stored)


class _Stored(Mapping[str, Tensor]):
    """The tensors of a kind by name. A file is mapped while one of them is looked at, and not longer: its pages count
    as this process's memory as long as it is, and a second copy of a large state would not fit."""

    def __init__(self, folder: Path, kind: str) -> None:
        self.files = _files(folder, kind)

    def __getitem__(self, name: str) -> Tensor:
        path = self.files[name]
        try:
            with safe_open(path, framework="pt") as file:
                return file.get_tensor(name)
        except (OSError, SafetensorError) as error:
            raise InputError(f"{path}: {error}; resume from another checkpoint") from error

    def __iter__(self) -> Iterator[str]:
        return iter(self.files)

    def __len__(self) -> int:
        return len(self.files)


def _files(folder: Path, kind: str) -> dict[str, Path]:
    """Which file of a kind has each tensor."""
    pattern = re.compile(rf"{kind}-(\d{{5}})-of-(\d{{5}})\.safetensors")
    worlds = {int(match[2]) for path in folder.iterdir() if (match := pattern.fullmatch(path.name))} or {1}
    if len(worlds) > 1:
        raise InputError(f"{folder}: files of {kind} as {sorted(worlds)} ranks wrote them; only one set may be there")
    found: dict[str, Path] = {}
    for rank in range(world := max(worlds)):
        path = folder / f"{kind}-{rank:05d}-of-{world:05d}.safetensors"
        try:
            with safe_open(path, framework="pt") as file:
                names = file.keys()
                for name in names:
                    if name in found:
                        raise InputError(f"{path}: {name} lies in {found[name].name} as well")
                    found[name] = path
        except (OSError, SafetensorError) as error:
            raise InputError(f"{path}: {error}; resume from another checkpoint") from error
    return found


def _check_names(folder: Path, kind: str, stored: set[str], wanted: set[str]) -> None:
    for name in sorted(wanted - stored):
        raise InputError(f"{folder}/{kind}-*.safetensors: no tensor {name}, which this model has")
    for name in sorted(stored - wanted):
        raise InputError(f"{folder}/{kind}-*.safetensors: tensor {name}, which this model does not have")


def _random_file(rank: int) -> str:
    return f"{_RANDOM}-{rank:05d}.safetensors"


def _random_state() -> dict[str, Tensor]:
    """The states of every generator that a step may draw from without a seed of its own."""
    _, keys, position, has_gauss, gauss = np.random.get_state(legacy=True)
    _, numbers, next_gauss = random.getstate()
    state = {
        "torch": torch.get_rng_state(),
        "numpy": torch.tensor([*map(int, keys), position, has_gauss]),
        "numpy.gauss": torch.tensor([gauss], dtype=torch.float64),
        "python": torch.tensor(numbers),
        "python.gauss": torch.tensor([] if next_gauss is None else [next_gauss], dtype=torch.float64),
    }
    return state | ({"cuda": torch.cuda.get_rng_state()} if torch.cuda.is_initialized() else {})


def seed_random(rank: int, seed: int) -> None:
    """Start this rank's generators: torch's, numpy's and Python's own."""
    random.seed(f"{seed} {rank}")
    np.random.seed(random.getrandbits(32))
    torch.manual_seed(random.getrandbits(63))


def load_random(folder: Path, rank: int, seed: int) -> None:
    """Put this rank's generators back; those of a rank that the old world did not have start from (seed, rank)."""
    path = folder / _random_file(rank)
    if not path.exists():
        if rank == 0:
            raise InputError(f"{path} is missing; resume from another checkpoint")
        return seed_random(rank, seed)
    with safe_open(path, framework="pt") as file:
        names = file.keys()
        state = {name: file.get_tensor(name).clone() for name in names}
    torch.set_rng_state(state["torch"])
    *keys, position, has_gauss = state["numpy"].tolist()
    np.random.set_state(("MT19937", keys, position, has_gauss, state["numpy.gauss"].item()))
    random.setstate((3, tuple(state["python"].tolist()), next(iter(state["python.gauss"].tolist()), None)))
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])
