"""Records from files that nobody has checked: .txt, .jsonl, .parquet, plain text also with .gz.

Everything is bounded (bytes of a line, depth of nesting, growth of a gzip), every text is strict UTF-8, and what is
wrong is said with file, line and byte offset. A general JSON reader does none of this: deep nesting alone fells one.
"""

import gzip
import json
import re
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from glob import glob
from pathlib import Path
from typing import Any, BinaryIO, cast

import pyarrow as pa
import pyarrow.parquet as pq

from conf.schema import InputError

KINDS = (".txt", ".txt.gz", ".jsonl", ".jsonl.gz", ".parquet")
MAX_LINE_BYTES = 8 * 2**20
MAX_DEPTH = 64  # arrays and objects within each other
MAX_RATIO = 200  # a gzip that grows more than this is a bomb, or no text
RATIO_FROM = 4 * 2**20  # bytes; small files of blanks compress better than any text
_BATCH = 1024  # rows of a Parquet file decoded at a time
_BRACKET = re.compile(rb'"(?:[^"\\]|\\.)*"|[\[{]|[\]}]', re.DOTALL)
_GZIP_ERRORS = (EOFError, gzip.BadGzipFile, zlib.error)


@dataclass(frozen=True)
class Source:
    """A record as it lies in its file, not yet understood; or, when `reason` is set, why there is none."""

    line: int  # the first is 1; in a Parquet file the row
    offset: int  # byte at which it begins, after decompression; 0 in a Parquet file
    content: bytes  # a JSON object, or the text of a .txt document
    reason: str = ""


class BadRecord(ValueError):
    """One record cannot be used; the text says why. The caller knows where it stands."""


def expand(patterns: Sequence[str], knob: str = "corpus.files") -> list[str]:
    """The files that `patterns` name, in the order given, each glob's sorted; none twice. Raises `InputError`."""
    found: dict[str, None] = {}
    for pattern in patterns:
        matches = [pattern] if Path(pattern).is_file() else sorted(glob(pattern, recursive=True))
        files = [match for match in matches if Path(match).is_file()]
        if not files:
            what = "no file matches" if any(mark in pattern for mark in "*?[") else "no such file"
            raise InputError(f"{knob}: {pattern}: {what}")
        found |= dict.fromkeys(files)
    for path in found:
        _kind(path)
    return list(found)


def read_records(path: str | Path, max_line_bytes: int = MAX_LINE_BYTES) -> Iterator[tuple[int, dict[str, Any]]]:
    """(line, record) of a file, in order. The first thing wrong raises `InputError` "file:line: ..."."""
    for source in read_sources(path, max_line_bytes):
        try:
            if source.reason:
                raise BadRecord(source.reason)
            yield source.line, parse(path, source.content)
        except BadRecord as error:
            raise InputError(place(path, source.line, source.offset, str(error))) from None


def place(path: str | Path, line: int, offset: int, reason: str) -> str:
    """'data/x.jsonl:17: no field "text" (byte 4711)'."""
    return f"{path}:{line}: {reason}" + ("" if _kind(path) == ".parquet" else f" (byte {offset})")


def read_sources(path: str | Path, max_line_bytes: int = MAX_LINE_BYTES) -> Iterator[Source]:
    """The records of a file as bytes, those too long as a `reason`. What ails the file raises `InputError`."""
    kind, some = _kind(path), False
    try:
        if kind == ".parquet":
            sources = _rows(path, max_line_bytes)
        elif kind.startswith(".txt"):
            sources = _paragraphs(_lines(path, max_line_bytes), max_line_bytes)
        else:
            sources = (source for source in _lines(path, max_line_bytes) if source.reason or source.content.strip())
        for source in sources:
            some = True
            yield source
    except OSError as error:
        raise InputError(f"{path}: {error.strerror or error}") from None
    if not some:
        raise InputError(f"{path}: {'holds no record' if Path(path).stat().st_size else 'is empty'}")


def parse(path: str | Path, content: bytes) -> dict[str, Any]:
    """The record in a `Source`: a JSON object's fields, or {"text": ...} of a .txt file. Raises `BadRecord`."""
    try:
        text = content.decode()
    except UnicodeDecodeError as error:
        raise BadRecord(f"invalid UTF-8 at byte {error.start} of the record ({error.reason})") from None
    if _kind(path).startswith(".txt"):
        return {"text": text}
    _check_depth(content)
    try:
        record = json.loads(text, object_pairs_hook=_unique, parse_constant=_refuse)
    except json.JSONDecodeError as error:
        raise BadRecord(f"broken JSON: {error.msg} at character {error.pos + 1} of the line") from None
    except BadRecord:
        raise
    except ValueError as error:  # a number of too many digits
        raise BadRecord(f"broken JSON: {error}") from None
    if not isinstance(record, dict):
        raise BadRecord(f"a record must be a JSON object, not {_json_name(record)}")
    if b"\\u" in content and re.search("[\ud800-\udfff]", json.dumps(record, ensure_ascii=False)):
        raise BadRecord("a string holds half of a surrogate pair (\\ud800 to \\udfff)")
    return record


def _kind(path: str | Path) -> str:
    for kind in sorted(KINDS, key=len, reverse=True):
        if str(path).endswith(kind):
            return kind
    raise InputError(f"{path}: unknown kind of file; it must end in {', '.join(KINDS)}")


def _lines(path: str | Path, limit: int) -> Iterator[Source]:
    with open(path, "rb") as raw:
        zipped = str(path).endswith(".gz")
        # a gzip is read as any other stream, under a bound on how far it may grow
        stream = cast(BinaryIO, gzip.GzipFile(fileobj=raw)) if zipped else raw
        allowed = max(RATIO_FROM, MAX_RATIO * Path(path).stat().st_size)
        number, offset = 0, 0
        while True:
            try:
                content = stream.readline(limit + 1)
                length = len(content)
                too_long = length > limit and not content.endswith(b"\n")
                while too_long and (rest := stream.readline(limit)):
                    length += len(rest)
                    if rest.endswith(b"\n") or (zipped and offset + length > allowed):
                        break
            except _GZIP_ERRORS as error:
                raise InputError(f"{path}:{number + 1}: damaged or cut gzip after byte {offset} ({error})") from None
            if not content:
                return
            number += 1
            if zipped and offset + length > allowed:
                raise InputError(f"{path}:{number}: the gzip grows more than {MAX_RATIO}-fold; unpack it to use it")
            if too_long:
                yield Source(number, offset, b"", f"the line has {length} bytes, at most {limit} are allowed")
            else:
                start = content.removeprefix(b"\xef\xbb\xbf") if number == 1 else content
                yield Source(number, offset, start.rstrip(b"\r\n"))
            offset += length


def _paragraphs(lines: Iterator[Source], limit: int) -> Iterator[Source]:
    """Documents of a .txt file: runs of lines between blank ones."""
    held: list[Source] = []
    size = 0

    def document() -> Source:
        reasons = [line.reason for line in held if line.reason]
        if size > limit:
            reasons.append(f"the paragraph has more than {limit} bytes; put blank lines between documents")
        content = b"" if reasons else b"\n".join(line.content for line in held)
        return Source(held[0].line, held[0].offset, content, reasons[0] if reasons else "")

    for line in lines:
        if line.reason or line.content.strip():
            size += len(line.content) + 1
            # past the limit only the line's place is kept: the paragraph is refused, whatever its length
            held.append(line if size <= limit else Source(line.line, line.offset, b"", line.reason))
        elif held:
            yield document()
            held, size = [], 0
    if held:
        yield document()


def _rows(path: str | Path, limit: int) -> Iterator[Source]:
    number = 0
    if not Path(path).stat().st_size:
        return
    try:
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=_BATCH):
                for row in batch.to_pylist():
                    number += 1
                    # dates, decimals and bytes have no JSON form: their text is what a template would show
                    content = json.dumps(row, ensure_ascii=False, default=str).encode(errors="surrogatepass")
                    long = len(content) > limit
                    reason = f"the row has {len(content)} bytes, at most {limit} are allowed" if long else ""
                    yield Source(number, 0, b"" if long else content, reason)
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"{path}: damaged Parquet file after row {number} ({reason})") from None


def _check_depth(content: bytes) -> None:
    if content.count(b"[") + content.count(b"{") <= MAX_DEPTH:
        return
    depth = 0
    for match in _BRACKET.finditer(content):
        mark = match[0][:1]
        depth += (mark in b"[{") - (mark in b"]}")
        if depth > MAX_DEPTH:
            raise BadRecord(f"nested more than {MAX_DEPTH} deep")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    record = dict(pairs)
    if len(record) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise BadRecord(f"field {twice!r} stands twice in one object")
    return record


def _refuse(word: str) -> None:
    raise BadRecord(f"broken JSON: {word} is no JSON number")


def _json_name(value: object) -> str:
    names = {
        list: "an array",
        str: "a string",
        bool: "a boolean",
        int: "a number",
        float: "a number",
        type(None): "null",
    }
    return names[type(value)]
