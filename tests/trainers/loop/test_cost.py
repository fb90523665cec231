"""What a stage says of its cost before the first step, against the planner's numbers and by hand."""

from dataclasses import replace
from math import ceil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from conf.knobs.model import Adapt
from conf.knobs.running import Cluster
from conf.knobs.training import Checkpoints, Optim, Optimizer
from moe.footprint import Work, peak, training_flops, training_memory
from moe.training.adapt import adapt
from tests.trainers.training import CFG, LENGTH, VOCABULARY, plan_for
from trainers.loop import cost
from trainers.loop.recipe import Plan
from trainers.rows.rows import Rows


def planned(folder: Path, **parts: Any) -> Plan:
    return plan_for(folder, optim=Optim(kind=Optimizer.adamw), **parts)


def test_time_and_memory_by_hand(tmp_path: Path) -> None:
    plan = planned(tmp_path)
    shape = plan.check()
    assert shape.lm_head.weight.is_meta  # no weights were made to know it
    found = cost.cost(plan, shape, speed=1e6)
    assert found.parameters == found.trained == sum(p.numel() for p in plan.start().parameters())
    work = Work(rows=8, length=LENGTH, optimizer=Optimizer.adamw)
    tensors = peak(training_memory(CFG, VOCABULARY, work))
    assert found.memory == tensors + 3 * 4 * found.parameters + cost.PROCESSES  # with a copy to be saved
    each = training_flops(CFG, VOCABULARY, checkpointing=False, seen=LENGTH / 2)
    held_out = len(Rows(tmp_path / "rows"))
    rows = 40 * 8 + ceil(40 / 20) * min(512, held_out) / 3  # steps, and two evaluations, which go forward only
    assert found.seconds == pytest.approx(cost.START + cost.STEP * 40 + rows * LENGTH * each / 1e6)
    waits = cost.cost(replace(plan, saving=Checkpoints(copy_gb=1e-6)), shape, 1e6)
    assert waits.memory == tensors + cost.PROCESSES
    twice = cost.cost(replace(plan, cluster=Cluster(workers=2)), shape, 1e6)
    assert twice.memory > found.memory - cost.PROCESSES + peak(training_memory(CFG, VOCABULARY, replace(work, rows=4)))


def test_frozen_weights_need_neither_gradients_nor_optimizer(tmp_path: Path) -> None:
    whole = planned(tmp_path, saving=Checkpoints(asynchronous=False))
    some = replace(whole, start=lambda: adapt(whole.start(), Adapt(freeze=["*.experts.*"])))
    all_of, part = (cost.cost(plan, plan.check(), 1e6) for plan in (whole, some))
    frozen = all_of.parameters - part.trained
    assert part.parameters == all_of.parameters and frozen == CFG.layers * CFG.experts * 3 * 32 * 32
    assert all_of.memory - part.memory <= 3 * 4 * frozen
    assert all_of.memory - part.memory >= 2 * 4 * frozen
    assert "M of them trained" in cost.told(some, some.check())


def test_the_line_warns_and_says_what_would_fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = planned(tmp_path, fit={"batch_rows": 64}, saving=Checkpoints(asynchronous=False))
    shape = plan.check()
    text = cost.told(plan, shape)
    assert text.startswith("base: 0.0 M parameters; will take about ") and "GiB of memory" in text
    assert text.endswith("for 40 steps of 2,048 tokens")
    needed = [cost.cost(replace(plan, fit=replace(plan.fit, accumulate=n)), shape, 1.0).memory for n in (1, 2, 4, 8)]
    assert needed == sorted(needed, reverse=True)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(total=needed[2]))
    assert cost.told(plan, shape).endswith("That is too much memory: try pretrain.accumulate=4")
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(total=cost.PROCESSES))
    assert cost.told(plan, shape).endswith("no batch is small enough; try adapt.lora_rank=16, or a smaller model")


PLANTED = [  # promise, file, right code, bug, test (None: this whole file)
    (
        "the line knows of the copy that saving takes",
        "trainers/loop/cost.py",
        "(copy if beside else 0.0)",
        "0.0",
        None,
    ),
    (
        "a plan is checked without weights",
        "trainers/loop/recipe.py",
        'with torch.device("meta"):',
        'with torch.device("cpu"):',
        None,
    ),
]
