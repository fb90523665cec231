"""One SQLite file beside a run's stages, which many threads and processes write: each call is whole or has not been.

Over a network file system SQLite's shared memory does not hold: there, one machine writes.
"""

import sqlite3
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from urllib.parse import quote

_WAIT = 30.0  # seconds for another process to end its writing


class Database:
    """The file, made when something is first written."""

    def __init__(self, path: Path, tables: str, version: int) -> None:
        """`tables` makes what is not there yet, of the `version`, in SQL."""
        self.path = path
        self._tables, self._version = tables, version
        self._lock = threading.Lock()
        self._connection: sqlite3.Connection | None = None

    @contextmanager
    def writing(self, *, makes: bool = False) -> Iterator[sqlite3.Connection | None]:
        """In one transaction; None where there is no file and none is to be made."""
        with self._lock:
            if self._connection is None and (makes or self.path.exists()):
                self._connection = self._opened()
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

    def shorten(self) -> None:
        """Bring the log into the file: what was deleted leaves it, too."""
        with self._lock:
            if self._connection is not None:
                self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")

    def close(self) -> None:
        with self._lock:
            if self._connection is not None:
                self._connection.close()
            self._connection = None

    def _opened(self) -> sqlite3.Connection:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        # isolation_level=None: transactions begin where they are written down
        connection = sqlite3.connect(self.path, timeout=_WAIT, isolation_level=None, check_same_thread=False)
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")  # what was answered with 201 outlives a power cut
        connection.execute("PRAGMA secure_delete = ON")
        if connection.execute("PRAGMA user_version").fetchone()[0] > self._version:
            raise OSError(f"{self.path}: written by a newer version")
        connection.executescript(f"{self._tables}\nPRAGMA user_version = {self._version};")
        return connection


@contextmanager
def reading(path: Path, nothing: str) -> Iterator[sqlite3.Connection]:
    """The file, to be read only. Raises OSError where there is none, saying `nothing`, or one of another kind."""
    if not path.is_file():
        raise FileNotFoundError(f"{path}: {nothing}")
    try:
        with closing(sqlite3.connect(f"file:{quote(str(path))}?mode=ro", uri=True, timeout=_WAIT)) as connection:
            yield connection
    except sqlite3.DatabaseError as error:
        raise OSError(f"{path}: {error}") from error
