import gzip
import json
import re
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from conf.schema import InputError
from trainers.readers import Source, expand, read_records, read_sources

GOOD = b'{"text": "a"}\n'


def put(folder: Path, name: str, content: bytes) -> Path:
    path = folder / name
    path.write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    return path


@pytest.mark.parametrize("name", ["x.jsonl", "x.jsonl.gz"])
def test_json_lines(tmp_path: Path, name: str) -> None:
    path = put(tmp_path, name, '\ufeff{"text": "春\\n"}\r\n\n{"text": "b", "n": [1, {"m": null}]}'.encode())
    assert list(read_records(path)) == [(1, {"text": "春\n"}), (3, {"text": "b", "n": [1, {"m": None}]})]
    assert [source.offset for source in read_sources(path)] == [0, 23]  # 3 of the mark, 17 of the object, \r\n, \n


def test_text_is_cut_at_blank_lines(tmp_path: Path) -> None:
    path = put(tmp_path, "x.txt", b"\n\none\ntwo\n \n\n\nthree\n")
    assert list(read_records(path)) == [(3, {"text": "one\ntwo"}), (8, {"text": "three"})]


def test_parquet(tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": ["春", "b"], "n": [1, None]}), tmp_path / "x.parquet")
    assert list(read_records(tmp_path / "x.parquet")) == [(1, {"text": "春", "n": 1}), (2, {"text": "b", "n": None})]


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (b'{"text": "a"', r"broken JSON: .* at character 13 of the line"),
        (b'{"text": "\xe6\x98"}', "invalid UTF-8 at byte 10 of the record"),
        (b"[1, 2]", "must be a JSON object, not an array"),
        (b'"a"', "not a string"),
        (b"null", "not null"),
        (b'{"a": 1, "a": 2}', "field 'a' stands twice"),
        (b'{"a": {"b": 1, "b": 1}}', "field 'b' stands twice"),
        (b'{"a": NaN}', "NaN is no JSON number"),
        (b'{"a": ' + b"9" * 5000 + b"}", "broken JSON: Exceeds the limit"),
        (b'{"a": "\\ud800"}', "half of a surrogate pair"),
        (b'{"a": ' + b"[" * 64 + b"]" * 64 + b"}", "nested more than 64 deep"),
        (b"[" * 100_000, "nested more than 64 deep"),
        (b'{"a": "' + b"x" * 1000 + b'"}', "the line has 1010 bytes, at most 1000 are allowed"),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, bad: bytes, reason: str) -> None:
    path = put(tmp_path, "x.jsonl", GOOD + bad + b"\n" + GOOD)
    limit = 10**6 if len(bad) > 2000 else 1000
    began = time.perf_counter()
    with pytest.raises(InputError, match=rf"x\.jsonl:2: .*{reason}.* \(byte 14\)$") as raised:
        list(read_records(path, limit))
    assert time.perf_counter() - began < 0.5 and "\n" not in str(raised.value)


def test_what_is_allowed_to_the_limit(tmp_path: Path) -> None:
    deep = b'{"a": "' + b"[" * 200 + b'", "b": ' + b"[" * 63 + b"]" * 63 + b"}"
    path = put(tmp_path, "x.jsonl", deep + b"\n")
    assert len(list(read_records(path, len(deep) + 1))) == 1
    assert list(read_records(put(tmp_path, "y.jsonl", b'{"a": "\\ud83d\\ude00"}'))) == [(1, {"a": "😀"})]


def test_a_line_without_end_costs_no_memory(tmp_path: Path) -> None:
    import tracemalloc

    path = put(tmp_path, "x.jsonl", GOOD + b"x" * 50_000_000 + b"\n" + GOOD)
    tracemalloc.start()
    sources = list(read_sources(path, 2**20))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert [source.reason for source in sources] == ["", "the line has 50000001 bytes, at most 1048576 are allowed", ""]
    assert sources[2] == Source(3, 14 + 50_000_001, b'{"text": "a"}')
    assert peak < 8 * 2**20


@pytest.mark.parametrize("name", ["x.jsonl", "x.jsonl.gz", "x.txt", "x.parquet"])
def test_an_empty_file_is_an_error(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"")
    with pytest.raises(InputError, match=re.escape(f"{name}: is empty")):
        list(read_records(tmp_path / name))


def test_a_file_of_blanks_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds no record"):
        list(read_records(put(tmp_path, "x.jsonl", b"\n \n")))


def test_a_cut_or_damaged_gzip_is_named_wherever_it_is_cut(tmp_path: Path) -> None:
    whole = gzip.compress(b"".join(b'{"text": "%d"}\n' % n for n in range(500)))
    for cut in (5, len(whole) // 2, len(whole) - 1):
        path = tmp_path / "x.jsonl.gz"
        path.write_bytes(whole[:cut])
        with pytest.raises(InputError, match=r"x\.jsonl\.gz:\d+: damaged or cut gzip after byte \d+"):
            list(read_records(path))


def test_a_gzip_bomb_is_stopped(tmp_path: Path) -> None:
    path = put(tmp_path, "x.jsonl.gz", GOOD + b"\n" * 8_000_000)
    with pytest.raises(InputError, match="grows more than 200-fold"):
        list(read_records(path))
    path = put(tmp_path, "y.jsonl.gz", GOOD + b" " * 8_000_000)
    with pytest.raises(InputError, match=r"y\.jsonl\.gz:2: the gzip grows more than 200-fold"):
        list(read_records(path))


def test_a_damaged_parquet_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    pq.write_table(pa.table({"text": ["春"] * 100}), path)
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(InputError, match=r"x\.parquet: damaged Parquet file after row 0"):
        list(read_records(path))


def test_files_are_found_or_named(tmp_path: Path) -> None:
    for name in ("b.jsonl", "a.jsonl", "c.txt"):
        put(tmp_path, name, GOOD)
    found: Any = [Path(path).name for path in expand([f"{tmp_path}/c.txt", f"{tmp_path}/*.jsonl", f"{tmp_path}/a.*"])]
    assert found == ["c.txt", "a.jsonl", "b.jsonl"]
    with pytest.raises(InputError, match=r"corpus\.files: .*no\.jsonl: no such file"):
        expand([f"{tmp_path}/no.jsonl"])
    with pytest.raises(InputError, match=r"\*\.parquet: no file matches"):
        expand([f"{tmp_path}/*.parquet"])
    (tmp_path / "x.csv").write_text("a")
    with pytest.raises(InputError, match=r"x\.csv: unknown kind of file; it must end in \.txt, "):
        expand([f"{tmp_path}/x.csv"])


def test_records_are_plain_json(tmp_path: Path) -> None:
    path = put(tmp_path, "x.jsonl", GOOD)
    assert json.dumps(list(read_records(path))) == '[[1, {"text": "a"}]]'
