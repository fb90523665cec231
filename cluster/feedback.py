"""What people say of answers, in one SQLite file beside a run's stages: kept once, shown to nobody else, forgotten for
good.

Who served the answers writes, who ranks them reads; both may be many processes.
"""

import hashlib
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from cluster.people.database import Database, reading

FILE = "feedback.sqlite3"
VERSION = 1  # of the tables
_TABLES = """
CREATE TABLE IF NOT EXISTS votes (
    owner TEXT NOT NULL,         -- the name of the key that it came with; "" where none was needed
    id TEXT NOT NULL,            -- the client's
    conversation TEXT NOT NULL,  -- the client's name of it
    trains INTEGER NOT NULL,     -- 1: rankings may have it; 0: only its owner may see it
    said TEXT NOT NULL,          -- JSON: see serving/votes.py
    created REAL NOT NULL,       -- unix seconds
    PRIMARY KEY (owner, id)
);
CREATE INDEX IF NOT EXISTS votes_by_conversation ON votes (owner, conversation);
CREATE TABLE IF NOT EXISTS forgotten (  -- what must not come back by a client that repeats itself
    owner TEXT NOT NULL,
    digest TEXT NOT NULL,        -- of the name of a vote or a conversation
    PRIMARY KEY (owner, digest)
);
"""
_COLUMNS = "owner, id, conversation, trains, said, created"


class Taken(ValueError):
    """The id is that of another vote."""


class Forgotten(ValueError):
    """This vote, or its conversation, was deleted before."""


@dataclass(frozen=True)
class Vote:
    """What somebody said of an answer, or of two."""

    owner: str
    id: str
    conversation: str
    trains: bool
    said: Mapping[str, Any]
    created: float  # unix seconds


class Store:
    """The file, made when the first vote comes. Any thread may call; each call is whole or has not been."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._database = Database(path, _TABLES, VERSION)

    def add(self, owner: str, name: str, conversation: str, said: Mapping[str, Any], *, trains: bool) -> bool:
        """Keep a vote; False where it is there already. Raises `Taken` and `Forgotten`."""
        text = json.dumps(said, ensure_ascii=False, sort_keys=True)
        with self._database.writing(makes=True) as connection:
            assert connection is not None
            gone = "SELECT 1 FROM forgotten WHERE owner = ? AND digest IN (?, ?)"
            digests = _digest("vote", name), _digest("conversation", conversation)
            if connection.execute(gone, (owner, *digests)).fetchone():
                raise Forgotten(f"{name}: it, or its conversation, was deleted")
            there = connection.execute(f"SELECT {_COLUMNS} FROM votes WHERE owner = ? AND id = ?", (owner, name))
            if row := there.fetchone():
                if (row[2], row[3], row[4]) != (conversation, int(trains), text):
                    raise Taken(f"{name}: another vote has this id")
                return False
            row = (owner, name, conversation, int(trains), text, time.time())
            connection.execute(f"INSERT INTO votes ({_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?)", row)
        return True

    def of(self, owner: str, conversation: str | None = None) -> list[Vote]:
        """The owner's own votes, of one conversation or of all, in the order in which they came."""
        where = "owner = ?" + ("" if conversation is None else " AND conversation = ?")
        values = (owner,) if conversation is None else (owner, conversation)
        with self._database.writing() as connection:
            if connection is None:
                return []
            return [_vote(row) for row in connection.execute(_selected(where), values)]

    def forget(self, owner: str, *, vote: str = "", conversation: str = "") -> int:
        """Delete the owner's vote of that id, or all of a conversation, and take neither again -> how many it was."""
        column, name = ("conversation", conversation) if conversation else ("id", vote)
        digest = _digest("conversation" if conversation else "vote", name)
        with self._database.writing(makes=True) as connection:
            assert connection is not None
            connection.execute("INSERT OR IGNORE INTO forgotten VALUES (?, ?)", (owner, digest))
            found = connection.execute(f"DELETE FROM votes WHERE owner = ? AND {column} = ?", (owner, name)).rowcount
        self._database.shorten()
        return found

    def close(self) -> None:
        self._database.close()


def for_training(path: Path) -> list[Vote]:
    """All votes of a store that rankings may have, in the order of owner and time. Raises OSError where there is no
    store, or a file that is none."""
    with reading(path, "no feedback has been stored here") as connection:
        return [_vote(row) for row in connection.execute(_selected("trains = 1"))]


def _selected(where: str) -> str:
    return f"SELECT {_COLUMNS} FROM votes WHERE {where} ORDER BY owner, created, id"


def _vote(row: tuple[Any, ...]) -> Vote:
    owner, name, conversation, trains, said, created = row
    return Vote(owner, name, conversation, bool(trains), json.loads(said), created)


def _digest(kind: Literal["vote", "conversation"], name: str) -> str:
    return hashlib.sha256(f"{kind}:{name}".encode()).hexdigest()
