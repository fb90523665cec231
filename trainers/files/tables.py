"""Parquet and Arrow files as rows: the columns that are asked for, pages' checksums looked at, one rule for all types.

A template takes text: strings, and bytes that are UTF-8, which is what Spark and Hive write for it. Of what nobody
needs, bytes are left out, dates are text, and a number that is none (pandas' mark for a missing value) is null.
"""

import math
from collections.abc import Collection, Iterator
from datetime import date, time, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from conf.errors import InputError

_BATCH = 1024  # rows decoded at a time
_ARROW, _STREAM_END = b"ARROW1", b"\xff\xff\xff\xff\0\0\0\0"
_BYTES = (pa.types.is_binary, pa.types.is_large_binary, pa.types.is_fixed_size_binary, pa.types.is_binary_view)
DATES = (pa.types.is_temporal, pa.types.is_decimal)


def rows(
    path: str | Path, needed: Collection[str] | None, keep: Collection[str] = ()
) -> Iterator[tuple[dict[str, Any], str]]:
    """(row, "") of a Parquet file in order, or ({}, reason) for one that is none.

    `needed`: the columns that a template names, None where any may be text. `keep`: those that are read besides;
    empty: all. Raises `InputError` for two columns of one name.
    """
    with pq.ParquetFile(path, page_checksum_verification=True) as file:
        wanted, unfit = _columns(path, file.schema_arrow, needed, keep)
        columns = None if wanted == file.schema_arrow.names else wanted
        yield from _plain_rows(file.iter_batches(batch_size=_BATCH, columns=columns), unfit)


def arrow_rows(
    path: str | Path, needed: Collection[str] | None, keep: Collection[str] = ()
) -> Iterator[tuple[dict[str, Any], str]]:
    """The same of an Arrow file (as Feather writes it), or of an Arrow stream in a file (as `datasets` writes it).
    Raises `InputError` for a stream without its end too: it was cut."""
    with open(path, "rb") as begin:
        begins = begin.read(len(_ARROW))
        begin.seek(max(0, Path(path).stat().st_size - len(_STREAM_END)))
        ends = begin.read()
    with pa.memory_map(str(path)) as source:
        if begins == _ARROW:
            file = pa.ipc.open_file(source)
            batches = (file.get_batch(number) for number in range(file.num_record_batches))
            schema = file.schema
        else:
            stream = pa.ipc.open_stream(source)
            if ends != _STREAM_END:
                raise InputError(f"{path}: the Arrow stream has no end; it was cut")
            batches, schema = iter(stream), stream.schema
        wanted, unfit = _columns(path, schema, needed, keep)
        yield from _plain_rows(_pieces(batches, wanted), unfit)


def _pieces(batches: Iterator[Any], wanted: list[str]) -> Iterator[Any]:
    """Batches in pieces of `_BATCH` rows, each looked through first: a damaged one names places outside of itself."""
    for batch in batches:
        batch.validate(full=True)
        chosen = batch.select(wanted)
        yield from (chosen.slice(start, _BATCH) for start in range(0, len(chosen), _BATCH))


def _columns(
    path: str | Path, schema: "pa.Schema", needed: Collection[str] | None, keep: Collection[str]
) -> tuple[list[str], dict[str, Any]]:
    """(the columns to read, those among them that are no text, with their types)."""
    names = [name for name in schema.names if not keep or name in keep or name in (needed or ())]
    if twice := next((name for name in names if schema.names.count(name) > 1), None):
        raise InputError(f"{path}: two columns {twice!r}; rename one")
    kinds = {name: _values(schema.field(name).type) for name in names}
    unread = {name for name in names if needed is not None and name not in needed and _holds_bytes(kinds[name])}
    unfit = {name: kinds[name] for name in needed or () if name in kinds and _is(kinds[name], DATES)}
    return [name for name in names if name not in unread], unfit


def _plain_rows(batches: Iterator[Any], unfit: dict[str, Any]) -> Iterator[tuple[dict[str, Any], str]]:
    for batch in batches:
        for row in batch.to_pylist():
            if unfit:
                name, kind = next(iter(unfit.items()))
                yield {}, f"field {name!r} must be a string, not {kind}"
                continue
            try:
                yield {name: _plain(value, name) for name, value in row.items()}, ""
            except UnicodeDecodeError as error:
                yield {}, f"a field of bytes is no UTF-8 at byte {error.start} ({error.reason})"
            except OverflowError as error:
                yield {}, str(error)


def as_text(value: object) -> object:
    """For json: dates and decimals as text. Raises `TypeError` for all else."""
    if isinstance(value, date | time | timedelta | Decimal):
        return str(value)
    raise TypeError(f"a value of type {type(value).__name__} has no form as text")


def _plain(value: Any, name: str) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        if math.isnan(value):
            return None
        raise OverflowError(f"field {name!r} is infinite, which is no JSON number")
    if isinstance(value, bytes):
        return value.decode()
    if isinstance(value, dict):
        return {inner: _plain(one, name) for inner, one in value.items()}
    # a list of pairs is what a map is: to_pylist gives tuples
    return [_plain(one, name) for one in value] if isinstance(value, list | tuple) else value


def _values(kind: "pa.DataType") -> "pa.DataType":
    return kind.value_type if pa.types.is_dictionary(kind) else kind


def _holds_bytes(kind: "pa.DataType") -> bool:
    return _is(kind, _BYTES) or any(_holds_bytes(kind.field(at).type) for at in range(kind.num_fields))


def _is(kind: "pa.DataType", among: Collection[Any]) -> bool:
    return any(one(kind) for one in among)
