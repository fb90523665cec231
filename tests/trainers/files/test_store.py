"""What is read of the corpus folder comes in the order of its shards, each split by itself."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from trainers.files import store


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    shards = {"train-00000": [(3, "a", {"text": "A"}), (5, "b", {})], "train-00001": [(7, "c", {"text": "C"})]}
    for name, rows in (shards | {"test-00000": [(1, "d", {})]}).items():
        columns = [{"id": number, "text": text, "record": json.dumps(record)} for number, text, record in rows]
        pq.write_table(pa.Table.from_pylist(columns), tmp_path / f"{name}.parquet")
    return tmp_path


def test_a_split_is_read_in_the_order_of_its_shards(corpus: Path) -> None:
    assert list(store.texts(corpus, "train")) == ["a", "b", "c"]
    assert list(store.records(corpus, "train")) == [(3, {"text": "A"}), (5, {}), (7, {"text": "C"})]
    assert list(store.documents(corpus, "train")) == ["A", "b", "C"]
    assert list(store.texts(corpus, "val")) == []


def test_documents_to_measure_on_are_held_out_where_there_are_any(
    corpus: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "MEASURED", 2)
    assert store.held_out(corpus) == ["a", "b"]
    (corpus / "test-00000.parquet").rename(corpus / "val-00000.parquet")
    assert store.held_out(corpus) == ["d"]


def test_a_tokenizer_learns_from_documents_at_even_distances(tmp_path: Path) -> None:
    for name, first in (("train-00000", 0), ("train-00001", 600)):
        rows = [{"id": n, "text": f"诗{n:04d}"} for n in range(first, first + 600)]  # 7 bytes each
        pq.write_table(pa.Table.from_pylist(rows), tmp_path / f"{name}.parquet")
    assert list(store.spaced(tmp_path, "train")) == list(store.texts(tmp_path, "train"))
    some = list(store.spaced(tmp_path, "train", 7 * 300))
    assert some == [f"诗{n:04d}" for n in range(3, 1200, 4)]
    assert list(store.spaced(tmp_path, "val")) == []


PLANTED = [  # promise, file, right code, bug, test (None: this whole file)
    (
        "what a tokenizer learns from is bounded, however large the corpus",
        "trainers/files/store.py",
        "if int((number + 1) * share) > int(number * share):",
        "if True:",
        "test_a_tokenizer_learns_from_documents_at_even_distances",
    ),
]
