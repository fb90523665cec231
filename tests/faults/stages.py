"""The three supervised stages at a size that trains in a second, with all that a checkpoint has to hold.

They throw dice (router jitter), average weights, stop for nothing but judge every step so strictly that some are left
out, and change the mix of rows along the way: whatever of it a checkpoint forgets changes the end of the run.
"""

import json
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from conf.knobs.alignment import RewardLoss
from conf.knobs.model import Adapt, Compute
from conf.knobs.running import Cluster
from conf.knobs.training import Checkpoints, Optim, SpikeAction, Spikes
from moe.decoder import Decoder, new_decoder
from moe.training.adapt import adapt
from moe.training.objectives import Batch
from tests.trainers.training import CFG, LENGTH, VOCABULARY, direct, documents, plan_for
from trainers.loop.recipe import Plan
from trainers.rows.feed import Feed
from trainers.rows.mixture import Course, Phase
from trainers.rows.packing import pack
from trainers.rows.preferences import NO_SCORE, Ranking, preference
from trainers.rows.preferences import pack as pack_rankings
from trainers.rows.rows import write_rows

META = {"tokenizer": "none"}
HEAD = ("total", "helpful")
STRICT = {"window": 16, "warmup": 12, "loss_deviations": 2.0, "norm_deviations": 4.0, "limit": 16}
NOISY = replace(CFG, jitter=0.1)


def language() -> Decoder:
    return new_decoder(NOISY, VOCABULARY, seed=3)


def adapted() -> Decoder:
    return adapt(language(), Adapt(freeze=["model.norm.weight"]), seed=3)


def judging() -> Decoder:
    return new_decoder(NOISY, VOCABULARY, head=HEAD, seed=3)


def stage_plan(kind: str, folder: Path, *, steps: int = 60, **parts: Any) -> Plan:
    """`kind` is base, chat or reward."""
    fit = {"steps": steps, "batch_rows": 8, "eval_every": 15, "eval_rows": 8, "save_every": 5, "ramp": 0.5, "keep": 3}
    common = {"spikes": Spikes(**STRICT), "optim": Optim(lr=1e-2, ema=0.9)} | parts  # type: ignore[arg-type]
    if kind == "base":
        plan = plan_for(folder, fit=fit | {"accumulate": 2}, start=language, **common)
        return replace(plan, course=Course.of(write_text(folder / "noisy", noise=0.06)))
    if kind == "chat":
        sets = tuple(write_text(folder / name, noise=share) for name, share in (("easy", 0.0), ("hard", 0.03)))
        common["spikes"] = Spikes(action=SpikeAction.rollback, rollback_steps=6, **STRICT)  # type: ignore[arg-type]
        common["saving"] = Checkpoints(best=True)
        plan = plan_for(folder, fit=fit | {"keep": 4}, start=adapted, **common)
        return replace(plan, course=Course(sets, (Phase(100, (1.0, 0.0)), Phase(0, (0.5, 0.5)))))
    plan = plan_for(folder, fit=fit, start=judging, objective=preference(HEAD, RewardLoss.listwise, 0.5), **common)
    rows = write_rankings(folder / "rankings")
    return replace(plan, course=Course.of(rows), held_out={"val": rows})


def write_text(folder: Path, *, noise: float) -> Path:
    """Documents that count, a share `noise` of them nothing but random ids."""
    if not (folder / "rows.json").exists():
        dice = random.Random(str(folder.name))
        made = [
            ([dice.randrange(10, 120) for _ in ids], mask) if dice.random() < noise else (ids, mask)
            for ids, mask in documents(600)
        ]
        write_rows(folder, pack(made, LENGTH), row_length=LENGTH, rows_per_shard=64, meta=META)
    return folder


def write_rankings(folder: Path) -> Path:
    """Answers of which the one with the higher sum is better in total, the shorter one more helpful."""
    if not (folder / "rows.json").exists():
        dice, rankings = np.random.default_rng(0), []
        for number in range(300):
            answers = [dice.integers(10, 100, size=dice.integers(3, 8)).tolist() for _ in range(3)]
            by = np.array([[-sum(answer), len(answer)] for answer in answers])
            ranks = (by[:, None, :] > by[None, :, :]).sum(1).astype(np.int32)
            rankings.append(Ranking(f"line {number}", answers, ranks, np.full_like(ranks, NO_SCORE)))
        rows = pack_rankings(rankings, LENGTH, HEAD, pad=0)
        write_rows(folder, rows, row_length=LENGTH, rows_per_shard=64, meta=META)
    return folder


def spread(plan: Plan, workers: int) -> Plan:
    """The plan for so many workers, bitwise the same for 1, 2 and 4."""
    return replace(plan, cluster=Cluster(workers=workers, threads=1, deterministic=True, slots=4), compute=Compute())


class Logged:
    """A feed that writes down, before it gives them, which rows a step is about to see."""

    def __init__(self, plan: Plan, feed: Feed, position: int, path: Path) -> None:
        self.plan, self.feed, self.at, self.path = plan, feed, position, path

    def take(self, count: int) -> Batch:
        batch = self.feed.take(count)
        positions = batch["position"].tolist()
        places = {at: self.plan.course.places(self.plan.seed, at, at + 1)[0].tolist() for at in positions}
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps({"from": self.at, "count": count, "rows": places}) + "\n")
        self.at += count
        return batch


def logged(plan: Plan, rank: int, world: int) -> Any:
    feed, path = direct(plan, rank=rank, world=world), plan.folder / "rows.log"
    return lambda position: Logged(plan, feed(position), position, path)
