"""The Triton kernels between the grouped products equal their torch twins, on a CPU by Triton's interpreter."""

import json
import os
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
PACKAGES = Path(sys.prefix) / "megablocks-cpu"  # where Triton lies apart from site-packages


@cache
def measured() -> dict[str, float]:
    assert (PACKAGES / "triton").is_dir(), f"Triton is not in {PACKAGES}; run `make megablocks-cpu`"
    environment = os.environ | {"TRITON_INTERPRET": "1", "PYTHONPATH": f"{PACKAGES}{os.pathsep}{ROOT}"}
    command = [sys.executable, "-m", "tests.moe.kernels.triton_conformance", "cpu"]
    ended = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600)
    assert ended.returncode == 0, ended.stderr[-3000:]
    return dict(json.loads(ended.stdout.splitlines()[-1]))


@pytest.mark.parametrize("kernel", ["swiglu", "swiglu_backward", "combine", "combine unweighted"])
def test_a_kernel_equals_its_twin(kernel: str) -> None:
    found = measured()
    assert len(found) == 8
    # In fp32 sums of several numbers may cancel to a hundredth of them; bf16 is rounded once, where it is written.
    assert found[f"{kernel}, float32"] < 256 and found[f"{kernel}, bfloat16"] <= 1.01


PLANTED = [  # promise, file, right code, bug, test (None: this whole file)
    (
        "the SwiGLU kernel multiplies by the up rows",
        "moe/kernels/triton_passes.py",
        "up = tl.load(hidden + (row * 2 + 1) * inner + at, mask=inside).to(tl.float32)",
        "up = tl.load(hidden + row * 2 * inner + at, mask=inside).to(tl.float32)",
        "test_a_kernel_equals_its_twin",
    ),
    (
        "the kernel of SwiGLU's slopes sums a row over all of its blocks",
        "moe/kernels/triton_passes.py",
        "total += g * active",
        "total = g * active",
        "test_a_kernel_equals_its_twin",
    ),
    (
        "the combining kernel weighs each row",
        "moe/kernels/triton_passes.py",
        "row = row * tl.load(weights + token * top_k + choice).to(tl.float32)",
        "row = row * tl.load(weights + token * top_k).to(tl.float32)",
        "test_a_kernel_equals_its_twin",
    ),
]
