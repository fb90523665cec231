import gzip
import json
import re
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from conf.errors import InputError
from conf.knobs.text import Txt
from trainers.files import streams
from trainers.files.kinds import Form
from trainers.files.readers import expand, read_records, read_sources
from trainers.files.streams import Source

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
    assert list(read_records(path, form=Form(txt=Txt.paragraph))) == [(3, {"text": "one\ntwo"}), (8, {"text": "three"})]


@pytest.mark.parametrize("name", ["x.txt", "x.txt.gz"])
def test_a_carriage_return_ends_a_line_of_text(tmp_path: Path, name: str) -> None:
    content = b"one\rtwo\r\rthree\r\n\r\n\nfour" + b"x" * 9000 + b"\r\r\nfive"
    path = put(tmp_path, name, content)
    found = list(read_sources(path, form=Form(txt=Txt.paragraph)))
    assert [(one.line, one.content[:8]) for one in found] == [
        (1, b"one\ntwo"),
        (4, b"three"),
        (7, b"fourxxxx"),
        (9, b"five"),
    ]
    assert [content[one.offset : one.offset + 3] for one in found] == [b"one", b"thr", b"fou", b"fiv"]


@pytest.mark.parametrize("name", ["x.txt", "x.txt.gz"])
def test_a_text_file_is_one_document_unless_it_is_to_be_cut(tmp_path: Path, name: str) -> None:
    path = put(tmp_path, name, "\ufeff\n\n# 题\n\none\r\n\n\ntwo\n\n".encode())
    assert list(read_records(path)) == [(1, {"text": "# 题\n\none\r\n\n\ntwo"})]
    assert [source.offset for source in read_sources(path)] == [0]
    with pytest.raises(InputError, match="holds no record"):
        list(read_records(put(tmp_path, f"blank-{name}", b" \n\n\t\n")))


def test_a_text_file_that_is_too_long_for_one_document_costs_no_memory_and_is_told_how(tmp_path: Path) -> None:
    import tracemalloc

    path = put(tmp_path, "x.txt", b"line of text\n\n" * 2_000_000)
    tracemalloc.start()
    (source,) = read_sources(path, 2**20)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert (source.line, source.content, peak < 4 * 2**20) == (1, b"", True)
    assert source.reason == (
        "as one document the file has 28000000 bytes, at most 1048576 are allowed; corpus.txt=paragraph cuts it at "
        "blank lines, corpus.max_line_bytes allows more"
    )


ARRAY = """\ufeff
[ {"text": "a, [b]"},
  {"text": "\\"]}春",
   "n": [1, {"m": []}]}
 ,{"text": "c"} ]
"""


@pytest.mark.parametrize("name", ["x.json", "x.json.gz"])
def test_a_file_that_is_one_array(tmp_path: Path, name: str) -> None:
    path = put(tmp_path, name, ARRAY.encode())
    assert list(read_records(path)) == [
        (2, {"text": "a, [b]"}),
        (3, {"text": '"]}春', "n": [1, {"m": []}]}),
        (5, {"text": "c"}),
    ]
    content = ARRAY.encode()
    assert [content[source.offset : source.offset + 8] for source in read_sources(path)] == [b'{"text":'] * 3


@pytest.mark.parametrize("chunk", [1, 2, 3, 7])
def test_an_array_is_the_same_however_it_is_cut_into_chunks(
    tmp_path: Path, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = put(tmp_path, "x.json", ARRAY.removeprefix("\ufeff").encode())
    together = list(read_sources(path))
    monkeypatch.setattr(streams, "_CHUNK", chunk)
    assert list(streams.elements(path, 1000)) == together


def test_json_lines_in_a_json_file(tmp_path: Path) -> None:
    assert list(read_records(put(tmp_path, "x.json", GOOD * 2))) == [(1, {"text": "a"}), (2, {"text": "a"})]
    with pytest.raises(
        InputError, match=r"x\.json:1: broken JSON: .*; a \.json file is one array of records, or has a"
    ):
        list(read_records(put(tmp_path, "x.json", b'{\n "data": []\n}\n')))
    for content in (b'[{"text": "a"}]\n', b"[\n{}]"):
        with pytest.raises(InputError, match=r"x\.jsonl:1: .*; a file that is one array must end in \.json \(byte 0\)"):
            list(read_records(put(tmp_path, "x.jsonl", content)))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'[{"a": 1}\n,\n{"a": ]', r"x\.json:3: the file ends within its array \(byte 19\); it was cut$"),
        (
            b'[{"a": 1}\n,\n{"a": }]',
            r"x\.json:3: broken JSON: Expecting value at character 7 of the record \(byte 12\)",
        ),
        (b'[{"a": "x]', r"x\.json:1: the file ends within its array"),
        (b'[{"a": 1},]', r"x\.json:1: broken JSON array: an element is missing before this comma or bracket"),
        (b'[{"a": 1}]\n[]', r"x\.json:2: broken JSON array: there is more after the array \(byte 11\)"),
        (b'[{"a": 1}]\nx', r"x\.json:2: broken JSON array: there is more after the array"),
        (b'[{"a": 1}]]', r"x\.json:1: broken JSON array: more brackets are closed than were opened"),
        (b"[1]", r"x\.json:1: a record must be a JSON object, not a number \(byte 1\)"),
        (b"[]", r"x\.json: holds no record"),
        (b'[{"a": ' + b"[" * 64 + b"]" * 64 + b"}]", "nested more than 64 deep"),
        (b'[{"a": "' + b"x" * 2000 + b'"}]', "x.json:1: the element has 2009 bytes, at most 1000 are allowed"),
    ],
)
def test_a_broken_array_is_named(tmp_path: Path, content: bytes, message: str) -> None:
    with pytest.raises(InputError, match=message):
        list(read_records(put(tmp_path, "x.json", content), 1000))


def test_a_long_array_costs_no_memory(tmp_path: Path) -> None:
    import tracemalloc

    path = put(tmp_path, "x.json", b"[" + b'{"text": "a"}, ' * 50_000 + b'{"text": "' + b"x" * 20_000_000 + b'"}]')
    tracemalloc.start()
    last = {}
    for number, source in enumerate(read_sources(path, 2**20)):
        last = {"number": number, "reason": source.reason}
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert last == {"number": 50_000, "reason": "the element has 20000012 bytes, at most 1048576 are allowed"}
    assert peak < 8 * 2**20


def test_parquet(tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": ["春", "b"], "n": [1, None]}), tmp_path / "x.parquet")
    assert list(read_records(tmp_path / "x.parquet")) == [(1, {"text": "春", "n": 1}), (2, {"text": "b", "n": None})]


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (b'{"text": "a"', r"broken JSON: .* at character 13 of the record"),
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
    began = time.thread_time()
    with pytest.raises(InputError, match=rf"x\.jsonl:2: .*{reason}.* \(byte 14\)$") as raised:
        list(read_records(path, limit))
    assert time.thread_time() - began < 0.5 and "\n" not in str(raised.value)


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


@pytest.mark.slow
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
    (tmp_path / "x.bin").write_text("a")
    with pytest.raises(InputError, match=r"x\.bin: unknown kind of file; it must end in \.txt, "):
        expand([f"{tmp_path}/x.bin"])


def test_records_are_plain_json(tmp_path: Path) -> None:
    path = put(tmp_path, "x.jsonl", GOOD)
    assert json.dumps(list(read_records(path))) == '[[1, {"text": "a"}]]'


PLANTED = [  # promise, file, right code, bug, test (None: this whole file)
    (
        "a carriage return ends a line",
        "trainers/files/streams.py",
        "lines(path, limit, encoding, returns=True)",
        "lines(path, limit, encoding)",
        "test_a_carriage_return_ends_a_line_of_text",
    ),
    (
        "a bad line is named by its number",
        "trainers/files/readers.py",
        'else f"{path}:{line}"',
        'else f"{path}:{line + 1}"',
        None,
    ),
    (
        "a text file is not cut at its blank lines unasked",
        "trainers/files/readers.py",
        "(whole if asked.form.txt is Txt.file else paragraphs)",
        "(paragraphs)",
        "test_a_text_file_is_one_document_unless_it_is_to_be_cut",
    ),
    (
        "a text file of any length costs no more memory than its limit",
        "trainers/files/streams.py",
        "                if size and size <= limit:",
        "                if size:",
        "test_a_text_file_that_is_too_long_for_one_document_costs_no_memory_and_is_told_how",
    ),
    (
        "a bracket within a string ends no element",
        "trainers/files/streams.py",
        "(_WITHIN if self._string else _OUTSIDE)",
        "_OUTSIDE",
        "test_a_file_that_is_one_array",
    ),
    (
        "an escape at the end of a chunk is kept in mind",
        "trainers/files/streams.py",
        "self._escaped = place == len(chunk)",
        "self._escaped = False",
        "test_an_array_is_the_same_however_it_is_cut_into_chunks",
    ),
    (
        "an array that was cut is not taken for a whole one",
        "trainers/files/streams.py",
        "    if not scan.closed:",
        "    if False:",
        "test_a_broken_array_is_named",
    ),
    (
        "an element of any length costs no more memory than its limit",
        "trainers/files/streams.py",
        '            self._held = [b""]',
        "            self._held.append(content)",
        "test_a_long_array_costs_no_memory",
    ),
]
