"""Adapting: what is trained, what stays bitwise, what a merged model says."""

import copy
from pathlib import Path

import pytest
import torch
from torch import Tensor

from conf.errors import InputError
from conf.knobs.model import Adapt, LoraTarget
from conf.knobs.training import Optim, Optimizer
from moe.decoder import SCALAR, Decoder, new_decoder
from moe.formats import hugging_face
from moe.losses import cross_entropy_sum
from moe.text.defaults import Defaults
from moe.training import checkpoint
from moe.training.adapt import adapt, merge
from moe.training.optimizer import new_optimizer, set_learning_rate

OLD = 200  # of the 256 rows
LORA = Adapt(lora_rank=2, lora_alpha=8.0)


def batch(seed: int, *, rows: int = 4) -> tuple[Tensor, Tensor]:
    tokens = torch.randint(0, 256, (rows, 16), generator=torch.Generator().manual_seed(seed))
    return tokens, torch.ones_like(tokens)


def logits(model: Decoder) -> Tensor:
    with torch.no_grad():
        return model.logits(model(*batch(0)).states)


def loss(model: Decoder, seed: int) -> Tensor:
    tokens, segments = batch(seed)
    hidden = model(tokens, segments)
    return cross_entropy_sum(hidden.states, model.lm_head.weight, tokens.flatten().roll(-1)) / tokens.numel()


def train(model: Decoder, kind: Optimizer = Optimizer.adamw, *, steps: int = 5) -> torch.optim.Optimizer:
    optimizer = new_optimizer(model, Optim(kind=kind, weight_decay=0.1))
    set_learning_rate(optimizer, 0.01)
    for step in range(steps):
        loss(model, step).backward()
        optimizer.step()
        optimizer.zero_grad()
    return optimizer


def test_lora_begins_with_the_same_outputs_and_trains_its_factors_only(model: Decoder) -> None:
    before, weights = logits(model), {name: p.clone() for name, p in model.named_parameters()}
    adapt(model, LORA)
    assert torch.equal(logits(model), before)
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert len(trained) == 2 * 2 * (4 + 2) and all(
        name.endswith(("weight.0.a", "weight.0.b", "proj.0.a", "proj.0.b")) for name in trained
    )
    loss(model, 1).backward()
    assert {name for name, p in model.named_parameters() if p.grad is not None} == trained
    train(model)
    merge(model)
    changed = {name for name, p in model.named_parameters() if not torch.equal(p, weights[name])}
    assert changed == {
        name
        for name in weights
        if name.endswith(
            ("q_proj.weight", "k_proj.weight", "v_proj.weight", "o_proj.weight", "gate_up_proj", "down_proj")
        )
    }


def test_a_factor_pair_is_scaled_by_alpha_over_rank_for_each_expert(model: Decoder) -> None:
    before = model.model.blocks()[0].mlp.experts.down_proj.detach().clone()
    adapt(model, LORA)
    owner = model.model.blocks()[0].mlp.experts
    factors = dict(owner.named_parameters())
    a, b = factors["parametrizations.down_proj.0.a"], factors["parametrizations.down_proj.0.b"]
    assert a.shape == (4, 2, 16) and b.shape == (4, 32, 2)
    with torch.no_grad():
        b[3] = 1.0
    expected = before[3] + 4.0 * a[3].sum(0)  # 8 / 2, and every row of B A is the sum of A's rows
    torch.testing.assert_close(owner.down_proj[3], expected)
    assert torch.equal(owner.down_proj[:3], before[:3])


@pytest.mark.parametrize("kind", [Optimizer.adamw, Optimizer.muon])
def test_a_merged_model_says_what_the_adapted_one_says(model: Decoder, kind: Optimizer, tmp_path: Path) -> None:
    before = loss(model, 1).item()
    adapt(model, LORA)
    train(model, kind, steps=12)
    trained, after = logits(model), loss(model, 1).item()
    assert after < before - 0.2
    hugging_face.save(merge(model), tmp_path, Defaults({}, (), None))
    assert torch.equal(logits(model), trained)
    assert torch.equal(logits(hugging_face.load(tmp_path)), trained)
    assert all(p.requires_grad for p in model.parameters()) and len(model.state_dict()) == len(list(model.parameters()))


def test_a_resumed_lora_run_is_bitwise_the_straight_one(model: Decoder, tmp_path: Path) -> None:
    fresh = copy.deepcopy(model)
    adapt(model, LORA, seed=5)
    optimizer = train(model, Optimizer.muon, steps=3)
    checkpoint.save(tmp_path, model, optimizer)
    adapt(fresh, LORA, seed=6)  # what it draws is replaced
    resumed = new_optimizer(fresh, Optim())
    checkpoint.load(tmp_path, fresh, resumed)
    for one, its in ((model, optimizer), (fresh, resumed)):
        set_learning_rate(its, 0.01)
        loss(one, 9).backward()
        its.step()
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), fresh.parameters(), strict=True))


def test_what_is_frozen_gets_no_factors(model: Decoder) -> None:
    adapt(model, Adapt(lora_rank=2, lora_targets=[LoraTarget.attention], freeze=["model.layers.0.*"]))
    trained = {name.partition(".parametrizations")[0] for name, p in model.named_parameters() if p.requires_grad}
    assert trained == {f"model.layers.1.self_attn.{which}_proj" for which in "qkvo"}


def test_a_new_scalar_head_is_trained_beside_the_factors(model: Decoder) -> None:
    scalar = adapt(new_decoder(model.cfg, 256, head=SCALAR), LORA)
    scalar.scores(scalar(*batch(1)).states).sum().backward()
    assert scalar.score.weight.grad is not None and scalar.score.weight.grad.abs().sum() > 0
    assert scalar.model.embed_tokens.weight.grad is None


@pytest.mark.parametrize("kind", [Optimizer.adamw, Optimizer.muon])
def test_only_new_rows_are_trained_and_nothing_else_decays(model: Decoder, kind: Optimizer) -> None:
    weights, before = {name: p.clone() for name, p in model.named_parameters()}, logits(model)
    adapt(model, Adapt(only_new_rows=True), old_rows=OLD)
    assert torch.equal(logits(model), before)
    train(model, kind)
    trained = logits(model)
    merge(model)
    assert torch.equal(logits(model), trained)
    for name, p in model.named_parameters():
        if name in ("model.embed_tokens.weight", "lm_head.weight"):
            assert torch.equal(p[:OLD], weights[name][:OLD])
            assert (p[OLD:] != weights[name][OLD:]).any(1).all(), f"{name}: a new row did not learn"
        else:
            assert torch.equal(p, weights[name]), name


@pytest.mark.parametrize("kind", [Optimizer.adamw, Optimizer.muon])
def test_frozen_parameters_stay_as_they_are(model: Decoder, kind: Optimizer) -> None:
    weights = {name: p.clone() for name, p in model.named_parameters()}
    adapt(model, Adapt(freeze=["*.gate.weight", "model.layers.0.*"]))
    train(model, kind)
    same = {name for name, p in model.named_parameters() if torch.equal(p, weights[name])}
    assert same == {name for name in weights if name.endswith(".gate.weight") or ".layers.0." in name}


def test_without_knobs_everything_is_trained(model: Decoder) -> None:
    names = [name for name, _ in model.named_parameters()]
    adapt(model, Adapt(only_new_rows=True))  # of a vocabulary that was not extended
    assert [name for name, p in model.named_parameters() if p.requires_grad] == names


def test_what_cannot_be_adapted_is_refused(model: Decoder) -> None:
    with pytest.raises(InputError, match=r"adapt.freeze: \*.router.\* matches no parameter; there are model.embed_tok"):
        adapt(copy.deepcopy(model), Adapt(freeze=["*.gate.*", "*.router.*"]))
    with pytest.raises(InputError, match=r"adapt.freeze=\[\*\] leaves nothing to train"):
        adapt(copy.deepcopy(model), Adapt(freeze=["*"]))
    with pytest.raises(InputError, match=r"adapt.only_new_rows=true trains no LoRA factors"):
        Adapt(only_new_rows=True, lora_rank=4)


PLANTED = [  # promise, file, right code, bug, test (None: this whole file)
    ("LoRA's factors are scaled by alpha over rank", "moe/training/adapt.py", "alpha=self.scale)", "alpha=1.0)", None),
    (
        "old rows of the vocabulary stay as they are",
        "moe/training/adapt.py",
        "_NewRows(module.weight[:old_rows])",
        "_NewRows(module.weight[: old_rows - 1])",
        None,
    ),
]
