"""What rows are made of is counted by source and language, each document as often as it is there."""

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from conf.knobs.text import Corpus
from tests.trainers.clean.direct import collected
from trainers.clean import gather, shards
from trainers.clean.ledger import kinds
from trainers.files.store import documents_in
from trainers.rows.makeup import Makeup
from trainers.tokens import page, slices

BATCHES = (5, 1, 30, 1000)  # documents that are encoded at a time: other cuts than the ledger's


def test_tokens_are_counted_by_source_and_language(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards, "SOURCES_PER_BLOCK", 7)
    monkeypatch.setattr(gather, "SHARDS_PER_TASK", 1)  # so that a split's rows lie in many files of the ledger
    texts = {"web": [f"the old house number {n} and the tree" for n in range(40)] + ["春眠不觉晓，处处闻啼鸟。"]}
    texts["book"] = [f"第{n}回，花落知多少。" for n in range(25)] + ["", "第3回，花落知多少。"]
    for name, given in texts.items():
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in given))
    cfg = Corpus(
        files=[f"{tmp_path}/web.jsonl", f"{tmp_path}/book.jsonl"],
        weights={"web": 1.5, "book": 0.6},
        val_fraction=0.1,
        test_fraction=0.1,
    )
    out = tmp_path / "out"
    out.mkdir()
    collected(out, cfg)
    assert len(list(out.glob("ledger-*.parquet"))) > 5
    for split in ("train", "val"):
        rows = [row for path in sorted(out.glob(f"{split}-*")) for row in pq.read_table(path)["text"].to_pylist()]
        lengths = np.array([len(text.encode()) // 2 for text in rows])  # as if these were its tokens
        made = Makeup(kinds(out, split, documents_in(out, split)))
        at = 0
        for size in BATCHES:
            made.add(lengths[at : at + size])
            at += size
        wanted = {kind: Counter[tuple[str, str]]() for kind in ("source", "language")}
        for text, tokens in zip(rows, lengths.tolist(), strict=True):
            names = {
                "source": "web" if "house" in text or "春" in text else "book",
                "language": "en" if "house" in text else "zh",
            }
            for kind, name in names.items():
                wanted[kind].update({(name, "documents"): 1, (name, "characters"): len(text), (name, "tokens"): tokens})
        assert (len(rows) > 3 and len(set(rows)) < len(rows)) or split == "val"
        for kind, counts in wanted.items():
            found = made.told[kind]
            assert {(name, what): found[name][what] for name, what in counts} == dict(counts)
            assert sum(row["share"] for row in found.values()) == pytest.approx(1, abs=2e-4)
        shown = page({split: made.told})
        assert f"{split}, by source" in shown and f'<td class="n">{wanted["source"]["web", "tokens"]:,}</td>' in shown


def test_a_corpus_without_a_ledger_is_not_counted(tmp_path: Path) -> None:
    made = Makeup(kinds(tmp_path, "train", 3))
    made.add(np.array([1, 2, 3]))
    assert made.told == {}


def test_documents_are_encoded_a_megabyte_at_a_time() -> None:
    large = 3 * 2**20
    sizes = [large, 10, 20, large, large, *[1] * 1500, *[2**19] * 3]
    cuts = list(slices(sizes))
    assert cuts[:3] == [(0, 1), (1, 4), (4, 5)]  # one more document than a megabyte, however large
    assert [start for start, _ in cuts[1:]] == [stop for _, stop in cuts[:-1]] and cuts[-1][1] == len(sizes)
    assert cuts[3:] == [(5, 1029), (1029, 1507), (1507, 1508)] and list(slices([])) == []


PLANTED = [  # promise, file, right code, bug, test (None: this whole file)
    (
        "a document that is repeated counts as often as it is there",
        "trainers/clean/ledger.py",
        "np.repeat(np.arange(len(table)), times)",
        "np.arange(len(table))",
        "test_tokens_are_counted_by_source_and_language",
    ),
    (
        "large documents are not encoded a thousand at a time",
        "trainers/tokens.py",
        "if at + 1 - start == BATCH or held >= BYTES:",
        "if at + 1 - start == BATCH:",
        "test_documents_are_encoded_a_megabyte_at_a_time",
    ),
    (
        "tokens are counted where batches and the ledger's files are cut elsewhere",
        "trainers/rows/makeup.py",
        "self._held.slice(len(here)) if len(here) < len(self._held) else next(self._kinds, None)",
        "next(self._kinds, None)",
        "test_tokens_are_counted_by_source_and_language",
    ),
]
