"""Files of any format through the corpus stage: what was left out, in which encoding it was, and what could not be."""

import json
from pathlib import Path

import pyarrow.parquet as pq

from conf.knobs.text import Corpus
from conf.schema import Config
from tests.trainers.clean.direct import collected
from trainers.clean.ledger import by_place
from trainers.why import lines

POEM = "春眠不觉晓，处处闻啼鸟。夜来风雨声，花落知多少。"
DUMP = f"""<mediawiki>
<page><title>春晓</title><ns>0</ns><revision><text>{POEM}</text></revision></page>
<page><title>春</title><ns>0</ns><redirect title="春晓"/><revision><text>x</text></revision></page>
</mediawiki>"""


def test_the_ledger_tells_what_was_left_out_and_in_which_encoding_a_document_was(tmp_path: Path) -> None:
    (tmp_path / "a.xml").write_text(DUMP, "utf-8")
    (tmp_path / "b.txt").write_bytes(("夜深了，人们都睡着了。" * 3).encode("gb18030"))
    (tmp_path / "c.txt").write_bytes("人们都睡着了，夜深了。".encode("gb18030") + b"\xff")
    (tmp_path / "out").mkdir()
    files = [str(tmp_path / name) for name in ("a.xml", "b.txt", "c.txt")]
    cfg = Corpus(files=files, val_fraction=0, test_fraction=0, max_bad_fraction=0.5, steps=["unicode"])
    metrics = collected(tmp_path / "out", cfg)
    told = {name: metrics[name] for name in ("read", "kept", "rejected", "removed", "empty")}
    assert told == {"read": 4, "kept": 2, "rejected": 1, "removed": 1, "empty": 0}
    (kept,) = (tmp_path / "out").glob("train-*.parquet")
    assert pq.read_table(kept)["text"].to_pylist() == [POEM, "夜深了，人们都睡着了。" * 3]
    life = {place: next(by_place(tmp_path / "out", place)) for place in ("a.xml:3", "b.txt:1", "c.txt:1")}
    assert lines(tmp_path / "out", life["a.xml:3"], ["unicode"])[1:] == ["  left out: redirect"]
    assert json.loads(life["b.txt:1"]["changes"]) == {"read as gb18030": 1}
    assert "it seems to be gb18030, but not at byte 22" in life["c.txt:1"]["rule"]
    (reject,) = map(json.loads, (tmp_path / "out" / "rejects.jsonl").read_text("utf-8").splitlines())
    assert (reject["file"], reject["line"], reject["offset"]) == (files[2], 1, 0)
    report = json.loads((tmp_path / "out" / "report.json").read_text("utf-8"))
    assert report["rejected"]["left out"] == {"redirect": 1}
    assert Config().corpus.encoding == "detect"


PLANTED = [  # promise, file, right code, bug, test (None: this whole file)
    (
        "what a format leaves out is no bad record",
        "trainers/clean/shards.py",
        "made = _left_out(error.rule)",
        "made = error.rule",
        "test_the_ledger_tells_what_was_left_out_and_in_which_encoding_a_document_was",
    ),
    (
        "the encoding of a document is in the ledger",
        "trainers/clean/shards.py",
        'made.changes.update(f"read as {name}" for name in encodings)',
        "pass",
        "test_the_ledger_tells_what_was_left_out_and_in_which_encoding_a_document_was",
    ),
]
