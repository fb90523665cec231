"""The one training loop: pretraining, SFT and reward modelling differ in rows, first weights and objective only."""

import os
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import replace
from math import isfinite
from typing import Any

import ray.train
import ray.train.torch
import torch
import torch.distributed as dist

from cluster import fault
from cluster.checkpoints import newest_checkpoint
from cluster.saver import Saver
from cluster.stopping import asked
from cluster.storage import read_json, write_json
from cluster.tracking.tracker import Tracker, read_metrics
from conf.errors import InputError
from conf.knobs.training import SpikeAction
from moe.decoder import Decoder
from moe.kernels.allocator import keep_buffers
from moe.training import checkpoint
from moe.training.adapt import merge
from moe.training.doctor import Doctor
from moe.training.objectives import Objective, in_precision, on
from moe.training.optimizer import learning_rate
from moe.training.parallel import own_rank, repeatable, world_size
from moe.training.step import Taken, all_sum, apply, gradients
from trainers.loop import cost
from trainers.loop.meter import EVALUATE, Meter, peak
from trainers.loop.recipe import Plan as Plan
from trainers.loop.spikes import Verdict
from trainers.loop.state import State
from trainers.loop.workers import train
from trainers.rows.feed import PROGRESS, Feed, StreamedFeed
from trainers.rows.held_out import in_turn
from trainers.rows.mixture import opened
from trainers.rows.rows import Rows

INCIDENTS = "incidents"  # the folder of a stage that tells of each spike
STOPPED = "stopped"  # the metric that says why a stage ended before its last step


def fit(plan: Plan) -> Decoder:
    """Train under Ray Train and return the final model. A killed worker is restarted from the newest checkpoint."""
    shape = plan.check()
    plan = replace(plan.settled(), weights=float(sum(p.numel() * p.itemsize for p in shape.parameters())))
    print(cost.told(plan, shape))
    plan.write_way()
    train(plan, work)
    return result(plan)


def result(plan: Plan) -> Decoder:
    """The model that training ended with. Raises `InputError` where it was ended early, saying by what."""
    found = newest_checkpoint(plan.checkpoints)
    if found is None or not read_json(found[1] / PROGRESS)["done"]:
        told = [(line["step"], line[STOPPED]) for line in read_metrics(plan.folder) if STOPPED in line]
        assert told, f"{plan.checkpoints}: no checkpoint of the last step"
        raise InputError(f"stage {plan.stage} ended at step {told[-1][0]}: {told[-1][1]}")
    state = State.new(replace(plan, cluster=replace(plan.cluster, gpus_per_worker=0.0)))
    checkpoint.load(found[1], state.model, average=state.average)
    if state.average is not None:
        state.average.put_into(state.model)
    return merge(state.model).eval()


def work(settings: dict[str, Any]) -> None:
    """One worker of Ray Train."""
    plan: Plan = settings["plan"]
    keep_buffers(plan.weights)
    repeatable(plan.cluster, plan.cluster.device)
    if plan.cluster.gpus_per_worker:
        torch.set_default_device(ray.train.torch.get_device())
    context = ray.train.get_context()
    rank, world = context.get_world_rank(), context.get_world_size()
    stream = ray.train.get_dataset_shard("train")
    learn(plan, lambda position: StreamedFeed(stream, position=position, rank=rank, world=world))


def learn(plan: Plan, feed: Callable[[int], Feed]) -> State:
    """From the newest checkpoint to the end, as one of the process group's workers; `feed` gives the rows from a
    position on."""
    rank, world = own_rank(), world_size()
    own_threads = 1 if plan.slots else max(1, (os.cpu_count() or 1) // plan.cluster.workers)
    torch.set_num_threads(plan.cluster.threads or own_threads)
    state = State.new(plan)
    checkpoint.seed_random(rank, plan.seed)
    if found := newest_checkpoint(plan.checkpoints):
        state.restore(found[1], seed=plan.seed)
    log = Tracker(plan.folder, step=state.step) if rank == 0 else None
    saver = Saver(plan.checkpoints, plan.saving, keep=plan.fit.keep, rank=rank, world=world, attempt=_attempt())
    with log or nullcontext() as tracker, saver:
        if not state.done:
            steps(plan, state, feed(state.position), saver, tracker)
    return state


def _attempt() -> str:
    """A name for this start of the workers, the same on all of them."""
    drawn = torch.tensor(int.from_bytes(os.urandom(6)))
    if world_size() > 1:
        dist.broadcast(drawn, 0)
    return f"{int(drawn):012x}"


def steps(plan: Plan, state: State, feed: Feed, saver: Saver, tracker: Tracker | None) -> None:
    """From where `state` is to the end. Rank 0, which has the tracker, writes metrics and tells of incidents."""
    cfg = plan.fit
    objective = in_precision(plan.objective, plan.compute.precision)
    doctor = new_doctor(plan, state)
    meter = new_meter(plan, state)
    begun, stop = state.step, False
    while True:
        last, score = state.step == cfg.steps or state.stopper.over, None
        if due(state.step, cfg.eval_every, last) and state.step > begun:
            with meter.part(EVALUATE):
                values = evaluate(plan, state, objective)
            fault.at("train.evaluated")
            log(tracker, {**values, **(plan.retention.risen(values) if plan.retention else {})}, state.step)
            score = values["val/loss"]
            last = state.stopper.see(score) or last
        usual = due(state.step, cfg.save_every, last)
        if (usual or stop) and state.step > begun:
            with meter.part("save"):
                state.done = last
                save(state, saver, tracker, score, interim=not usual)
        if last or stop:
            return
        with meter.part("data"):
            count = plan.rows(state.step)
            batch = on(feed.take(count), state.model)
            state.go_to(plan, state.position + count)
        fault.at("train.fed")
        with meter.part("gradients"):
            taken = gradients(
                state.model,
                objective,
                batch,
                accumulate=cfg.accumulate,
                clip=plan.optim.clip,
                scale=state.scale.scale if state.scale else 1.0,
                slots=plan.slots,
                seed=plan.seed * cfg.steps + state.step,
                stop=own_rank() == 0 and asked(plan.checkpoints),
            )
            stop = taken.stop
            meter.count(taken.tokens, taken.targets, taken.pairs)
        fault.at("train.gradients")
        logged = due(state.step + 1, cfg.log_every, state.step + 1 == cfg.steps)
        with meter.part("optimizer"):
            verdict, made = move(plan, state, taken, measure=logged)
        fault.at("train.stepped")
        state.step, state.tokens, state.flops = state.step + 1, meter.tokens, meter.flops
        if verdict is not None and not verdict.accepted:
            write_incident(plan, state, verdict, count)
            if knob := exhausted(plan, state, verdict):
                log(tracker, {STOPPED: f"{knob}: {verdict.reason}; see {plan.folder / INCIDENTS}"}, state.step)
                return
            at = state.step
            if plan.spikes.action is SpikeAction.rollback and go_back(plan, state, saver, tracker):
                begun, meter.tokens, meter.flops = state.step, state.tokens, state.flops
                doctor = new_doctor(plan, state)
            log_incident(plan, tracker, at, state.step, verdict.reason)
        elif logged:
            told = doctor.examine(taken.metrics, state.step)  # on every worker alike: all must stop together
            log(tracker, {**taken.metrics, **made, **meter.read(), **told}, state.step)
            if told and plan.doctor.stop:
                log(tracker, {STOPPED: f"doctor.stop=true: {next(iter(told.values()))}"}, state.step)
                return


def due(step: int, every: int, last: bool) -> bool:
    return last or step % every == 0


def log(tracker: Tracker | None, values: Mapping[str, float | str], step: int) -> None:
    if tracker:
        tracker.log(values, step)
    fault.at("train.logged")


def new_doctor(plan: Plan, state: State) -> Doctor:
    """One that has seen what was logged up to now."""
    before = (line for line in read_metrics(plan.folder) if line["step"] <= state.step)
    return Doctor(plan.doctor, state.model.cfg, plan.optim, before)


def new_meter(plan: Plan, state: State) -> Meter:
    kind, precision = state.model.device.type, plan.compute.precision
    return Meter(
        state.model,
        world=world_size(),
        peak=peak(kind, precision, plan.gpu),
        checkpointing=plan.compute.checkpointing,
        tokens=state.tokens,
        flops=state.flops,
    )


def move(plan: Plan, state: State, taken: Taken, *, measure: bool) -> tuple[Verdict | None, dict[str, float]]:
    """Let the optimizer use the gradients, unless they are refused; what was made of them, and metrics of it.

    No verdict: fp16 overflowed, which a lower scale mends.
    """
    rate = learning_rate(state.step, plan.fit.steps, plan.optim, scale=plan.fit.lr_scale)
    made = {"lr": rate, "position": float(state.position)}
    if state.scale is not None:
        before, finite = state.scale.scale, isfinite(taken.norm)
        state.scale.update(finite)
        made["loss_scale"] = state.scale.scale
        if not finite and isfinite(taken.loss) and before > 1.0:
            return None, made
    verdict = state.watch.judge(taken.loss, taken.norm)
    if verdict.accepted:
        made |= apply(state.model, state.optimizer, rate=rate, average=state.average, measure=measure)
    return verdict, made


def save(state: State, saver: Saver, tracker: Tracker | None, score: float | None, *, interim: bool = False) -> None:
    if tracker:
        tracker.sync()  # what the checkpoint's steps have logged must not be younger than it
    beside = saver.beside(state.copied_bytes())
    saver.save(state.step, state.writer(copies=beside), score=score, beside=beside, interim=interim)


def exhausted(plan: Plan, state: State, verdict: Verdict) -> str:
    """The knob, with its value, that ends the stage at this refused step; "" where it may go on."""
    if plan.spikes.action is SpikeAction.stop:
        return "spikes.action=stop"
    return f"spikes.limit={plan.spikes.limit}" if verdict.stop or state.rollbacks == plan.spikes.limit else ""


def write_incident(plan: Plan, state: State, verdict: Verdict, count: int) -> None:
    """Write down a refused step, with the documents of its rows."""
    if own_rank() == 0:
        begin = state.position - count
        rows = plan.about(plan.course.places(plan.seed, begin, state.position))
        record = verdict.incident(step=state.step, position=begin, action=plan.spikes.action, rows=rows)
        (plan.folder / INCIDENTS).mkdir(exist_ok=True)
        write_json(plan.folder / INCIDENTS / f"step-{state.step:08d}.json", record)


def log_incident(plan: Plan, tracker: Tracker | None, at: int, now: int, reason: str) -> None:
    text = f"step {at} left out: {reason}" if at == now else f"from step {at} back to step {now}: {reason}"
    # A run that was killed after it went back goes back again, and has told so before.
    if tracker and not any(line.get("incident") == text for line in read_metrics(plan.folder)):
        log(tracker, {"incident": text}, now)


def go_back(plan: Plan, state: State, saver: Saver, tracker: Tracker | None) -> bool:
    """Be as `spikes.rollback_steps` ago or earlier, but with all rows since left out; False where nothing is saved."""
    saver.wait()
    if world_size() > 1:
        dist.barrier()  # what the first worker has committed, all see
    found = newest_checkpoint(plan.checkpoints, at_most=state.step - plan.spikes.rollback_steps)
    if found is None:
        return False
    position, rollbacks = state.position, state.rollbacks + 1
    state.restore(found[1], seed=plan.seed)
    state.rollbacks = rollbacks
    state.go_to(plan, position)
    if tracker:  # what came after is given up; later checkpoints go when the next is saved
        tracker.rewind(state.step)
    return True


@torch.no_grad()
def evaluate(plan: Plan, state: State, objective: Objective) -> dict[str, float]:
    """{"val/loss", "val/<name>/loss" where there are several sets, and "val/accuracy" of answers compared}, over the
    first `eval_rows` rows of each set; with the averaged weights where they are kept."""
    sums = {}
    with state.average.swapped(state.model) if state.average else nullcontext():
        for name, folder in plan.held_out.items():
            sums[name] = held_out_sums(
                state.model, objective, opened(folder), limit=plan.fit.eval_rows, alone=bool(plan.slots)
            )
    whole = sum(sums.values(), torch.zeros(4, dtype=torch.float64))
    values = {"val/loss": _mean(whole)}
    if len(sums) > 1:
        values |= {f"val/{name}/loss": _mean(of) for name, of in sums.items()}
    if objective.unit != "token":
        values["val/accuracy"] = float(whole[3] / whole[2].clamp(min=1.0))
    return values | retained(plan, state, objective)


@torch.no_grad()
def retained(plan: Plan, state: State, objective: Objective) -> dict[str, float]:
    """{"retention/loss", "retention/<name>/loss"} on the general text that a parent is watched by."""
    if plan.retention is None:
        return {}
    sums = {}
    with state.average.swapped(state.model) if state.average else nullcontext():
        for name, folder in plan.retention.rows.items():
            rows = opened(folder)
            sums[name] = held_out_sums(state.model, objective, rows, limit=len(rows), alone=bool(plan.slots))
    values = {"retention/loss": _mean(sum(sums.values(), torch.zeros(4, dtype=torch.float64)))}
    return values | {f"retention/{name}/loss": _mean(of) for name, of in sums.items()}


def _mean(sums: torch.Tensor) -> float:
    return float(sums[0] / sums[1].clamp(min=1.0))


@torch.no_grad()
def held_out_sums(
    model: Decoder, objective: Objective, rows: Rows, *, limit: int, alone: bool = False, size: int = 32
) -> torch.Tensor:
    """[loss, units, asked, hits] over the first `limit` rows, float64; the workers share them, or each goes through all
    `alone`, so that the sums do not depend on how many there are."""
    rank, world = (0, 1) if alone else (own_rank(), world_size())
    training = model.training
    model.eval()
    sums = torch.zeros(4, dtype=torch.float64)
    for batch in in_turn(rows, limit, rank=rank, world=world, size=size):
        loss = objective.loss(model, on(batch, model))
        sums += torch.tensor([float(v) for v in (loss.total, loss.units, loss.asked, loss.hits)], dtype=torch.float64)
    model.train(training)
    return sums if world == 1 else all_sum(sums)
