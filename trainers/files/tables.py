"""Parquet files as rows: only the columns that are asked for, each page's checksum looked at, one rule for all types.

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
_BYTES = (pa.types.is_binary, pa.types.is_large_binary, pa.types.is_fixed_size_binary, pa.types.is_binary_view)
DATES = (pa.types.is_temporal, pa.types.is_decimal)


def rows(
    path: str | Path, needed: Collection[str] | None, keep: Collection[str] = ()
) -> Iterator[tuple[dict[str, Any], str]]:
    """(row, "") of a file in order, or ({}, reason) for one that is none.

    `needed`: the columns that a template names, None where any may be text. `keep`: those that are read besides;
    empty: all. Raises `InputError` for two columns of one name.
    """
    with pq.ParquetFile(path, page_checksum_verification=True) as file:
        schema = file.schema_arrow
        names = [name for name in schema.names if not keep or name in keep or name in (needed or ())]
        if twice := next((name for name in names if schema.names.count(name) > 1), None):
            raise InputError(f"{path}: two columns {twice!r}; rename one")
        kinds = {name: _values(schema.field(name).type) for name in names}
        unread = {name for name in names if needed is not None and name not in needed and _holds_bytes(kinds[name])}
        unfit = {name: kinds[name] for name in needed or () if name in kinds and _is(kinds[name], DATES)}
        wanted = [name for name in names if name not in unread]
        for batch in file.iter_batches(batch_size=_BATCH, columns=None if wanted == schema.names else wanted):
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
