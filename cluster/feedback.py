"""What people say of answers, in one SQLite file beside a run's stages: kept once, shown to nobody else, forgotten for
good.

Who served the answers writes, who ranks them reads; both may be many processes. Over a network file system SQLite's
shared memory does not hold: there, one machine writes.
"""

import hashlib
import json
import sqlite3
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal
from urllib.parse import quote

FILE = "feedback.sqlite3"
VERSION = 1  # of the tables
_WAIT = 30.0  # seconds for another process to end its writing
_TABLES = f"""
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
PRAGMA user_version = {VERSION};
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
        self._lock = threading.Lock()
        self._connection: sqlite3.Connection | None = None

    def add(self, owner: str, name: str, conversation: str, said: Mapping[str, Any], *, trains: bool) -> bool:
        """Keep a vote; False where it is there already. Raises `Taken` and `Forgotten`."""
        text = json.dumps(said, ensure_ascii=False, sort_keys=True)
        with self._writing(makes=True) as connection:
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
        with self._writing() as connection:
            if connection is None:
                return []
            return [_vote(row) for row in connection.execute(_selected(where), values)]

    def forget(self, owner: str, *, vote: str = "", conversation: str = "") -> int:
        """Delete the owner's vote of that id, or all of a conversation, and take neither again -> how many it was."""
        column, name = ("conversation", conversation) if conversation else ("id", vote)
        digest = _digest("conversation" if conversation else "vote", name)
        with self._writing(makes=True) as connection:
            assert connection is not None
            connection.execute("INSERT OR IGNORE INTO forgotten VALUES (?, ?)", (owner, digest))
            found = connection.execute(f"DELETE FROM votes WHERE owner = ? AND {column} = ?", (owner, name)).rowcount
        with self._lock:
            assert self._connection is not None
            self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")  # what was deleted leaves the log, too
        return found

    @contextmanager
    def _writing(self, *, makes: bool = False) -> Iterator[sqlite3.Connection | None]:
        """In one transaction; None where there is no file and none is to be made."""
        with self._lock:
            if self._connection is None and (makes or self.path.exists()):
                self._connection = _opened(self.path)
            if self._connection is None:
                yield None
                return
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield self._connection
            except BaseException:
                self._connection.execute("ROLLBACK")
                raise
            self._connection.execute("COMMIT")

    def close(self) -> None:
        with self._lock:
            if self._connection is not None:
                self._connection.close()
            self._connection = None


def for_training(path: Path) -> list[Vote]:
    """All votes of a store that rankings may have, in the order of owner and time. Raises OSError where there is no
    store, or a file that is none."""
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no feedback has been stored here")
    try:
        with closing(sqlite3.connect(f"file:{quote(str(path))}?mode=ro", uri=True, timeout=_WAIT)) as connection:
            return [_vote(row) for row in connection.execute(_selected("trains = 1"))]
    except sqlite3.DatabaseError as error:
        raise OSError(f"{path}: {error}") from error


def _selected(where: str) -> str:
    return f"SELECT {_COLUMNS} FROM votes WHERE {where} ORDER BY owner, created, id"


def _vote(row: tuple[Any, ...]) -> Vote:
    owner, name, conversation, trains, said, created = row
    return Vote(owner, name, conversation, bool(trains), json.loads(said), created)


def _digest(kind: Literal["vote", "conversation"], name: str) -> str:
    return hashlib.sha256(f"{kind}:{name}".encode()).hexdigest()


def _opened(path: Path) -> sqlite3.Connection:
    path.parent.mkdir(parents=True, exist_ok=True)
    # isolation_level=None: transactions begin where they are written down
    connection = sqlite3.connect(path, timeout=_WAIT, isolation_level=None, check_same_thread=False)
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = FULL")  # what was answered with 201 outlives a power cut
    connection.execute("PRAGMA secure_delete = ON")
    if connection.execute("PRAGMA user_version").fetchone()[0] > VERSION:
        raise OSError(f"{path}: written by a newer version")
    connection.executescript(_TABLES)
    return connection
