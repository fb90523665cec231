"""Every number of the config tree refuses what no number of it can be, whoever added it."""

import math
import re
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from functools import reduce
from typing import Any, cast

import pytest

from conf.entry import compose
from conf.errors import InputError
from conf.knobs.checks import _SIGNED, numbers


def leaves(section: object, prefix: str = "") -> Iterator[tuple[str, float]]:
    """Every number, by its knob."""
    for field in fields(section):  # type: ignore[arg-type]
        value = getattr(section, field.name)
        if is_dataclass(value):
            yield from leaves(value, f"{prefix}{field.name}.")
        elif isinstance(value, int | float) and not isinstance(value, bool):
            yield f"{prefix}{field.name}", value


CONFIG = compose([])


@pytest.mark.parametrize("knob", dict(leaves(CONFIG)))
def test_a_number_that_cannot_be_is_refused_by_its_knob(knob: str) -> None:
    section, _, name = knob.rpartition(".")
    owner = reduce(getattr, section.split("."), cast(Any, CONFIG))
    given = getattr(owner, name)
    wrong = [10**20] if isinstance(given, int) else [math.nan, math.inf, -math.inf, 1e300]
    for value in [*wrong, *([-1] if knob not in _SIGNED else [])]:
        setattr(owner, name, value)
        try:
            with pytest.raises(InputError, match=re.escape(f"{knob}={value} must ")):
                numbers(CONFIG)
        finally:
            setattr(owner, name, given)
    numbers(CONFIG)


WRONG = {
    "ppo.rewards.length=nan": "ppo.rewards.length=nan must be a number",
    "sft.weights.form=inf": "sft.weights.form=inf must be a finite number",
    "optim.beta1=1": "optim.beta1=1.0 would never leave the first value; try optim.beta1=0.999",
    "optim.weight_decay=-0.1": "optim.weight_decay=-0.1 must not be negative",
    "serve.drain_timeout=1e9": "serve.drain_timeout=1000000000.0 must be at most 1e+08",
    "cluster.gpus_per_worker=1.5": "cluster.gpus_per_worker=1.5 must be whole GPUs, or a part of one",
    "reward.held_out=1": "reward.held_out=1.0 leaves nothing to train on; try reward.held_out=0.1",
    "hfft.held_out=1": "hfft.held_out=1.0 leaves nothing to train on; try hfft.held_out=0.1",
    "optim.weight_decay=nan": "optim.weight_decay=nan must be a finite number",
    "pipeline.stages=[]": "pipeline.stages=[] names no stage; try pipeline.stages=[base]",
    "run.dir=": "run.dir= names no folder; try run.dir=runs",
}


@pytest.mark.parametrize("word", WRONG)
def test_what_cannot_work_is_told(word: str) -> None:
    with pytest.raises(InputError) as refused:
        compose([word])
    assert str(refused.value) == WRONG[word]


def test_what_may_be_below_zero_may() -> None:
    cfg = compose(["hfft.at_least=-0.5", "ppo.rewards.length=-0.1", "cluster.gpus_per_worker=0.25"])
    assert (cfg.hfft.at_least, cfg.ppo.rewards["length"], cfg.cluster.gpus_per_worker) == (-0.5, -0.1, 0.25)


PLANTED = [  # promise, file, right code, bug, test (None: this whole file)
    (
        "every number of the config is looked at",
        "conf/schema.py",
        "        numbers(self)\n",
        "",
        "test_what_cannot_work_is_told",
    ),
]
