"""Everything a supervised run is between two steps: what is saved is all of it, and comes back to the bit."""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from cluster.storage import read_json, write_json
from conf.knobs.model import Precision
from moe.decoder import Decoder
from moe.kernels.precision import LossScale
from moe.training import checkpoint
from moe.training.average import Average
from moe.training.optimizer import new_optimizer
from moe.training.parallel import own_rank, parallelise, world_size
from trainers.loop.recipe import Plan
from trainers.loop.spikes import Watch
from trainers.loop.stopping import Stopper
from trainers.rows.feed import PROGRESS

_NUMBERS = "step position tokens flops rollbacks done".split()


@dataclass
class State:
    model: Decoder
    optimizer: torch.optim.Optimizer
    average: Average | None
    watch: Watch  # the losses and norms of the steps accepted lately
    stopper: Stopper
    scale: LossScale | None  # of fp16
    step: int = 0  # steps taken or left out
    position: int = 0  # rows of the course gone by: the cursor
    tokens: float = 0.0  # trained on
    flops: float = 0.0  # that took
    rollbacks: int = 0
    done: bool = False

    @classmethod
    def new(cls, plan: Plan) -> "State":
        """Before step 0, on this worker."""
        device = torch.get_default_device() if plan.cluster.gpus_per_worker else torch.device("cpu")
        # What the workers share between them no device has to hold whole, and no other worker's memory.
        shared = world_size() > 1 and (plan.cluster.shard or plan.cluster.expert_parallel > 1)
        with torch.device("meta" if shared and own_rank() else "cpu"):
            model = plan.start().train()
        model = parallelise(model.compute_with(plan.compute), plan.cluster, device).to(device)
        model.balance_alone = bool(plan.slots)
        return cls(
            model=model,
            optimizer=new_optimizer(model, plan.optim),
            average=Average(model, plan.optim.ema) if plan.optim.ema else None,
            watch=Watch(plan.spikes, clip=plan.optim.clip),
            stopper=Stopper(plan.fit.patience),
            scale=LossScale() if plan.compute.precision is Precision.fp16 else None,
        )

    def go_to(self, plan: Plan, position: int) -> None:
        """Move the cursor. Where the course changes its sets' shares, losses change too: that is no spike."""
        if plan.course.phase(position) != plan.course.phase(self.position):
            self.watch.forget()
        self.position = position

    def copied_bytes(self) -> int:
        """About what `writer` takes of memory for copies that training could do without: none on a GPU, whose state has
        to be brought here in any case."""
        whole = sum(p.numel() * p.itemsize for p in self.model.parameters() if p.device.type == "cpu")
        return whole * (3 if self.average is None else 4) // world_size()

    def writer(self, *, copies: bool = True) -> Callable[[Path], None]:
        """Take the state as it is now; the function returned writes this worker's part of it into a folder, without
        `copies` before the next step. All workers must call."""
        taken = checkpoint.take(self.model, self.optimizer, self.average, copies=copies)
        return partial(_write, taken, self._numbers(), own_rank(), world_size())

    def restore(self, folder: Path, *, seed: int) -> None:
        """The state that was saved in `folder`, by however many workers."""
        checkpoint.load(folder, self.model, self.optimizer, self.average)
        numbers = read_json(folder / PROGRESS)
        for name in _NUMBERS:
            setattr(self, name, numbers[name])
        self.watch.load(numbers["watch"])
        self.stopper.load(numbers["stopper"])
        if self.scale is not None and numbers["scale"]:
            self.scale = LossScale(**numbers["scale"])
        checkpoint.load_random(folder, own_rank(), seed)  # at last: what comes before may throw dice

    def _numbers(self) -> dict[str, Any]:
        return {
            **{name: getattr(self, name) for name in _NUMBERS},
            "watch": self.watch.state(),
            "stopper": self.stopper.state(),
            "scale": asdict(self.scale) if self.scale is not None else None,
        }


def _write(taken: Any, progress: dict[str, Any], rank: int, world: int, folder: Path) -> None:
    checkpoint.write(folder, taken, rank=rank, world=world)
    if rank == 0:
        write_json(folder / PROGRESS, progress)
