from collections.abc import Iterator

import pytest

from conf.schema import Model
from moe import native
from moe.decoder import Decoder, new_decoder

VOCABULARY = 256


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
def _kernels(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """The C kernels built into a cache of their own: (the cache, why not)."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        return str(native.built().parents[1]), native.build()


@pytest.fixture
def kernels_built(_kernels: tuple[str, str], monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """This test's process has the C kernels if the machine can build them; why not, else."""
    monkeypatch.setenv("XDG_CACHE_HOME", _kernels[0])
    monkeypatch.delenv("CONCLAVE_NATIVE", raising=False)
    native._load.cache_clear()
    yield _kernels[1]
    native._load.cache_clear()


@pytest.fixture
def kernels(kernels_built: str) -> None:
    """The C kernels are in use; a machine that cannot build them says so."""
    if kernels_built:
        assert kernels_built == "no C compiler" and not native.available()
        pytest.skip(kernels_built)


@pytest.fixture(params=["torch", "native"])
def either_path(request: pytest.FixtureRequest, kernels_built: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The test runs twice: without the C kernels, and with them where the machine can build them."""
    if request.param == "torch":
        monkeypatch.setenv("CONCLAVE_NATIVE", "0")
        native._load.cache_clear()
    assert native.available() == (request.param == "native" and not kernels_built)
