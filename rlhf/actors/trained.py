"""What learner and critic have in common: a model with its optimizer, at a version. They alone hold state.

An update is applied once, to the version that it was made for.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from cluster import fault
from conf.errors import InputError
from conf.knobs.model import Precision
from conf.knobs.reinforcement import Ppo
from conf.knobs.running import Cluster
from conf.knobs.training import Optim, Optimizer
from moe.decoder import Decoder
from moe.kernels.allocator import keep_buffers
from moe.training import checkpoint
from moe.training.objectives import Objective, in_precision
from moe.training.optimizer import new_optimizer
from moe.training.parallel import own_rank, parallelise, repeatable, whole, world_size
from moe.training.step import apply, gradients
from rlhf.actors.ranks import Ranked, together
from rlhf.messages import Batch

Columns = Mapping[str, Tensor]  # what an update needs beside the batch, each [B, T]


class Trained(Ranked):
    def __init__(
        self,
        model: Decoder,
        lr: float,
        cfg: Ppo,
        precision: Precision,
        seed: int,
        threads: int,
        device: str,
        cluster: Cluster | None = None,
    ) -> None:
        """With `cluster.deterministic` an update has the same bits whatever the number of ranks."""
        self.cluster = cluster or Cluster()
        repeatable(self.cluster, device)
        torch.set_num_threads(threads)
        keep_buffers()
        self.model = model.train().to(device)
        self.slots = self.cluster.slots if self.cluster.deterministic else 0
        self.model.balance_alone = bool(self.slots)
        self.lr, self.cfg, self.precision, self.seed, self.version = lr, cfg, precision, seed, 0
        self.optimizer = self._new_optimizer()
        self._taken: checkpoint.Taken = {}

    def joined(self) -> None:
        self.model = parallelise(self.model, self.cluster)
        self.optimizer = self._new_optimizer()

    def _new_optimizer(self) -> torch.optim.Optimizer:
        return new_optimizer(self.model, Optim(kind=Optimizer.adamw, weight_decay=0.0, lr=self.lr))

    @property
    def spread(self) -> bool:
        """Whether no rank has all weights, so that every one is needed wherever they are."""
        return world_size() > 1 and (self.cluster.shard or self.cluster.expert_parallel > 1)

    @together
    def whole(self) -> dict[str, Tensor]:
        """The weights, gathered where they are spread."""
        return {name: whole(tensor) for name, tensor in self.model.state_dict().items()}

    def ready(self) -> int:
        """The version that it holds."""
        return self.version

    @together
    def take(self) -> None:
        """Keep a copy of the state, for `write`."""
        fault.at("trained.take")
        self._taken = checkpoint.take(self.model, self.optimizer)

    @together
    def write(self, folder: Path) -> None:
        """Write what `take` kept into `folder`, which is made."""
        folder.mkdir(exist_ok=True)
        fault.at("trained.write")
        checkpoint.write(folder, self._taken, own_rank(), world_size())
        fault.at("trained.written")
        self._taken = {}

    @together
    def load(self, folder: Path, version: int) -> int:
        fault.at("trained.load")
        checkpoint.load(folder, self.model, self.optimizer)
        self.version = version
        return version

    def _of_each(self, parts: Sequence[Batch], said: Callable[[Batch], Tensor]) -> list[Tensor]:
        """`said` of every part, on the CPU where several ranks have shared them."""
        if world_size() == 1 or self.spread:
            return [said(part) for part in parts]
        mine = {number: said(parts[number]).cpu() for number in range(own_rank(), len(parts), world_size())}
        everyones: list[dict[int, Tensor]] = [{}] * world_size()
        dist.all_gather_object(everyones, mine)
        found = {number: made for of in everyones for number, made in of.items()}
        return [found[number] for number in range(len(parts))]

    @property
    def _dice(self) -> int:
        """What an iteration's dice are thrown from."""
        return self.seed * 1_000_003 + self.version

    def _begin(self, batch: Batch) -> None:
        fault.at("trained.update")
        assert batch.iteration == self.version, (
            f"update for version {batch.iteration}, but this is version {self.version}"
        )
        assert batch.behind <= self.cfg.staleness, f"answers of {batch.behind} versions ago: ppo.staleness forbids it"

    def _minibatches(self, batch: Batch, columns: Columns) -> Iterator[dict[str, Tensor]]:
        """Every minibatch of every epoch, whose rows are a function of (seed, version); of several ranks each has its
        own rows of it."""
        generator = torch.Generator().manual_seed(self._dice)
        rows = len(batch.tokens)
        for _ in range(self.cfg.epochs):
            for index in torch.randperm(rows, generator=generator, device="cpu").chunk(self.cfg.minibatches):
                part = batch.rows(index)
                width = part.tokens.shape[1]
                both = part.columns | {name: values[index, :width] for name, values in columns.items()}
                both["position"] = torch.arange(len(part.tokens))  # which slot a row is in
                own = slice(own_rank(), None, world_size())
                yield {name: values[own].to(self.model.device) for name, values in both.items()}

    def _learn(
        self, name: str, batch: Batch, columns: Columns, objective: Callable[[int], Objective]
    ) -> dict[str, float]:
        """An optimizer step on each minibatch by the objective of its number; the means of what the steps said.

        A step whose loss or gradient is not finite moves nothing. The policy's steps end where it has gone further than
        `ppo.stop_kl` from the one that answered (Achiam 2018, "Spinning Up"). Raises `InputError` naming the learning
        rate when all of them were such.
        """
        stats: defaultdict[str, list[float]] = defaultdict(list)
        for number, part in enumerate(self._minibatches(batch, columns)):
            taken = gradients(
                self.model,
                in_precision(objective(number), self.precision),
                part,
                accumulate=self.cfg.accumulate,
                budget=self.cfg.micro_tokens,
                clip=self.cfg.grad_clip,
                slots=self.slots,
                seed=self._dice * self.cfg.epochs * self.cfg.minibatches + number,
            )
            if name == "actor" and 0 < self.cfg.stop_kl < taken.metrics["actor/ppo_kl"]:
                stats["actor/stopped_after"].append(float(number))  # steps: this one would go further away
                break
            stats[f"{name}/refused"].append(float(not taken.finite))
            if taken.finite:
                apply(self.model, self.optimizer, rate=self.lr)
                fault.at("trained.stepped")
                stats[f"{name}/grad_norm"].append(taken.norm)
                for said, value in taken.metrics.items():
                    if said.startswith(f"{name}/"):
                        stats[said].append(value)
        if stats[f"{name}/refused"] and all(stats[f"{name}/refused"]):
            knob = "ppo.lr" if name == "actor" else "ppo.critic_lr"
            raise InputError(
                f"{knob}={self.lr:g}: no step of iteration {self.version} has a finite loss and gradient; try a lower "
                "one, and look at critic/rewards/mean in metrics.jsonl"
            )
        return {said: float(np.mean(values)) for said, values in stats.items()}
