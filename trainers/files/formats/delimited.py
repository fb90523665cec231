"""Tables of text with a line for the names of the columns: .csv (RFC 4180, by comma, semicolon or tab) and .tsv.

A field of a .csv that begins with a quotation mark may hold line breaks; in a .tsv (IANA text/tab-separated-values)
nothing is quoted.
"""

import csv
import json
import re
from collections.abc import Iterator
from pathlib import Path

from conf.errors import InputError
from trainers.files.encodings import DETECT, LOOKED_AT, detected
from trainers.files.formats.packed import bounded
from trainers.files.streams import Source, lines

TAB = "\t"
_BETWEEN = (",", ";", TAB, "|")
_INSIDE = re.compile(rb'[^"]*+(?:""[^"]*+)*+("|\Z)')


def rows(path: str | Path, limit: int, encoding: str, between: str = "") -> Iterator[Source]:
    """A JSON object for each row. `between`: what parts the fields; "" looks for it in the first line.

    Raises `InputError` for a file whose first line is no row of names.
    """
    csv.field_size_limit(max(limit, csv.field_size_limit()))
    if encoding == DETECT:
        with bounded(path) as file:
            encoding = detected(file.read(LOOKED_AT))
    encoding = "utf-8" if encoding.startswith(("utf-8", "utf-16", "utf-32")) else encoding  # as the lines come
    quoted = between != TAB
    names: list[str] = []
    for source in _records(path, limit, encoding, between, quoted=quoted):
        where = f"{path}:{source.line}"
        fields: list[str] = []
        reason = source.reason
        try:
            text = source.content.decode(encoding)
            between = between or max(_BETWEEN, key=text.count)
            fields = _fields(text, between) if quoted else text.split(TAB)
        except UnicodeDecodeError as error:
            reason = f"invalid {encoding} at byte {error.start} of the row ({error.reason})"
        except csv.Error as error:
            reason = f"no row: {error}"
        if not names:
            names = [name.strip() for name in fields]
            if reason or not any(names):
                raise InputError(f"{where}: the first line must name the columns" + (f": {reason}" if reason else ""))
            if twice := next((name for name in names if names.count(name) > 1), None):
                raise InputError(f"{where}: two columns {twice!r}; rename one")
            continue
        if not reason and len(fields) != len(names):
            reason = f"the row has {len(fields)} fields, the first line names {len(names)}"
        record = dict(zip(names, fields, strict=False))
        content = b"" if reason else json.dumps(record, ensure_ascii=False).encode(errors="surrogatepass")
        yield Source(source.line, source.offset, content, reason)


def _fields(text: str, between: str) -> list[str]:
    (found,) = csv.reader([text], delimiter=between, strict=True)
    return found


def _records(path: str | Path, limit: int, encoding: str, between: str, *, quoted: bool) -> Iterator[Source]:
    """The lines, those together that a quoted field joins; blank ones between records are none."""
    held: list[bytes] = []
    first, size, opens = Source(0, 0, b""), 0, False
    for line in lines(path, limit, encoding):
        if not held:
            if not line.reason and not line.content.strip():
                continue
            first, size = line, 0
            between = between or max(_BETWEEN, key=lambda mark: line.content.count(mark.encode()))
        if line.reason:
            yield Source(first.line, first.offset, b"", line.reason)
            held, opens = [], False
            continue
        size += len(line.content) + 1
        opens = quoted and _opens(line.content, between.encode(), opens)
        held.append(line.content if size <= limit else b"")
        if not opens:
            reason = f"the row has more than {limit} bytes, of which {limit} are allowed" if size > limit else ""
            yield Source(first.line, first.offset, b"" if reason else b"\n".join(held), reason)
            held = []
    if held:
        yield Source(first.line, first.offset, b"", "a quotation mark opens here that the file never closes")


def _opens(line: bytes, between: bytes, inside: bool) -> bool:
    """Whether a field is still within its quotation marks at the end of a line that began `inside` of one or not."""
    if b'"' not in line:
        return inside
    at = 0
    if inside:
        found = _INSIDE.match(line)
        assert found is not None
        if not found[1]:
            return True
        at = found.end()
    while True:
        # the next field that begins with a mark
        start = 0 if at == 0 and line.startswith(b'"') else line.find(between + b'"', at)
        if start < 0:
            return False
        found = _INSIDE.match(
            line, start + (0 if at == 0 and start == 0 and line.startswith(b'"') else len(between)) + 1
        )
        assert found is not None
        if not found[1]:
            return True
        at = found.end()
