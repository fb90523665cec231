"""What a stage will cost, said before its first step: parameters, memory, time."""

import os
from dataclasses import dataclass, replace
from math import ceil

import psutil
import torch

from cluster.progress import clock
from conf.knobs.model import Precision
from moe.decoder import LANGUAGE, Decoder
from moe.footprint import FULL, Work, peak_of, training_flops, training_memory
from trainers.loop import meter
from trainers.loop.recipe import Plan
from trainers.rows.feed import rows_before
from trainers.rows.mixture import opened

CPU_SHARE = 0.4  # of what large products reach, that a training step does on a CPU
START = 15.0  # seconds until Ray's workers take their first step
STEP = 0.1  # seconds of a step whatever its size: the next rows, many small operations, what is logged
PROCESSES = 2.5 * 2**30  # bytes of Ray's own processes and of the libraries that driver and worker load
_KNOBS = {"chat": "sft"} | {name: name for name in ("reward", "hfft", "cohft")}  # a stage's section; else pretrain


@dataclass(frozen=True)
class Cost:
    parameters: int
    trained: int
    memory: float  # bytes, over all processes; of a GPU where the workers have one
    room: float  # that there are
    seconds: float  # of all steps and evaluations, and of the start


def cost(plan: Plan, model: Decoder, speed: float) -> Cost:
    """What it takes to train `model`, of which the shape is enough, at `speed` operations a second."""
    parameters = list(model.parameters())
    whole, trained = (
        sum(p.numel() for p in found) for found in (parameters, [p for p in parameters if p.requires_grad])
    )
    on_gpu, workers = plan.cluster.gpus_per_worker > 0, plan.cluster.workers
    vocab = model.vocab_size if model.head == LANGUAGE else len(model.head)
    work = _work(plan)
    moments = training_memory(model.cfg, model.vocab_size, work)
    memory = peak_of(moments, trained=trained / whole) + (FULL * trained if plan.optim.ema else 0.0)
    if not on_gpu:
        beside = plan.saving.asynchronous and (copy := 3.0 * FULL * whole / workers) <= plan.saving.copy_gb * 1e9
        parts = plan.slots // workers + 1 if plan.slots else 0  # of a fixed order, each with gradients of its own
        memory = workers * (memory + (copy if beside else 0.0) + parts * FULL * trained) + PROCESSES
    length, fit = plan.course.row_length, plan.fit
    each = training_flops(model.cfg, vocab, checkpointing=plan.compute.checkpointing, seen=length / 2)
    evaluated = sum(min(fit.eval_rows, len(opened(path))) for path in plan.held_out.values())
    evaluations = ceil(fit.steps / fit.eval_every)
    rows = rows_before(fit, length, fit.steps) + evaluations * evaluated / 3  # forward only
    room = plan.gpu.bytes if on_gpu else float(psutil.virtual_memory().total)
    return Cost(whole, trained, memory, room, START + STEP * fit.steps + rows * length * each / speed)


def told(plan: Plan, model: Decoder) -> str:
    """The line that says so, and what would make it fit where it does not."""
    found = cost(plan, model, speed(plan))
    frozen = "" if found.trained == found.parameters else f", {found.trained / 1e6:,.1f} M of them trained"
    where = "each GPU's" if plan.cluster.gpus_per_worker else "this machine's"
    text = (
        f"{plan.stage}: {found.parameters / 1e6:,.1f} M parameters{frozen}; will take about "
        f"{found.memory / 2**30:.1f} of {where} {found.room / 2**30:.1f} GiB of memory and {clock(found.seconds)} for "
        f"{plan.fit.steps} steps of {plan.rows(plan.fit.steps) * plan.course.row_length:,} tokens"
    )
    return (
        text if found.memory <= found.room else f"{text}. That is too much memory: {_remedy(plan, model, found.room)}"
    )


def speed(plan: Plan) -> float:
    """Operations a second that all workers together are likely to reach: of a CPU by what its products do now."""
    workers, gpu = plan.cluster.workers, plan.gpu
    if plan.cluster.gpus_per_worker:
        return workers * gpu.tflops * 1e12 * gpu.mfu
    cores = os.cpu_count() or 1
    threads = min(cores, workers * (plan.cluster.threads or (1 if plan.slots else max(1, cores // workers))))
    one = meter.peak("cpu", plan.compute.precision, gpu) / min(torch.get_num_threads(), cores)
    return CPU_SHARE * threads * one


def _work(plan: Plan) -> Work:
    """What one worker does in a step that has its full size."""
    workers, spread = plan.cluster.workers, plan.cluster.expert_parallel
    return Work(
        rows=ceil(plan.rows(plan.fit.steps) / max(workers, plan.slots) / plan.fit.accumulate),
        length=plan.course.row_length,
        optimizer=plan.optim.kind,
        accumulate=plan.fit.accumulate,
        half=plan.compute.precision in (Precision.bf16, Precision.fp16),
        checkpointing=plan.compute.checkpointing,
        shards=workers if plan.cluster.shard else 1,
        expert_parallel=spread,
    )


def _remedy(plan: Plan, model: Decoder, room: float) -> str:
    """The least change of micro-batches, and then of what is kept of them, with which it fits."""
    section = _KNOBS.get(plan.stage, "pretrain")
    for again in (plan.compute.checkpointing, True):
        accumulate = plan.fit.accumulate
        while accumulate < plan.rows(plan.fit.steps) / max(plan.cluster.workers, plan.slots):
            accumulate *= 2
            fit, compute = replace(plan.fit, accumulate=accumulate), replace(plan.compute, checkpointing=again)
            if cost(replace(plan, fit=fit, compute=compute), model, 1.0).memory <= room:
                more = "" if again == plan.compute.checkpointing else " compute.checkpointing=true"
                return f"try {section}.accumulate={accumulate}{more}"
    return "no batch is small enough; try adapt.lora_rank=16, or a smaller model"
