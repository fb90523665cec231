"""What rows are made of: documents, characters and tokens, by source and by language.

Who reads the documents says what each is, in tables; who encodes them says how many tokens each has become.
"""

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import pyarrow as pa

KINDS = ("source", "language")
COUNTS = ("documents", "characters", "tokens")


class Makeup:
    """Counts documents as they come, in their order. `kinds`: tables of source, language and characters, a row for
    each document; where there are none, nothing is counted."""

    def __init__(self, kinds: Iterable[pa.Table]) -> None:
        self._kinds: Iterator[pa.Table] = iter(kinds)
        self._held: pa.Table | None = next(self._kinds, None)
        self._found: dict[tuple[str, str], dict[str, int]] = {}

    def add(self, tokens: np.ndarray) -> None:
        """Count the next documents, by their numbers of tokens, marks between documents left out."""
        at = 0
        while at < len(tokens) and self._held is not None:
            here = self._held.slice(0, len(tokens) - at)
            whole = here.append_column("tokens", pa.array(tokens[at : at + len(here)], pa.int64()))
            counted = whole.group_by([*KINDS]).aggregate(
                [("tokens", "count"), ("characters", "sum"), ("tokens", "sum")]
            )
            for row in counted.to_pylist():
                counts = self._found.setdefault((row["source"], row["language"]), dict.fromkeys(COUNTS, 0))
                for name, column in zip(COUNTS, ("tokens_count", "characters_sum", "tokens_sum"), strict=True):
                    counts[name] += row[column]
            at += len(here)
            self._held = self._held.slice(len(here)) if len(here) < len(self._held) else next(self._kinds, None)

    @property
    def told(self) -> dict[str, dict[str, dict[str, Any]]]:
        """{"source": {name: {documents, characters, tokens, share: of all tokens}}, "language": ...}; {} where nothing
        was counted."""
        every = sum(counts["tokens"] for counts in self._found.values())
        told: dict[str, dict[str, dict[str, Any]]] = {}
        for at, kind in enumerate(KINDS if self._found else ()):
            by: dict[str, dict[str, Any]] = {}
            for names, counts in sorted(self._found.items()):
                held = by.setdefault(names[at], dict.fromkeys(COUNTS, 0))
                for name in COUNTS:
                    held[name] += counts[name]
            told[kind] = {
                name: {**held, "share": round(held["tokens"] / max(1, every), 4)} for name, held in by.items()
            }
        return told
