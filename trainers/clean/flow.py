"""How many documents and characters of each source and language come into each step of the corpus, and out of it."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

Ends = dict[str, dict[str, list[int]]]  # {source or language: {what became of documents: [documents, characters]}}
KEPT = "kept"
NEVER = ("read", "left out", "empty")  # no documents: no step has seen them
LAST = ("exact", "near", "score", "weights")  # after the steps that the config names, in this order


def ends(table: pa.Table, column: str) -> Ends:
    """Of rows of the ledger, whose column `end` says what became of each."""
    found: Ends = {}
    for row in table.group_by([column, "end"]).aggregate([("id", "count"), ("characters", "sum")]).to_pylist():
        found.setdefault(row[column], {})[row["end"]] = [row["id_count"], row["characters_sum"] or 0]
    return found


def added(whole: Ends, part: Mapping[str, Mapping[str, Sequence[int]]]) -> None:
    for name, there in part.items():
        for end, (documents, characters) in there.items():
            held = whole.setdefault(name, {}).setdefault(end, [0, 0])
            held[0] += documents
            held[1] += characters


def flow(there: Mapping[str, Sequence[int]], steps: Iterable[str]) -> list[dict[str, Any]]:
    """A row for each step: documents and characters in and out. Characters are those that a document has at its end:
    what steps have cut out of one that stays is in the table of the whole corpus."""
    left = [sum(pair[at] for end, pair in there.items() if end not in NEVER) for at in (0, 1)]
    rows = []
    for step in [*steps, *LAST]:
        gone = there.get(step, [0, 0])
        after = [left[0] - gone[0], left[1] - gone[1]]
        if step in LAST and not gone[0]:
            continue
        row = {"documents": left[0], "kept": after[0], "characters": left[1], "kept_characters": after[1]}
        rows.append({"name": step, **row})
        left = after
    return rows


def sourced(table: pa.Table, sources: Mapping[str, str]) -> pa.Array:
    """The source of each row, by its file; a file of no source is its own."""
    files = table["file"].combine_chunks().dictionary_encode() if len(table) else pa.array([], pa.string())
    if not len(table):
        return files
    names = pa.array([sources.get(file, file) for file in files.dictionary.to_pylist()], pa.string())
    return pc.take(names, files.indices)
