"""MegaBlocks' real layer and our use of its operations equal `torch_experts`, on a CPU through Triton's interpreter.

Planted bugs these turn red: gate and up swapped, weights of the tokens dropped, experts' counts shifted by one.
"""

import json
import os
import subprocess
import sys
from functools import cache
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from conf.errors import InputError
from moe.kernels import megablocks_ops
from moe.kernels.megablocks import available, experts_megablocks
from tests.moe.kernels.megablocks_conformance import EMPTY, GROUPED, SPARSE, Case, errors, in_bf16

ROOT = Path(__file__).parents[3]
PACKAGES = Path(sys.prefix) / "megablocks-cpu"  # apart from site-packages: without CUDA code it must never be picked up
Y, GRADIENT = 1e-5, 1e-4


@cache
def conformance() -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"TRITON_INTERPRET": "1", "PYTHONPATH": f"{PACKAGES}{os.pathsep}{ROOT}"}
    command = [sys.executable, "-m", "tests.moe.kernels.megablocks_conformance"]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=1500)


def measured(name: str) -> Any:
    assert (PACKAGES / "megablocks").is_dir(), f"MegaBlocks is not in {PACKAGES}; run `make megablocks-cpu`"
    ended = conformance()
    assert ended.returncode == 0, ended.stderr[-3000:]
    return json.loads(ended.stdout.splitlines()[-1])[name]


def too_large(found: dict[str, float]) -> dict[str, float]:
    return {name: error for name, error in found.items() if not error <= (Y if name == "y" else GRADIENT)}


@pytest.mark.parametrize("case", [*GROUPED, EMPTY], ids=str)
def test_ours_equals_torch(case: Case) -> None:
    assert too_large(measured("ours")[str(case)]) == {}


@pytest.mark.parametrize("case", GROUPED, ids=str)
def test_the_grouped_layer_equals_torch(case: Case) -> None:
    assert too_large(measured("grouped")[str(case)]) == {}


@pytest.mark.parametrize("case", SPARSE, ids=str)
def test_the_block_sparse_layer_equals_torch(case: Case) -> None:
    assert too_large(measured("sparse")[str(case)]) == {}


@pytest.mark.parametrize("mistake", ["gate and up swapped", "down not transposed"])
def test_a_mistake_in_the_order_of_the_parameters_shows(mistake: str) -> None:
    assert min(measured(mistake).values()) > 0.1


def test_autocast_computes_in_bf16_and_keeps_the_dtypes() -> None:
    found = measured("bf16")
    assert all(1e-3 < error < 5e-2 for error in found.values()), found


def test_the_package_and_its_kernels_ran() -> None:
    file, _, interpreted = measured("package")
    assert Path(file) == PACKAGES / "megablocks" / "__init__.py" and interpreted
    # Forward and backward permute the tokens to the experts and back once each.
    once = {"_padded_copy": 4 * len(GROUPED), "_padded_copy_wgrad": len(GROUPED)}
    assert measured("ours_launches") == measured("grouped_launches") == once
    assert measured("sparse_launches").keys() == once.keys() | {"_sdd_kernel", "_dsd_kernel"}


def test_without_the_package_the_error_names_the_cause_and_the_way_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "megablocks", None)
    one = torch.ones(1, 1)
    with pytest.raises(InputError, match="compute.experts=megablocks.*ModuleNotFoundError.*make gpu") as raised:
        experts_megablocks(one, torch.zeros(1, 1, dtype=torch.long), one, torch.ones(1, 2, 1), torch.ones(1, 1, 1))
    assert "\n" not in str(raised.value)
    assert not available(one)


def test_more_numbers_than_the_kernels_can_address_are_refused() -> None:
    x = torch.ones(1, 1).expand(2**20, 2**11)
    experts = torch.zeros(1, 1, dtype=torch.long).expand(2**20, 1)
    with pytest.raises(InputError, match="fewer than 1048576 assignments of hidden size 2048 at once, not 1048576"):
        experts_megablocks(x, experts, torch.ones(2**20, 1), torch.ones(1, 2, 2**11), torch.ones(1, 2**11, 1))


def test_torch_stands_in_for_what_cannot_be_imported_and_for_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    compiled = ModuleType("megablocks_ops")
    monkeypatch.setitem(sys.modules, "megablocks_ops", compiled)
    for name in ("grouped_gemm", "grouped_gemm.ops", "grouped_gemm.backend"):
        monkeypatch.setitem(sys.modules, name, None)  # which cannot be imported
    megablocks_ops.install()
    assert sys.modules["megablocks_ops"] is compiled
    assert import_module("grouped_gemm.ops").gmm is megablocks_ops.gmm
    assert import_module("grouped_gemm").backend.gmm is megablocks_ops.multiply


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("case", [Case(512, 128, 256, 8, 2, busy=8), Case(512, 128, 256, 8, 2, busy=3)], ids=str)
def test_the_compiled_kernels_equal_torch(case: Case) -> None:
    with torch.autocast("cuda", dtype=torch.bfloat16):
        assert available(torch.ones(1, device="cuda"))
    found = errors(in_bf16, case, device="cuda")
    assert all(error < 5e-2 for error in found.values()), found
    with pytest.raises(InputError, match="compute.precision=bf16"):
        errors(experts_megablocks, case, device="cuda")


PLANTED = [  # promise, file, right code, bug, test (None: this whole file)
    (
        "compiled code of MegaBlocks is used where it is there",
        "moe/kernels/megablocks_ops.py",
        'if not _there("megablocks_ops"):',
        "if True:",
        "test_torch_stands_in_for_what_cannot_be_imported_and_for_nothing_else",
    ),
    (
        "MegaBlocks computes our SwiGLU",
        "moe/kernels/megablocks.py",
        "F.silu(gate) * up",
        "F.silu(up) * gate",
        "test_ours_equals_torch",
    ),
    (
        "MegaBlocks gives each expert its own tokens",
        "moe/kernels/megablocks.py",
        "sizes = counts.cpu().long()",
        "sizes = counts.roll(1).cpu().long()",
        "test_ours_equals_torch",
    ),
]
