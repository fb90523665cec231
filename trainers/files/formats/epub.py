"""Electronic books (EPUB 2 and 3): a record for each chapter, in the order of reading, under bounds on what unpacks.

A book is a ZIP file: how much an entry grows is bounded while it is read, whatever its header says, and every entry's
checksum is looked at.
"""

import json
import posixpath
import struct
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote
from xml.parsers import expat

from conf.errors import InputError
from trainers.files.formats.packed import MAX_RATIO, RATIO_FROM
from trainers.files.streams import Source

ENTRIES = 20_000
INDEX = 4 * 2**20  # bytes of the files that say what the book holds
_STEP = 2**16
_END, _LOCATOR = (
    struct.Struct("<4s4H2LH"),
    20,
)  # the end of a ZIP file's directory, and what stands before a large one's
_DIRECTORY = 16 * 2**20  # bytes
_CONTAINER = "META-INF/container.xml"


def chapters(path: str | Path, limit: int) -> Iterator[Source]:
    """A line of JSON ({"book", "author", "chapter", "type"}) and the XHTML of each chapter; the line of a `Source` is
    the number of the chapter. Raises `InputError` for a file that is no book, is damaged, or grows too much."""
    if not Path(path).stat().st_size:
        return
    _check_directory(path)
    try:
        with zipfile.ZipFile(path) as book:
            yield from _Book(path, book).chapters(limit)
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise InputError(f"{path}: damaged EPUB file ({reason})") from None


def _check_directory(path: str | Path) -> None:
    """Raise `InputError` for a list of entries that would fill the memory: the library reads it whole."""
    size = Path(path).stat().st_size
    with open(path, "rb") as file:
        file.seek(max(0, size - _END.size - _LOCATOR - 2**16))
        tail = file.read()
    at = tail.rfind(b"PK\x05\x06")
    if at < 0 or len(tail) < at + _END.size:
        return  # no ZIP file, as will be said
    *_, length, _, _ = _END.unpack_from(tail, at)
    if length > _DIRECTORY or tail[max(0, at - _LOCATOR) : at].startswith(b"PK\x06\x07"):
        raise InputError(f"{path}: the list of its entries is too long for a book")


class _Book:
    def __init__(self, path: str | Path, book: zipfile.ZipFile) -> None:
        self._path, self._book, self._grown = path, book, 0
        self._most = max(RATIO_FROM, MAX_RATIO * Path(path).stat().st_size)
        entries = book.infolist()
        if len(entries) > ENTRIES:
            raise self._wrong(f"it has {len(entries)} entries, at most {ENTRIES} are read")
        self._names = {entry.filename: entry for entry in entries}
        if len(self._names) < len(entries):
            raise self._wrong("two of its entries have one name")

    def _wrong(self, what: str) -> InputError:
        return InputError(f"{self._path}: {what}")

    def _read(self, name: str, limit: int) -> bytes | None:
        """An entry, None where it has more than `limit` bytes."""
        entry = self._names.get(name)
        if entry is None:
            raise self._wrong(f"damaged EPUB file ({name:.100} is missing)")
        if entry.flag_bits & 1:
            raise self._wrong("its entries are encrypted")
        held, size = [], 0
        with self._book.open(entry) as stream:
            while content := stream.read(_STEP):
                size += len(content)
                self._grown += len(content)
                if self._grown > self._most:
                    raise self._wrong(f"its entries grow more than {MAX_RATIO}-fold")
                if size <= limit:
                    held.append(content)
        return b"".join(held) if size <= limit else None

    def _index(self, name: str) -> list[tuple[str, dict[str, str], str]]:
        """(element, attributes, text) of an XML file."""
        content = self._read(name, INDEX)
        if content is None:
            raise self._wrong(f"{name:.100} has more than {INDEX} bytes")
        found: list[tuple[str, dict[str, str], list[str]]] = []
        opened: list[int] = []

        def start(element: str, of: dict[str, str]) -> None:
            opened.append(len(found))
            found.append((element.rpartition("}")[2], of, []))

        def text(piece: str) -> None:
            found[opened[-1]][2].append(piece)

        def doctype(_: str, system: str | None, public: str | None, inside: int) -> None:
            if inside:
                raise self._wrong(f"{name:.100} defines entities, which may grow")

        parser = expat.ParserCreate(namespace_separator="}")
        parser.StartElementHandler, parser.CharacterDataHandler = start, text
        parser.EndElementHandler = lambda _: opened.pop()
        parser.StartDoctypeDeclHandler = doctype
        try:
            parser.Parse(content, True)
        except expat.ExpatError as error:
            raise self._wrong(f"damaged EPUB file ({name:.100}: {expat.ErrorString(error.code)})") from None
        return [(element, of, "".join(pieces).strip()) for element, of, pieces in found]

    def chapters(self, limit: int) -> Iterator[Source]:
        if "META-INF/encryption.xml" in self._names and any(
            element == "EncryptedKey" for element, _, _ in self._index("META-INF/encryption.xml")
        ):
            raise self._wrong("it is encrypted")
        roots = [of.get("full-path", "") for element, of, _ in self._index(_CONTAINER) if element == "rootfile"]
        if not roots:
            raise self._wrong(f"damaged EPUB file ({_CONTAINER} names no book)")
        package = self._index(roots[0])
        told: dict[str, Any] = {"book": _first(package, "title"), "author": _first(package, "creator")}
        items = {of.get("id", ""): of for element, of, _ in package if element == "item"}
        number = 0
        for element, of, _ in package:
            if element != "itemref" or of.get("linear") == "no":
                continue
            number += 1
            item = items.get(of.get("idref", ""))
            if item is None:
                yield Source(number, 0, b"", f"the book has no item {of.get('idref', '')!r:.100}, which it lists")
                continue
            name = posixpath.normpath(posixpath.join(posixpath.dirname(roots[0]), unquote(item.get("href", ""))))
            if item.get("media-type", "") not in ("application/xhtml+xml", "text/html"):
                head = {**told, "left": f"type {item.get('media-type', ''):.100}"}
                yield Source(number, 0, json.dumps(head, ensure_ascii=False).encode())
                continue
            content = self._read(name, limit)
            if content is None:
                yield Source(number, 0, b"", f"the chapter has more than {limit} bytes, at most {limit} are allowed")
                continue
            head = {**told, "chapter": number, "type": "chapter"}
            yield Source(number, 0, json.dumps(head, ensure_ascii=False).encode(errors="replace") + b"\n" + content)


def _first(package: list[tuple[str, dict[str, str], str]], name: str) -> str:
    return next((text[:1024] for element, _, text in package if element == name and text), "")
