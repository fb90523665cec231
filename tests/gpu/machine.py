"""What a step of the check asks of its machine: the device, how long something takes there, and what is missing."""

import time
from collections.abc import Callable, Mapping
from statistics import median

import torch


class Skipped(Exception):
    """Why a step cannot be taken on this machine."""


def device(toy: bool) -> torch.device:
    return torch.device("cpu" if toy else "cuda")


def seconds(run: Callable[[], object], *, warm: int = 2, rounds: int = 5) -> float:
    """The median time of a run, from an idle device to an idle device."""
    return by_turns({"": run}, warm=warm, rounds=rounds)[""]


def by_turns(runs: Mapping[str, Callable[[], object]], *, warm: int = 2, rounds: int = 5) -> dict[str, float]:
    """The median time of each run, over rounds in which each goes once."""
    taken: dict[str, list[float]] = {name: [] for name in runs}
    for number in range(warm + rounds):
        for name, run in runs.items():
            settle()
            begun = time.perf_counter()
            run()
            settle()
            if number >= warm:
                taken[name].append(time.perf_counter() - begun)
    return {name: median(times) for name, times in taken.items()}


def settle() -> None:
    """Wait until the device has done what it was told."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def peak_gib() -> float:
    """The most memory that was in use since the last call; 0 without a GPU."""
    if not torch.cuda.is_available():
        return 0.0
    most = torch.cuda.max_memory_allocated() / 2**30
    torch.cuda.reset_peak_memory_stats()
    return round(most, 2)
