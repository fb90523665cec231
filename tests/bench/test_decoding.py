"""Decoding against transformers' `generate` and llama.cpp: tokens for each second of one processor, prompts left out.

The same weights in fp32, by turns in one process. llama.cpp is given our tokens, for to look for the likeliest among
its logits in Python would count against it.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from conf.knobs.model import Model
from conf.knobs.text import Tokenizer as Settings
from moe.decoder import Decoder, new_decoder
from moe.formats import gguf, hugging_face, llama_cpp
from moe.generation.engine import Sampling, generate
from moe.kernels.allocator import keep_buffers
from moe.text.defaults import Defaults
from moe.text.families import serialise
from moe.text.tokenizer import Tokenizer
from tests.bench.measure import record, seconds, sized

pytestmark = [pytest.mark.bench, pytest.mark.timeout(1800)]
ROUNDS = sized(5, 1)
CFG = sized(
    Model(hidden_size=256, layers=8, heads=8, kv_heads=4, head_dim=32, experts=8, top_k=2, expert_size=512),
    Model(hidden_size=64, layers=1, heads=2, kv_heads=1, head_dim=32, experts=4, top_k=2, expert_size=64),
)
VOCABULARY = sized(8192, 512)
PROMPT, ANSWER = sized((128, 128), (8, 8))  # tokens
Answers = Callable[[int], list[list[int]]]  # of so many tokens


def ours(model: Decoder, prompts: list[list[int]]) -> Answers:
    def run(tokens: int) -> list[list[int]]:
        asked = [Sampling(tokens, temperature=0.0)] * len(prompts)
        return [answer.tokens for answer in generate(model, prompts, asked, stop=())]

    return run


def transformers(model: Any, prompts: list[list[int]]) -> Answers:
    given = torch.tensor(prompts)

    def run(tokens: int) -> list[list[int]]:
        options = {"max_new_tokens": tokens, "min_new_tokens": tokens, "do_sample": False, "use_cache": True}
        made = model.generate(given, attention_mask=torch.ones_like(given), **options)
        return [list(row) for row in made[:, PROMPT:].tolist()]

    return run


@contextmanager
def of_llama_cpp(model: Decoder, path: Path, whole: list[list[int]]) -> Iterator[Answers]:
    tokenizer = Tokenizer.train(["the cat and the hat"] * 9, Settings(vocab_size=400))
    gguf.write(model, path, Defaults({"tokenizer.json": serialise(tokenizer.description)}, (), None), name="bench")
    with llama_cpp.opened(path, sequences=len(whole), width=PROMPT + ANSWER + 8) as opened:

        def run(tokens: int) -> list[list[int]]:
            opened.context.kv_cache_clear()
            for number, row in enumerate(whole):
                opened.feed([(token, place, number) for place, token in enumerate(row[:PROMPT])])
            for place in range(PROMPT, PROMPT + tokens - 1):
                opened.feed([(row[place], place, number) for number, row in enumerate(whole)])
            return []

        yield run


@pytest.mark.parametrize("batch", sized([1, 8, 32], [2]))
def test_decoding(tmp_path: Path, batch: int) -> None:
    keep_buffers()
    hugging_face.save(new_decoder(CFG, VOCABULARY, seed=0), tmp_path, Defaults({}, (1,), 0))
    model = hugging_face.load(tmp_path)
    peer = AutoModelForCausalLM.from_pretrained(tmp_path, experts_implementation="grouped_mm").eval()
    generator = torch.Generator().manual_seed(1)
    prompts = torch.randint(2, VOCABULARY, (batch, PROMPT), generator=generator).tolist()
    sides = {"ours": ours(model, prompts), "transformers generate": transformers(peer, prompts)}
    mine, right = (side(ANSWER) for side in sides.values())
    same = sum(a[:8] == b[:8] for a, b in zip(mine, right, strict=True))
    assert same >= 0.9 * batch  # a tie between two tokens may fall either way in float32
    if not llama_cpp.installed():
        compare(batch, sides)
        return
    whole = [prompt + answer for prompt, answer in zip(prompts, mine, strict=True)]
    with of_llama_cpp(model, tmp_path / "model.gguf", whole) as run:
        compare(batch, sides | {"llama.cpp": run})


def compare(batch: int, sides: dict[str, Answers]) -> None:
    runs = {(name, tokens): partial(side, tokens) for tokens in (1, ANSWER) for name, side in sides.items()}
    named = {f"{name} {tokens}": run for (name, tokens), run in runs.items()}
    took = seconds(named, rounds=ROUNDS, clock=time.process_time)
    spent = {name: max(took[f"{name} {ANSWER}"] - took[f"{name} 1"], 1e-9) for name in sides}
    got = {name: batch * (ANSWER - 1) / spent[name] for name in sides}
    record(f"decode/batch-{batch}", "tok/s of a processor", got.pop("ours"), got)
