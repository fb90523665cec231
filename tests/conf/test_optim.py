"""Which optimizer a run has where nobody said: one for random weights, a gentle one for a trained parent."""

from dataclasses import replace

import pytest

from conf.entry import compose
from conf.errors import InputError
from conf.knobs.model import Parent
from conf.knobs.training import Optim, Optimizer
from conf.schema import Config


def test_random_weights_have_what_they_had() -> None:
    assert compose([]).optim == Optim(lr=2e-3, kind=Optimizer.muon)
    assert compose(["preset=demo"]).optim == Optim(lr=3e-3)
    assert compose(["preset=test"]).optim == Optim(lr=5e-3)


def test_a_trained_parent_is_moved_gently_unless_told_otherwise() -> None:
    assert compose(["parent.model=x"]).optim == Optim(lr=5e-5, kind=Optimizer.adamw)
    assert compose(["parent.model=x", "optim.warmup=0.1"]).optim == Optim(lr=5e-5, kind=Optimizer.adamw, warmup=0.1)
    assert compose(["parent.model=x", "optim.lr=3e-4"]).optim == Optim(lr=3e-4, kind=Optimizer.adamw)
    assert compose(["parent.model=x", "optim.kind=muon"]).optim == Optim(lr=5e-5)
    assert compose(["parent.model=x", "optim.lr=0.002", "optim.kind=muon"]).optim == Optim()  # as the user wants it


def test_so_is_it_in_reinforcement_learning() -> None:
    rates = [
        (cfg.ppo.lr, cfg.ppo.critic_lr)
        for cfg in (compose(words) for words in ([], ["parent.model=x"], ["parent.model=x", "ppo.lr=1e-3"]))
    ]
    assert rates == [(1e-4, 3e-4), (3e-6, 1e-5), (1e-3, 1e-5)]
    with pytest.raises(InputError, match=r"^ppo.critic_lr=-1.0 must be greater than 0"):
        compose(["ppo.critic_lr=-1"])


def test_what_is_settled_stays() -> None:
    cfg = Config(parent=Parent(model="x"))
    assert replace(cfg, parent=Parent(model="/y")).optim == cfg.optim == Optim(lr=5e-5, kind=Optimizer.adamw)


PLANTED = [  # promise, file, right code, bug, test (None: this whole file)
    (
        "a trained parent has an optimizer of its own",
        "conf/schema.py",
        "self.optim.settled(parent=bool(self.parent.model))",
        "self.optim.settled(parent=False)",
        None,
    ),
    (
        "reinforcement learning moves a trained parent gently",
        "conf/schema.py",
        "self.ppo.settled(parent=bool(self.parent.model))",
        "self.ppo.settled(parent=False)",
        None,
    ),
]
