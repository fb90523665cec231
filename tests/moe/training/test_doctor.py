"""The router's doctor: a planted collapse is told once, by layer; a healthy run is left alone.

Planted bugs these turn red: an alarm at every step, a window that a continued run forgets, dead experts not noticed,
the entropy taken relative to nothing.
"""

from collections.abc import Callable
from math import log
from pathlib import Path

import pytest
import torch

from cluster.tracking.tracker import alarms, read_metrics
from conf.knobs.model import Model
from conf.knobs.training import Doctor as Settings
from conf.knobs.training import Optim, SpikeAction, Spikes
from moe.decoder import Decoder, new_decoder
from moe.training.doctor import Doctor, router_metrics
from moe.training.objectives import Batch
from tests.trainers.training import plan_for
from trainers.loop.loop import learn
from trainers.rows.packing import pack
from trainers.rows.rows import write_rows

CFG = Model(hidden_size=32, layers=3, heads=2, kv_heads=1, head_dim=16, experts=8, expert_size=32, context=32)
VOCABULARY, LENGTH = 128, 32


def metrics(*loads: list[float], balance: float = 1.0, top_k: int = 2) -> dict[str, float]:
    load = torch.tensor(loads)
    layers = len(loads)
    return router_metrics(load, torch.full((layers,), balance), torch.ones(layers), torch.ones(layers), top_k=top_k)


EVEN = [0.25] * 4
ONE_DEAD = [0.0, 0.3, 0.35, 0.35]
SKEWED = [0.49, 0.17, 0.17, 0.17]  # 1.96 of its share, where 2 is the most that top-2 of 4 can give


def doctor(window: int = 3, layers: int = 1, **knobs: float) -> Doctor:
    model = Model(layers=layers, experts=4, top_k=2)
    return Doctor(Settings(window=window, **knobs), model, Optim(lr=0.004))  # type: ignore[arg-type]


def test_metrics_by_hand() -> None:
    values = metrics(EVEN, [0.5, 0.5, 0.0, 0.0], [0.5, 0.25, 0.25, 0.0])
    assert [values[f"moe/{layer}/load_max"] for layer in range(3)] == [1.0, 2.0, 2.0]
    assert [values[f"moe/{layer}/dead"] for layer in range(3)] == [0, 2, 1]
    # the entropies of the loads are ln 4, ln 2 and 1.5 ln 2; with top-2 they lie between ln 2 and ln 4
    assert [values[f"moe/{layer}/entropy"] for layer in range(3)] == pytest.approx([1.0, 0.0, 0.5], abs=1e-6)
    assert values["moe/2/load/0"] == 0.5 and values["moe/0/balance"] == values["moe/1/z"] == 1.0
    assert metrics(EVEN, top_k=4)["moe/0/entropy"] == 1.0  # every token takes every expert: nothing can collapse


def test_an_illness_is_told_once_it_has_lasted_and_again_after_a_cure() -> None:
    it = doctor(window=3)
    told = [it.examine(metrics(load), step) for step, load in enumerate([SKEWED] * 5 + [EVEN] + [SKEWED] * 4)]
    assert [step for step, found in enumerate(told) if found] == [2, 8]
    assert told[2] == {
        "moe/0/alarm/load": "layer 0: expert 0 takes 2.0x its share for 3 steps: raise model.balance_coef (now 0.01) "
        "to 0.02, or lower optim.lr (now 0.004) to 0.002"
    }


def test_each_illness_names_its_layer_and_its_remedy() -> None:
    it = doctor(window=2, layers=2, max_load=9.0)
    assert it.examine(metrics(EVEN, ONE_DEAD), 10) == {}
    assert it.examine({"val/loss": 1.0}, 10) == {}
    assert it.examine(metrics(EVEN, ONE_DEAD), 15) == {
        "moe/1/alarm/dead": "layer 1: expert 0 gets no token for 6 steps: raise model.balance_coef (now 0.01) to 0.02, "
        "or optim.warmup (now 0.02) to 0.04"
    }
    assert it.examine(metrics([0.475, 0.475, 0.025, 0.025], EVEN, balance=0.9), 20) == {}
    assert it.examine(metrics([0.475, 0.475, 0.025, 0.025], EVEN, balance=0.9), 21) == {
        "moe/0/alarm/balance": "layer 0: the balance loss is 0.90, below its floor of 1, for 2 steps: lower "
        "model.balance_coef (now 0.01) to 0.005, or give a step more batch_rows",
        "moe/0/alarm/entropy": "layer 0: the load's entropy is 0.29, where 1 is even, for 2 steps: lower optim.lr "
        "(now 0.004) to 0.002, or raise model.balance_coef (now 0.01) to 0.02",
        "moe/1/alarm/balance": "layer 1: the balance loss is 0.90, below its floor of 1, for 2 steps: lower "
        "model.balance_coef (now 0.01) to 0.005, or give a step more batch_rows",
    }


def test_top_k_of_all_experts_is_never_ill() -> None:
    it = Doctor(Settings(window=1), Model(layers=1, experts=4, top_k=4), Optim())
    assert it.examine(metrics([0.2500001, 0.25, 0.25, 0.2499999], top_k=4), 1) == {}


def start(*, seed: int = 3, **knobs: float) -> Decoder:
    return new_decoder(Model(**{**vars(CFG), **knobs}), VOCABULARY, seed=seed)


class Counting:
    """Rows that count upwards from a random number."""

    def __init__(self, position: int) -> None:
        self.at = position

    def take(self, count: int) -> Batch:
        begin = torch.randint(0, VOCABULARY, (count, 1), generator=torch.Generator().manual_seed(self.at))
        tokens = (begin + torch.arange(LENGTH)) % VOCABULARY
        self.at += count
        return {
            "tokens": tokens,
            "segments": torch.ones_like(tokens),
            "loss": (torch.arange(LENGTH) > 0).long().expand(count, -1),
        }


def train(folder: Path, count: int, first: Callable[[], Decoder], **knobs: bool) -> list[tuple[int, str]]:
    rows = pack(iter([(list(range(20)), [1] * 20)]), LENGTH)
    write_rows(folder / "rows", rows, row_length=LENGTH, rows_per_shard=64, meta={"tokenizer": "none"})
    plan = plan_for(
        folder,
        fit={"steps": count, "eval_every": 1000, "save_every": 1000, "log_every": 2},
        start=first,
        optim=Optim(lr=4e-3),
        doctor=Settings(**knobs),
        spikes=Spikes(action=SpikeAction.none),
    )
    learn(plan, Counting)
    return alarms(read_metrics(folder))


@pytest.mark.slow
def test_a_healthy_run_raises_no_alarm(tmp_path: Path) -> None:
    assert train(tmp_path, 240, start) == []
    last = read_metrics(tmp_path)[-2]  # before the evaluation at the end
    assert last["step"] == 240 and last["loss"] < 1.0
    assert all(last[f"moe/{layer}/entropy"] > 0.9 and last[f"moe/{layer}/dead"] == 0 for layer in range(3))
    assert all(0 < last[f"moe/{layer}/token_entropy"] < log(8) for layer in range(3))


def collapsing() -> Decoder:
    """Nothing balances the experts, and the gate of layer 1 prefers two of them whatever the token."""
    model = start(balance_coef=0.0, z_coef=0.0)
    with torch.no_grad():
        # All tokens have one coordinate in common, at which these two rows of one gate look and nothing else.
        model.model.embed_tokens.weight[:, 0] = 0.3
        for layer in model.model.blocks():
            layer.mlp.gate.weight[:, 0] = 0.0
        model.model.blocks()[1].mlp.gate.weight[[2, 5], 0] = 5.0
    return model


def test_a_planted_collapse_is_caught_and_its_layer_named(tmp_path: Path) -> None:
    told = train(tmp_path, 60, collapsing)
    assert {text[:7] for _, text in told} == {"layer 1"}
    kinds = {name for line in read_metrics(tmp_path) for name in line if "alarm" in name}
    assert kinds == {"moe/1/alarm/dead", "moe/1/alarm/entropy", "moe/1/alarm/load"}
    assert told[0][0] == 22  # ill from the first look, at step 2; the window is 20 steps
    assert any("raise model.balance_coef (now 0) to 0.01" in text for _, text in told)


def test_the_doctor_ends_the_run_if_told_to(tmp_path: Path) -> None:
    train(tmp_path, 60, collapsing, stop=True)
    last = read_metrics(tmp_path)[-1]
    assert last["step"] == 22 and last["stopped"].startswith("doctor.stop=true: layer 1: ")


def test_a_continued_run_judges_as_one_that_never_stopped(tmp_path: Path) -> None:
    looks = [ONE_DEAD, SKEWED, SKEWED, SKEWED, EVEN, ONE_DEAD, ONE_DEAD, ONE_DEAD, ONE_DEAD]
    lines = [{"step": step, **metrics(load)} for step, load in enumerate(looks)]
    straight = doctor(window=3)
    expected = [straight.examine(line, step) for step, line in enumerate(lines)]
    assert sum(map(bool, expected)) == 2
    for cut in range(len(lines)):
        after = Doctor(straight.cfg, straight.model, straight.optim, history=lines[:cut])
        assert [after.examine(line, step) for step, line in enumerate(lines) if step >= cut] == expected[cut:]


PLANTED = [  # promise, file, right code, bug, test (None: this whole file)
    ("a collapsed router is told once", "moe/training/doctor.py", "new = lasting - self._told", "new = lasting", None),
    (
        "a continued run judges as one that never stopped",
        "moe/training/doctor.py",
        '            self.examine(line, int(line["step"]))',
        "            pass",
        "test_a_continued_run_judges_as_one_that_never_stopped",
    ),
    (
        "a dead expert is noticed",
        "moe/training/doctor.py",
        'if values[f"{of}load/{e}"] == 0)',
        'if values[f"{of}load/{e}"] < 0)',
        None,
    ),
]
