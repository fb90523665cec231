"""Files as bytes to records as bytes: lines, paragraphs, whole texts and the elements of a JSON array, all bounded.

A record keeps its place, line and byte, and costs no more memory than its limit, however long it is in its file.
"""

import io
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from conf.errors import InputError
from trainers.files.formats.packed import DAMAGES, damaged, grown, opened

_SAID = 500  # characters of a reason; what a record holds may be in it
_CHUNK = 2**16
_BLANK = b" \t\r\n"
_MARK = b"\xef\xbb\xbf"  # a byte order mark
_OUTSIDE = re.compile(rb'["\[\]{},]')  # what matters between the strings of a JSON text, and within one
_ALONE = re.compile(rb"\r(?![\n]|\Z)")
_WITHIN = re.compile(rb'["\\]')


class BadRecord(ValueError):
    """One record cannot be used; the text says why, in a line. The caller knows where it stands."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason if len(reason) <= _SAID else f"{reason[:_SAID]}...")


class LeftOut(ValueError):
    """What a file holds beside documents, a redirect say: no fault, and told in the corpus's report."""

    def __init__(self, rule: str) -> None:
        super().__init__(rule[:_SAID])
        self.rule = rule[:_SAID]


@dataclass(frozen=True)
class Source:
    """A record as it lies in its file, not yet understood; or, when `reason` is set, why there is none."""

    line: int  # the first is 1; in a table the row
    offset: int  # byte at which it begins, after decompression; 0 in a table
    content: bytes  # a JSON object, or the text of a .txt document
    reason: str = ""


class _Returns(io.RawIOBase):
    """A stream in which a carriage return that stands alone ends a line too; every byte keeps its place."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream, self._ahead = stream, b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        chunk = self._ahead + self._stream.read(len(buffer) - len(self._ahead))
        self._ahead = self._stream.read(1) if chunk.endswith(b"\r") else b""
        if chunk.endswith(b"\r") and self._ahead != b"\n":
            chunk = chunk[:-1] + b"\n"
        chunk = _ALONE.sub(b"\n", chunk)
        buffer[: len(chunk)] = chunk
        return len(chunk)


def lines(path: str | Path, limit: int, encoding: str = "", *, returns: bool = False) -> Iterator[Source]:
    """Every line, blank ones too, without its end. `returns`: a carriage return alone ends one too."""
    with opened(path, encoding) as (raw, allowed):
        stream = io.BufferedReader(_Returns(raw)) if returns else raw
        number, offset = 0, 0
        while True:
            try:
                content = stream.readline(limit + 1)
                length = len(content)
                too_long = length > limit and not content.endswith(b"\n")
                while too_long and (rest := stream.readline(limit)):
                    length += len(rest)
                    if rest.endswith(b"\n") or offset + length > allowed:
                        break
            except DAMAGES as error:
                raise damaged(path, number + 1, offset, error) from None
            if not content:
                return
            number += 1
            if offset + length > allowed:
                raise grown(path, number)
            if too_long:
                yield Source(number, offset, b"", f"the line has {length} bytes, at most {limit} are allowed")
            else:
                start = content.removeprefix(_MARK) if number == 1 else content
                yield Source(number, offset, start.rstrip(b"\r\n"))
            offset += length


def whole(path: str | Path, limit: int, encoding: str = "", *, cuts: bool = True) -> Iterator[Source]:
    """The file as one record, unless it holds blanks alone. `cuts`: whether there is another way to read it."""
    held: list[bytes] = []
    size = offset = 0
    with opened(path, encoding) as (stream, allowed):
        try:
            while chunk := stream.read(_CHUNK):
                offset += len(chunk)
                if offset > allowed:
                    raise grown(path, 1)
                size += len(chunk) if held or chunk.strip() else 0
                if size and size <= limit:
                    held.append(chunk)
        except DAMAGES as error:
            raise damaged(path, 1, offset, error) from None
    if size > limit:
        advice = "corpus.txt=paragraph cuts it at blank lines, " if cuts else ""
        advice += "corpus.max_line_bytes allows more"
        yield Source(1, 0, b"", f"as one document the file has {offset} bytes, at most {limit} are allowed; {advice}")
    elif held:
        yield Source(1, 0, b"".join(held).removeprefix(_MARK).strip(b"\r\n"))


def paragraphs(path: str | Path, limit: int, encoding: str = "") -> Iterator[Source]:
    """Runs of lines between blank ones."""
    held: list[Source] = []
    size = 0

    def document() -> Source:
        reasons = [line.reason for line in held if line.reason]
        if size > limit:
            reasons.append(f"the paragraph has more than {limit} bytes; put blank lines between documents")
        content = b"" if reasons else b"\n".join(line.content for line in held)
        return Source(held[0].line, held[0].offset, content, reasons[0] if reasons else "")

    for line in lines(path, limit, encoding, returns=True):
        if line.reason or line.content.strip():
            size += len(line.content) + 1
            # past the limit only the line's place is kept: the paragraph is refused, whatever its length
            held.append(line if size <= limit else Source(line.line, line.offset, b"", line.reason))
        elif held:
            yield document()
            held, size = [], 0
    if held:
        yield document()


def is_array(path: str | Path, encoding: str = "") -> bool:
    """Whether a JSON file begins as an array does; `encoding`: that of the whole file, if not UTF-8.

    Raises `InputError` for a damaged packed file.
    """
    with opened(path, encoding, narrow=bool(encoding)) as (stream, _):
        try:
            start = stream.read(_CHUNK)
        except DAMAGES as error:
            raise damaged(path, 1, 0, error) from None
    return start.removeprefix(_MARK).lstrip(_BLANK).startswith(b"[")


def elements(path: str | Path, limit: int, encoding: str = "") -> Iterator[Source]:
    """The elements of the JSON array that is the whole file, in UTF-8 whatever its `encoding` is. Raises `InputError`
    where it is not one array."""
    scan = _Array(path, limit)
    with opened(path, encoding, narrow=bool(encoding)) as (stream, allowed):
        try:
            while chunk := stream.read(_CHUNK):
                if scan.offset + len(chunk) > allowed:
                    raise grown(path, scan.line)
                if not scan.offset and chunk.startswith(_MARK):
                    scan.offset, chunk = len(_MARK), chunk.removeprefix(_MARK)
                yield from scan.feed(chunk)
        except DAMAGES as error:
            raise damaged(path, scan.line, scan.offset, error) from None
    if not scan.closed:
        raise InputError(f"{path}:{scan.line}: the file ends within its array (byte {scan.offset}); it was cut")


class _Array:
    """Where the elements of one array end, told by its brackets and strings alone; what they hold is not looked at."""

    def __init__(self, path: str | Path, limit: int) -> None:
        self.path, self.limit = path, limit
        self.line, self.offset, self.closed = 1, 0, False
        self._depth, self._string, self._escaped = 0, False, False
        self._begin()
        self._after_comma = False

    def _begin(self) -> None:
        self._held: list[bytes] = []
        self._size, self._at = 0, (0, 0)  # bytes of the element; its line and byte

    def feed(self, chunk: bytes) -> Iterator[Source]:
        """The elements that end in the next bytes of the file."""
        place = 0
        if self._escaped and chunk:
            self._escaped, place = False, 1
        taken = 0  # bytes of the chunk that are dealt with
        while match := (_WITHIN if self._string else _OUTSIDE).search(chunk, place):
            mark, place = match[0], match.end()
            if self._string:
                if mark == b"\\":
                    self._escaped = place == len(chunk)
                    place += not self._escaped
                else:
                    self._string = False
                continue
            if mark == b'"':
                self._string = True
            elif mark in b"[{":
                self._depth += 1
                if self._depth == 1:
                    self._open(chunk[taken : match.start()], mark)
                    taken = place
            elif mark in b"]}" or self._depth == 1:  # a comma matters between elements only
                self._depth -= mark != b","
                if self._depth == 0 or mark == b",":
                    self._take(chunk[taken : match.start()])
                    yield from self._end(mark)
                    self._move(mark)
                    taken = place
                elif self._depth < 0:
                    raise self._wrong("more brackets are closed than were opened")
        self._take(chunk[taken:])

    def _open(self, before: bytes, mark: bytes) -> None:
        self._take(before)
        if self.closed or self._size or mark != b"[":
            raise self._wrong("there is more after the array" if self.closed else "the file is no array")
        self._move(mark)

    def _move(self, content: bytes) -> None:
        self.line, self.offset = self.line + content.count(b"\n"), self.offset + len(content)

    def _take(self, content: bytes) -> None:
        if not self._size:
            rest = content.lstrip(_BLANK)
            self._move(content[: len(content) - len(rest)])
            self._at, content = (self.line, self.offset), rest
        if content and self._depth == 0 and self.closed:
            raise self._wrong("there is more after the array")
        self._size += len(content)
        if self._size <= self.limit:
            self._held.append(content)
        else:
            self._held = [b""]
        self._move(content)

    def _end(self, mark: bytes) -> Iterator[Source]:
        content = b"".join(self._held).rstrip(_BLANK)
        if self._size > self.limit:
            told = f"the element has {self._size} bytes, at most {self.limit} are allowed"
            yield Source(*self._at, b"", told)
        elif content:
            yield Source(*self._at, content)
        elif mark == b"," or self._after_comma:
            raise self._wrong("an element is missing before this comma or bracket")
        self._after_comma, self.closed = mark == b",", mark != b","
        self._begin()

    def _wrong(self, what: str) -> InputError:
        return InputError(f"{self.path}:{self.line}: broken JSON array: {what} (byte {self.offset})")
