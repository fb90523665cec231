"""What `cluster.deterministic` asks of torch on a GPU, and of nothing else."""

import os

import pytest
import torch

from conf.knobs.running import Cluster
from moe.training.parallel import repeatable


@pytest.mark.parametrize(("device", "asked"), [("cuda", True), ("cpu", False)])
def test_a_gpu_repeats_itself_where_that_is_asked_for(
    device: str, asked: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", "")  # what the test makes of it goes with it
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG")
    try:
        repeatable(Cluster(), "cuda")
        assert not torch.are_deterministic_algorithms_enabled()
        repeatable(Cluster(deterministic=True), device)
        assert torch.are_deterministic_algorithms_enabled() is asked
        assert os.environ.get("CUBLAS_WORKSPACE_CONFIG") == (":4096:8" if asked else None)
    finally:
        torch.use_deterministic_algorithms(False)


PLANTED = [  # promise, file, right code, bug, test
    (
        "a GPU repeats itself with cluster.deterministic",
        "moe/training/parallel.py",
        "torch.use_deterministic_algorithms(True, warn_only=True)",
        "pass",
        "test_a_gpu_repeats_itself_where_that_is_asked_for",
    ),
]
