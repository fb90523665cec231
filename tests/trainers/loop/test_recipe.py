"""What a stage keeps of how it computes, and that it needs no stage around it."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from conf.knobs.model import Compute, Precision
from moe.kernels import native
from moe.kernels.processor import Processor, using
from tests.trainers.training import plan_for

PLAIN = Processor(kernels=False, onednn=False)


def test_how_a_stage_computes_is_kept_and_a_change_of_the_processor_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = replace(plan_for(tmp_path), folder=tmp_path / "not" / "there")
    with using(PLAIN):
        plan.settled()
        plan.settled()
    assert capsys.readouterr().out == ""
    began = {"precision": "fp32", "kernels": "torch", "products": "MKL", "workers": "1"}
    assert json.loads((plan.folder / "arithmetic.json").read_text()) == began
    with using(replace(PLAIN, onednn=True)):
        plan.settled()
    goes_on = began | {"products": "oneDNN"}
    told = f"base: began with {began} and goes on with {goes_on}: the result is no longer bitwise the same\n"
    assert capsys.readouterr().out == told


def test_bf16_on_a_processor_without_tiles_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Attention's products are bf16 on the one and fp32 on the other."""
    plan = replace(plan_for(tmp_path, compute=Compute(precision=Precision.bf16)), folder=tmp_path / "base")
    with using(Processor(kernels=True, onednn=False, tiles=True)):
        if not native.available():
            pytest.skip(native.reason())
        plan.settled()
    began = {"precision": "bf16", "kernels": "native", "products": "MKL", "attention": "bf16", "workers": "1"}
    assert json.loads((plan.folder / "arithmetic.json").read_text()) == began
    with using(Processor(kernels=True, onednn=False, tiles=False)):
        plan.settled()
    assert f"goes on with {began | {'attention': 'fp32'}}: the result is no longer" in capsys.readouterr().out


PLANTED = [  # promise, file, right code, bug, test (None: this whole file)
    (
        "a plan needs no stage that opened its folder",
        "trainers/loop/recipe.py",
        "self.folder.mkdir(parents=True, exist_ok=True)",
        "pass",
        None,
    ),
    (
        "a run that goes on with the other library says so",
        "trainers/loop/recipe.py",
        '"oneDNN" if processor().onednn else "MKL"',
        '"fp32"',
        None,
    ),
    (
        "a bf16 run that goes on without tiles says so",
        "trainers/loop/recipe.py",
        '"bf16" if processor().tiles else "fp32"',
        '"bf16"',
        "test_bf16_on_a_processor_without_tiles_is_told",
    ),
]
