"""What a model is surprised at: bits per byte as counted by hand, and the buckets that they make."""

import json
import math
import re
from collections import Counter
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
from trainers.clean.score import ALL, bits, check_weights, groups, quantile, sources

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


def test_what_is_in_no_known_language_has_no_head_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trainers.clean.score.bits", told_by_number)
    texts = [f"文字{n}" for n in range(30)] + [f"%%% ### {900 + n} @@@" for n in range(12)] + ["~~~ 15 ~~~"]
    (tmp_path / "x.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    cfg = Corpus(files=[str(tmp_path / "x.jsonl")], score="m", val_fraction=0, test_fraction=0)
    collected(tmp_path, cfg)
    lives = pq.read_table(tmp_path / "ledger-00000.parquet").to_pylist()
    assert [life["bucket"] for life in lives[:30]] == ["head"] * 10 + ["middle"] * 10 + ["tail"] * 10
    assert {(life["language"], life["bucket"]) for life in lives[30:42]} == {("", "tail")}
    assert lives[42]["bucket"] == "middle"  # of all 43 it lies between 14 and 28
    by_both = groups(["zh", "", "en"], ["web", "web", "book"], ["language", "source"])
    assert by_both.tolist() == ["zh web", ALL, "en book"] and groups([""], ["web"], ["source"]).tolist() == ["web"]


def told_by_number(texts: list[str], model: str) -> Any:
    return np.array([int(re.findall(r"\d+", text)[0]) / 100 for text in texts], np.float32)


def test_documents_come_as_often_as_their_source_language_and_bucket_weigh(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trainers.clean.score.bits", told_by_number)
    (tmp_path / "web").mkdir()
    for name, first in (("web/a.jsonl", 0), ("web/b.jsonl", 300), ("book.jsonl", 1000)):
        texts = "".join(json.dumps({"text": f"文字{first + n}"}) + "\n" for n in range(300))
        (tmp_path / name).write_text(texts)
    cfg = Corpus(
        files=[f"{tmp_path}/web/*.jsonl", f"{tmp_path}/book.jsonl"],
        score="m",
        buckets=["source"],
        weights={"web": 0.5, "head": 4.0, "tail": 0.0, "zh": 1.0},
        val_fraction=0.1,
        test_fraction=0,
    )
    check_weights(cfg)
    (tmp_path / "out").mkdir()
    expanded = Corpus(
        **{**vars(cfg), "files": [f"{tmp_path}/{name}" for name in ("web/a.jsonl", "web/b.jsonl", "book.jsonl")]}
    )
    monkeypatch.setattr("trainers.clean.score.sources", lambda _: sources(cfg))
    found = collected(tmp_path / "out", expanded)
    lives = [life for path in sorted((tmp_path / "out").glob("ledger*")) for life in pq.read_table(path).to_pylist()]
    rows = pq.read_table(tmp_path / "out" / "train-00000.parquet").to_pylist()
    held = pq.read_table(tmp_path / "out" / "val-00000.parquet").num_rows
    times = Counter(row["id"] for row in rows)
    assert [row["id"] for row in rows] == sorted(row["id"] for row in rows)
    # thirds of each source by itself, and every document of a bucket as often as it weighs
    of: dict[tuple[str, str], list[int]] = {
        (place, bucket): [] for place in ("web", "book") for bucket in ("head", "middle", "tail")
    }
    for life in lives:
        if life["split"] != "val":
            of["web" if life["id"] < 600 else "book", life["bucket"]].append(times[life["id"]])
            assert life["split"] == "" or rows[life["row"]]["id"] == life["id"]
    assert set(of["web", "head"]) == {2} and set(of["book", "head"]) == {4}
    assert set(of["book", "middle"]) == {1} and set(of["web", "tail"]) == {0} == set(of["book", "tail"])
    assert 0.4 < np.mean(of["web", "middle"]) < 0.6 and set(of["web", "middle"]) == {0, 1}
    thin = [life for life in lives if life["step"] == "weights"]
    assert found["train_documents"] == len(rows) and found["val_documents"] == held
    assert found["removed"] == len(thin) and found["kept"] == len(lives) - len(thin)
    assert {life["value"] for life in thin} == {0.0, 0.5} and {life["rule"] for life in thin} == {"thinned out"}
    assert any(life["split"] == "val" and life["bucket"] == "tail" for life in lives)
    for wrong, message in (
        ({"pdf": 1.0}, "no such source, language or bucket: book, en, head"),
        ({"de": 1.0}, "no such"),
    ):
        with pytest.raises(InputError, match=rf"corpus\.weights\.\w+: {message}"):
            check_weights(Corpus(**{**vars(cfg), "weights": wrong}))
    with pytest.raises(InputError, match=r"corpus\.weights\.head needs a model that sorts"):
        check_weights(Corpus(files=cfg.files, weights={"head": 2.0}))
    check_weights(Corpus(files=cfg.files, weights={"de": 2.0}, steps=["language"]))


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
        "what is in no known language is compared with all documents",
        "trainers/clean/score.py",
        "found[ALL] = sum(found.values(), Counter())",
        "pass",
        "test_what_is_in_no_known_language_has_no_head_of_its_own",
    ),
    (
        "of near copies the least surprising stays",
        "trainers/clean/copies.py",
        "return -bits[",
        "return bits[",
        None,
    ),
    (
        "what is measured on is neither thinned out nor repeated",
        "trainers/clean/gather.py",
        'self.weight[self.split != "train"] = 1.0',
        "pass",
        "test_documents_come_as_often_as_their_source_language_and_bucket_weigh",
    ),
    (
        "a document's row is the first of its copies",
        "trainers/clean/gather.py",
        "np.cumsum(times) - times",
        "np.arange(int(mine.sum()))",
        "test_documents_come_as_often_as_their_source_language_and_bucket_weigh",
    ),
]
