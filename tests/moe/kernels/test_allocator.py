"""Freed buffers stay with the process that trains a small model and leave that of a large one."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
CODE = """
import sys
from moe.kernels.allocator import LARGE, keep_buffers

def held():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmRSS")) / 1024

keep_buffers(LARGE if sys.argv[1] == "large" else LARGE - 1)
before = held()
# of several sizes in turn, every other one freed: as a step's activations among what stays
buffers = [bytearray(2**20 * (5 + number % 7)) for number in range(40)]
taken = held() - before
del buffers[::2]
print(round((held() - before) / taken, 1))
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
@pytest.mark.parametrize(("size", "left"), [("small", 1.0), ("large", 0.5)])
def test_what_is_freed_stays_or_goes_by_the_models_size(size: str, left: float) -> None:
    done = subprocess.run([sys.executable, "-c", CODE, size], cwd=ROOT, capture_output=True, text=True, check=True)
    assert float(done.stdout) == pytest.approx(left, abs=0.11)


PLANTED = [  # promise, file, right code, bug, test (None: this whole file)
    (
        "a large model's freed buffers are given back",
        "moe/kernels/allocator.py",
        "if weights >= LARGE:",
        "if weights > 10 * LARGE:",
        None,
    ),
]
