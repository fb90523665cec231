"""Greedy answers are transformers' `generate`, token for token, on 200 prompts in fp32, alone and 32 at a time."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from conf.knobs.model import Model
from conf.knobs.text import Tokenizer as Settings
from moe.decoder import new_decoder
from moe.formats import hugging_face
from moe.generation.engine import Sampling
from moe.generation.engines import Ours
from moe.kernels.processor import processor, using
from moe.text.defaults import Defaults
from moe.text.tokenizer import Tokenizer
from tests.moe.generation.transformers_engine import Transformers

PROMPTS, BOUND = 200, 16


@pytest.mark.slow
def test_two_hundred_prompts(tmp_path: Path, kernels_built: str) -> None:
    tokenizer = Tokenizer.train(["春眠不觉晓，处处闻啼鸟。"], Settings(vocab_size=512, min_frequency=1))
    cfg = Model(
        hidden_size=64, layers=2, heads=4, kv_heads=2, head_dim=16, experts=8, top_k=2, expert_size=32, context=128,
        init_std=0.3,
    )  # fmt: skip
    folder = tmp_path / "tiny"
    hugging_face.save(new_decoder(cfg, tokenizer.padded_size, seed=5), folder, Defaults.of(tokenizer, chat=True))
    dice = torch.Generator().manual_seed(6)
    prompts = [torch.randint(4, tokenizer.size, (1 + i % 40,), generator=dice).tolist() for i in range(PROMPTS)]
    asked = [Sampling(BOUND, temperature=0.0)] * PROMPTS
    expected = [(answer.tokens, answer.finish) for answer in Transformers(folder).generate(prompts, asked)]
    for in_c in (False,) if kernels_built else (True, False):  # why there are none
        with using(replace(processor(), kernels=in_c)):
            for slots in (1, 32):
                made = Ours(hugging_face.load(folder), tokenizer, slots=slots).generate(prompts, asked)
                assert [(answer.tokens, answer.finish) for answer in made] == expected, (in_c, slots)
