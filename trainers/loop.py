"""The one training loop: pretraining, SFT and reward modelling differ in rows, first weights and objective only."""

import os
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray.train
import torch
import torch.distributed as dist
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer

from cluster.progress import follow
from cluster.storage import newest_checkpoint, save_checkpoint
from cluster.tracker import Tracker
from conf.schema import Cluster, Config, Fit, InputError, Optim
from conf.schema import Tracker as TrackerConfig
from moe import checkpoint
from moe.allocator import keep_buffers
from moe.decoder import Decoder
from moe.optimizer import learning_rate, new_optimizer, set_learning_rate
from trainers.feed import IndexedFeed, batches
from trainers.objectives import Batch, Objective
from trainers.rows import Rows


@dataclass(frozen=True)
class Plan:
    """Everything a worker needs to know."""

    folder: Path  # the stage's folder
    run: str
    stage: str
    start: Callable[[], Decoder]  # the weights before step 0
    objective: Objective
    rows: Path
    held_out: Path
    fit: Fit
    optim: Optim
    cluster: Cluster
    tracker: TrackerConfig
    seed: int

    @classmethod
    def of(
        cls,
        cfg: Config,
        stage: str,
        fit: Fit,
        *,
        start: Callable[[], Decoder],
        objective: Objective,
        rows: Path,
        held_out: Path,
    ) -> "Plan":
        """The plan of a stage of this run."""
        return cls(
            folder=cfg.run.folder / stage,
            run=cfg.run.name,
            stage=stage,
            start=start,
            objective=objective,
            rows=rows,
            held_out=held_out,
            fit=fit,
            optim=cfg.optim,
            cluster=cfg.cluster,
            tracker=cfg.tracker,
            seed=cfg.run.seed,
        )

    @property
    def checkpoints(self) -> Path:
        return self.folder / "checkpoints"

    def check(self) -> None:
        """Raise `InputError` for what cannot be trained."""
        workers = self.cluster.workers
        if self.fit.batch_rows % (workers * self.fit.accumulate):
            raise InputError(
                f"batch_rows={self.fit.batch_rows} of stage {self.stage} must divide by cluster.workers={workers} "
                f"x accumulate={self.fit.accumulate}"
            )
        if not len(Rows(self.rows)):
            raise InputError(f"{self.rows}: no row to train on")


def fit(plan: Plan) -> Decoder:
    """Train under Ray Train and return the final model. A killed worker is restarted from the newest checkpoint."""
    plan.check()
    feed = IndexedFeed(
        plan.rows,
        seed=plan.seed,
        steps=plan.fit.steps,
        batch_rows=plan.fit.batch_rows,
        checkpoints=plan.checkpoints,
    )
    cluster = plan.cluster
    trainer = TorchTrainer(
        work,
        train_loop_config={"plan": plan},
        datasets={"train": ray.data.range(1)},  # the name of the stream; IndexedFeed makes the rows
        dataset_config=feed,
        scaling_config=ScalingConfig(
            num_workers=cluster.workers,
            use_gpu=cluster.gpus_per_worker > 0,
            resources_per_worker={"CPU": cluster.cpus_per_worker}
            | ({"GPU": cluster.gpus_per_worker} if cluster.gpus_per_worker else {}),
        ),
        run_config=RunConfig(
            name=f"ray-{time.time_ns()}",  # never an old snapshot of Ray's: our checkpoints say where to go on
            storage_path=str(plan.checkpoints.absolute()),
            failure_config=FailureConfig(max_failures=3),
        ),
    )
    with follow(plan.folder, plan.stage, plan.fit.steps, show=("loss", "tokens_per_second")):
        trainer.fit()
    found = newest_checkpoint(plan.checkpoints)
    assert found is not None and found[0] == plan.fit.steps, f"{plan.checkpoints}: no checkpoint of the last step"
    model = plan.start()
    checkpoint.load(found[1], model)
    return model.eval()


def work(settings: dict[str, Any]) -> None:
    """One training worker."""
    plan: Plan = settings["plan"]
    keep_buffers()
    torch.set_num_threads(plan.cluster.threads or max(1, (os.cpu_count() or 1) // plan.cluster.workers))
    torch.manual_seed(plan.seed)
    model = plan.start().train()
    optimizer = new_optimizer(model, plan.optim)
    found = newest_checkpoint(plan.checkpoints)
    step = 0
    if found:
        checkpoint.load(found[1], model, optimizer)
        step = found[0]
    rank, world = ray.train.get_context().get_world_rank(), ray.train.get_context().get_world_size()
    stream = batches(ray.train.get_dataset_shard("train"), plan.fit.batch_rows // world)
    log = Tracker(plan.folder, plan.tracker, run=plan.run, stage=plan.stage, step=step) if rank == 0 else nullcontext()
    with log as tracker:
        steps(plan, model, optimizer, stream, tracker, first=step)


def steps(
    plan: Plan,
    model: Decoder,
    optimizer: torch.optim.Optimizer,
    stream: Iterator[Batch],
    tracker: Tracker | None,
    *,
    first: int = 0,
) -> None:
    """From step `first` to the end. Rank 0, which has the tracker, writes metrics and checkpoints."""
    cfg = plan.fit
    clock, tokens = time.perf_counter(), 0
    for step in range(first, cfg.steps + 1):  # one extra turn: the final evaluation and save
        last = step == cfg.steps
        if due(step, cfg.eval_every, last) and step > first:
            values = evaluate(model, plan.objective, Rows(plan.held_out), limit=cfg.eval_rows)
            if tracker:
                tracker.log({f"val/{name}": value for name, value in values.items()}, step)
            clock, tokens = time.perf_counter(), 0
        if due(step, cfg.save_every, last) and step > first and tracker:
            save_checkpoint(plan.checkpoints, step, lambda path: checkpoint.save(path, model, optimizer), cfg.keep)
        if last:
            break
        rate = learning_rate(step, cfg.steps, plan.optim, scale=cfg.lr_scale)
        batch = next(stream)
        tokens += int((batch["segments"] > 0).sum()) * world_size()
        values = train_step(model, optimizer, plan.objective, batch, rate, plan.optim.clip, cfg.accumulate)
        if tracker and due(step + 1, cfg.log_every, step + 1 == cfg.steps):
            speed = tokens / (time.perf_counter() - clock)
            tracker.log(values | {"lr": rate, "tokens_per_second": speed}, step + 1)


def due(step: int, every: int, last: bool) -> bool:
    return last or step % every == 0


def train_step(
    model: Decoder,
    optimizer: torch.optim.Optimizer,
    objective: Objective,
    batch: Batch,
    rate: float,
    clip: float,
    accumulate: int,
) -> dict[str, float]:
    """One optimizer step over the global batch; its metrics are those of all workers.

    The loss is divided by the units of the whole step, so that micro-batches and workers weigh by what they hold.
    """
    units = all_sum(torch.tensor(float(objective.units(batch)))).clamp(min=1.0)
    total, hits = torch.zeros(()), torch.zeros(())
    for micro in split(batch, accumulate):
        loss = objective.loss(model, micro)
        auxiliary = loss.hidden.auxiliary / (accumulate * world_size())
        (loss.total / units + auxiliary).backward()
        total += loss.total.detach()
        hits += loss.hits
    reduce_gradients(model)
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), clip)
    set_learning_rate(optimizer, rate)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    values = {
        "loss": float(all_sum(total) / units),
        "grad_norm": float(norm),
        "aux": float(loss.hidden.auxiliary.detach()),
    }
    if objective.unit == "pair":
        values["accuracy"] = float(all_sum(hits) / units)
    for number, load in enumerate(loss.hidden.load.tolist()):
        values |= {f"moe/{number}/load/{expert}": share for expert, share in enumerate(load)}
    return values


@torch.no_grad()
def evaluate(model: Decoder, objective: Objective, rows: Rows, *, limit: int, size: int = 32) -> dict[str, float]:
    """Mean loss over the first `limit` held-out rows (and the share of pairs ranked right), on all workers together."""
    model.eval()
    rank = dist.get_rank() if dist.is_initialized() else 0
    sums = torch.zeros(3, dtype=torch.float64)
    mine = torch.arange(rank, min(limit, len(rows)), world_size()).numpy()
    for at in range(0, len(mine), size):
        batch = {name: torch.from_numpy(values).long() for name, values in rows.fetch(mine[at : at + size]).items()}
        loss = objective.loss(model, batch)
        sums += torch.tensor([float(loss.total), float(loss.units), float(loss.hits)], dtype=torch.float64)
    model.train()
    total, units, hits = all_sum(sums).tolist()
    values = {"loss": total / max(1.0, units)}
    if objective.unit == "pair":
        values["accuracy"] = hits / max(1.0, units)
    return values


def split(batch: Batch, parts: int) -> list[Batch]:
    """A batch as `parts` batches of equal rows."""
    chunks = {name: values.chunk(parts) for name, values in batch.items()}
    return [{name: pieces[i] for name, pieces in chunks.items()} for i in range(len(chunks["tokens"]))]


def world_size() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def all_sum(value: torch.Tensor) -> torch.Tensor:
    if world_size() > 1:
        dist.all_reduce(value)
    return value


def reduce_gradients(model: Decoder) -> None:
    """Sum the gradients of all workers, in one flat message."""
    if world_size() == 1:
        return
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    flat = torch.cat([g.flatten() for g in gradients])
    dist.all_reduce(flat)
    for gradient, part in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
        gradient.copy_(part.view_as(gradient))
