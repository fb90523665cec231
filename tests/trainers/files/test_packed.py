"""Packed files and tables of text: what was cut, damaged or is a bomb is refused by name, a row that is none too."""

from pathlib import Path

import pyarrow as pa
import pytest

from conf.errors import InputError
from tests.trainers.files.inputs import PACKERS, put
from trainers.files.formats import delimited
from trainers.files.readers import read_records, read_sources


@pytest.mark.parametrize("suffix", PACKERS)
@pytest.mark.parametrize("name", ["x.jsonl", "x.txt", "x.json", "x.csv"])
def test_a_packed_file_is_what_it_was(tmp_path: Path, name: str, suffix: str) -> None:
    content = {
        "x.jsonl": b'{"text": "a"}\n{"text": "b"}\n',
        "x.txt": b"a\n\nb\n",
        "x.json": b'[{"text": "a"}, {"text": "b"}]',
        "x.csv": b"text\na\nb\n",
    }[name]
    bare = list(read_sources(put(tmp_path, name, content)))
    assert list(read_sources(put(tmp_path, name + suffix, PACKERS[suffix](content)))) == bare
    half = len(content) // 2
    two = PACKERS[suffix](content[:half]) + PACKERS[suffix](content[half:])
    assert list(read_sources(put(tmp_path, name + suffix, two))) == bare
    with pytest.raises(InputError, match="is empty"):
        list(read_sources(put(tmp_path, name + suffix, b"")))


@pytest.mark.parametrize("suffix", PACKERS)
def test_a_packed_file_that_was_cut_or_damaged_is_named(tmp_path: Path, suffix: str) -> None:
    whole = PACKERS[suffix](b"".join(b'{"text": "%d"}\n' % n for n in range(5000)))
    for cut in (5, len(whole) // 2, len(whole) - 1):
        path = put(tmp_path, f"x.jsonl{suffix}", whole[:cut])
        with pytest.raises(InputError, match=rf"x\.jsonl\{suffix}:\d+: damaged or cut .* after byte \d+"):
            list(read_sources(path))
    path = put(tmp_path, f"x.jsonl{suffix}", whole + b"not packed")
    with pytest.raises(InputError, match=r":5001: damaged or cut"):
        list(read_sources(path))


@pytest.mark.parametrize("suffix", [".bz2", ".xz", ".zst"])
def test_a_bomb_is_stopped_before_it_grows(tmp_path: Path, suffix: str) -> None:
    import tracemalloc

    path = put(tmp_path, f"x.jsonl{suffix}", PACKERS[suffix](b'{"text": "a"}\n' + b" " * 30_000_000))
    tracemalloc.start()
    with pytest.raises(InputError, match=rf"x\.jsonl\{suffix}:2: the .* grows more than 200-fold"):
        list(read_sources(path, 2**20))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 16 * 2**20


def test_tables_of_text(tmp_path: Path) -> None:
    path = put(tmp_path, "x.csv", b'\xef\xbb\xbfid,text,n\r\n1,"a ""b""\r\nc, d",2\r\n\r\n2,5" pipe,\r\n')
    assert list(read_records(path)) == [
        (2, {"id": "1", "text": 'a "b"\nc, d', "n": "2"}),
        (5, {"id": "2", "text": '5" pipe', "n": ""}),
    ]
    assert [source.offset for source in read_sources(path)] == [14, 37]
    assert list(read_records(put(tmp_path, "y.csv", "a;text\n1;春\n".encode()))) == [(2, {"a": "1", "text": "春"})]
    quoted = put(tmp_path, "x.tsv", b'a\ttext\n1\t"as it is\n')
    assert list(read_records(quoted)) == [(2, {"a": "1", "text": '"as it is'})]


def test_a_row_that_is_none_is_named(tmp_path: Path) -> None:
    rows = b'text,n\na,1\nb\nc,1,2\n"d" e,1\nf,"g\ng,h\n'
    found = list(read_sources(put(tmp_path, "x.csv", rows)))
    assert [(one.line, one.offset, one.reason) for one in found] == [
        (2, 7, ""),
        (3, 11, "the row has 1 fields, the first line names 2"),
        (4, 13, "the row has 3 fields, the first line names 2"),
        (5, 19, "no row: ',' expected after '\"'"),
        (6, 27, "a quotation mark opens here that the file never closes"),
    ]
    with pytest.raises(InputError, match=r"y\.csv:1: two columns 'a'; rename one"):
        list(read_sources(put(tmp_path, "y.csv", b"a,a\n1,2\n")))
    long = b'text\n"' + b"x\n" * 1000 + b'"\nb\n'
    found = list(delimited.rows(put(tmp_path, "z.csv", long), 500, "utf-8"))
    assert [(one.line, bool(one.reason)) for one in found] == [(2, True), (1003, False)]


def test_arrow_files_and_streams(tmp_path: Path) -> None:
    table = pa.table({"text": ["春", "b"], "n": [1, None]})
    for writer in (pa.ipc.new_file, pa.ipc.new_stream):
        with pa.OSFile(str(tmp_path / "x.arrow"), "wb") as target, writer(target, table.schema) as stream:
            stream.write_table(table)
        records = list(read_records(tmp_path / "x.arrow"))
        assert records == [(1, {"text": "春", "n": 1}), (2, {"text": "b", "n": None})]
        whole = (tmp_path / "x.arrow").read_bytes()
        for cut in (8, 100, len(whole) - 8, len(whole) - 1):
            with pytest.raises(
                InputError, match=r"y\.arrow: (damaged Arrow file|the Arrow stream has no end; it was cut)"
            ):
                list(read_sources(put(tmp_path, "y.arrow", whole[:cut])))


PLANTED = [  # promise, file, right code, bug, test (None: this whole file)
    (
        "a packed file that was cut is not taken for a whole one",
        "trainers/files/formats/packed.py",
        'raise _Wrong("it ends before its end is marked")',
        "return 0",
        "test_a_packed_file_that_was_cut_or_damaged_is_named",
    ),
    (
        "a member of a packed file after the first is read",
        "trainers/files/formats/packed.py",
        "self._one = self._new()\n            elif",
        "return 0\n            elif",
        "test_a_packed_file_is_what_it_was",
    ),
    (
        "a bomb grows no buffer",
        "trainers/files/formats/packed.py",
        "self._one.decompress(rest, len(buffer))",
        "self._one.decompress(rest)",
        "test_a_bomb_is_stopped_before_it_grows",
    ),
    (
        "a row with a field too many is named",
        "trainers/files/formats/delimited.py",
        "if not reason and len(fields) != len(names):",
        "if not reason and len(fields) < len(names):",
        "test_a_row_that_is_none_is_named",
    ),
    (
        "a quotation mark within a field opens none",
        "trainers/files/formats/delimited.py",
        "        if start < 0:\n            return False",
        "        if start < 0:\n            return line.count(b'\"') % 2 == 1",
        "test_tables_of_text",
    ),
    (
        "an Arrow stream that was cut is not taken for a whole one",
        "trainers/files/tables.py",
        "if ends != _STREAM_END:",
        "if False:",
        "test_arrow_files_and_streams",
    ),
]
