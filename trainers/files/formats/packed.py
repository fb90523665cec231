"""Files as streams of bytes, packed or not, each under a bound on how far it may grow; UTF-16 becomes UTF-8 there."""

import bz2
import codecs
import gzip
import io
import lzma
import sys
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, cast

from conf.errors import InputError

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

MAX_RATIO = 200  # a packed file that grows more than this is a bomb, or no text
RATIO_FROM = 4 * 2**20  # bytes; small files of blanks compress better than any text
MAX_WINDOW = 27  # log2 of the bytes that a Zstandard file may ask to be kept; the format's own recommendation is 23
MAX_DICTIONARY = 256 * 2**20  # bytes that an xz file may ask for; `xz -9` asks for 65 MiB
CHUNK = 2**16
DAMAGES = (EOFError, gzip.BadGzipFile, zlib.error)
_WIDE = ("utf-16", "utf-32")


class _Wrong(EOFError):
    """What is wrong with a packed file, in words."""


def _zstandard() -> Any:
    return zstd.ZstdDecompressor(options={zstd.DecompressionParameter.window_log_max: MAX_WINDOW})


def _xz() -> Any:
    return lzma.LZMADecompressor(memlimit=MAX_DICTIONARY)


PACKED: dict[str, tuple[str, Callable[[], Any] | None]] = {  # suffix: its name, what unpacks one member of it
    ".gz": ("gzip", None),  # the library's own stream has everything
    ".zst": ("Zstandard file", _zstandard),
    ".bz2": ("bzip2", bz2.BZ2Decompressor),
    ".xz": ("xz", _xz),
}


class _Members(io.RawIOBase):
    """What the members of a packed file hold, one after another, however far a member grows a buffer in memory."""

    def __init__(self, raw: BinaryIO, new: Callable[[], Any]) -> None:
        self._raw, self._new, self._one, self._begun = raw, new, new(), False

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while True:
            rest = b""
            if self._one.eof:
                # xz files may be padded with zeros, which no member of any kind begins with
                rest = (self._one.unused_data or self._raw.read(CHUNK)).lstrip(b"\0")
                if not rest and not (rest := self._raw.read(CHUNK).lstrip(b"\0")):
                    return 0
                self._one = self._new()
            elif self._one.needs_input and not (rest := self._raw.read(CHUNK)):
                if not self._begun:
                    return 0  # an empty file
                raise _Wrong("it ends before its end is marked")
            self._begun = True
            try:
                content = self._one.decompress(rest, len(buffer))
            except (OSError, lzma.LZMAError, zstd.ZstdError) as error:
                raise _Wrong(str(error)) from None
            if content:
                buffer[: len(content)] = content
                return len(content)


class _Narrow(io.RawIOBase):
    """A stream of UTF-16 or UTF-32 as UTF-8."""

    def __init__(self, stream: BinaryIO, encoding: str) -> None:
        self._stream, self._ahead, self._ended = stream, b"", False
        self._decoder = codecs.getincrementaldecoder(encoding)("strict")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._ahead and not self._ended:
            content = self._stream.read(CHUNK)
            self._ended = not content
            try:
                self._ahead = self._decoder.decode(content, final=self._ended).encode()
            except UnicodeError as error:
                raise _Wrong(str(error)) from None
        content, self._ahead = self._ahead[: len(buffer)], self._ahead[len(buffer) :]
        buffer[: len(content)] = content
        return len(content)


@contextmanager
def opened(
    path: str | Path, encoding: str = "", *, bare: bool = False, narrow: bool = False
) -> Iterator[tuple[BinaryIO, int]]:
    """(stream, bytes that it may have): a packed file is read as any other, under a bound on how far it may grow.

    A file that begins with the mark of UTF-16 or UTF-32, or whose `encoding` is one of these, is given as UTF-8;
    not where it is `bare`, for its bytes say by themselves what they are. `narrow`: so of every `encoding`.
    """
    with open(path, "rb") as raw:
        suffix = Path(path).suffix
        stream: Any = raw
        if suffix == ".gz":
            stream = gzip.GzipFile(fileobj=raw)
        elif suffix in PACKED:
            new = PACKED[suffix][1]
            assert new is not None
            stream = io.BufferedReader(_Members(raw, new), CHUNK)
        allowed = max(RATIO_FROM, MAX_RATIO * Path(path).stat().st_size) if suffix in PACKED else 2**63
        try:
            wide = encoding if narrow else "" if bare else _wide(stream, encoding)
        except DAMAGES as error:
            raise damaged(path, 1, 0, error) from None
        if wide:
            stream = io.BufferedReader(_Narrow(stream, wide), CHUNK)
        yield cast(BinaryIO, stream), allowed


def _wide(stream: Any, encoding: str) -> str:
    """The encoding of two or four bytes that a stream has, or that it is said to have; "" for any other."""
    if encoding.lower().replace("_", "-").startswith(_WIDE):
        return encoding
    start = stream.peek(4)[:4]
    if start.startswith((codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE)):
        return "utf-32"
    return "utf-16" if start.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) else ""


def damaged(path: str | Path, line: int, offset: int, error: Exception) -> InputError:
    """For one of `DAMAGES`, met when a line after so many bytes was read."""
    suffix = Path(path).suffix
    if suffix not in PACKED:
        return InputError(f"{path}:{line}: damaged after byte {offset} ({error})")
    return InputError(f"{path}:{line}: damaged or cut {PACKED[suffix][0]} after byte {offset} ({error})")


def grown(path: str | Path, line: int) -> InputError:
    """For more bytes than `opened` allows."""
    what = PACKED[Path(path).suffix][0]
    return InputError(f"{path}:{line}: the {what} grows more than {MAX_RATIO}-fold; unpack it to use it")


class Bounded:
    """The bytes of a file for a parser of its own: read in order, counted, what ails them said by name."""

    def __init__(self, path: str | Path, stream: BinaryIO, allowed: int) -> None:
        self.path, self.read_so_far, self.record = path, 0, 1
        self._stream, self._allowed = stream, allowed

    def _told(self, content: bytes) -> bytes:
        self.read_so_far += len(content)
        if self.read_so_far > self._allowed:
            raise grown(self.path, self.record)
        return content

    def read(self, size: int) -> bytes:
        """At most so many bytes, fewer at the end alone. Raises `InputError`."""
        try:
            return self._told(self._stream.read(size))
        except DAMAGES as error:
            raise damaged(self.path, self.record, self.read_so_far, error) from None

    def readline(self, size: int) -> bytes:
        """A line, or its first `size` bytes. Raises `InputError`."""
        try:
            return self._told(self._stream.readline(size))
        except DAMAGES as error:
            raise damaged(self.path, self.record, self.read_so_far, error) from None


@contextmanager
def bounded(path: str | Path, encoding: str = "", *, bare: bool = True) -> Iterator[Bounded]:
    with opened(path, encoding, bare=bare) as (stream, allowed):
        yield Bounded(path, stream, allowed)
