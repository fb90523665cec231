import pytest

from conf.schema import Model
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
