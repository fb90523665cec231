import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from conf.errors import InputError, user_error
from conf.knobs.running import Run
from conf.knobs.text import Corpus, Tokenizer, Tokens
from conf.schema import Config
from trainers.files.documents import normalise, renderer, split_of
from trainers.files.streams import BadRecord


def config(folder: Path, *files: Path, **corpus: Any) -> Config:
    shares = {"val_fraction": 0.2, "test_fraction": 0.2, **corpus}
    return Config(
        run=Run(name="r", dir=str(folder)),
        corpus=Corpus(files=[str(path) for path in files], **shares),
        tokenizer=Tokenizer(vocab_size=420),
        tokens=Tokens(row_length=16, rows_per_shard=8),
    )


def write(path: Path, texts: list[str]) -> Path:
    content = "".join(json.dumps({"text": text, "n": n}) + "\n" for n, text in enumerate(texts)).encode()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return path


def documents(folder: Path, split: str) -> list[dict[str, Any]]:
    return [row for path in sorted(folder.glob(f"{split}-*")) for row in pq.read_table(path).to_pylist()]


def test_normal_form() -> None:
    assert normalise("\ufeffe\u0301 \r\nb\x00\t\r\n\n\n\n c\u3000\n") == "é\nb\n\n c"
    assert normalise(" \n\t\x07") == ""


def test_template() -> None:
    render = renderer("《{title}》\n{{{text}}}")
    assert render({"title": "春", "text": "a", "n": 1}) == "《春》\n{a}"
    with pytest.raises(BadRecord, match="no field 'text', which corpus.template names; there are title"):
        render({"title": "春"})
    with pytest.raises(BadRecord, match="field 'text' must be a string, not int"):
        render({"title": "春", "text": 3})


@pytest.mark.parametrize(
    "template", ["{text.__class__}", "{text[0]}", "{}", "{0}", "{text!r}", "{text:>9}", "{text", "x"]
)
def test_a_template_that_reaches_beyond_fields_is_refused(template: str) -> None:
    with pytest.raises(InputError, match=r"corpus\.template="):
        renderer(template)


def test_the_split_hangs_on_text_and_seed_alone() -> None:
    cfg = Corpus(val_fraction=0.1, test_fraction=0.2)
    splits = [split_of(f"document {n}", cfg, seed=1) for n in range(10_000)]
    assert splits[:6] == ["train", "train", "test", "train", "train", "test"]
    assert abs(splits.count("test") - 2000) < 150 and abs(splits.count("val") - 1000) < 120
    assert splits != [split_of(f"document {n}", cfg, seed=2) for n in range(10_000)]


@pytest.mark.ray
def test_corpus_to_rows(ray_cluster: None, tmp_path: Path) -> None:
    from moe.text.tokenizer import Tokenizer as Pieces
    from trainers import corpus, tokenizer, tokens
    from trainers.rows.rows import Rows

    first = write(tmp_path / "a.jsonl.gz", [f"line {n} \r\n" for n in range(30)] + ["", "line 3"])
    second = write(tmp_path / "b.jsonl", ["line 5", "other 1", "other 2"])
    cfg = config(tmp_path, first, second)
    found = corpus.main(cfg)
    assert (found["read"], found["kept"], found["duplicates"], found["empty"], found["rejected"]) == (35, 32, 2, 1, 0)
    folder = cfg.run.folder / "corpus"
    kept = {split: documents(folder, split) for split in ("train", "val", "test")}
    assert sorted(row["text"] for rows in kept.values() for row in rows) == sorted(
        [f"line {n}" for n in range(30)] + ["other 1", "other 2"]
    )
    for split, rows in kept.items():
        assert [row["id"] for row in rows] == sorted(row["id"] for row in rows)
        assert all(split_of(row["text"], cfg.corpus, 0) == split for row in rows)
        assert found[f"{split}_characters"] == sum(len(row["text"]) for row in rows)
    other = next(row for rows in kept.values() for row in rows if row["text"] == "other 1")
    assert (other["id"], json.loads(other["record"])) == (33, {"text": "other 1", "n": 1})

    tokenizer.main(cfg)
    pieces = Pieces.load(cfg.run.folder / "tokenizer")
    about = tokens.main(cfg)
    for split in ("train", "val"):
        packed = Rows(cfg.run.folder / "tokens" / split)
        assert packed.tokenizer == pieces.digest
        every = packed.fetch(np.arange(len(packed)))
        texts = [
            pieces.decode(ids[segments == number].tolist())
            for ids, segments in zip(every["tokens"], every["segments"], strict=True)
            for number in range(1, segments.max() + 1)
        ]
        assert sorted(texts) == sorted(row["text"] for row in kept[split])
        targets = sum(len(pieces.encode(row["text"])) + 1 for row in kept[split])
        assert (packed.about["targets"], about[f"{split}_tokens"]) == (targets, targets + len(kept[split]))
        assert packed.about["bytes"] == sum(len(row["text"].encode()) for row in kept[split])
        made = json.loads((cfg.run.folder / "tokens" / "report.json").read_text())[split]["source"]
        whole = [sum(row[name] for row in made.values()) for name in ("documents", "characters", "tokens")]
        assert whole == [len(kept[split]), found[f"{split}_characters"], targets - len(kept[split])]
        assert set(made) <= {"a", "b"}
    assert corpus.main(cfg) == found  # done: nothing is made again


@pytest.mark.ray
def test_the_first_documents_are_the_same_however_they_are_read(ray_cluster: None, tmp_path: Path) -> None:
    from trainers import corpus

    path = write(tmp_path / "a.jsonl", [f"line {n}" for n in range(9000)])  # more than two blocks
    cfg = config(tmp_path, path, max_documents=5000)
    assert corpus.main(cfg)["kept"] == 5000
    ids = sorted(row["id"] for split in ("train", "val", "test") for row in documents(cfg.run.folder / "corpus", split))
    assert ids == list(range(5000))


@pytest.mark.ray
@pytest.mark.parametrize(
    ("content", "knobs", "words"),
    [
        (b'{"text": "a"}\n{"text": \n', {}, r"a\.jsonl:2: broken JSON: .* \(byte 14\)"),
        (
            b'{"body": "a"}\n',
            {},
            r"a\.jsonl:1: no field 'text', which corpus\.template names; there are body \(byte 0\)",
        ),
        (b'{"text": "\xff"}\n', {}, r"a\.jsonl:1: invalid UTF-8 at byte 10 of the record"),
        (b"", {}, r"a\.jsonl: is empty"),
        (b'{"text": " "}\n', {}, "none of the 1 records has any text"),
        (b'{"text": "a"}\n', {}, r"corpus\.(val|test)_fraction=0\.2 leaves the (val|test) split of 1 documents empty"),
        (b'{"text": 1}\n' * 3 + b'{"text": "a"}\n', {"max_bad_fraction": 0.5}, r"a\.jsonl:1: .*3 of 4 records are bad"),
    ],
)
def test_bad_input_is_one_line_and_leaves_no_stage(
    ray_cluster: None, tmp_path: Path, content: bytes, knobs: dict[str, Any], words: str
) -> None:
    from trainers import corpus

    (tmp_path / "a.jsonl").write_bytes(content)
    cfg = config(tmp_path, tmp_path / "a.jsonl", **knobs)
    with pytest.raises(InputError, match=words) as raised:
        corpus.main(cfg)
    assert user_error(raised.value) is raised.value and "\n" not in str(raised.value)
    assert not (cfg.run.folder / "corpus" / "manifest.json").exists()


@pytest.mark.ray
def test_bad_records_are_set_aside_when_allowed(ray_cluster: None, tmp_path: Path) -> None:
    from trainers import corpus

    path = write(tmp_path / "a.jsonl", [f"line {n}" for n in range(40)])
    path.write_bytes(path.read_bytes() + b'{"text": 1}\n')
    found = corpus.main(config(tmp_path, path, max_bad_fraction=0.1))
    assert (found["kept"], found["rejected"]) == (40, 1)
    (reject,) = (tmp_path / "r" / "corpus" / "rejects.jsonl").read_text().splitlines()
    assert json.loads(reject)["line"] == 41
    assert json.loads(reject)["reason"] == "field 'text' must be a string, not int"
