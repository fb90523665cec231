"""Schedules, decay groups and the optimizer's state against numbers worked by hand.

Planted bugs: wsd decays from the warm-up's end, a matrix named in no_decay decays.
"""

from copy import deepcopy
from math import sqrt

import pytest
import torch
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict

from conf.errors import InputError
from conf.knobs.model import Adapt, Model
from conf.knobs.training import Optim, Optimizer, Schedule
from moe.decoder import SCALAR, Decoder, new_decoder
from moe.training.adapt import adapt
from moe.training.optimizer import (
    copied_weights,
    learning_rate,
    measured_step,
    new_optimizer,
    orthogonalise,
    set_learning_rate,
    state_tensors,
    update_norm,
)

pytestmark = pytest.mark.usefixtures("any_processor")
CFG = Model(hidden_size=16, layers=1, heads=2, kv_heads=1, head_dim=8, experts=2, expert_size=16, context=16)


def started() -> Decoder:
    return new_decoder(CFG, 32, seed=0)


def give_gradients(model: Decoder, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for p in model.parameters():
        p.grad = torch.randn(p.shape, generator=generator)


@pytest.mark.parametrize(
    ("schedule", "wanted"),
    [
        # 100 steps, 10 of them warm-up: the line falls from step 10 on, wsd's over the last 20
        (Schedule.linear, {0: 0.1, 9: 1.0, 10: 1.0, 55: 0.6, 91: 0.28, 100: 0.2}),
        (Schedule.wsd, {0: 0.1, 9: 1.0, 10: 1.0, 55: 1.0, 80: 1.0, 90: 0.6, 95: 0.4, 100: 0.2}),
    ],
)
def test_the_rate_of_each_step(schedule: Schedule, wanted: dict[int, float]) -> None:
    cfg = Optim(lr=1.0, warmup=0.1, min_lr_ratio=0.2, schedule=schedule, decay_share=0.2)
    assert {step: learning_rate(step, 100, cfg) for step in wanted} == pytest.approx(wanted)


def test_wsd_without_a_decay_stays_and_one_longer_than_the_run_begins_after_the_warm_up() -> None:
    stays = Optim(lr=1.0, schedule=Schedule.wsd, decay_share=0.0)
    assert learning_rate(99, 100, stays) == 1.0
    long, line = (Optim(lr=1.0, warmup=0.1, schedule=kind, decay_share=1.0) for kind in (Schedule.wsd, Schedule.linear))
    assert [learning_rate(s, 50, long) for s in range(50)] == [learning_rate(s, 50, line) for s in range(50)]


@pytest.mark.parametrize("kind", [Optimizer.adamw, Optimizer.muon])
def test_what_decays(kind: Optimizer) -> None:
    model, same = started(), started()
    for made, decay in ((model, 0.5), (same, 0.0)):
        knobs = Optim(kind=kind, weight_decay=decay, no_decay=["*.embed_tokens.*", "*.q_proj.weight", "score.weight"])
        optimizer = new_optimizer(made, knobs)
        set_learning_rate(optimizer, 0.1)
        give_gradients(made, 1)
        optimizer.step()
    for (name, p), plain, old in zip(model.named_parameters(), same.parameters(), started().parameters(), strict=True):
        spared = p.dim() == 1 or "embed_tokens" in name or "q_proj" in name
        # decay takes 0.1 x 0.5 of a weight away, before the step
        torch.testing.assert_close(plain - p, torch.zeros_like(p) if spared else 0.05 * old, atol=1e-7, rtol=1e-3)


def test_a_glob_without_a_match_is_refused_and_one_for_an_adapted_weight_matches() -> None:
    with pytest.raises(InputError, match=r"optim.no_decay: \*.wq.weight matches no parameter; there are model.embed"):
        new_optimizer(started(), Optim(no_decay=["*.wq.weight"]))
    model = adapt(started(), Adapt(lora_rank=2))
    optimizer = new_optimizer(model, Optim(no_decay=["*.experts.gate_up_proj"], weight_decay=0.1))
    rates = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    named = dict(model.named_parameters())
    assert rates[id(named["model.layers.0.mlp.experts.parametrizations.gate_up_proj.0.a"])] == 0.0
    assert rates[id(named["model.layers.0.mlp.experts.parametrizations.down_proj.0.a"])] == 0.1
    new_optimizer(new_decoder(CFG, 32, head=SCALAR), Optim(no_decay=["lm_head.weight"]))  # base's head, not reward's


def test_each_expert_is_orthogonalised_alone() -> None:
    model = started()
    optimizer = new_optimizer(model, Optim(lr=1.0, weight_decay=0.0, muon_rms=1.0))
    down = model.model.blocks()[0].mlp.experts.down_proj
    before = down.detach().clone()
    down.grad = torch.zeros_like(down)
    down.grad[1] = 1e-3 * torch.eye(16)
    optimizer.step()
    assert torch.equal(down[0], before[0])  # another expert's gradient does not reach it
    moved = (before[1] - down[1]).detach()
    torch.testing.assert_close(moved, orthogonalise(torch.eye(16)[None])[0] * sqrt(16), atol=2e-2, rtol=1e-2)


def test_torch_sees_all_of_muon() -> None:
    model, other = started(), started()
    optimizer, fresh = (new_optimizer(m, Optim(no_decay=["*.experts.*"])) for m in (model, other))
    assert sorted(len(g["params"]) for g in optimizer.param_groups if "momentum" in g) == [2, 4]
    for seed in range(3):
        give_gradients(model, seed)
        optimizer.step()
    named = get_optimizer_state_dict(model, optimizer)["state"]
    assert set(named) == set(dict(model.named_parameters()))
    other.load_state_dict(model.state_dict())
    fresh.load_state_dict(deepcopy(optimizer.state_dict()))
    for one, its in ((model, optimizer), (other, fresh)):
        set_learning_rate(its, 0.01)
        give_gradients(one, 9)
        its.step()
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))
    kept, loaded = state_tensors(model, optimizer), state_tensors(other, fresh)
    assert kept.keys() == loaded.keys() and all(torch.equal(kept[name], loaded[name]) for name in kept)
    assert "momentum.model.layers.0.mlp.experts.down_proj" in kept and "exp_avg.lm_head.weight" in kept
    optimizer.zero_grad()
    assert all(p.grad is None for p in model.parameters())


def test_the_update_norm_is_over_all_that_is_trained() -> None:
    model = started()
    model.model.embed_tokens.weight.requires_grad_(False)
    before = copied_weights(model)
    with torch.no_grad():
        model.model.embed_tokens.weight.add_(1.0)
        model.model.norm.weight[:9] += 1.0
        model.lm_head.weight[3, 4] -= 4.0
    assert update_norm(before, model).item() == pytest.approx(5.0)  # sqrt(9 + 16)


@pytest.mark.parametrize("kind", [Optimizer.adamw, Optimizer.muon])
def test_a_measured_step_is_the_same_step(kind: Optimizer) -> None:
    models = [started(), started()]
    optimizers = [new_optimizer(model, Optim(kind=kind, lr=0.1)) for model in models]
    for number in range(3):
        before = copied_weights(models[0])
        for model in models:
            model.zero_grad()
            ids = torch.randint(1, 32, (2, 8), generator=torch.Generator().manual_seed(number))
            model.logits(model(ids, torch.ones_like(ids)).states).log_softmax(-1)[:, 0].mean().backward()
        optimizers[0].step()
        assert measured_step(models[1], optimizers[1]).item() == pytest.approx(float(update_norm(before, models[0])))
        one, other = (dict(model.named_parameters()) for model in models)
        assert [name for name in one if not torch.equal(one[name], other[name])] == []  # to the bit
    assert [len(group["params"]) for group in optimizers[0].param_groups] == [
        len(group["params"]) for group in optimizers[1].param_groups
    ]


PLANTED = [  # promise, file, right code, bug, test (None: this whole file)
    (
        "wsd decays only at the end",
        "moe/training/optimizer.py",
        "if cfg.schedule is Schedule.wsd else warm",
        "if False else warm",
        "test_the_rate_of_each_step",
    ),
    (
        "matrices in no_decay do not decay",
        "moe/training/optimizer.py",
        "p.dim() > 1 and not any(fnmatchcase(name, glob) for glob in cfg.no_decay)",
        "p.dim() > 1",
        "test_what_decays",
    ),
]
