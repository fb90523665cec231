"""The dense twin of a mixture: as many active parameters, up to the router's, and nothing that chooses.

Planted bug: a twin as wide as one expert.
"""

from pathlib import Path

import pytest
import torch

from conf.entry import compose
from conf.errors import InputError
from conf.knobs.model import Model, Parent
from conf.knobs.running import Run
from conf.knobs.training import Optim, Pretrain
from conf.schema import Config
from moe.decoder import new_decoder
from moe.footprint import active_parameters, forward_flops, parameters
from moe.formats import hugging_face
from moe.losses import cross_entropy_sum
from moe.text.defaults import Defaults
from trainers import twin
from trainers.twin import dense

CFG = Model(hidden_size=32, layers=2, heads=2, kv_heads=1, head_dim=16, experts=8, top_k=2, expert_size=48, context=256)


def test_the_twin_has_the_active_parameters_of_the_mixture() -> None:
    for model in (CFG, compose(["model=base"]).model):
        mixture, alone = active_parameters(model, 128), active_parameters(dense(model), 128)
        routers = mixture.pop("router"), alone.pop("router")
        assert mixture == alone
        assert routers == (model.layers * model.hidden_size * model.experts, model.layers * model.hidden_size)
        assert parameters(dense(model), 128) == alone | {"router": routers[1]}  # all of them are active
        mixed, plain = forward_flops(model, 128), forward_flops(dense(model), 128)
        assert mixed.pop("router") > plain.pop("router") and mixed == plain


def test_the_twin_is_a_dense_model(tmp_path: Path) -> None:
    """Its one expert takes every token with a weight of 1, and no loss asks anything of the router."""
    model = new_decoder(dense(CFG), 128)
    tokens = torch.randint(0, 128, (2, 32), generator=torch.Generator().manual_seed(0))
    hidden = model(tokens, torch.ones_like(tokens))
    assert hidden.auxiliary.item() == 0 and torch.equal(hidden.load, torch.ones(2, 1))
    cross_entropy_sum(hidden.states, model.lm_head.weight, tokens.flatten()).backward()
    gates = [layer.mlp.gate.weight for layer in model.model.blocks()]
    assert all(gate.grad is None or gate.grad.abs().max() < 1e-5 for gate in gates)
    with torch.no_grad():
        for gate in gates:
            gate.mul_(-3)
        again = model(tokens, torch.ones_like(tokens)).states
    torch.testing.assert_close(again, hidden.states.detach())
    hugging_face.save(model, tmp_path, Defaults({}, (0,), 1))
    assert hugging_face.load(tmp_path).cfg.expert_size == 96


def test_the_stage_pretrains_as_the_base_does(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[Config, str]] = []
    monkeypatch.setattr(twin, "pretrain", lambda *given: asked.append(given))
    cfg = Config(run=Run(seed=5), model=CFG, pretrain=Pretrain(steps=7), optim=Optim(lr=1e-3))
    twin.main(cfg)
    ((given, name),) = asked
    assert name == "twin" and given.model == dense(CFG)
    given.model = CFG
    assert given == cfg


def test_a_model_with_a_parent_has_no_twin() -> None:
    with pytest.raises(InputError, match="parent.model=x: a twin begins with random weights"):
        twin.main(Config(parent=Parent(model="x")))


def test_the_preset_is_the_demo_with_a_twin() -> None:
    demo, both = compose(["preset=demo"]), compose(["preset=twin"])
    assert both.pipeline.stages == "corpus tokenizer tokens base twin report".split()
    both.pipeline.stages = demo.pipeline.stages
    assert both == demo  # so that what the demo has finished is skipped


PLANTED = [  # promise, file, right code, bug, test (None: this whole file)
    (
        "a twin is as wide as a token's experts",
        "trainers/twin.py",
        "expert_size=model.top_k * model.expert_size",
        "expert_size=model.expert_size",
        None,
    ),
]
