"""The corpus folder's one owner: what the stages after the corpus read of its documents."""

import json
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow.compute as pc
import pyarrow.parquet as pq

LEARNT_FROM = 64 * 2**20  # bytes of text that a tokenizer learns its pieces from, all in memory at once
MEASURED = 20_000  # documents; more would not move the shares


def shards(corpus: Path, split: str) -> list[Path]:
    """The Parquet files of a split, in the order of their documents."""
    return sorted(corpus.glob(f"{split}-*.parquet"))


def documents_in(corpus: Path, split: str) -> int:
    """How many documents a split has."""
    return sum(pq.read_metadata(path).num_rows for path in shards(corpus, split))


def texts(corpus: Path, split: str) -> Iterator[str]:
    """The documents of a split of the corpus stage, in order."""
    for (text,) in _rows(corpus, split, "text"):
        yield text


def spaced(corpus: Path, split: str, most: int = LEARNT_FROM) -> Iterator[str]:
    """The documents of a split; where these have more than `most` bytes, about so many, at even distances."""
    share = min(1.0, most / max(1, _bytes_in(corpus, split)))
    for number, text in enumerate(texts(corpus, split)):
        if int((number + 1) * share) > int(number * share):
            yield text


def _bytes_in(corpus: Path, split: str) -> int:
    found = 0
    for path in shards(corpus, split):
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(columns=["text"]):
                found += pc.sum(pc.binary_length(batch["text"])).as_py() or 0
    return found


def records(corpus: Path, split: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """(record number, record) of one split, in the order of its shards."""
    for number, record in _rows(corpus, split, "id", "record"):
        yield number, json.loads(record)


def documents(corpus: Path, split: str) -> Iterator[str]:
    """The bare text of each record (its `text` field), or the whole document when it has none."""
    for text, record in _rows(corpus, split, "text", "record"):
        yield json.loads(record).get("text", text)


def held_out(corpus: Path) -> list[str]:
    """Documents to measure on: of the validation split, or of the training split where that is empty."""
    return list(islice(texts(corpus, "val"), MEASURED)) or list(islice(texts(corpus, "train"), MEASURED))


def _rows(corpus: Path, split: str, *columns: str) -> Iterator[tuple[Any, ...]]:

    for path in shards(corpus, split):
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(columns=list(columns)):
                yield from zip(*(batch[column].to_pylist() for column in columns), strict=True)
