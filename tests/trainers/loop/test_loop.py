"""The training loop without Ray: what it learns, what equivalent set-ups give, what a resumed run gives.

Planted bugs these turn red: the mean over micro-batches instead of over tokens, padding counted, the optimizer's state
or the cursor lost on resume.
"""

import json
import signal
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cluster import fault, stopping
from cluster.checkpoints import newest_checkpoint, newest_step
from cluster.stopping import Stopped
from cluster.tracking.tracker import read_metrics
from conf.errors import InputError
from conf.knobs.model import Compute, Model, Precision
from conf.knobs.running import Cluster
from conf.knobs.training import Checkpoints, Optim, Optimizer, SpikeAction, Spikes
from moe.decoder import Decoder, new_decoder
from moe.training.objectives import LANGUAGE_MODEL, Batch, Loss, language_loss
from tests.faults.stages import stage_plan
from tests.trainers.training import CFG, LENGTH, VOCABULARY, Broken, direct, losses, plan_for, run, start, take_step
from trainers.loop.loop import fit, held_out_sums, learn, result
from trainers.rows.feed import Feed
from trainers.rows.packing import pack
from trainers.rows.rows import Rows, write_rows


def test_it_learns_to_count(tmp_path: Path) -> None:
    plan = plan_for(tmp_path)
    model = run(plan).model
    curve = losses(tmp_path)
    assert curve[0][1] == pytest.approx(np.log(VOCABULARY), abs=0.1)
    assert curve[-1][1] < 1.0
    total, units, _, _ = held_out_sums(model, LANGUAGE_MODEL, Rows(tmp_path / "rows"), limit=10**6).tolist()
    held = total / units
    logged = [line["val/loss"] for line in read_metrics(tmp_path) if "val/loss" in line]
    assert len(logged) == 2 and held == pytest.approx(logged[-1], rel=1e-5) and held < 1.0


@pytest.mark.parametrize("kind", ["base", "chat"])
def test_a_run_that_breaks_off_ends_bitwise_as_if_it_had_not(tmp_path: Path, kind: str) -> None:
    """With dice, averages, refused steps, going back, a course that changes: see tests/faults/stages.py."""
    straight, broken = (stage_plan(kind, tmp_path / name) for name in ("straight", "broken"))
    expected = run(straight)
    for until in (13, 30, 11):
        with pytest.raises(Broken):
            run(broken, until=until)
        torch.rand(7)  # another process would have thrown other dice
    got = run(broken)
    weights = [dict(state.model.named_parameters()) for state in (got, expected)]
    assert all(torch.equal(weight, weights[1][name]) for name, weight in weights[0].items())
    assert losses(broken.folder) == losses(straight.folder)
    assert got.position == expected.position and len(list((tmp_path / "broken" / "incidents").iterdir())) > 0


@pytest.mark.parametrize("kind", ["base", "chat"])
def test_a_run_that_is_stopped_ends_bitwise_as_if_it_had_not(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """In a step, right before an evaluation, right before a save, and while a checkpoint is written."""
    monkeypatch.setattr(stopping, "_END_WITHIN", 1e6)
    straight, stopped = (stage_plan(kind, tmp_path / name) for name in ("straight", "stopped"))
    expected, handler = run(straight), signal.getsignal(signal.SIGTERM)
    between = 0
    for point in ("train.fed:8", "train.stepped:6", "train.stepped:5", "save.written:2"):
        before = newest_step(stopped.checkpoints)
        fault.arm(f"{point}:term")
        with (
            pytest.raises(Stopped) as ended,
            stopping.stoppable("trainers.pretrain"),
            stopping.deferred(stopped.checkpoints) as request,
        ):
            run(stopped)
        fault.arm("")
        assert ended.value.code == 143 and request.signal == signal.SIGTERM
        assert before < newest_step(stopped.checkpoints) < stopped.fit.steps
        between += len([*stopped.checkpoints.glob("step-*-stop")])
        told = capfd.readouterr().err
        assert "SIGTERM: this step is finished and saved first; a second signal ends it at once\n" in told
        assert "stopped by SIGTERM; the same command continues: python -m trainers.pretrain" in told
    assert between > 0  # some of the stops came where no checkpoint was due
    got = run(stopped)
    weights = [dict(state.model.named_parameters()) for state in (got, expected)]
    assert all(torch.equal(weight, weights[1][name]) for name, weight in weights[0].items())
    assert losses(stopped.folder) == losses(straight.folder) and got.position == expected.position
    kept = [sorted(path.name for path in plan.checkpoints.iterdir()) for plan in (stopped, straight)]
    assert kept[0] == kept[1]
    assert signal.getsignal(signal.SIGTERM) == handler


def test_accumulation_changes_nothing(tmp_path: Path) -> None:
    plan = plan_for(tmp_path)
    batch = direct(plan)(0).take(8)
    batch["loss"][:3] = 0  # micro-batches of very different weight
    after = []
    for parts in (1, 4, 8):
        model = start()
        # The balance loss is of each micro-batch: only without it can the sums agree.
        model.cfg = Model(**{**vars(CFG), "balance_coef": 0.0, "z_coef": 0.0})
        optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
        values = take_step(model, optimizer, LANGUAGE_MODEL, batch, rate=1.0, accumulate=parts)
        after.append((values["loss"], torch.cat([p.flatten() for p in model.parameters()])))
    for loss, weights in after[1:]:
        assert loss == pytest.approx(after[0][0], rel=1e-5)
        torch.testing.assert_close(weights, after[0][1], atol=1e-6, rtol=1e-4)


def test_a_padded_batch_has_the_loss_of_the_unpadded_rows() -> None:
    model = start().eval()
    ids = torch.randint(10, 90, (3, 12), generator=torch.Generator().manual_seed(1))
    lengths = [12, 7, 4]
    padded: Batch = {name: torch.zeros(3, 12, dtype=torch.long) for name in ("tokens", "segments", "loss")}
    total, units = 0.0, 0
    for row, length in enumerate(lengths):
        padded["tokens"][row, :length] = ids[row, :length]
        padded["segments"][row, :length] = 1
        padded["loss"][row, 1:length] = 1
        one: Batch = {
            "tokens": ids[row : row + 1, :length],
            "segments": torch.ones(1, length, dtype=torch.long),
            "loss": padded["loss"][row : row + 1, :length],
        }
        alone = language_loss(model, one)
        total, units = total + alone.total.item(), units + alone.units
    together = language_loss(model, padded)
    assert together.units == units == 20
    assert together.total.item() == pytest.approx(total, rel=1e-5)


def test_prompts_carry_no_loss() -> None:
    model = start()
    ids = list(range(10, 20))
    (row,) = pack([(ids, [0] * 6 + [1] * 4)], LENGTH)
    batch = {name: torch.from_numpy(getattr(row, name))[None].long() for name in ("tokens", "segments", "loss")}
    made = language_loss(model, batch)
    logits = model.logits(model(torch.tensor([ids]), torch.ones(1, 10, dtype=torch.long)).states).log_softmax(-1)
    assert made.units == 4
    wanted = -sum(logits[t - 1, ids[t]].item() for t in range(6, 10))
    assert made.total.item() == pytest.approx(wanted, rel=1e-5)


def test_too_small_a_step_for_the_workers_is_refused(tmp_path: Path) -> None:
    plan = plan_for(tmp_path, fit={"batch_rows": 2}, cluster=Cluster(workers=3))
    with pytest.raises(InputError, match=r"a step of 2 rows leaves some of cluster.workers=3 without any"):
        plan.check()
    back = plan_for(tmp_path, spikes=Spikes(action=SpikeAction.rollback, rollback_steps=11))
    with pytest.raises(InputError, match=r"needs more than the 2 newest checkpoints.*try keep=3"):
        back.check()


class Garbage:
    """A feed whose rows hold nothing but random ids at some positions."""

    def __init__(self, feed: Feed, at: range) -> None:
        self.feed, self.at = feed, at

    def take(self, count: int) -> Batch:
        batch = self.feed.take(count)
        bad = torch.tensor([int(position) in self.at for position in batch["position"]])
        noise = torch.randint(10, 100, batch["tokens"].shape, generator=torch.Generator().manual_seed(0))
        return batch | {"tokens": torch.where(bad[:, None], noise, batch["tokens"])}


@pytest.mark.parametrize("action", [SpikeAction.skip, SpikeAction.rollback])
def test_a_spike_is_left_out_and_told_with_its_documents(tmp_path: Path, action: SpikeAction) -> None:
    plan = plan_for(tmp_path, fit={"keep": 3}, spikes=Spikes(action=action, rollback_steps=5))
    state = learn(plan, lambda position: Garbage(direct(plan)(position), range(8 * 33, 8 * 34)))
    incident = json.loads((tmp_path / "incidents" / "step-00000034.json").read_text())
    assert incident["step"] == 34 and incident["position"] == 264 and incident["action"] == action.value
    assert incident["loss"] > 3 * incident["median"]
    places = plan.course.places(0, 264, 272)
    assert [row["row"] for row in incident["rows"]] == places[:, 1].tolist()
    assert [row["documents"] for row in incident["rows"]] == Rows(tmp_path / "rows").documents(places[:, 1].tolist())
    told = [(line["step"], line["incident"]) for line in read_metrics(tmp_path) if "incident" in line]
    back = action is SpikeAction.rollback
    assert len(told) == 1 and told[0][0] == (20 if back else 34)
    assert told[0][1].startswith("from step 34 back to step 20: " if back else "step 34 left out: ")
    assert state.position == 8 * (40 + 14 * back)  # the rows of the steps taken back are not seen again
    curve = losses(tmp_path)
    assert [step for step, _ in curve] == [step for step in range(1, 41) if back or step != 34]
    assert curve[-1][1] < 1.0


@pytest.mark.parametrize("knobs", [{"action": SpikeAction.stop}, {"limit": 1}])
def test_a_spike_that_ends_the_stage_names_the_knob(tmp_path: Path, knobs: dict[str, Any]) -> None:
    plan = plan_for(tmp_path, spikes=Spikes(**knobs))
    learn(plan, lambda position: Garbage(direct(plan)(position), range(8 * 33, 8 * 34)))
    knob = "spikes.action=stop" if "action" in knobs else "spikes.limit=1"
    with pytest.raises(InputError, match=rf"stage base ended at step 34: {knob}: .*deviations above the median"):
        result(plan)


def test_what_is_not_finite_moves_nothing(tmp_path: Path) -> None:
    """NaN in a step's loss leaves weights, moments and the window as they were."""
    plan = plan_for(tmp_path, fit={"steps": 6, "save_every": 1, "keep": 9}, saving=Checkpoints(asynchronous=False))

    def loss(model: Decoder, batch: Batch) -> Loss:
        made = language_loss(model, batch)
        return replace(made, total=made.total * float("nan")) if 24 in batch.get("position", torch.empty(0)) else made

    learn(replace(plan, objective=replace(LANGUAGE_MODEL, loss=loss)), direct(plan))
    before, after = (tmp_path / "checkpoints" / f"step-{step:08d}" for step in (3, 4))
    for file in ("weights-00000-of-00001.safetensors", "optimizer-00000-of-00001.safetensors"):
        assert (before / file).read_bytes() == (after / file).read_bytes()
    numbers = [json.loads((folder / "progress.json").read_text()) for folder in (before, after)]
    assert [n["position"] for n in numbers] == [24, 32] and [n["step"] for n in numbers] == [3, 4]


def test_it_stops_when_held_out_loss_gets_no_better(tmp_path: Path) -> None:
    plan = plan_for(tmp_path, fit={"eval_every": 2, "patience": 3}, optim=Optim(lr=1e-9))
    state = run(plan)
    held = [line["val/loss"] for line in read_metrics(tmp_path) if "val/loss" in line]
    assert state.stopper.over and state.step == 2 * len(held) < 40
    assert min(held) in held[:-3] and state.stopper.best == min(held)
    assert newest_checkpoint(plan.checkpoints)[0] == state.step  # type: ignore[index]
    assert run(plan).step == state.step  # the same command again has nothing to do


def test_the_averaged_weights_are_evaluated_and_returned(tmp_path: Path) -> None:
    plan = plan_for(tmp_path, optim=Optim(lr=1e-2, ema=0.8))
    state = run(plan)
    assert state.average is not None
    final = result(plan)
    for name, weight in final.named_parameters():
        assert torch.equal(weight, state.average.tensors()[name])
        assert name.endswith("norm.weight") or not torch.equal(weight, dict(state.model.named_parameters())[name])
    total, units, _, _ = held_out_sums(final, LANGUAGE_MODEL, Rows(tmp_path / "rows"), limit=512).tolist()
    assert [x["val/loss"] for x in read_metrics(tmp_path) if "val/loss" in x][-1] == pytest.approx(total / units)


def test_fp16_learns_what_fp32_learns(tmp_path: Path) -> None:
    half, whole = (
        plan_for(tmp_path / p.value, fit={"steps": 3, "batch_rows": 2, "eval_rows": 1}, compute=Compute(precision=p))
        for p in (Precision.fp16, Precision.fp32)
    )
    ends = [losses(plan.folder)[-1][1] for plan in (half, whole) if run(plan).step == 3]
    assert ends[0] == pytest.approx(ends[1], rel=0.02)
    scales = [line["loss_scale"] for line in read_metrics(half.folder) if "loss_scale" in line]
    assert scales[0] in (2.0**16, 2.0**15) and len(scales) == 3


def test_each_held_out_set_has_its_loss(tmp_path: Path) -> None:
    plan = plan_for(tmp_path)
    other = pack([([7] * 20, [1] * 20)], LENGTH)
    write_rows(tmp_path / "other", other, row_length=LENGTH, rows_per_shard=64, meta={"tokenizer": "none"})
    run(replace(plan, held_out={"counting": tmp_path / "rows", "sevens": tmp_path / "other"}))
    last = [line for line in read_metrics(tmp_path) if "val/loss" in line][-1]
    assert last["val/sevens/loss"] > 3 * last["val/counting/loss"]
    assert last["val/counting/loss"] < last["val/loss"] < last["val/sevens/loss"]


@pytest.mark.ray
@pytest.mark.slow
def test_workers_that_share_everything_learn_what_one_learns(tmp_path: Path, ray_cluster: None) -> None:
    # Neither Muon in bf16 nor AdamW with a small eps, which make whole steps of what the order of sums leaves.
    optim = Optim(kind=Optimizer.adamw, lr=1e-2, eps=1e-4)
    alone, shared = (plan_for(tmp_path / name, fit={"steps": 6}, optim=optim) for name in ("alone", "shared"))
    cluster = Cluster(workers=2, threads=1, shard=True, expert_parallel=2, cpus_per_worker=0.25)
    together = fit(replace(shared, cluster=cluster, start=partial(new_decoder, CFG, VOCABULARY, seed=3)))
    wanted = dict(run(alone).model.named_parameters())
    for name, weight in together.named_parameters():
        torch.testing.assert_close(weight, wanted[name], atol=1e-5, rtol=0.0)
    curves = [[loss for _, loss in losses(plan.folder)] for plan in (shared, alone)]
    assert curves[0] == pytest.approx(curves[1], rel=1e-3)


PLANTED = [  # promise, file, right code, bug, test (None: this whole file)
    (
        "a run that is stopped saves what it did since the last checkpoint",
        "trainers/loop/loop.py",
        "if (usual or stop) and state.step > begun:",
        "if usual and state.step > begun:",
        "test_a_run_that_is_stopped_ends_bitwise_as_if_it_had_not",
    ),
    (
        "dice go on where a checkpoint left them",
        "trainers/loop/state.py",
        "checkpoint.load_random(folder, own_rank(), seed)",
        "pass",
        "test_a_run_that_breaks_off_ends_bitwise_as_if_it_had_not",
    ),
    (
        "the cursor is where the checkpoint left it",
        "trainers/loop/state.py",
        "setattr(self, name, numbers[name])",
        'setattr(self, name, numbers[name] + (name == "position"))',
        "test_a_run_that_breaks_off_ends_bitwise_as_if_it_had_not",
    ),
    (
        "a resumed run judges steps by those before the kill",
        "trainers/loop/state.py",
        'self.watch.load(numbers["watch"])',
        "pass",
        "test_a_run_that_breaks_off_ends_bitwise_as_if_it_had_not",
    ),
    (
        "a refused step moves nothing",
        "trainers/loop/loop.py",
        "    if verdict.accepted:\n        made |=",
        "    if True:\n        made |=",
        "test_what_is_not_finite_moves_nothing",
    ),
    (
        "rows of a course that is given up are left out",
        "trainers/loop/loop.py",
        "    state.go_to(plan, position)\n",
        "",
        "test_a_spike_is_left_out_and_told_with_its_documents",
    ),
    (
        "the averaged weights are the stage's model",
        "trainers/loop/loop.py",
        "state.average.put_into(state.model)",
        "pass",
        "test_the_averaged_weights_are_evaluated_and_returned",
    ),
    (
        "micro-batches weigh by their tokens",
        "moe/training/step.py",
        "loss.total / units.to(loss.total)",
        "loss.total / (loss.units * accumulate)",
        "test_accumulation_changes_nothing",
    ),
    (
        "an end by spikes names its knob",
        "trainers/loop/loop.py",
        'STOPPED: f"{knob}: {verdict.reason}',
        'STOPPED: f"{verdict.reason}',
        "test_a_spike_that_ends_the_stage_names_the_knob",
    ),
]
