"""The seam of the engines: two that answer alike, with the weights of a folder and with those they are given."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from conf.errors import InputError
from conf.knobs.model import Model
from conf.knobs.text import Tokenizer as Settings
from moe.decoder import new_decoder
from moe.formats import hugging_face
from moe.generation.engine import Sampling
from moe.generation.engines import ENGINES, Generation, Ours
from moe.text.defaults import Defaults
from moe.text.tokenizer import Tokenizer
from rlhf.messages import Weights
from tests.moe.generation.transformers_engine import Transformers

OPEN: dict[str, Callable[[Path], Generation]] = {**ENGINES, "transformers": Transformers}
PROMPTS = [[9, 10, 11], [40], [7, 8, 7, 8, 7, 8, 7], [300, 12, 299, 5], [77] * 20]
GREEDY = [Sampling(12, temperature=0.0)] * len(PROMPTS)


@pytest.fixture(params=[True, False], ids=["qwen3_moe", "mixtral"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return saved(tmp_path / "first", qk_norm=request.param, seed=1)


def saved(folder: Path, *, qk_norm: bool, seed: int) -> Path:
    tokenizer = Tokenizer.train(["春眠不觉晓，处处闻啼鸟。"], Settings(vocab_size=512, min_frequency=1))
    cfg = Model(
        hidden_size=32,
        layers=2,
        heads=4,
        kv_heads=2,
        head_dim=8,
        experts=4,
        expert_size=16,
        context=64,
        init_std=0.3,
        qk_norm=qk_norm,
    )
    model = new_decoder(cfg, tokenizer.padded_size, seed=seed)
    hugging_face.save(model, folder, Defaults.of(tokenizer, chat=True))
    return folder


def same(first: Generation, second: Generation) -> list[list[int]]:
    """Their tokens, after the engines were held against each other."""
    ours, theirs = first.generate(PROMPTS, GREEDY), second.generate(PROMPTS, GREEDY)
    for one, other in zip(ours, theirs, strict=True):
        assert one.tokens == other.tokens and one.finish == other.finish
        assert one.logprobs == pytest.approx(other.logprobs, abs=1e-4)
    return [answer.tokens for answer in ours]


def test_two_engines_answer_alike_before_and_after_they_get_weights(folder: Path, tmp_path: Path) -> None:
    ours, theirs = OPEN["ours"](folder), OPEN["transformers"](folder)
    assert (ours.context, ours.version) == (theirs.context, theirs.version) == (64, 0)
    before = same(ours, theirs)
    qk_norm = hugging_face.load_config(folder).qk_norm
    model = hugging_face.load(saved(tmp_path / "second", qk_norm=qk_norm, seed=2))
    sent = Weights.of(7, hugging_face.to_disk(model))
    for engine in (ours, theirs):
        engine.load_weights(sent.version, reversed([*sent.named()]))  # in any order
        assert engine.version == 7
    after = same(ours, theirs)
    assert after != before and after == same(ours, OPEN["ours"](tmp_path / "second"))


def test_the_same_request_gives_the_same_tokens_in_any_company(folder: Path) -> None:
    engine = Ours.open(folder)
    asked = [Sampling(12, seed=place) for place in range(len(PROMPTS))]
    together = engine.generate(PROMPTS, asked)
    alone = [engine.generate([prompt], [sampling])[0] for prompt, sampling in zip(PROMPTS, asked, strict=True)]
    turned = engine.generate(PROMPTS[::-1], asked[::-1])[::-1]
    assert [answer.tokens for answer in together] == [answer.tokens for answer in alone]
    assert [answer.tokens for answer in together] == [answer.tokens for answer in turned]
    few = Ours(engine.model, Tokenizer.load(folder), slots=2).generate(PROMPTS, asked)
    assert [answer.tokens for answer in few] == [answer.tokens for answer in together]


def test_an_answer_ends_with_the_turn(folder: Path) -> None:
    engine = Ours.open(folder)
    (cut,) = engine.generate(PROMPTS[:1], [replace(GREEDY[0], max_new_tokens=1)])
    assert len(cut.tokens) == 1 and cut.finish == "length"
    tokenizer = Tokenizer.load(folder)
    with torch.no_grad():  # the token that it says first becomes the end of the turn
        head = engine.model.lm_head.weight
        head[[cut.tokens[0], tokenizer.im_end]] = head[[tokenizer.im_end, cut.tokens[0]]]
    (ended,) = engine.generate(PROMPTS[:1], GREEDY[:1])
    assert (ended.tokens, ended.finish) == ([tokenizer.im_end], "stop")


def test_weights_that_lack_a_tensor_are_named(folder: Path) -> None:
    engine = Ours.open(folder)
    named = hugging_face.to_disk(engine.model)
    named.pop("model.norm.weight")
    with pytest.raises(InputError, match="^the weights of version 3: tensor model.norm.weight is missing$"):
        engine.load_weights(3, named.items())
    assert engine.version == 0


PLANTED = [  # promise, file, right code, bug, test (None: this whole file)
    (
        "an answer ends with its turn",
        "moe/generation/engines.py",
        "tokenizer.stop, slots",
        "(tokenizer.eos,), slots",
        "test_an_answer_ends_with_the_turn",
    ),
    (
        "an engine says the version that it holds",
        "moe/generation/engines.py",
        "        self._version = version\n",
        "",
        "test_two_engines_answer_alike_before_and_after_they_get_weights",
    ),
    (
        "an engine takes over the weights it is given",
        "moe/generation/engines.py",
        'hugging_face.from_disk(dict(named), self.model, f"the weights of version {version}")',
        "dict(named)",
        "test_two_engines_answer_alike_before_and_after_they_get_weights",
    ),
]
