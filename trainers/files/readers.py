"""Records from files that nobody has checked: .txt, .jsonl, .json, .parquet, plain text also with .gz, and datasets.

A .json file is one array of records, or has a record a line.

Everything is bounded (bytes of a line, depth of nesting, growth of a gzip), every text is strict UTF-8, and what is
wrong is said with file, line and byte offset. A general JSON reader does none of this: deep nesting alone fells one.
"""

import json
import math
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pyarrow as pa

from cluster.storage import sha256
from conf.errors import InputError
from conf.knobs.text import Txt
from trainers.files import datasets, places, tables
from trainers.files.streams import Source, elements, is_array, lines, paragraphs, whole

KINDS = (".txt", ".txt.gz", ".jsonl", ".jsonl.gz", ".json", ".json.gz", ".parquet")
DATASET = ""  # the kind of what ends in none of them; see trainers.files.datasets
MAX_LINE_BYTES = 8 * 2**20
_SAID = 500  # characters of a reason; what a record holds may be in it
MAX_DEPTH = 64  # arrays and objects within each other
# possessive, and with or without its end: else a string that never ends is looked through from each of its quotes
_BRACKET = re.compile(rb'"(?:[^"\\]++|\\.)*+"?|[\[{]|[\]}]', re.DOTALL)


class BadRecord(ValueError):
    """One record cannot be used; the text says why, in a line. The caller knows where it stands."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason if len(reason) <= _SAID else f"{reason[:_SAID]}...")


def expand(patterns: Sequence[str], knob: str = "corpus.files", told: Callable[[str], None] | None = None) -> list[str]:
    """The files and datasets that `patterns` name, in the order given, each glob's and folder's sorted; none twice,
    whatever its name. What a glob or a folder holds besides is left out, and `told` in a line. Raises `InputError`."""
    found: dict[object, str] = {}
    left: list[str] = []
    for pattern in patterns:
        if dataset := datasets.named(pattern, knob):
            found.setdefault(places.itself(dataset), dataset)
            continue
        matches = places.matching(pattern, knob)
        asked = matches == [pattern]
        names = []
        for match in matches:
            if dataset := datasets.named(match, knob) if Path(match).is_dir() else None:
                names.append(dataset)
            elif _kind(match) == DATASET or (not asked and places.is_about(match)):
                if asked:
                    raise InputError(f"{match}: unknown kind of file; it must end in {', '.join(KINDS)}")
                left.append(match)
            else:
                names.append(match)
        if not names:
            what = "no such file"
            if Path(pattern).is_dir():
                what = f"a folder without a dataset, and without a file that ends in {', '.join(KINDS)}"
            elif any(mark in pattern for mark in "*?["):
                what = f"no file matches that ends in {', '.join(KINDS)}" if matches else "no file matches"
            raise InputError(f"{knob}: {pattern}: {what}")
        for name in names:
            found.setdefault(places.itself(name), name)
    if left and told:
        shown = ", ".join(left[:5]) + (f" and {len(left) - 5} more" if len(left) > 5 else "")
        told(f"{knob}: {len(left)} left out, for they are no records: {shown}")
    return list(found.values())


def digest(path: str) -> str:
    """What decides the content of a file or dataset that `expand` found: its sha256, or a commit of the Hub. Raises
    `InputError` for one that cannot be read."""
    try:
        return datasets.digest(path) if _kind(path) == DATASET else sha256(path)
    except OSError as error:
        raise InputError(f"{path}: {error.strerror or error}") from None


def unchanged(digests: Mapping[str, str]) -> None:
    """Raise `InputError` for a file that is another than when its digest was taken: what was read has no name."""
    for path, taken in digests.items():
        if digest(path) != taken:
            raise InputError(f"{path}: it was changed while it was read; begin again when nothing writes to it")


def absolute(path: str) -> str:
    """What `expand` found, as it is found from another working folder."""
    return datasets.absolute(path) if _kind(path) == DATASET else str(Path(path).absolute())


def title(path: str | Path) -> str:
    """What names a file's records that have no name of their own: 'x.jsonl', or 'dataset:train'."""
    return datasets.title(str(path)) if _kind(path) == DATASET else Path(path).name


def task(path: str | Path) -> str:
    """The task of a file's records that say none: 'x' of x.jsonl."""
    return title(path).partition(":" if _kind(path) == DATASET else ".")[0]


def at(path: str | Path, line: int) -> str:
    """'data/x.jsonl:17', or 'dataset:train row 17'."""
    return f"{path} row {line}" if _kind(path) == DATASET else f"{path}:{line}"


def read_records(
    path: str | Path,
    max_line_bytes: int = MAX_LINE_BYTES,
    needed: Collection[str] | None = None,
    txt: Txt = Txt.file,
) -> Iterator[tuple[int, dict[str, Any]]]:
    """(line, record) of a file, in order. The first thing wrong raises `InputError` "file:line: ..."."""
    for source in read_sources(path, max_line_bytes, needed, txt):
        try:
            if source.reason:
                raise BadRecord(source.reason)
            yield source.line, parse(path, source.content)
        except BadRecord as error:
            raise InputError(place(path, source.line, source.offset, str(error))) from None


def place(path: str | Path, line: int, offset: int, reason: str) -> str:
    """'data/x.jsonl:17: no field "text" (byte 4711)'; line 0 stands for the file."""
    if not line:
        return f"{path}: {reason}"
    return f"{at(path, line)}: {reason}" + ("" if _kind(path) in (".parquet", DATASET) else f" (byte {offset})")


def read_sources(
    path: str | Path,
    max_line_bytes: int = MAX_LINE_BYTES,
    needed: Collection[str] | None = None,
    txt: Txt = Txt.file,
    *,
    keep: Collection[str] = (),
    knob: str = "",
) -> Iterator[Source]:
    """The records of a file as bytes, those too long as a `reason`. What ails the file raises `InputError`.

    `needed`: the columns of a table that must have a form as text, None for all; see `datasets.rows`. `keep`: those
    of a Parquet file that are read besides, empty for all. `txt`: what is a document of a .txt file. `knob`: what
    allows longer lines.
    """
    kind, some = _kind(path), False
    try:
        if kind == DATASET:
            sources = _dataset(str(path), max_line_bytes, needed)
        elif kind == ".parquet":
            sources = _parquet(path, max_line_bytes, needed, keep)
        elif kind.startswith(".txt"):
            sources = (whole if txt is Txt.file else paragraphs)(path, max_line_bytes)
        elif kind in (".json", ".json.gz"):
            sources = (elements if is_array(path) else _objects)(path, max_line_bytes)
        else:
            sources = _objects(path, max_line_bytes)
        for source in sources:
            some = True
            if knob and source.reason.endswith("are allowed"):
                source = replace(source, reason=f"{source.reason}; {knob} allows more")
            yield source
    except OSError as error:
        raise InputError(f"{path}: {error.strerror or error}") from None
    if not some:
        holds_bytes = kind == DATASET or Path(path).stat().st_size
        raise InputError(f"{path}: {'holds no record' if holds_bytes else 'is empty'}")


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
        record = json.loads(text, object_pairs_hook=_unique, parse_constant=_refuse, parse_float=_finite)
    except json.JSONDecodeError as error:
        hint = _one_array(path, content) or (_a_line_each(path) if content.strip() == b"{" else "")
        raise BadRecord(f"broken JSON: {error.msg} at character {error.pos + 1} of the record{hint}") from None
    except BadRecord:
        raise
    except ValueError as error:  # a number of too many digits
        raise BadRecord(f"broken JSON: {error}") from None
    if not isinstance(record, dict):
        raise BadRecord(f"a record must be a JSON object, not {_json_name(record)}{_one_array(path, content)}")
    if b"\\u" in content and re.search("[\ud800-\udfff]", json.dumps(record, ensure_ascii=False)):
        raise BadRecord("a string holds half of a surrogate pair (\\ud800 to \\udfff)")
    return record


def _one_array(path: str | Path, content: bytes) -> str:
    """What to do about a line that begins as an array does: where it is the file that is one, its name must say so."""
    array = _kind(path).startswith(".jsonl") and content.startswith(b"[")
    return "; a file that is one array must end in .json" if array else ""


def _a_line_each(path: str | Path) -> str:
    json_file = _kind(path) in (".json", ".json.gz")
    return "; a .json file is one array of records, or has a record a line" if json_file else ""


def _kind(path: str | Path) -> str:
    for kind in sorted(KINDS, key=len, reverse=True):
        if str(path).endswith(kind):
            return kind
    return DATASET


def _objects(path: str | Path, limit: int) -> Iterator[Source]:
    """The lines that are not blank."""
    return (source for source in lines(path, limit) if source.reason or source.content.strip())


def _parquet(path: str | Path, limit: int, needed: Collection[str] | None, keep: Collection[str]) -> Iterator[Source]:
    number = 0
    if not Path(path).stat().st_size:
        return
    try:
        for number, (row, reason) in enumerate(tables.rows(path, needed, keep), 1):
            yield Source(number, 0, b"", reason) if reason else _row(number, row, limit, default=tables.as_text)
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"{path}: damaged Parquet file after row {number} ({reason})") from None


def _dataset(name: str, limit: int, needed: Collection[str] | None) -> Iterator[Source]:
    number = 0
    try:
        for number, row in enumerate(datasets.rows(name, needed), 1):
            yield _row(number, row, limit, default=datasets.as_text)
    except (pa.ArrowException, OSError, UnicodeDecodeError, httpx.HTTPError) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise InputError(f"{name}: cannot be read after row {number} ({reason})") from None


def _row(number: int, row: dict[str, Any], limit: int, default: Callable[[Any], Any]) -> Source:
    try:
        content = json.dumps(row, ensure_ascii=False, default=default).encode(errors="surrogatepass")
    except TypeError as error:  # of `default`
        return Source(number, 0, b"", str(error))
    if len(content) > limit:
        return Source(number, 0, b"", f"the row has {len(content)} bytes, at most {limit} are allowed")
    return Source(number, 0, content)


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
        counts = Counter(name for name, _ in pairs)
        twice = next(name for name in counts if counts[name] > 1)
        raise BadRecord(f"field {twice!r:.200} stands twice in one object")
    return record


def _refuse(word: str) -> None:
    raise BadRecord(f"broken JSON: {word} is no JSON number")


def _finite(digits: str) -> float:
    if math.isinf(number := float(digits)):
        raise BadRecord(f"the number {digits:.40} is larger than any that JSON's readers have")
    return number


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
