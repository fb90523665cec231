"""Records from files that nobody has checked, of any format of the table below, packed or not, and from datasets.

Everything is bounded (bytes of a record, depth of nesting, how far a packed file grows), every text is strict in its
encoding, and what is wrong is said with file, line and byte offset. A general reader does none of this: deep nesting
alone fells one.
"""

import json
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import pyarrow as pa

from cluster.storage import sha256
from conf.errors import InputError
from conf.knobs.text import Txt
from trainers.files import datasets, kinds, objects, places, tables
from trainers.files.encodings import DETECT, LOOKED_AT, UTF8, decoded, detected
from trainers.files.formats import delimited, epub, pages, warc, wiki
from trainers.files.formats.packed import bounded
from trainers.files.kinds import DATASET, ENDS, TABLES, Form, format_of, is_dataset
from trainers.files.streams import BadRecord, LeftOut, Source, elements, is_array, lines, paragraphs, whole

MAX_LINE_BYTES = 8 * 2**20
_PLAIN = Form()
Record = tuple[dict[str, Any], str]


def expand(
    patterns: Sequence[str],
    knob: str = "corpus.files",
    told: Callable[[str], None] | None = None,
    asked_format: str = "",
) -> list[str]:
    """The files and datasets that `patterns` name, in the order given, each glob's and folder's sorted; none twice,
    whatever its name. What a glob or a folder holds besides is left out, and `told` in a line. Raises `InputError`."""
    kinds.check(asked_format)
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
            elif format_of(match, asked_format) == DATASET or (not asked and places.is_about(match)):
                if asked:
                    raise InputError(f"{match}: unknown kind of file; it must end in {ENDS}, or corpus.format say what")
                left.append(match)
            elif not asked_format or not Path(match).is_dir():
                names.append(match)
        if not names:
            what = "no such file"
            if Path(pattern).is_dir():
                what = f"a folder without a dataset, and without a file that ends in {ENDS}"
            elif any(mark in pattern for mark in "*?["):
                what = f"no file matches that ends in {ENDS}" if matches else "no file matches"
            raise InputError(f"{knob}: {pattern}: {what}")
        for name in names:
            if asked_format and is_dataset(name):
                raise InputError(f"{knob}: {name} is a dataset, which corpus.format={asked_format} is not for")
            found.setdefault(places.itself(name), name)
    if left and told:
        shown = ", ".join(left[:5]) + (f" and {len(left) - 5} more" if len(left) > 5 else "")
        told(f"{knob}: {len(left)} left out, for they are no records: {shown}")
    return list(found.values())


def digest(path: str) -> str:
    """What decides the content of a file or dataset that `expand` found: its sha256, or a commit of the Hub. Raises
    `InputError` for one that cannot be read."""
    try:
        return datasets.digest(path) if is_dataset(path) else sha256(path)
    except OSError as error:
        raise InputError(f"{path}: {error.strerror or error}") from None


def folders(files: Collection[str]) -> set[Path]:
    """Where the files lie: a file may be another run's stage's."""
    return {Path(file).absolute().parent for file in files}


def unchanged(digests: Mapping[str, str]) -> None:
    """Raise `InputError` for a file that is another than when its digest was taken: what was read has no name."""
    for path, taken in digests.items():
        if digest(path) != taken:
            raise InputError(f"{path}: it was changed while it was read; begin again when nothing writes to it")


def absolute(path: str) -> str:
    """What `expand` found, as it is found from another working folder."""
    return datasets.absolute(path) if is_dataset(path) else str(Path(path).absolute())


def title(path: str | Path) -> str:
    """What names a file's records that have no name of their own: 'x.jsonl', or 'dataset:train'."""
    return datasets.title(str(path)) if is_dataset(path) else Path(path).name


def task(path: str | Path) -> str:
    """The task of a file's records that say none: 'x' of x.jsonl."""
    return title(path).partition(":" if is_dataset(path) else ".")[0]


def at(path: str | Path, line: int) -> str:
    """'data/x.jsonl:17', or 'dataset:train row 17'."""
    return f"{path} row {line}" if is_dataset(path) else f"{path}:{line}"


def read_records(
    path: str | Path,
    max_line_bytes: int = MAX_LINE_BYTES,
    needed: Collection[str] | None = None,
    form: Form = _PLAIN,
) -> Iterator[tuple[int, dict[str, Any]]]:
    """(line, record) of a file, in order, without what its format leaves out. The first thing wrong raises
    `InputError` "file:line: ..."."""
    for source in read_sources(path, max_line_bytes, needed, form):
        try:
            if source.reason:
                raise BadRecord(source.reason)
            record = parse(path, source.content, form)
        except LeftOut:
            continue
        except BadRecord as error:
            raise InputError(place(path, source.line, source.offset, str(error))) from None
        yield source.line, record


def place(path: str | Path, line: int, offset: int, reason: str) -> str:
    """'data/x.jsonl:17: no field "text" (byte 4711)'; line 0 stands for the file."""
    if not line:
        return f"{path}: {reason}"
    return f"{at(path, line)}: {reason}" + ("" if format_of(path) in (*TABLES, "epub") else f" (byte {offset})")


def read_sources(
    path: str | Path,
    max_line_bytes: int = MAX_LINE_BYTES,
    needed: Collection[str] | None = None,
    form: Form = _PLAIN,
    *,
    keep: Collection[str] = (),
    knob: str = "",
) -> Iterator[Source]:
    """The records of a file as bytes, those too long as a `reason`. What ails the file raises `InputError`.

    `needed`: the columns of a table that must have a form as text, None for all; see `datasets.rows`. `keep`: those
    of a Parquet or Arrow file that are read besides, empty for all. `knob`: what allows longer records.
    """
    kind, some = format_of(path, form.format), False
    try:
        for source in READERS[kind].sources(str(path), _Asked(max_line_bytes, needed, keep, form)):
            some = True
            if knob and source.reason.endswith("are allowed"):
                source = replace(source, reason=f"{source.reason}; {knob} allows more")
            yield source
    except OSError as error:
        raise InputError(f"{path}: {error.strerror or error}") from None
    if not some:
        holds_bytes = kind == DATASET or Path(path).stat().st_size
        raise InputError(f"{path}: {'holds no record' if holds_bytes else 'is empty'}")


def parse(
    path: str | Path, content: bytes, form: Form = _PLAIN, note: Callable[[str], object] | None = None
) -> dict[str, Any]:
    """The record in a `Source`: a JSON object's fields, {"text": ...} of a text, with a title of a page. `note` is told
    an encoding that is not UTF-8. Raises `BadRecord`, and `LeftOut` for what a format has beside documents."""
    record, encoding = READERS[format_of(path, form.format)].record(str(path), content, form)
    if note and encoding:
        note(encoding)
    return record


class _Asked(NamedTuple):
    """What `read_sources` is asked for."""

    limit: int
    needed: Collection[str] | None
    keep: Collection[str]
    form: Form


def _texts(path: str, asked: _Asked) -> Iterator[Source]:
    return (whole if asked.form.txt is Txt.file else paragraphs)(path, asked.limit, asked.form.encoding)


def _json_file(path: str, asked: _Asked) -> Iterator[Source]:
    # in other encodings the second byte of a character may be a bracket: an array is taken apart as UTF-8
    encoding = asked.form.encoding
    if encoding == DETECT:
        with bounded(path) as file:
            encoding = detected(file.read(LOOKED_AT))
    other = "" if encoding.lower().startswith("utf-8") else encoding
    return elements(path, asked.limit, other) if is_array(path, other) else _objects(path, asked)


def _objects(path: str, asked: _Asked) -> Iterator[Source]:
    """The lines that are not blank."""
    found = lines(path, asked.limit, asked.form.encoding)
    return (source for source in found if source.reason or source.content.strip())


def _parquet(path: str, asked: _Asked) -> Iterator[Source]:
    return _table("Parquet", path, asked, tables.rows)


def _arrow(path: str, asked: _Asked) -> Iterator[Source]:
    return _table("Arrow", path, asked, tables.arrow_rows)


def _table(what: str, path: str, asked: _Asked, rows: Callable[..., Iterator[tuple[dict[str, Any], str]]]) -> Any:
    number = 0
    if not Path(path).stat().st_size:
        return
    try:
        for number, (row, reason) in enumerate(rows(path, asked.needed, asked.keep), 1):
            yield Source(number, 0, b"", reason) if reason else _row(number, row, asked.limit, tables.as_text)
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"{path}: damaged {what} file after row {number} ({reason})") from None


def _dataset(name: str, asked: _Asked) -> Iterator[Source]:
    number = 0
    try:
        for number, row in enumerate(datasets.rows(name, asked.needed), 1):
            yield _row(number, row, asked.limit, datasets.as_text)
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


def _text(path: str, content: bytes, form: Form) -> Record:
    text, encoding = decoded(content, form.encoding)
    return {"text": text}, encoding


def _line_object(path: str, content: bytes, form: Form) -> Record:
    is_json = form.encoding not in (UTF8, DETECT) and format_of(path, form.format) == "json"
    text, encoding = decoded(content, DETECT if is_json and _is_utf8(content) else form.encoding)
    content = text.encode() if encoding else content  # whose bytes are looked at for brackets
    if format_of(path, form.format) == "jsonl":
        # where it is the file that is an array, its name must say so
        return objects.loaded(content, text, array="; a file that is one array must end in .json"), encoding
    hint = "; a .json file is one array of records, or has a record a line"
    return objects.loaded(content, text, open_brace=hint), encoding


def _is_utf8(content: bytes) -> bool:
    try:
        content.decode()
    except UnicodeDecodeError:
        return False
    return True


def _made_object(path: str, content: bytes, form: Form) -> Record:
    """Of a table's row, which is JSON because it was made so here."""
    return objects.loaded(content, decoded(content)[0]), ""


@dataclass(frozen=True)
class _Reader:
    sources: Callable[[str, _Asked], Iterator[Source]]  # a file's records as bytes
    record: Callable[[str, bytes, Form], Record]  # what these say, and in which encoding if not in UTF-8


READERS: dict[str, _Reader] = {
    "text": _Reader(_texts, _text),
    "json": _Reader(_json_file, _line_object),
    "jsonl": _Reader(_objects, _line_object),
    "csv": _Reader(lambda path, asked: delimited.rows(path, asked.limit, asked.form.encoding), _made_object),
    "tsv": _Reader(lambda path, asked: delimited.rows(path, asked.limit, asked.form.encoding, "\t"), _made_object),
    "html": _Reader(lambda path, asked: whole(path, asked.limit, asked.form.encoding, cuts=False), pages.record),
    "warc": _Reader(lambda path, asked: warc.documents(path, asked.limit), pages.headed),
    "mediawiki": _Reader(lambda path, asked: wiki.pages(path, asked.limit), wiki.record),
    "epub": _Reader(lambda path, asked: epub.chapters(path, asked.limit), pages.headed),
    "arrow": _Reader(_arrow, _made_object),
    "parquet": _Reader(_parquet, _made_object),
    DATASET: _Reader(_dataset, _made_object),
}
