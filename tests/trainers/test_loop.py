"""The training loop without Ray: what it learns, what equivalent set-ups give, what a resumed run gives.

Planted bugs these turn red: the mean over micro-batches instead of over tokens, padding counted, the optimizer's state
or the cursor lost on resume, a pair read as (worse, better).
"""

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from cluster.storage import newest_checkpoint
from cluster.tracker import Tracker, read_metrics
from conf.schema import Cluster, Compute, Doctor, InputError, Model, Optim, Optimizer, Pretrain
from conf.schema import Tracker as TrackerConfig
from moe import checkpoint
from moe.config import SCALAR
from moe.decoder import Decoder, new_decoder
from moe.optimizer import new_optimizer
from trainers.loop import Plan, evaluate, fit, steps, train_step
from trainers.objectives import LANGUAGE_MODEL, PREFERENCE, Batch, Objective, language_loss
from trainers.packing import pack
from trainers.reward import pack_pairs
from trainers.rows import Rows, order, write_rows

CFG = Model(hidden_size=32, layers=2, heads=2, kv_heads=1, head_dim=16, experts=4, expert_size=32, context=32)
VOCABULARY = 128
LENGTH = 32


def start() -> Decoder:
    return new_decoder(CFG, VOCABULARY, seed=3)


def documents(count: int) -> Iterator[tuple[list[int], list[int]]]:
    """Counting upwards from a random number: what comes next is certain after the first token."""
    starts = np.random.default_rng(0).integers(10, 90, size=count)
    for number, first in enumerate(starts):
        ids = [int(first) + i for i in range(5 + number % 9)]
        yield ids, [1] * len(ids)


def plan_for(folder: Path, objective: Objective = LANGUAGE_MODEL, **knobs: int) -> Plan:
    rows = pack(documents(600), LENGTH)
    write_rows(folder / "rows", rows, row_length=LENGTH, rows_per_shard=64, meta={"tokenizer": "none"})
    fit = Pretrain(**({"steps": 40, "batch_rows": 8, "eval_every": 20, "save_every": 10, "log_every": 1} | knobs))
    return Plan(
        folder=folder,
        run="test",
        stage="base",
        start=start,
        objective=objective,
        rows=folder / "rows",
        held_out=folder / "rows",
        fit=fit,
        optim=Optim(lr=1e-2),
        compute=Compute(),
        doctor=Doctor(),
        cluster=Cluster(),
        tracker=TrackerConfig(),
        seed=0,
    )


def stream(plan: Plan, first: int = 0) -> Iterator[Batch]:
    rows = Rows(plan.rows)
    for step in range(first, plan.fit.steps):
        at = step * plan.fit.batch_rows
        yield tensors(rows.fetch(order(len(rows), plan.seed, at, at + plan.fit.batch_rows)))


def tensors(arrays: dict[str, np.ndarray]) -> Batch:
    return {name: torch.from_numpy(values).long() for name, values in arrays.items()}


def run(plan: Plan, *, until: int = 0) -> Decoder:
    """From the newest checkpoint to the end, or until the stream breaks off after `until` steps."""
    model = plan.start().train()
    optimizer = new_optimizer(model, plan.optim)
    found = newest_checkpoint(plan.checkpoints)
    first = found[0] if found else 0
    if found:
        checkpoint.load(found[1], model, optimizer)
    batches = stream(plan, first)
    if until:
        batches = (batch for _, batch in zip(range(until), batches, strict=False))
    with Tracker(plan.folder, plan.tracker, run="test", stage="base", step=first) as tracker:
        steps(plan, model, optimizer, batches, tracker, first=first)
    return model


def losses(folder: Path) -> list[tuple[int, float]]:
    return [(line["step"], line["loss"]) for line in read_metrics(folder) if "loss" in line]


def test_it_learns_to_count(tmp_path: Path) -> None:
    plan = plan_for(tmp_path)
    model = run(plan)
    curve = losses(tmp_path)
    assert curve[0][1] == pytest.approx(np.log(VOCABULARY), abs=0.1)
    assert curve[-1][1] < 1.0
    held = evaluate(model, LANGUAGE_MODEL, Rows(plan.held_out), limit=10**6)["loss"]
    logged = [line["val/loss"] for line in read_metrics(tmp_path) if "val/loss" in line]
    assert len(logged) == 2 and held == pytest.approx(logged[-1], rel=1e-5) and held < 1.0


def test_a_run_that_breaks_off_ends_bitwise_as_if_it_had_not(tmp_path: Path) -> None:
    straight, broken = plan_for(tmp_path / "straight"), plan_for(tmp_path / "broken")
    expected = run(straight)
    for until in (13, 9):  # falls back to step 10, then to 10 + 9 -> 10
        with pytest.raises(StopIteration):  # the stream ends before the steps do
            run(broken, until=until)
    got = run(broken)
    assert all(torch.equal(a, b) for a, b in zip(got.parameters(), expected.parameters(), strict=True))
    assert losses(broken.folder) == losses(straight.folder)
    assert [step for step, _ in losses(broken.folder)] == list(range(1, 41))


def test_accumulation_changes_nothing(tmp_path: Path) -> None:
    plan = plan_for(tmp_path)
    batch = next(stream(plan))
    batch["loss"][:3] = 0  # micro-batches of very different weight
    after = []
    for parts in (1, 4, 8):
        model = start()
        # The balance loss is of each micro-batch: only without it can the sums agree.
        model.cfg = Model(**{**vars(CFG), "balance_coef": 0.0, "z_coef": 0.0})
        optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
        values = train_step(model, optimizer, LANGUAGE_MODEL, batch, 1.0, 1e9, parts)
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


def test_the_reward_objective_learns_which_answer_is_better(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    pairs = []
    for _ in range(400):
        a, b = generator.integers(10, 100, size=(2, 6)).tolist()
        pairs.append((a, b) if sum(a) > sum(b) else (b, a))  # better is what sums to more
    plan = plan_for(tmp_path, PREFERENCE, steps=60)
    rows = list(pack_pairs(iter(pairs), LENGTH, pad=0))
    write_rows(plan.rows, rows, row_length=LENGTH, rows_per_shard=64, meta={"tokenizer": "none"})
    model = new_decoder(CFG, VOCABULARY, head=SCALAR, seed=0)
    optimizer = new_optimizer(model, plan.optim)
    before = evaluate(model, PREFERENCE, Rows(plan.rows), limit=1000)
    steps(plan, model, optimizer, stream(plan), None)
    after = evaluate(model, PREFERENCE, Rows(plan.rows), limit=1000)
    assert before["loss"] == pytest.approx(np.log(2), abs=0.05)
    assert after["accuracy"] > 0.75 > before["accuracy"]


def test_pairs_lie_whole_in_rows_better_first() -> None:
    rows = list(pack_pairs(iter([([1, 2, 3], [4, 5]), ([6], [7, 8])]), 6, pad=0))
    assert [row.tokens.tolist() for row in rows] == [[1, 2, 3, 4, 5, 0], [6, 7, 8, 0, 0, 0]]
    assert [row.segments.tolist() for row in rows] == [[1, 1, 1, 2, 2, 0], [1, 2, 2, 0, 0, 0]]
    assert [row.loss.tolist() for row in rows] == [[0, 0, 1, 0, 1, 0], [1, 0, 1, 0, 0, 0]]
    with pytest.raises(InputError, match=r"a pair of 7 tokens does not fit into reward.row_length=6"):
        list(pack_pairs(iter([([1] * 3, [2] * 4)]), 6, pad=0))


def test_a_batch_that_workers_cannot_share_is_refused(tmp_path: Path) -> None:
    plan = plan_for(tmp_path, batch_rows=8, accumulate=4)
    object.__setattr__(plan, "cluster", Cluster(workers=3))
    with pytest.raises(InputError, match=r"batch_rows=8 of stage base must divide by cluster.workers=3 x accumulate=4"):
        plan.check()


@pytest.mark.ray
@pytest.mark.slow
def test_workers_that_share_everything_learn_what_one_learns(tmp_path: Path, ray_cluster: None) -> None:
    # Neither Muon in bf16 nor AdamW with a small eps, which make whole steps of what the order of sums leaves.
    optim = Optim(kind=Optimizer.adamw, lr=1e-2, eps=1e-4)
    alone, shared = (replace(plan_for(tmp_path / name, steps=6), optim=optim) for name in ("alone", "shared"))
    cluster = Cluster(workers=2, threads=1, shard=True, expert_parallel=2, cpus_per_worker=0.25)
    together = fit(replace(shared, cluster=cluster, start=partial(new_decoder, CFG, VOCABULARY, seed=3)))
    wanted = dict(run(alone).named_parameters())
    for name, weight in together.named_parameters():
        torch.testing.assert_close(weight, wanted[name], atol=1e-5, rtol=0.0)
    curves = [[loss for _, loss in losses(plan.folder)] for plan in (shared, alone)]
    assert curves[0] == pytest.approx(curves[1], rel=1e-3)
