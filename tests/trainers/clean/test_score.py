"""What a model is surprised at: bits per byte as counted by hand, and the buckets that they make."""

import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from conf.errors import InputError
from conf.knobs.text import Corpus
from conf.knobs.text import Tokenizer as Settings
from moe.decoder import new_decoder
from moe.formats import hugging_face
from moe.text.defaults import Defaults
from moe.text.tokenizer import Tokenizer
from tests.trainers.clean.direct import collected
from tests.trainers.training import CFG
from trainers.clean.score import bits, quantile

TEXTS = ["the sea and the river", "a", "天地玄黄，宇宙洪荒。" * 9, "the river rises", ""]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    tokenizer = Tokenizer.train(TEXTS * 3, Settings(vocab_size=420))
    hugging_face.save(new_decoder(CFG, 512, seed=1), folder, Defaults({}, (tokenizer.eos,), tokenizer.pad))
    tokenizer.save(folder)
    return folder


def test_bits_per_byte_are_those_of_each_text_alone(model: Path) -> None:
    network, tokenizer = AutoModelForCausalLM.from_pretrained(model), AutoTokenizer.from_pretrained(model)
    found = bits(TEXTS, str(model))
    first = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    for text, one in zip(TEXTS[:4], found, strict=False):
        ids = [first, *tokenizer.encode(text, add_special_tokens=False)][: CFG.context]
        with torch.inference_mode():
            loss = network(input_ids=torch.tensor([ids]), labels=torch.tensor([ids])).loss.item()
        size = len(tokenizer.decode(ids[1:]).encode())
        assert one == pytest.approx(loss * (len(ids) - 1) / math.log(2) / size, abs=0.006)
    assert found[4] == 0.0
    with pytest.raises(InputError, match="corpus.score=/nowhere: no causal model to open"):
        bits(["a"], "/nowhere")


def test_buckets_are_thirds_of_a_language_and_the_tail_can_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def told(texts: list[str], model: str) -> Any:
        return np.array([int(re.findall(r"\d+", text)[0]) / 100 for text in texts], np.float32)

    monkeypatch.setattr("trainers.clean.score.bits", told)
    texts = [f"文字{n}" for n in range(30)] + [f"the text of {100 + n} and more" for n in range(30)] + ["文字7"]
    (tmp_path / "x.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    cfg = Corpus(files=[str(tmp_path / "x.jsonl")], score="m", tail=0.1, val_fraction=0, test_fraction=0)
    found = collected(tmp_path, cfg)
    lives = pq.read_table(tmp_path / "ledger-00000.parquet").to_pylist()
    for first in (0, 30):
        buckets = [life["bucket"] for life in lives[first : first + 30]]
        assert buckets == ["head"] * 10 + ["middle"] * 10 + ["tail"] * 7 + [""] * 3
    gone = [life for life in lives if life["step"] == "score"]
    assert [life["id"] for life in gone] == [27, 28, 29, 57, 58, 59] and found["removed"] == 6
    assert (gone[0]["rule"], round(gone[0]["value"], 2), round(gone[0]["limit"], 2)) == ("tail", 0.27, 0.26)
    assert lives[60]["step"] == "exact" and found["kept"] == 54
    told_of = json.loads((tmp_path / "report.json").read_text())["buckets"]
    assert told_of["zh: head"] == {"documents": 10, "characters": 30, "bits_per_byte": 0.045}


def test_of_near_copies_the_one_that_surprises_least_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "trainers.clean.score.bits",
        lambda texts, model: np.array([1.0 + ("甲" in text) - ("乙" in text) for text in texts], np.float32),
    )
    text = "床前明月光，疑是地上霜。举头望明月，低头思故乡。白日依山尽，黄河入海流。"
    (tmp_path / "x.jsonl").write_text("".join(json.dumps({"text": text + end}) + "\n" for end in ("甲", "", "乙")))
    cfg = Corpus(files=[str(tmp_path / "x.jsonl")], score="m", near=0.5, val_fraction=0, test_fraction=0)
    collected(tmp_path, cfg)
    lives = pq.read_table(tmp_path / "ledger-00000.parquet").to_pylist()
    assert [(life["step"], life["twin"]) for life in lives] == [("near", 2), ("near", 2), ("", None)]


def test_quantiles() -> None:
    assert quantile({"10": 1, "20": 1, "30": 2}, 0.5) == pytest.approx(0.2)
    assert quantile({"10": 1, "20": 1, "30": 2}, 0.51) == pytest.approx(0.3)
    with pytest.raises(InputError, match="corpus.tail=0.1 needs a model that scores: corpus.score=<folder>"):
        Corpus(tail=0.1)


PLANTED = [  # promise, file, right code, bug, test (None: this whole file)
    (
        "padding surprises nobody",
        "trainers/clean/score.py",
        "(nats * mask[:, 1:]).sum(1).tolist()",
        "nats.sum(1).tolist()",
        "test_bits_per_byte_are_those_of_each_text_alone",
    ),
    (
        "a language is sorted by its own scores",
        "trainers/clean/score.py",
        "found.setdefault(language, Counter()).update(counts)",
        'found.setdefault("zh", Counter()).update(counts)',
        "test_buckets_are_thirds_of_a_language_and_the_tail_can_go",
    ),
    (
        "of near copies the least surprising stays",
        "trainers/clean/copies.py",
        "return -bits[",
        "return bits[",
        None,
    ),
]
