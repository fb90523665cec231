"""Parts of a corpus get one budget each, drawn by the seed, and nothing that is measured on is trained on."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from conf.errors import InputError
from conf.knobs.text import By, Corpus, Proxy
from tests.trainers.clean.direct import collected
from trainers.proxy.parts import held_out, parts_of, ranked, texts_of, whole, without

CFG = Proxy(by=By.source, tokens=40, documents=3)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("corpus")
    for name, words in (("a", "春夏秋冬"), ("b", "some words of English text")):
        texts = [{"text": f"{words} {number}"} for number in range(60)]
        (place / f"{name}.jsonl").write_text("".join(json.dumps(one) + "\n" for one in texts))
    cfg = Corpus(files=[str(place / "a.jsonl"), str(place / "b.jsonl")], val_fraction=0.1, test_fraction=0)
    (place / "made").mkdir()
    collected(place / "made", cfg)
    return place / "made"


def test_every_part_gets_the_budget_and_the_seed_says_of_what(corpus: Path) -> None:
    train = pq.read_table(corpus / "train-00000.parquet").to_pylist()
    parts = parts_of(corpus, CFG, seed=0)
    assert [part.name for part in parts] == ["a", "b"]
    for part, words in zip(parts, ("春夏秋冬", "some words"), strict=True):
        own = [one for one in train if one["text"].startswith(words)]
        texts = texts_of(part)
        assert texts == [next(one["text"] for one in own if one["id"] == number) for number in part.ids.tolist()]
        assert (part.documents, part.characters) == (len(own), sum(len(one["text"]) for one in own))
        sizes = np.cumsum([len(text) for text in texts])
        assert sizes[-1] >= 4 * CFG.tokens > sizes[-2]  # no more than the budget asks for
        again, other = (next(one for one in parts_of(corpus, CFG, seed) if one.name == part.name) for seed in (0, 1))
        assert again.ids.tolist() == part.ids.tolist() != other.ids.tolist()
    every = whole("all", corpus, replace(CFG, tokens=10**6), seed=0)
    assert sorted(texts_of(every)) == sorted(one["text"] for one in train) and every.documents == len(train)


def test_what_is_measured_on_is_trained_on_by_none(corpus: Path, tmp_path: Path) -> None:
    val = set(pq.read_table(corpus / "val-00000.parquet")["text"].to_pylist())
    measured = held_out(corpus, CFG, Corpus())
    assert len(measured) == 3 and set(measured) <= val
    seen = texts_of(parts_of(corpus, CFG, 0)[0])
    (tmp_path / "clean.jsonl").write_text(json.dumps({"text": seen[1]}) + '\n{"text": "别的"}\n')
    given = held_out(corpus, replace(CFG, held_out=[str(tmp_path / "clean.jsonl")]), Corpus())
    assert given == [seen[1], "别的"]
    assert without(seen, given) == [seen[0], *seen[2:]]


def test_parts_are_ranked_by_the_mean_of_their_models() -> None:
    about = {"documents": 1, "characters": 2, "epochs": 0.5}
    found = {name: [{"bits_per_byte": one, **about} for one in bits] for name, bits in
             {"tail": [3.0, 3.5], "head": [2.0, 2.1]}.items()}  # fmt: skip
    rows = ranked(found)
    assert [row["part"] for row in rows] == ["head", "tail"]
    assert rows[1]["bits_per_byte"] == 3.25 and rows[1]["spread"] == 0.5


def test_what_has_no_parts_is_refused(corpus: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"proxy.by=bucket: .* has none; make it with corpus.score"):
        parts_of(corpus, Proxy(), 0)
    with pytest.raises(InputError, match="no corpus with a ledger here"):
        parts_of(tmp_path, CFG, 0)


PLANTED = [  # promise, file, right code, bug, test (None: this whole file)
    (
        "what a proxy is measured on it has not learnt",
        "trainers/proxy/parts.py",
        "if identity(text) not in known]",
        "]",
        "test_what_is_measured_on_is_trained_on_by_none",
    ),
    (
        "a part has only its own documents",
        "trainers/proxy/parts.py",
        "rows = np.flatnonzero(mine)",
        "rows = np.arange(len(mine))",
        "test_every_part_gets_the_budget_and_the_seed_says_of_what",
    ),
]
