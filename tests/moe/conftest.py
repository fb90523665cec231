"""Tiny models, and the ways in which different machines compute."""

import os
from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch

from conf.knobs.model import Model
from moe.decoder import Decoder, new_decoder
from moe.kernels import native
from moe.kernels.processor import Processor, processor, using
from tests.conftest import KERNELS

VOCABULARY = 256
WAYS = {
    "AMD, C": Processor(kernels=True, onednn=True),  # with AVX-512
    "Intel, C": Processor(kernels=True, onednn=False, tiles=True),  # with AMX
    "AMD": Processor(kernels=False, onednn=True),
    "Intel": Processor(kernels=False, onednn=False),  # and every other
}
MIXED = ("Intel, C", "AMD")


@pytest.fixture(params=[True, False], ids=["qwen3_moe", "mixtral"])
def model(request: pytest.FixtureRequest) -> Decoder:
    """A tiny decoder whose weights are large enough that a wrong one shows."""
    cfg = Model(
        hidden_size=32,
        layers=2,
        heads=4,
        kv_heads=2,
        head_dim=8,
        experts=4,
        top_k=2,
        expert_size=16,
        context=64,
        qk_norm=request.param,
        init_std=0.3,
    )
    return new_decoder(cfg, VOCABULARY, seed=1).eval()


@pytest.fixture(scope="session")
def _kernels() -> tuple[str, str]:
    """The C kernels built into the tests' own cache: (the cache, why not)."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", os.environ[KERNELS])
        return str(native.built().parents[1]), "" if native.built().exists() else native.build()


@pytest.fixture(scope="session")
def kernels_cache(_kernels: tuple[str, str]) -> str:
    """Where a process of a test finds the C kernels, as its XDG_CACHE_HOME."""
    return _kernels[0]


@pytest.fixture
def kernels_built(_kernels: tuple[str, str], monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """This test's process has the C kernels if the machine can build them; why not, else."""
    monkeypatch.setenv("XDG_CACHE_HOME", _kernels[0])
    native._load.cache_clear()
    with using(replace(processor(), kernels=True)):
        yield _kernels[1]
    native._load.cache_clear()


@pytest.fixture
def kernels(kernels_built: str) -> None:
    """The C kernels are in use; a machine that cannot build them says so."""
    if kernels_built:
        assert kernels_built == "no C compiler" and not native.available()
        pytest.skip(kernels_built)


# Of the four the two that differ in everything are quick; what the others add is that nothing hangs on a pair.
@pytest.fixture(params=[pytest.param(way, marks=pytest.mark.slow if way in MIXED else ()) for way in WAYS])
def any_processor(request: pytest.FixtureRequest, kernels_built: str) -> Iterator[Processor]:
    """The test runs once in each way that some machine computes, whatever machine this is."""
    way = WAYS[request.param]
    if way.kernels and kernels_built:
        pytest.skip(kernels_built)
    if way.onednn and not torch.backends.mkldnn.is_available():
        pytest.skip("this torch has no oneDNN")
    with using(way):
        assert native.available() == way.kernels
        yield way
