"""Hugging Face datasets as input, written by the library itself."""

import subprocess
import sys
from datetime import date
from pathlib import Path
from typing import Any

import datasets
import pyarrow.parquet as pq
import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, Image, List, Value

from conf.errors import InputError
from conf.knobs.running import Run
from conf.knobs.text import Corpus
from conf.schema import Config
from trainers import corpus
from trainers.clean import shards
from trainers.clean.document import Document
from trainers.files.rankings import judged, read_rankings
from trainers.files.readers import absolute, digest, expand, read_records, read_sources
from trainers.files.samples import read_queries, read_samples

Rows = list[dict[str, Any]]


@pytest.fixture(autouse=True)
def quiet() -> None:
    datasets.disable_progress_bars()


def put(folder: Path, rows: Rows, features: Features | None = None) -> str:
    Dataset.from_list(rows, features=features).save_to_disk(folder)
    return str(folder)


def put_splits(folder: Path, **splits: Rows) -> str:
    DatasetDict({name: Dataset.from_list(rows) for name, rows in splits.items()}).save_to_disk(folder)
    return str(folder)


def test_a_corpus_is_read_with_what_its_rows_hold(tmp_path: Path) -> None:
    rows: Rows = [
        {"text": "春", "tags": ["a", "b"], "from": {"book": "x", "page": 3}, "score": 0.5},
        {"text": "b", "tags": [], "from": {"book": "y", "page": None}, "score": None},
    ]
    folder = put(tmp_path / "poems", rows)
    assert expand([folder + "/"]) == [folder]
    assert list(read_records(folder)) == [
        (1, {"text": "春", "tags": ["a", "b"], "from": {"book": "x", "page": 3}, "score": 0.5}),
        (2, {"text": "b", "tags": [], "from": {"book": "y"}}),
    ]


def test_a_glob_finds_datasets_beside_files(tmp_path: Path) -> None:
    put(tmp_path / "b", [{"text": "b"}])
    (tmp_path / "a.jsonl").write_text('{"text": "a"}\n')
    assert expand([f"{tmp_path}/*"]) == [f"{tmp_path}/a.jsonl", f"{tmp_path}/b"]


def test_a_split_is_chosen_or_the_only_one(tmp_path: Path) -> None:
    two = put_splits(tmp_path / "two", train=[{"text": "a"}], test=[{"text": "b"}])
    assert list(read_records(f"{two}:test")) == [(1, {"text": "b"})]
    assert expand([f"{two}:train", f"{two}:test", f"{two}:train"]) == [f"{two}:train", f"{two}:test"]
    one = put_splits(tmp_path / "one", train=[{"text": "a"}])
    assert expand([one]) == [f"{one}:train"]


def test_a_split_that_is_missing_or_not_said_is_named(tmp_path: Path) -> None:
    two = put_splits(tmp_path / "two", train=[{"text": "a"}], test=[{"text": "b"}])
    with pytest.raises(InputError) as raised:
        expand([f"{two}:tset"], "sft.files")
    assert str(raised.value) == f"sft.files: {two}:tset: no split 'tset'; there are train, test; try {two}:train"
    with pytest.raises(InputError, match="say which split; there are train, test; try .*two:train"):
        expand([two])
    flat = put(tmp_path / "flat", [{"text": "a"}])
    with pytest.raises(InputError, match="is one dataset without splits; leave out :train"):
        expand([f"{flat}:train"])
    with pytest.raises(InputError, match="no such file"):
        expand([f"{tmp_path}/none:train"])
    with pytest.raises(InputError, match="two: say which split; there are train, test"):
        expand([str(tmp_path)])


def test_alpaca_and_messages(tmp_path: Path) -> None:
    folder = put(tmp_path / "own", [{"instruction": "问", "input": None, "output": "答", "source": "x"}])
    (sample,) = read_samples(folder)
    assert (sample.id, sample.task, sample.fields) == ("own-1", "own", {"source": "x"})
    assert sample.messages == [{"role": "user", "content": "问"}, {"role": "assistant", "content": "答"}]
    messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    talk = put_splits(
        tmp_path / "talk", train=[{"messages": messages, "task": None}, {"messages": messages, "task": "t"}]
    )
    first, second = read_samples(f"{talk}:train")
    assert (first.id, first.task, second.task) == ("talk:train-1", "talk", "t") and second.messages == messages


def test_a_class_is_read_by_its_name(tmp_path: Path) -> None:
    features = Features(instruction=Value("string"), output=Value("string"), label=ClassLabel(names=["bad", "good"]))
    rows: Rows = [{"instruction": "a", "output": "b", "label": label} for label in ("good", None)]
    assert [sample.label for sample in read_samples(put(tmp_path / "own", rows, features))] == ["good", None]


def test_queries_with_checks(tmp_path: Path) -> None:
    rows: Rows = [
        {
            "prompt": "a",
            "label": None,
            "checks": [{"rule": "words", "at_least": 3}, {"rule": "contains", "any": ["x"]}],
        },
        {"prompt": "b", "label": "7"},
    ]
    first, second = read_queries(put(tmp_path / "asked", rows))
    assert first.fields == {"checks": [{"rule": "words", "at_least": 3}, {"rule": "contains", "any": ["x"]}]}
    assert (second.id, second.task, second.label, second.fields) == ("asked-2", "asked", "7", {})


def test_rankings(tmp_path: Path) -> None:
    answers: Rows = [{"text": "x", "rank": 0, "ranks": {"clear": 1}}, {"text": "y", "rank": 1, "finished": False}]
    folder = put(tmp_path / "ranked", [{"messages": [{"role": "user", "content": "q"}], "answers": answers}])
    (record,) = read_rankings(folder, ["clear"])
    assert judged(record["answers"], None)[0] == [0, 1] and judged(record["answers"], "clear")[0] == [1, None]
    assert record["where"] == f"{folder} row 1" and "finished" not in record["answers"][0]


def test_a_broken_row_is_named(tmp_path: Path) -> None:
    rows: Rows = [{"instruction": "a", "output": "b"}, {"instruction": "a", "output": " "}]
    split = put_splits(tmp_path / "own", train=rows) + ":train"
    with pytest.raises(InputError) as raised:
        read_samples(split)
    assert str(raised.value) == f"{split} row 2: output is empty"
    with pytest.raises(InputError, match="asked row 2: the query has neither prompt nor messages$"):
        read_queries(put(tmp_path / "asked", [{"prompt": "a"}, {"prompt": None}]))
    turns = [{"role": "user", "content": "q"}]
    with pytest.raises(InputError, match="ranked row 1: answers must be a list of two or more"):
        read_rankings(put(tmp_path / "ranked", [{"messages": turns, "answers": [{"text": "x"}]}]), [])


def test_a_row_is_bounded_and_its_numbers_are_json(tmp_path: Path) -> None:
    folder = put(tmp_path / "own", [{"text": "x" * 100, "n": 1.0}, {"text": "a", "n": float("nan")}])
    assert [source.reason for source in read_sources(folder, 100)] == [
        "the row has 122 bytes, at most 100 are allowed",
        "",
    ]
    with pytest.raises(InputError, match="own row 2: broken JSON: NaN is no JSON number"):
        list(read_records(folder))
    assert list(read_records(put(tmp_path / "dates", [{"at": date(2020, 2, 1)}]))) == [(1, {"at": "2020-02-01"})]


def test_bytes_are_refused_by_column_unless_nobody_needs_them(tmp_path: Path) -> None:
    features = Features(text=Value("string"), photo=Image(), raw=List({"z": Value("binary")}))
    photo = {"bytes": b"\x89PNG", "path": None}
    folder = put(tmp_path / "own", [{"text": "a", "photo": photo, "raw": [{"z": b"b"}]}], features)
    assert list(read_records(folder, needed=["text"])) == [(1, {"text": "a"})]
    with pytest.raises(InputError, match=r"own: column 'photo' holds Image, .* with remove_columns\(\['photo'\]\)$"):
        read_samples(folder)
    with pytest.raises(InputError, match="column 'raw' holds List"):
        list(read_records(folder, needed=["text", "raw"]))


def test_nothing_in_it_and_damage_are_told(tmp_path: Path) -> None:
    empty = str(tmp_path / "empty")
    Dataset.from_dict({"text": []}).save_to_disk(empty)
    with pytest.raises(InputError, match="empty: holds no record"):
        list(read_records(empty))
    cut = put(tmp_path / "cut", [{"text": "a" * 1000}] * 100)
    file = next(Path(cut).glob("*.arrow"))
    file.write_bytes(file.read_bytes()[:20_000])
    with pytest.raises(InputError, match="cut: (cannot be read after row 0|not what save_to_disk writes)"):
        list(read_records(cut))
    file.unlink()
    with pytest.raises(InputError, match=r"cut: data-.*arrow is missing"):
        digest(cut)
    (Path(cut) / "state.json").write_text("{")
    with pytest.raises(InputError, match=r"cut/state\.json: not what save_to_disk writes"):
        digest(cut)


def test_the_digest_is_that_of_the_content(tmp_path: Path) -> None:
    first, again = (put(tmp_path / name, [{"text": "a"}, {"text": "b"}]) for name in ("first", "again"))
    other = put(tmp_path / "other", [{"text": "a"}, {"text": "c"}])
    assert digest(first) == digest(again) != digest(other)
    info = Path(again) / "dataset_info.json"
    info.write_text(info.read_text().replace('"dtype": "string"', '"dtype": "large_string"'))
    assert digest(first) != digest(again)


def test_a_corpus_stage_reads_blocks_of_a_split(tmp_path: Path) -> None:
    features = Features(title=Value("string"), body=Value("string"), photo=Image())
    rows: Rows = [{"title": str(n), "body": "诗", "photo": None} for n in range(3)]
    folder = put(tmp_path / "own", rows, features)
    cfg = Corpus(files=[folder], template="{title}: {body}", max_line_bytes=100)
    (part,) = shards.parts([folder], [absolute(folder)])
    (block,) = shards.blocks(part, cfg)
    found, _, _ = shards.documents(block, cfg, [])
    read = [one for one in found if isinstance(one, Document)]
    assert [one.text for one in read] == ["0: 诗", "1: 诗", "2: 诗"]
    assert read[2].record == {"title": "2", "body": "诗"}


@pytest.mark.ray
def test_a_corpus_of_a_split_through_ray(ray_cluster: object, tmp_path: Path) -> None:
    folder = put_splits(tmp_path / "own", train=[{"text": f"第{n}首"} for n in range(5)], test=[{"text": "x"}])
    cfg = Config(corpus=Corpus(files=[f"{folder}:train"]), run=Run(name="r", dir=str(tmp_path)))
    assert corpus.main(cfg)["kept"] == 5
    ledger = pq.read_table(cfg.run.folder / "corpus" / "ledger-00000.parquet")
    assert ledger["characters"].to_pylist() == [3] * 5 and set(ledger["file"].to_pylist()) == {f"{folder}:train"}


def test_the_library_is_loaded_only_for_a_dataset(tmp_path: Path) -> None:
    (tmp_path / "x.jsonl").write_text('{"text": "a"}\n')
    code = f"from trainers.files.readers import *; list(read_records(expand(['{tmp_path}/*.jsonl'])[0]));"
    code += "import sys; print('datasets' in sys.modules)"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ended.stdout == "False\n"


PLANTED = [  # promise, file, right code, bug, test (None: this whole file)
    (
        "a split that is missing is named",
        "trainers/files/datasets.py",
        "    if split in splits:",
        "    if split:",
        "test_a_split_that_is_missing_or_not_said_is_named",
    ),
    (
        "no test split is read along unasked",
        "trainers/files/datasets.py",
        "if not split and len(splits) == 1:",
        "if not split and splits:",
        "test_a_split_that_is_missing_or_not_said_is_named",
    ),
    (
        "what a table fills up with null is missing",
        "trainers/files/datasets.py",
        "for name, inner in value.items() if inner is not None}",
        "for name, inner in value.items()}",
        "test_queries_with_checks",
    ),
    (
        "bytes that nobody needs are left out",
        "trainers/files/datasets.py",
        "data = data.remove_columns(list(bytes_in)) if bytes_in else data",
        "",
        "test_bytes_are_refused_by_column_unless_nobody_needs_them",
    ),
    (
        "the digest is that of the content",
        "trainers/files/datasets.py",
        "[features, *map(sha256, files)]",
        "[features]",
        "test_the_digest_is_that_of_the_content",
    ),
    (
        "a row is bounded",
        "trainers/files/readers.py",
        "    if len(content) > limit:",
        "    if limit < 0:",
        "test_a_row_is_bounded_and_its_numbers_are_json",
    ),
    (
        "a broken row is named by its number",
        "trainers/files/readers.py",
        'return f"{path} row {line}" if is_dataset(path) else f"{path}:{line}"',
        'return f"{path}:{line}"',
        "test_a_broken_row_is_named",
    ),
]
