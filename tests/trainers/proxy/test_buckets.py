"""Buckets mean something: of a dirty corpus, scored by a model that has learnt clean text, head teaches more than
middle, and middle more than tail. The whole way, but for Ray: a seed set, a model of it, scores, buckets, proxies."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from conf.knobs.text import By, Corpus
from conf.knobs.text import Tokenizer as Settings
from conf.schema import Config
from moe.formats import hugging_face
from moe.text.defaults import Defaults
from moe.text.tokenizer import Tokenizer
from tests.trainers.clean.direct import collected
from tests.trainers.proxy.test_compare import cfg, sentences
from trainers.loop.loop import result
from trainers.proxy import training
from trainers.proxy.parts import parts_of, texts_of

__all__ = ["cfg"]  # a fixture
EACH = 400  # documents of each kind
MARKS = list("#$%&*+/<=>@^_|~0123456789")


def garbage(count: int) -> list[str]:
    """What is in no language."""
    dice = np.random.default_rng(3)
    return [" ".join("".join(dice.choice(MARKS, 5)) for _ in range(6)) for _ in range(count)]


def scorer(cfg: Config, place: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A small model of clean text, as any folder that `corpus.score` takes."""
    folder = place / "scorer"
    tokenizer = Tokenizer.load(place / "tokenizer")
    training.write(place / "seed" / "rows", sentences(1500, 0.0, 2), tokenizer, 64, most=cfg.proxy.tokens)

    def kept(plan: Any) -> Any:
        network = result(plan)
        hugging_face.save(network, folder, Defaults({}, (tokenizer.eos,), tokenizer.pad))
        return network

    with monkeypatch.context() as patched:
        patched.setattr(training, "result", kept)
        training.measured(cfg, place / "seed", place / "tokenizer", 0)
    tokenizer.save(folder)
    return folder


@pytest.mark.slow
def test_of_a_dirty_corpus_the_buckets_are_in_order(
    cfg: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = Tokenizer.train([*sentences(300, 0.3, 9), *garbage(20)], Settings(vocab_size=400))
    tokenizer.save(tmp_path / "tokenizer")
    training.write(tmp_path / "held_out", sentences(60, 0.0, 5), tokenizer, 64)
    dirty = [*sentences(EACH, 0.0, 1), *sentences(EACH, 0.3, 4), *sentences(EACH, 0.9, 6), *garbage(EACH // 4)]
    path = tmp_path / "x.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in dirty))
    corpus = Corpus(files=[str(path)], score=str(scorer(cfg, tmp_path, monkeypatch)), val_fraction=0, test_fraction=0)
    out = tmp_path / "corpus"
    out.mkdir()
    collected(out, corpus)
    lives = pq.read_table(out / "ledger-00000.parquet", columns=["language", "bucket"]).to_pylist()
    assert sum(life["language"] == "" for life in lives) > EACH // 4
    assert not any(life["language"] == "" and life["bucket"] == "head" for life in lives)  # no head of its own
    found = {}
    for part in parts_of(out, replace(cfg.proxy, by=By.bucket, tokens=10**6), 0):
        texts = texts_of(part)
        training.write(tmp_path / part.name / "rows", texts, tokenizer, 64, most=cfg.proxy.tokens)
        found[part.name] = training.measured(cfg, tmp_path / part.name, tmp_path / "tokenizer", 0)["bits_per_byte"]
    assert found["head"] < found["middle"] - 0.02 and found["middle"] < found["tail"] - 0.02, found


PLANTED = [  # promise, file, right code, bug, test (None: this whole file)
    (
        "garbage in no language is no part of head",
        "trainers/clean/score.py",
        "found[ALL] = sum(found.values(), Counter())",
        "pass",
        "test_of_a_dirty_corpus_the_buckets_are_in_order",
    ),
]
