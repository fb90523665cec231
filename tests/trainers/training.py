"""A stage small enough to train in a second, for tests of the loop; with and without its parts."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cluster.tracking.tracker import read_metrics
from conf.knobs.model import Compute, Gpu, Model
from conf.knobs.running import Cluster
from conf.knobs.training import Checkpoints, Doctor, Optim, Pretrain, Spikes
from moe.decoder import Decoder, new_decoder
from moe.training.objectives import LANGUAGE_MODEL, Batch, Objective
from moe.training.optimizer import set_learning_rate
from moe.training.step import gradients
from trainers.loop.loop import learn
from trainers.loop.recipe import Plan
from trainers.loop.state import State
from trainers.rows.feed import DirectFeed, Feed
from trainers.rows.mixture import Course
from trainers.rows.packing import pack
from trainers.rows.rows import write_rows

CFG = Model(hidden_size=32, layers=2, heads=2, kv_heads=1, head_dim=16, experts=4, expert_size=32, context=32)
VOCABULARY = 128
LENGTH = 32

start: Callable[[], Decoder] = partial(new_decoder, CFG, VOCABULARY, seed=3)


def documents(count: int) -> Iterator[tuple[list[int], list[int]]]:
    """Counting upwards from a random number: what comes next is certain after the first token."""
    starts = np.random.default_rng(0).integers(10, 90, size=count)
    for number, first in enumerate(starts):
        ids = [int(first) + i for i in range(5 + number % 9)]
        yield ids, [1] * len(ids)


def plan_for(folder: Path, *, fit: dict[str, Any] | None = None, **parts: Any) -> Plan:
    """A plan of 40 steps over rows that count; `fit` are knobs of it, `parts` replace its sections."""
    if not (folder / "rows" / "rows.json").exists():
        rows = pack(documents(600), LENGTH)
        write_rows(folder / "rows", rows, row_length=LENGTH, rows_per_shard=64, meta={"tokenizer": "none"})
    knobs = {"steps": 40, "batch_rows": 8, "eval_every": 20, "save_every": 10, "log_every": 1} | (fit or {})
    plan = Plan(
        folder=folder,
        stage="base",
        start=start,
        objective=LANGUAGE_MODEL,
        course=Course.of(folder / "rows"),
        held_out={"val": folder / "rows"},
        decode=lambda ids: " ".join(map(str, ids)),
        fit=Pretrain(**knobs),
        optim=Optim(lr=1e-2),
        compute=Compute(),
        doctor=Doctor(),
        gpu=Gpu(),
        spikes=Spikes(),
        saving=Checkpoints(),
        cluster=Cluster(threads=1),
        seed=0,
    )
    return replace(plan, **parts)


def direct(plan: Plan, *, rank: int = 0, world: int = 1) -> Callable[[int], Feed]:
    return lambda position: DirectFeed(plan.course, seed=plan.seed, position=position, rank=rank, world=world)


class Broken(Exception):
    pass


class Breaking:
    """A feed that ends in the middle of a run."""

    def __init__(self, feed: Feed, after: int) -> None:
        self.feed, self.left = feed, after

    def take(self, count: int) -> Batch:
        self.left -= 1
        if self.left < 0:
            raise Broken
        return self.feed.take(count)


def run(plan: Plan, *, until: int = 0) -> State:
    """From the newest checkpoint to the end, or until the feed breaks off after `until` steps."""
    whole = direct(plan)
    return learn(plan, (lambda position: Breaking(whole(position), until)) if until else whole)


def losses(folder: Path) -> list[tuple[int, float]]:
    return [(line["step"], line["loss"]) for line in read_metrics(folder) if "loss" in line]


def take_step(
    model: Decoder,
    optimizer: torch.optim.Optimizer,
    objective: Objective,
    batch: Batch,
    *,
    rate: float,
    clip: float = float("inf"),
    accumulate: int = 1,
) -> dict[str, float]:
    """One step whatever its loss; its metrics."""
    taken = gradients(model, objective, batch, accumulate=accumulate, clip=clip)
    set_learning_rate(optimizer, rate)
    optimizer.step()
    return taken.metrics
