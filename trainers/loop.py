"""The one training loop: pretraining, SFT and reward modelling differ in rows, first weights and objective only."""

import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import ray.train
import ray.train.torch
import torch
import torch.distributed as dist
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer

from cluster.progress import follow
from cluster.storage import newest_checkpoint, save_checkpoint, write_file
from cluster.tracker import Tracker, alarms, read_metrics
from conf.schema import Cluster, Compute, Config, Fit, InputError, Optim, Precision
from conf.schema import Doctor as DoctorConfig
from conf.schema import Tracker as TrackerConfig
from moe import checkpoint, native
from moe.adapt import merge
from moe.allocator import keep_buffers
from moe.decoder import Decoder
from moe.doctor import Doctor, router_metrics
from moe.optimizer import learning_rate, new_optimizer, set_learning_rate
from moe.parallel import check_parallel, clip_gradients, parallelise, reduce_gradients
from moe.precision import autocast, fastest
from trainers.feed import IndexedFeed, batches
from trainers.objectives import Batch, Loss, Objective, in_turn
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
    compute: Compute
    doctor: DoctorConfig
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
            compute=cfg.compute,
            doctor=cfg.doctor,
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
        if self.compute.precision is Precision.fp16:
            raise InputError(
                "compute.precision=fp16 loses small gradients without loss scaling, which training does not do; "
                "try compute.precision=bf16"
            )
        if not len(Rows(self.rows)):
            raise InputError(f"{self.rows}: no row to train on")
        # What cannot be loaded, adapted or spread is refused here, not by each restart of the workers.
        check_parallel(self.start().cfg, self.cluster)


def fit(plan: Plan) -> Decoder:
    """Train under Ray Train and return the final model. A killed worker is restarted from the newest checkpoint."""
    plan.check()
    plan = settled(plan)
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
    if plan.doctor.stop and (found is None or found[0] < plan.fit.steps):
        step, text = alarms(read_metrics(plan.folder))[-1]
        raise InputError(f"doctor.stop=true ended stage {plan.stage} at step {step}: {text}")
    assert found is not None and found[0] == plan.fit.steps, f"{plan.checkpoints}: no checkpoint of the last step"
    model = plan.start()
    checkpoint.load(found[1], model)
    return merge(model).eval()


def settled(plan: Plan) -> Plan:
    """The plan with `compute.precision=auto` measured, once a stage; how it computes is kept beside its checkpoints."""
    kept = plan.folder / "arithmetic.json"
    began = json.loads(kept.read_text()) if kept.exists() else {}
    precision = plan.compute.precision
    if precision is Precision.auto:
        measured = began.get("precision") or fastest("cuda" if plan.cluster.gpus_per_worker else "cpu").value
        precision = Precision(measured)
    now = {"precision": precision.value, "kernels": "native" if native.available() else "torch"}
    if began and began != now:
        print(f"{plan.stage}: began with {began} and goes on with {now}: the result is no longer bitwise the same")
    write_file(kept, json.dumps(now) + "\n")
    return replace(plan, compute=replace(plan.compute, precision=precision))


def work(settings: dict[str, Any]) -> None:
    """One training worker."""
    plan: Plan = settings["plan"]
    keep_buffers()
    torch.set_num_threads(plan.cluster.threads or max(1, (os.cpu_count() or 1) // plan.cluster.workers))
    torch.manual_seed(plan.seed)
    model = plan.start().train()
    if plan.cluster.gpus_per_worker:
        torch.set_default_device(ray.train.torch.get_device())
        model = model.to(torch.get_default_device())
    model = parallelise(model.compute_with(plan.compute), plan.cluster)
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
    objective = in_precision(plan.objective, plan.compute.precision)
    before = (line for line in read_metrics(plan.folder) if line["step"] <= first)
    doctor = Doctor(plan.doctor, model.cfg, plan.optim, before)
    clock, tokens = time.perf_counter(), 0
    for step in range(first, cfg.steps + 1):  # one extra turn: the final evaluation and save
        last = step == cfg.steps
        if due(step, cfg.eval_every, last) and step > first:
            values = evaluate(model, objective, Rows(plan.held_out), limit=cfg.eval_rows)
            if tracker:
                tracker.log({f"val/{name}": value for name, value in values.items()}, step)
            clock, tokens = time.perf_counter(), 0
        if due(step, cfg.save_every, last) and step > first:
            state = checkpoint.state(model, optimizer)
            if tracker:
                save_checkpoint(plan.checkpoints, step, partial(checkpoint.write, tensors=state), cfg.keep)
        if last:
            break
        rate = learning_rate(step, cfg.steps, plan.optim, scale=cfg.lr_scale)
        batch = on(next(stream), model)
        tokens += int((batch["segments"] > 0).sum())
        values = train_step(model, optimizer, objective, batch, rate, plan.optim.clip, cfg.accumulate)
        if due(step + 1, cfg.log_every, step + 1 == cfg.steps):
            told = doctor.examine(values, step + 1)  # on every worker alike: all must stop together
            speed = float(all_sum(torch.tensor(float(tokens)))) / (time.perf_counter() - clock)
            if tracker:
                tracker.log({**values, "lr": rate, "tokens_per_second": speed, **told}, step + 1)
            if told and plan.doctor.stop:
                return


def in_precision(objective: Objective, precision: Precision) -> Objective:
    """The objective with its matrix products in `precision`."""

    def loss(model: Decoder, batch: Batch) -> Loss:
        with autocast(precision, batch["tokens"].device.type):
            return objective.loss(model, batch)

    return replace(objective, loss=loss)


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
    total, hits, aux = torch.zeros(()), torch.zeros(()), torch.zeros(())
    load, measured = torch.zeros(model.cfg.layers, model.cfg.experts), torch.zeros(3, model.cfg.layers)
    for micro in split(batch, accumulate):
        loss = objective.loss(model, micro)
        auxiliary = loss.hidden.auxiliary / accumulate
        (loss.total / units + auxiliary).backward()
        total += loss.total.detach()
        aux += auxiliary.detach()
        hits += loss.hits
        load += loss.hidden.load / accumulate
        measured += torch.stack([loss.hidden.balance, loss.hidden.z, loss.hidden.entropy]) / accumulate
    reduce_gradients(model)
    norm = clip_gradients(model, clip)
    set_learning_rate(optimizer, rate)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    values = {
        "loss": float(all_sum(total) / units),
        "grad_norm": float(norm),
        "aux": float(all_sum(aux)),
    }
    if objective.unit == "pair":
        values["accuracy"] = float(all_sum(hits) / units)
    balance, z, entropy = all_sum(measured)
    return values | router_metrics(load, balance, z, entropy, top_k=model.cfg.top_k)


@torch.no_grad()
def evaluate(model: Decoder, objective: Objective, rows: Rows, *, limit: int, size: int = 32) -> dict[str, float]:
    """Mean loss over the first `limit` held-out rows (and the share of pairs ranked right), on all workers together."""
    model.eval()
    rank = dist.get_rank() if dist.is_initialized() else 0
    sums = torch.zeros(3, dtype=torch.float64)
    for batch in in_turn(rows, limit, rank=rank, world=world_size(), size=size):
        loss = objective.loss(model, on(batch, model))
        sums += torch.tensor([float(loss.total), float(loss.units), float(loss.hits)], dtype=torch.float64)
    model.train()
    total, units, hits = all_sum(sums).tolist()
    values = {"loss": total / max(1.0, units)}
    if objective.unit == "pair":
        values["accuracy"] = hits / max(1.0, units)
    return values


def on(batch: Batch, model: Decoder) -> Batch:
    """The batch where the model is."""
    device = model.model.embed_tokens.weight.device
    return {name: values.to(device, non_blocking=True) for name, values in batch.items()}


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
