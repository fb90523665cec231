"""What becomes of records, without Ray: small corpora, files that cannot be read, text that was mended."""

import gzip
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from conf.errors import InputError
from conf.knobs.text import Corpus
from conf.knobs.training import Sft
from tests.trainers.clean.direct import collected as collect
from tests.trainers.clean.direct import here, made
from trainers.corpus import collect as gathered
from trainers.tasks import read_own, told


def lines(path: Path, *texts: str) -> Path:
    path.write_text("".join(json.dumps({"text": text, "n": n}) + "\n" for n, text in enumerate(texts)))
    return path


def collected(folder: Path, *files: Path, **knobs: Any) -> dict[str, Any]:
    return collect(folder, Corpus(files=[str(file) for file in files], **knobs))


def texts(folder: Path, split: str) -> list[str]:
    return [row["text"] for path in folder.glob(f"{split}-*") for row in pq.read_table(path).to_pylist()]


def test_a_small_corpus_has_every_split(tmp_path: Path) -> None:
    for count in (2, 3, 10, 60):
        file = lines(tmp_path / f"{count}.jsonl", *(f"text {n}" for n in range(count)))
        found = collected(tmp_path, file)
        per_split = {split: texts(tmp_path, split) for split in ("train", "val", "test")}
        assert sorted(text for of in per_split.values() for text in of) == sorted(f"text {n}" for n in range(count))
        assert len(per_split["val"]) == 1 and len(per_split["test"]) == (count > 2)
        for split, of in per_split.items():
            assert found[f"{split}_documents"] == len(of)
            assert found[f"{split}_characters"] == sum(map(len, of))
    # the same whatever the order is
    again = lines(tmp_path / "again.jsonl", *(f"text {n}" for n in reversed(range(60))))
    collected(tmp_path, again)
    assert {split: sorted(texts(tmp_path, split)) for split in per_split} == {
        split: sorted(of) for split, of in per_split.items()
    }
    collected(tmp_path, lines(tmp_path / "two.jsonl", "a", "b"), val_fraction=0.98)
    assert len(texts(tmp_path, "train")) == len(texts(tmp_path, "val")) == 1
    with pytest.raises(InputError, match=r"corpus\.val_fraction=0\.01 leaves the val split of 1 documents empty"):
        collected(tmp_path, lines(tmp_path / "one.jsonl", "a"))


def test_a_file_that_cannot_be_read_counts_as_one_bad_record(tmp_path: Path) -> None:
    good = lines(tmp_path / "good.jsonl", *(f"text {n}" for n in range(98)))
    (tmp_path / "empty.jsonl").write_bytes(b"")
    (tmp_path / "cut.jsonl.gz").write_bytes(gzip.compress(b'{"text": "cut"}\n' * 1000)[:-20])
    files = (tmp_path / "empty.jsonl", tmp_path / "cut.jsonl.gz", good)
    found = collected(tmp_path, *files, max_bad_fraction=0.05)
    assert (found["rejected"], found["kept"]) == (2, 98 + texts(tmp_path, "train").count("cut"))
    told_of = [json.loads(line) for line in (tmp_path / "rejects.jsonl").read_text().splitlines()]
    assert [(one["file"][-12:], one["reason"][:20]) for one in told_of] == [
        ("/empty.jsonl", "is empty"),
        ("cut.jsonl.gz", "damaged or cut gzip "),
    ]
    with pytest.raises(InputError, match=r"empty\.jsonl: is empty$"):
        collected(tmp_path, *files)
    with pytest.raises(InputError, match=r"empty\.jsonl: is empty; 2 of 778 records are bad, more than corpus"):
        collected(tmp_path, *files, max_bad_fraction=0.001)


def test_a_wholly_bad_corpus_is_not_read_to_its_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trainers.corpus.WHOLLY_BAD", 5)
    monkeypatch.setattr("trainers.clean.shards.SOURCES_PER_BLOCK", 3)
    (tmp_path / "x.jsonl").write_text("bad\n" * 1000)
    cfg = Corpus(files=[str(tmp_path / "x.jsonl")], max_bad_fraction=0.5)
    read = []

    def counted() -> Iterator[dict[str, Any]]:
        for counts in made(tmp_path, cfg):
            read.append(counts)
            yield counts

    with pytest.raises(InputError, match="5 of 5 records are bad"):
        gathered(counted(), tmp_path, tmp_path, cfg, here(tmp_path))
    assert len(read) == 2


def test_what_is_mended_is_mended_in_the_record_too_and_counted(tmp_path: Path) -> None:
    mojibake = "床前明月光".encode().decode("latin-1")
    file = lines(tmp_path / "x.jsonl", mojibake, "\u200b", "plain")
    found = collected(tmp_path, file, val_fraction=0, test_fraction=0, keep=["text"])
    assert (found["kept"], found["repaired"], found["empty"]) == (2, 1, 1)
    (path,) = tmp_path.glob("train-*")
    assert [json.loads(row["record"]) for row in pq.read_table(path).to_pylist()] == [
        {"text": "床前明月光"},
        {"text": "plain"},
    ]


def test_a_long_line_names_the_knob(tmp_path: Path) -> None:
    file = lines(tmp_path / "x.jsonl", "a" * 100)
    with pytest.raises(InputError, match="at most 50 are allowed; corpus.max_line_bytes allows more"):
        collected(tmp_path, file, max_line_bytes=50)


def test_a_sample_counts_once_however_often_it_was_copied(tmp_path: Path) -> None:
    made = [json.dumps({"instruction": f"q{n}", "output": "a"}) for n in range(5)]
    (tmp_path / "x.jsonl").write_text("\n".join(made * 3))
    samples, read = read_own([str(tmp_path / "x.jsonl")], tmp_path, Sft())
    assert [one.prompt for one in samples] == [f"q{n}" for n in range(5)]
    assert read == {"read": 15.0, "rejected": 0.0, "duplicates": 10.0}
    from conf.knobs.alignment import Tasks

    output = {"train": samples[:4], "val": samples[4:], "prompts": samples[:1], "test_prompts": []}
    assert told(read, output, Tasks(queries=["x"])) == (
        "tasks: of 15 samples 4 are trained on, 1 validate, 10 are copies of others"
    )


PLANTED = [  # promise, file, right code, bug, test (None: this whole file)
    (
        "a small corpus validates",
        "trainers/clean/gather.py",
        "if empty := _empty(totals, fractions):",
        "if empty := list[str]():",
        None,
    ),
    (
        "whose document validates hangs on no order",
        "trainers/clean/gather.py",
        "key=lambda one: one[1])",
        "key=lambda one: one[0])",
        "test_a_small_corpus_has_every_split",
    ),
    (
        "a file that cannot be read is set aside where it may be",
        "trainers/files/rejects.py",
        "        if self._most == 0.0:",
        "        if self._most < 1.0:",
        "test_a_file_that_cannot_be_read_counts_as_one_bad_record",
    ),
    (
        "nobody reads on where all is bad",
        "trainers/corpus.py",
        "if rejects.bad == rejects.read == WHOLLY_BAD:",
        "if False:",
        None,
    ),
    (
        "copies of a sample are left out",
        "trainers/tasks.py",
        "    unique = list(once.values())",
        "    unique = samples",
        None,
    ),
    (
        "the knob of a long line is named",
        "trainers/files/readers.py",
        '    if knob and source.reason.endswith("are allowed"):',
        "    if False:",
        None,
    ),
]
