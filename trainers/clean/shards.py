"""The corpus stage's working shards: a block of records read, cleaned and judged, whole on the disk or not there.

A shard is `<name>.parquet` with a row for each record in its order, `<name>.*.npy` with what near copies are found by,
and `<name>.json`, written last, with its counts. Which records it has hangs on the files alone, so that a stage that
was killed goes on with those that are there.
"""

import io
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from cluster.storage import write_file, write_json
from conf.errors import InputError
from conf.knobs.text import Corpus
from trainers.clean import near
from trainers.clean.document import Document
from trainers.clean.steps import Named, Tally, taken
from trainers.files.damage import repaired
from trainers.files.documents import clean, fields, identity, renderer, share_of
from trainers.files.forgotten import Forgotten
from trainers.files.formats.packed import PACKED
from trainers.files.kinds import Form
from trainers.files.readers import parse, read_sources
from trainers.files.streams import BadRecord, LeftOut

SOURCES_PER_BLOCK = 4096
BYTES_PER_BLOCK = 8 * 2**20
LEFT_OUT = "left out"  # the step of what a file holds beside documents
START = 400  # characters that are kept of a document that goes
SOURCES = pa.schema(
    {
        "file": pa.string(),
        "line": pa.int64(),
        "offset": pa.int64(),
        "content": pa.binary(),
        "reason": pa.string(),
        "whole_file": pa.bool_(),
    }
)
ROWS = pa.schema(
    {
        "file": pa.string(),
        "line": pa.int64(),
        "offset": pa.int64(),
        "reason": pa.string(),  # why there is no record
        "whole_file": pa.bool_(),  # of a file that cannot be read, or not to its end
        "text": pa.string(),  # of a document that goes, its start
        "record": pa.string(),
        "repaired": pa.bool_(),
        "language": pa.string(),
        "score": pa.float64(),
        "step": pa.string(),  # that rejected it, "" for a document that stays
        "rule": pa.string(),
        "value": pa.float64(),
        "limit": pa.float64(),
        "note": pa.string(),
        "changes": pa.string(),  # JSON {rule: times}, "" where nothing was changed
        "characters": pa.int64(),
        "share": pa.float64(),  # what decides its split
        "digest": pa.binary(16),
    }
)

_GROWTH = 3  # about how many times as long a text is as its packed file
_NOTHING = Forgotten()
FORGET = "to be forgotten"
_DECIDED = ("step", "rule", "value", "limit", "note")
Tallies = dict[str, Tally]


@dataclass(frozen=True)
class Part:
    """Files that one task reads: a large one, or neighbours that are small."""

    number: int
    files: list[str]
    paths: list[str]  # the same, as they are found from any working folder
    sizes: list[int]  # their bytes; of a dataset, which nobody knows, a block's

    def shard(self, block: int) -> str:
        return f"{self.number:06d}-{block:06d}"

    def read(self, file: str, offset: int) -> int:
        """About how many bytes of the part have been read, at this byte of a file; a guess for a packed one."""
        at = self.files.index(file)
        here = offset // _GROWTH if Path(file).suffix in PACKED else offset
        return sum(self.sizes[:at]) + min(here, self.sizes[at])

    @property
    def end(self) -> str:
        """The file that says how many blocks the part has."""
        return f"{self.number:06d}.end"


def parts(files: Sequence[str], paths: Sequence[str]) -> list[Part]:
    """Neighbours together while they have less than a block's bytes, in order."""
    found: list[Part] = []
    room = 0
    for file, path in zip(files, paths, strict=True):
        there = Path(path)
        size = there.stat().st_size if there.is_file() else BYTES_PER_BLOCK  # a dataset's size nobody knows
        if not found or size > room:
            found.append(Part(len(found), [], [], []))
            room = BYTES_PER_BLOCK
        found[-1].files.append(file)
        found[-1].paths.append(path)
        found[-1].sizes.append(size)
        room -= size
    return found


def blocks(part: Part, cfg: Corpus) -> Iterator[pa.Table]:
    """A part's records as bytes, in tables of `SOURCES`; a file that cannot be read ends in a row saying so."""
    rows: list[tuple[str, int, int, bytes, str, bool]] = []
    size, needed, form = 0, fields(cfg.template), Form.of(cfg)
    for file, path in zip(part.files, part.paths, strict=True):
        try:
            sources = read_sources(
                path,
                cfg.max_line_bytes,
                needed,
                form,
                keep=cfg.keep and [*cfg.keep, *needed],
                knob="corpus.max_line_bytes",
            )
            for source in sources:
                rows.append((file, source.line, source.offset, source.content, source.reason, False))
                size += len(source.content)
                if len(rows) == SOURCES_PER_BLOCK or size >= BYTES_PER_BLOCK:
                    yield _table(rows)
                    rows, size = [], 0
        except InputError as error:
            rows.append((file, 0, 0, b"", str(error).replace(path, file), True))
    if rows:
        yield _table(rows)


def _table(rows: list[tuple[str, int, int, bytes, str, bool]]) -> pa.Table:
    columns = zip(*rows, strict=True)
    return pa.table([pa.array(column, of.type) for column, of in zip(columns, SOURCES, strict=True)], SOURCES)


def documents(
    table: pa.Table, cfg: Corpus, steps: Sequence[Named], forgotten: Forgotten = _NOTHING
) -> tuple[list[Document | str], list[bool], Tallies]:
    """(the document of each record of a table of `SOURCES`, or why there is none; whether it was repaired; the steps'
    tallies): rendered, normalised and judged by every step."""
    render, form = renderer(cfg.template), Form.of(cfg)
    kept_fields = {*cfg.keep, *fields(cfg.template)}
    found: list[Document | str] = []
    mended: list[bool] = []
    encodings: list[str] = []  # that a document was in, if not in UTF-8
    columns = (table[name].to_pylist() for name in ("file", "line", "content", "reason"))
    for file, line, content, reason in zip(*columns, strict=True):
        made: Document | str = reason
        changed = False
        encodings.clear()
        if forgotten.has(file, line):
            made = _left_out(FORGET)
        elif not reason:
            try:
                given = parse(file, content, form, encodings.append)
                if cfg.keep:
                    given = {name: value for name, value in given.items() if name in kept_fields}
                record = {name: repaired(value) if isinstance(value, str) else value for name, value in given.items()}
                made, changed = Document(clean(render(record)), record), record != given
                if encodings:
                    made.changes.update(f"read as {name}" for name in encodings)
            except LeftOut as error:
                made = _left_out(error.rule)
            except BadRecord as error:
                made = str(error)
        found.append(made)
        mended.append(changed)
    tallies = taken(steps, [one for one in found if isinstance(one, Document) and one.text], cfg.template)
    if forgotten.digests:
        found = [_left_out(FORGET) if isinstance(one, Document) and forgotten.knows(one.text) else one for one in found]
    return found, mended, tallies


def _left_out(rule: str) -> Document:
    document = Document("")
    document.reject(rule, step=LEFT_OUT)
    return document


def make(
    folder: Path,
    name: str,
    table: pa.Table,
    cfg: Corpus,
    steps: Sequence[Named],
    seed: int,
    forgotten: Forgotten = _NOTHING,
) -> dict[str, Any]:
    """Write the shard of a block; its counts."""
    found, mended, tallies = documents(table, cfg, steps, forgotten)
    passed = [isinstance(one, Document) and bool(one.text) and one.verdict is None for one in found]
    both = list(zip(found, passed, strict=True))
    made = pa.table(
        {
            **{column: table[column] for column in ("file", "line", "offset", "whole_file")},
            "reason": ["" if isinstance(one, Document) else one for one in found],
            "repaired": mended,
            **{column: [_value(one, column) for one in found] for column in ("language", "score", *_DECIDED)},
            "text": [_text(one, stays) for one, stays in both],
            "record": [_json(one.record) if isinstance(one, Document) and stays else "" for one, stays in both],
            "changes": [_json(one.changes) if isinstance(one, Document) and one.changes else "" for one in found],
            "characters": [len(one.text) if isinstance(one, Document) else 0 for one in found],
            "share": [share_of(one.text, seed) if isinstance(one, Document) and stays else None for one, stays in both],
            "digest": [identity(one.text) if isinstance(one, Document) and stays else None for one, stays in both],
        }
    )
    made = made.select(ROWS.names).cast(ROWS)
    if cfg.near:
        _write_keys(folder, name, made, np.array(passed, bool), cfg.near)
    sink = pa.BufferOutputStream()
    pq.write_table(made, sink, compression="zstd")
    write_file(folder / f"{name}.parquet", sink.getvalue().to_pybytes())
    counts = {
        "name": name,
        "rows": len(made),
        "bad": sum(not isinstance(one, Document) for one in found),
        "passed": sum(passed),
        "tallies": {step: tally.plain() for step, tally in tallies.items()},
    }
    write_json(folder / f"{name}.json", counts)
    return counts


def _value(document: Document | str, column: str) -> Any:
    """A column of a document, or of its verdict; nothing where there is neither."""
    if not isinstance(document, Document):
        return "" if column in ("language", "step") else None
    if column not in _DECIDED:
        return getattr(document, column)
    if document.verdict is None:
        return "" if column == "step" else None
    return getattr(document.verdict, column)


def _text(document: Document | str, stays: bool) -> str:
    if not isinstance(document, Document):
        return ""
    return document.text if stays else document.text[:START]


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def passing(table: pa.Table) -> NDArray[np.bool_]:
    """[rows] whether a row is a document that every step lets stay."""
    none = pc.and_(pc.equal(table["reason"], ""), pc.equal(table["step"], ""))
    return np.asarray(pc.and_(none, pc.greater(table["characters"], 0)).to_numpy())


def _write_keys(folder: Path, name: str, made: pa.Table, passed: Any, threshold: float) -> None:
    """What near copies are found by, for each document that stays: row, score, signature, keys."""
    rows = np.flatnonzero(passed)
    texts, languages = (made[column].to_pylist() for column in ("text", "language"))
    signatures = np.empty((len(rows), near.HASHES), np.uint32)
    for at, row in enumerate(rows):
        signatures[at] = near.signature(texts[row], languages[row])
    scores = made["score"].to_numpy()[rows]
    arrays = {
        "rows": rows.astype(np.int64),
        "scores": scores.astype(np.float32),
        "signatures": signatures,
        "bands": near.band_keys(signatures, threshold),
    }
    for what, array in arrays.items():
        save(folder / f"{name}.{what}.npy", array)


def save(path: Path, array: Any) -> None:
    """Write an array whole or not at all."""
    content = io.BytesIO()
    np.save(content, array)
    write_file(path, content.getvalue())


def keys(folder: Path, name: str, what: str) -> Any:
    """One of the arrays that `make` wrote, read where it is looked at."""
    return np.load(folder / f"{name}.{what}.npy", mmap_mode="r", allow_pickle=False)


def bits(folder: Path, name: str) -> NDArray[np.float32] | None:
    """[rows] the bits per byte of a shard's documents, NaN for those that went before; None where nothing is scored."""
    path = folder / f"{name}.bits.npy"
    return np.asarray(np.load(path, allow_pickle=False)) if path.exists() else None


def read(folder: Path, name: str, columns: Sequence[str] | None = None) -> pa.Table:
    return pq.read_table(folder / f"{name}.parquet", columns=columns, partitioning=None)
