"""Training, reinforcement learning and the closing measurements where the weights lie on a device of their own."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def strict(case: str, folder: Path) -> None:
    command = [sys.executable, "-m", "tests.gpu.strict", case, str(folder)]
    told = subprocess.run(command, cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True)
    assert told.returncode == 0, told.stderr[-3000:]


@pytest.mark.slow
@pytest.mark.parametrize("case", ["loop", "ppo"])
def test_no_tensor_meets_one_of_another_device(case: str, tmp_path: Path) -> None:
    strict(case, tmp_path)


@pytest.mark.ray
@pytest.mark.slow
def test_stages_measure_what_they_made_where_it_lies(whole_run: Path) -> None:
    strict("closing", whole_run)


PLANTED = [  # promise, file, right code, bug, test (None: this whole file)
    (
        "a batch goes where the model is",
        "trainers/loop/loop.py",
        "batch = on(feed.take(count), state.model)",
        "batch = feed.take(count)",
        "test_no_tensor_meets_one_of_another_device",
    ),
]
