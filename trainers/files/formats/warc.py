"""Web archives (ISO 28500): the pages and texts of WARC files, and of the WET files that Common Crawl makes of them.

Read by ourselves, for FastWARC takes a file that was cut within a record for a whole one. What a crawl stores besides
(requests, redirects, pictures) is no fault: requests and notes are passed over, answers that are no text are left out
and counted by their reason.
"""

import json
import re
import zlib
from collections.abc import Iterator
from email.message import Message
from pathlib import Path

import brotli

from conf.errors import InputError
from trainers.files.formats.packed import Bounded, bounded
from trainers.files.streams import LeftOut, Source

HEADERS = 2**16  # bytes that the header lines of a record may have
_LINE = 2**13
_STEP = 2**16
_SKIPPED = ("warcinfo", "request", "metadata", "revisit", "continuation")
_TEXTS = ("text/html", "application/xhtml+xml", "text/plain", "")


def documents(path: str | Path, limit: int) -> Iterator[Source]:
    """A line of JSON ({"url", "type", "charset"}, or {"left": why it is no document}) and the payload of each record;
    the line of a `Source` is the number of its record. Raises `InputError` for what is no WARC file, or was cut."""
    with bounded(path) as file:
        while (headers := _headers(file, b"WARC/")) is not None:
            begun = file.read_so_far
            number, offset = file.record, begun - headers.size
            size = headers.get("content-length", "")
            if not re.fullmatch(r"\d{1,15}", size):
                raise InputError(f"{path}:{number}: Content-Length {size!r:.40} is no size (byte {offset})")
            end = begun + int(size)
            kind = headers.get("warc-type", "").lower()
            if kind not in _SKIPPED:
                yield _document(file, headers, kind, end, limit, Source(number, offset, b""))
            _skip(file, end)
            file.record += 1


class _Headers(dict[str, str]):
    """The header lines of a record by their names in lower case; the first of a name counts."""

    size = 0  # bytes


def _headers(file: Bounded, start: bytes, end: int = 2**63) -> _Headers | None:
    """Up to a blank line; None at the end of the file, or of the record that ends at `end`."""
    found, begun, name = _Headers(), file.read_so_far, ""
    line = file.readline(min(_LINE, end - begun))
    while line.strip() == b"" and line and start == b"WARC/":
        begun = file.read_so_far
        line = file.readline(_LINE)
    if not line:
        return None
    if not line.startswith(start):
        raise InputError(f"{file.path}:{file.record}: no record begins at byte {begun}; is it a WARC file?")
    found[""] = line.decode("latin-1").strip()
    while True:
        line = file.readline(min(_LINE, end - file.read_so_far))
        if not line.endswith(b"\n"):
            if len(line) == _LINE:
                _skip_line(file, begun)
                continue
            if file.read_so_far == end:
                break
            raise InputError(f"{file.path}:{file.record}: it ends within the headers of a record; it was cut")
        if file.read_so_far - begun > HEADERS:
            raise InputError(f"{file.path}:{file.record}: the headers have more than {HEADERS} bytes (byte {begun})")
        if not line.strip():
            break
        text = line.decode("utf-8", "replace").strip()
        if line[:1] in b" \t" and name:
            found[name] += f" {text}"
        else:
            name, _, value = text.partition(":")
            name = name.strip().lower()
            found.setdefault(name, value.strip())
    found.size = file.read_so_far - begun
    return found


def _skip_line(file: Bounded, begun: int) -> None:
    while (rest := file.readline(_LINE)) and not rest.endswith(b"\n"):
        if file.read_so_far - begun > HEADERS:
            raise InputError(f"{file.path}:{file.record}: the headers have more than {HEADERS} bytes (byte {begun})")


def _document(file: Bounded, headers: _Headers, kind: str, end: int, limit: int, place: Source) -> Source:
    head = {"url": headers.get("warc-target-uri", "").strip("<>")}
    kind_of = headers.get("content-type", "")
    inner: _Headers | None = None
    try:
        if kind == "response" and kind_of.lower().startswith("application/http"):
            inner = _headers(file, b"HTTP/", end)
            status = inner.get("", "").split(" ")[1:2] if inner else []
            if inner is None or status != ["200"]:
                raise LeftOut(f"status {status[0] if status else 'none'}")
            kind_of = inner.get("content-type", "")
        message = Message()
        message["content-type"] = kind_of or "text/html"
        if (media := message.get_content_type()) not in _TEXTS:
            raise LeftOut(f"type {media}")
        size = end - file.read_so_far
        if size > limit:
            return Source(place.line, place.offset, b"", f"the page has {size} bytes, at most {limit} are allowed")
        body = _unpacked(_exactly(file, size), inner or {}, limit)
    except LeftOut as error:
        return Source(place.line, place.offset, json.dumps({**head, "left": error.rule}).encode())
    except _TooLong:
        return Source(
            place.line, place.offset, b"", f"unpacked the page has more than {limit} bytes, which are allowed"
        )
    except InputError:
        raise  # of the file, not of this record
    except (zlib.error, brotli.error, ValueError) as error:
        return Source(place.line, place.offset, b"", f"the body of the answer is damaged ({error})")
    head |= {"type": "text" if media == "text/plain" else "html", "charset": str(message.get_param("charset") or "")}
    return Source(place.line, place.offset, json.dumps(head).encode() + b"\n" + body)


class _TooLong(Exception):
    pass


def _unpacked(body: bytes, headers: dict[str, str], limit: int) -> bytes:
    """The body of an answer without the wrappings that its headers name. Crawlers that take them off often leave the
    headers as they were: a body that is not packed is taken as it is."""
    if "chunked" in headers.get("transfer-encoding", "").lower():
        body = _without_chunks(body)
    packed = headers.get("content-encoding", "").lower().strip()
    if packed in ("gzip", "x-gzip") and body.startswith(b"\x1f\x8b"):
        unpacker = zlib.decompressobj(47)
        body = unpacker.decompress(body, limit + 1)
        if len(body) <= limit and not unpacker.eof:
            raise ValueError("its gzip ends too early")
    elif packed == "deflate" and body[:1] == b"\x78":
        body = zlib.decompressobj().decompress(body, limit + 1)
    elif packed == "br" and body and body.lstrip()[:1] != b"<":
        unpacker = brotli.Decompressor()
        body = unpacker.process(body, output_buffer_limit=limit + 1)
        if len(body) <= limit and not unpacker.is_finished():
            raise ValueError("its brotli ends too early")
    elif packed not in ("", "identity", "gzip", "x-gzip", "deflate", "br"):
        raise LeftOut(f"content encoding {packed:.40}")
    if len(body) > limit:
        raise _TooLong
    return body


def _without_chunks(body: bytes) -> bytes:
    """RFC 9112, 7.1."""
    held: list[bytes] = []
    at = 0
    while True:
        end = body.find(b"\n", at, at + 256)
        size = body[at:end].split(b";")[0].strip() if end >= 0 else b""
        if not re.fullmatch(rb"[0-9a-fA-F]{1,8}", size):
            if at == 0:
                return body  # it was put together before
            raise ValueError(f"no chunk begins at its byte {at}")
        if not (length := int(size, 16)):
            return b"".join(held)
        held.append(body[end + 1 : end + 1 + length])
        if len(held[-1]) < length:
            raise ValueError("it ends within a chunk")
        at = end + 1 + length
        at += len(body[at : at + 2]) - len(body[at : at + 2].lstrip(b"\r\n"))


def _exactly(file: Bounded, size: int) -> bytes:
    held = []
    while size and (content := file.read(min(size, _STEP))):
        held.append(content)
        size -= len(content)
    if size:
        raise InputError(f"{file.path}:{file.record}: it ends {size} bytes before its record does; it was cut")
    return b"".join(held)


def _skip(file: Bounded, end: int) -> None:
    while file.read_so_far < end:
        left = end - file.read_so_far
        if not file.read(min(left, _STEP)):
            raise InputError(f"{file.path}:{file.record}: it ends {left} bytes before its record does; it was cut")
