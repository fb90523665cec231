"""Parquet files as others write them."""

import random
from datetime import date
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from conf.errors import InputError
from trainers.files.readers import read_records, read_sources


def put(folder: Path, columns: dict[str, Any], **how: Any) -> Path:
    pq.write_table(pa.table(columns), folder / "x.parquet", **how)
    return folder / "x.parquet"


@pytest.mark.parametrize("kind", [pa.binary(), pa.large_binary(), pa.dictionary(pa.int32(), pa.string())])
def test_text_is_text_however_it_is_stored(tmp_path: Path, kind: Any) -> None:
    of = kind if pa.types.is_dictionary(kind) else pa.binary()
    values = ["春", "b"] if of is kind and pa.types.is_dictionary(kind) else ["春".encode(), b"b"]
    path = put(tmp_path, {"text": pa.array(values).cast(kind) if of is kind else pa.array(values, kind)})
    assert list(read_records(path, needed=["text"])) == [(1, {"text": "春"}), (2, {"text": "b"})]


def test_bytes_are_utf8_or_refused_with_the_row(tmp_path: Path) -> None:
    path = put(tmp_path, {"text": pa.array([b"a", b"\xff\xfe"])})
    good, bad = read_sources(path, needed=["text"])
    assert (good.content, bad.line, bad.reason) == (
        b'{"text": "a"}',
        2,
        "a field of bytes is no UTF-8 at byte 0 (invalid start byte)",
    )


def test_what_a_template_does_not_name_stands_in_nobodys_way(tmp_path: Path) -> None:
    table = {
        "text": ["a", "b"],
        "score": [1.5, float("nan")],
        "image": [b"\xff" * 5000] * 2,
        "day": [date(2020, 1, 1)] * 2,
        "list": [[1.0, float("nan")], []],
    }
    path = put(tmp_path, table)
    first, second = read_records(path, 200, needed=["text"])
    assert first == (1, {"text": "a", "score": 1.5, "day": "2020-01-01", "list": [1.0, None]})
    assert second == (2, {"text": "b", "score": None, "day": "2020-01-01", "list": []})
    kept = [source.content for source in read_sources(path, needed=["text"], keep=["score"])]
    assert kept == [b'{"text": "a", "score": 1.5}', b'{"text": "b", "score": null}']


def test_a_date_is_no_text_as_a_number_is_none(tmp_path: Path) -> None:
    (source,) = read_sources(put(tmp_path, {"text": [date(2020, 1, 1)]}), needed=["text"])
    assert source.reason == "field 'text' must be a string, not date32[day]"


def test_an_infinity_is_refused(tmp_path: Path) -> None:
    path = put(tmp_path, {"text": ["a", "b"], "score": [float("inf"), 1.0]})
    assert [source.reason for source in read_sources(path, needed=["text"])] == [
        "field 'score' is infinite, which is no JSON number",
        "",
    ]
    (tmp_path / "x.jsonl").write_text('{"text": "a", "score": 1e999}\n')
    with pytest.raises(InputError, match=r"x\.jsonl:1: the number 1e999 is larger than any"):
        list(read_records(tmp_path / "x.jsonl"))


def test_two_columns_of_one_name_are_refused(tmp_path: Path) -> None:
    table = pa.Table.from_arrays([pa.array(["a"]), pa.array(["b"])], names=["text", "text"])
    pq.write_table(table, tmp_path / "x.parquet")
    with pytest.raises(InputError, match=r"x\.parquet: two columns 'text'; rename one"):
        list(read_records(tmp_path / "x.parquet"))


def test_a_flipped_bit_is_found(tmp_path: Path) -> None:
    chance = random.Random(0)
    texts = ["".join(chance.choices("abcdefgh", k=200)) for _ in range(50)]
    how = {"write_page_checksum": True, "compression": "none", "use_dictionary": False, "write_statistics": False}
    path = put(tmp_path, {"text": texts}, **how)
    content = bytearray(path.read_bytes())
    content[content.index(texts[20].encode()) + 7] ^= 1
    path.write_bytes(content)
    with pytest.raises(InputError, match="damaged Parquet file"):
        list(read_records(path))


PLANTED = [  # promise, file, right code, bug, test (None: this whole file)
    (
        "checksums are looked at",
        "trainers/files/tables.py",
        ", page_checksum_verification=True",
        "",
        "test_a_flipped_bit_is_found",
    ),
    ("bytes are decoded", "trainers/files/tables.py", "return value.decode()", "return str(value)", None),
    ("a missing number is null", "trainers/files/tables.py", "if math.isnan(value):", "if False:", None),
    ("no column hides another", "trainers/files/tables.py", "if schema.names.count(name) > 1", "if False", None),
    (
        "a date is refused where text is asked for",
        "trainers/files/tables.py",
        "            if unfit:",
        "            if False:",
        None,
    ),
    (
        "JSON has no infinity",
        "trainers/files/objects.py",
        "    if math.isinf(number := float(digits)):",
        "    if math.isnan(number := float(digits)):",
        None,
    ),
    ("only what is kept is read", "trainers/files/tables.py", "if not keep or name in keep or", "if True or", None),
]
