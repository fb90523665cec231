"""What awaits people's ranks, and the ranks that they gave, in one SQLite file beside a run's stages.

Who ranks asks for sets of items, a query with its different answers each; the labelling page writes what people say of
them. An item is known by what it holds: a label outlives every set that asks for the same, and a set that asks for
something else leaves it where it is. Everybody has one label an item, the newest.
"""

import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cluster.people.database import Database

FILE = "labels.sqlite3"
VERSION = 1  # of the tables
_TABLES = """
CREATE TABLE IF NOT EXISTS sets (
    source TEXT PRIMARY KEY,   -- who asks: the stage, or a file's name
    key TEXT NOT NULL,         -- of all that the set was made of
    more TEXT NOT NULL         -- JSON: what who asks wants to find again
);
CREATE TABLE IF NOT EXISTS items (
    source TEXT NOT NULL,
    place INTEGER NOT NULL,    -- in its set
    id TEXT NOT NULL,          -- of what it holds
    said TEXT NOT NULL,        -- JSON: messages, texts, principles
    PRIMARY KEY (source, place)
);
CREATE TABLE IF NOT EXISTS labels (
    owner TEXT NOT NULL,       -- the name of the key that it came with; "" where none was needed
    item TEXT NOT NULL,
    said TEXT NOT NULL,        -- JSON: ranks, skipped, comment
    created REAL NOT NULL,     -- unix seconds
    PRIMARY KEY (owner, item)
);
"""

Messages = Sequence[Mapping[str, str]]


@dataclass(frozen=True)
class Item:
    """A query's different answers, to be ranked under each of the principles."""

    messages: Messages
    texts: tuple[str, ...]  # [K]
    principles: tuple[str, ...]

    @property
    def id(self) -> str:
        held = json.dumps([list(map(dict, self.messages)), self.texts], ensure_ascii=False, sort_keys=True)
        return hashlib.sha256(held.encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Label:
    """What somebody said of an item."""

    owner: str
    item: str
    ranks: Mapping[str, Sequence[int]]  # principle: [K] how many answers are better; of those that were ranked
    skipped: bool = False
    comment: str = ""
    created: float = field(default_factory=time.time)  # unix seconds


def places(given: Sequence[int]) -> list[int]:
    """Any numbers, the better the lower, as ranks: how many are better, equal where they tie."""
    return [sum(other < own for other in given) for own in given]


class Labels:
    """The file, made when something is asked for. Any thread may call; each call is whole or has not been."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._database = Database(path, _TABLES, VERSION)

    def ask(self, source: str, items: Sequence[Item], *, key: str = "", more: Any = None) -> None:
        """Ask for these, in the place of what `source` asked for before. Labels stay."""
        with self._database.writing(makes=True) as connection:
            assert connection is not None
            connection.execute("DELETE FROM items WHERE source = ?", (source,))
            connection.execute("INSERT OR REPLACE INTO sets VALUES (?, ?, ?)", (source, key, _json(more)))
            rows = [(source, place, item.id, _json(_held(item))) for place, item in enumerate(items)]
            connection.executemany("INSERT INTO items VALUES (?, ?, ?, ?)", rows)

    def asked(self, source: str) -> tuple[str, Any]:
        """(key, more) of what `source` asked for last; ("", None) if nothing."""
        with self._database.writing() as connection:
            if connection is None:
                return "", None
            row = connection.execute("SELECT key, more FROM sets WHERE source = ?", (source,)).fetchone()
        return (row[0], json.loads(row[1])) if row else ("", None)

    def items(self, source: str = "") -> list[Item]:
        """All that is asked for, or what `source` asks for, each once, in order."""
        with self._database.writing() as connection:
            if connection is None:
                return []
            rows = connection.execute("SELECT source, id, said FROM items ORDER BY source, place").fetchall()
        by_id: dict[str, str] = {}
        for who, name, said in rows:
            if source in ("", who):
                by_id.setdefault(name, said)
        return [_item(json.loads(said)) for said in by_id.values()]

    def give(self, *labels: Label) -> None:
        """Keep labels, each in the place of what its owner said of the item before."""
        rows = [
            (
                label.owner,
                label.item,
                _json({"ranks": dict(label.ranks), "skipped": label.skipped, "comment": label.comment}),
                label.created,
            )
            for label in labels
        ]
        with self._database.writing(makes=True) as connection:
            assert connection is not None
            connection.executemany("INSERT OR REPLACE INTO labels VALUES (?, ?, ?, ?)", rows)

    def forget(self, owner: str, item: str) -> bool:
        """Delete the owner's label of an item; False where there is none."""
        with self._database.writing() as connection:
            if connection is None:
                return False
            found = connection.execute("DELETE FROM labels WHERE owner = ? AND item = ?", (owner, item)).rowcount
        self._database.shorten()
        return found > 0

    def given(self, owner: str | None = None) -> dict[str, list[Label]]:
        """{item: its labels}, of everybody or of one, by owner."""
        with self._database.writing() as connection:
            if connection is None:
                return {}
            rows = connection.execute("SELECT owner, item, said, created FROM labels ORDER BY owner, item").fetchall()
        found: dict[str, list[Label]] = {}
        for who, item, said, created in rows:
            if owner in (None, who):
                found.setdefault(item, []).append(Label(who, item, **json.loads(said), created=created))
        return found

    def close(self) -> None:
        self._database.close()


def _held(item: Item) -> dict[str, Any]:
    return {"messages": list(map(dict, item.messages)), "texts": item.texts, "principles": item.principles}


def _item(held: Mapping[str, Any]) -> Item:
    return Item(held["messages"], tuple(held["texts"]), tuple(held["principles"]))


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, sort_keys=True)
