"""A cache of all judge scores in one SQLite file, so that no score is paid for twice.

The key of a score is the SHA-256 of judge, rubric, question, answer and parameters; the texts themselves are not
stored. Several processes may read and write the file at once, each score is on disk when `put` returns, and a killed
process leaves nothing half written. On a local disk the file is in WAL mode. On a network file system, where SQLite's
WAL does not work, it uses a rollback journal, which is slower and needs file locks that hold across machines.

    python -m emlib.judging.sharing export scores.parquet      # and `import`: share scores with a group
"""

from __future__ import annotations

import json
import sqlite3
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote

from filelock import FileLock

from emlib.core import digests
from emlib.core.errors import StoreError
from emlib.core.machine import is_shared
from emlib.judging.rubrics import Score

FORMAT = 1
TABLES = """
CREATE TABLE IF NOT EXISTS scores (
    key TEXT PRIMARY KEY, judge TEXT NOT NULL, metric TEXT NOT NULL, value REAL, mass REAL, reason TEXT, note TEXT,
    tokens_read INTEGER NOT NULL, tokens_written INTEGER NOT NULL, made TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS accounts (name TEXT PRIMARY KEY, usd REAL NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS batches (
    name TEXT PRIMARY KEY, judge TEXT NOT NULL, account TEXT NOT NULL, id TEXT, usd REAL NOT NULL, made TEXT NOT NULL)
    WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS waiting (key TEXT PRIMARY KEY, metric TEXT NOT NULL, batch TEXT NOT NULL) WITHOUT ROWID;
"""
# Tables that came later. Earlier versions of emlib neither need nor touch them, so the format stays the same.
ADDED_TABLES = """
CREATE TABLE IF NOT EXISTS unanswered (key TEXT PRIMARY KEY, batches INTEGER NOT NULL, reason TEXT NOT NULL)
    WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS labels (key TEXT PRIMARY KEY) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS reserved (key TEXT PRIMARY KEY, owner TEXT NOT NULL, expires REAL NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS supported (server TEXT, model TEXT, parameters TEXT NOT NULL, PRIMARY KEY (server, model))
    WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS sent_to (batch TEXT PRIMARY KEY, address TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS servers (judge TEXT, address TEXT, PRIMARY KEY (judge, address)) WITHOUT ROWID;
"""
COLUMNS = ("key", "judge", "metric", "value", "mass", "reason", "note", "tokens_read", "tokens_written", "made")
INSERT = f"INSERT OR IGNORE INTO scores VALUES ({','.join('?' * len(COLUMNS))})"
PATIENCE = 60.0  # seconds that a writer waits for another process
Row = tuple[Any, ...]  # one value for each of COLUMNS


class Cache:
    """The scores of one file. Threads may share it: a lock serialises them."""

    def __init__(self, path: Path) -> None:
        self.path, self._lock = path, threading.RLock()
        with self._explained_errors():
            path.parent.mkdir(parents=True, exist_ok=True)
            with FileLock(path.with_name(f".{path.name}.lock")):  # SQLite does not wait when two set the mode
                self._connection = sqlite3.connect(path, PATIENCE, isolation_level=None, check_same_thread=False)
                shared = is_shared(path)
                self._connection.execute(f"PRAGMA journal_mode = {'DELETE' if shared else 'WAL'}")
                # With WAL a kill loses nothing and a power cut the last writes. Without, less than FULL may corrupt it.
                self._connection.execute(f"PRAGMA synchronous = {'FULL' if shared else 'NORMAL'}")
                self._check_format()

    def __enter__(self) -> Cache:
        return self

    def __exit__(self, *exception: object) -> None:
        self._connection.close()

    def get(self, keys: Iterable[str]) -> dict[str, Score]:
        """Return the cached scores among `keys`."""
        found = self.execute("SELECT key, value, mass, reason, note, tokens_read, tokens_written FROM scores "
                             "WHERE key IN (SELECT value FROM json_each(?))", (json.dumps(list(keys)),))
        return {key: Score(value, mass, reason, note, (read, written))
                for key, value, mass, reason, note, read, written in found}

    def put(self, key: str, identity: Mapping[str, Any], metric: str, score: Score) -> None:
        """Store a score; an existing one stays. The score is on disk when this returns."""
        made = datetime.now(UTC).isoformat(timespec="seconds")
        self.execute(INSERT, (key, canonical(identity), metric, score.value, score.mass, score.reason, score.note,
                              *score.tokens, made))

    def add(self, rows: Iterable[Row]) -> int:
        """Store rows with the values of `COLUMNS`, all or none of them; return how many were new."""
        with self.transaction():
            before = self._connection.total_changes
            self._connection.executemany(INSERT, rows)
            return self._connection.total_changes - before

    def has_value_by(self, identity: Mapping[str, Any]) -> bool:
        """Return whether this judge has ever given a number."""
        return bool(self.execute("SELECT 1 FROM scores WHERE judge = ? AND value IS NOT NULL LIMIT 1",
                                 (canonical(identity),)))

    def other_servers(self, identity: Mapping[str, Any], address: str) -> list[str]:
        """Return where else this judge was asked, if it is asked at this address for the first time; else nothing."""
        judge = canonical(identity)
        known = [one for (one,) in self.execute("SELECT address FROM servers WHERE judge = ?", (judge,))]
        if address in known:
            return []
        self.execute("INSERT OR IGNORE INTO servers VALUES (?, ?)", (judge, address))
        return known

    def has_batch_to_settle(self, identity: Mapping[str, Any], address: str) -> bool:
        """Return whether a batch of this judge at this address is not collected, and none of its scores is missing."""
        return bool(self.execute(
            "SELECT 1 FROM batches LEFT JOIN sent_to ON sent_to.batch = name "
            "WHERE judge = ? AND (address IS NULL OR address = ?) AND NOT EXISTS (SELECT 1 FROM waiting "
            "WHERE waiting.batch = name AND NOT EXISTS (SELECT 1 FROM scores WHERE scores.key = waiting.key)) LIMIT 1",
            (canonical(identity), address)))

    def rows(self) -> list[Row]:
        """Return all scores, as values of `COLUMNS`, in the order of the keys."""
        return self.execute(f"SELECT {', '.join(COLUMNS)} FROM scores ORDER BY key")

    def execute(self, statement: str, values: Sequence[Any] | Mapping[str, Any] = ()) -> list[Row]:
        """Execute one statement and return all its rows."""
        with self._lock, self._explained_errors():
            return self._connection.execute(statement, values).fetchall()

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Write what happens inside completely or not at all; no other process writes meanwhile."""
        with self._lock, self._explained_errors():
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield
            except BaseException:
                self._connection.execute("ROLLBACK")
                raise
            self._connection.execute("COMMIT")

    def _check_format(self) -> None:
        found = self._connection.execute("PRAGMA user_version").fetchone()[0]
        if found not in (0, FORMAT):
            raise StoreError(f"{self.path}: these scores have format {found}, and this emlib reads format {FORMAT}. "
                             "Nothing was changed. Move the file away.")
        if found == 0:
            self._connection.executescript(f"{TABLES} PRAGMA user_version = {FORMAT};")
        self._connection.executescript(ADDED_TABLES)

    @contextmanager
    def _explained_errors(self) -> Iterator[None]:
        """Turn SQLite's errors into a `StoreError` that says what to do."""
        try:
            yield
        except (sqlite3.Error, OSError) as error:
            raise StoreError(f"{self.path}: the scores of judges cannot be read or written ({error}). Make room, or "
                             "move a broken file away; EMLIB_RUNS_DIR moves it to another disk.") from error


def canonical(identity: Mapping[str, Any]) -> str:
    """Return a judge's identity as text, the same for equal judges."""
    return digests.canonical(identity).decode()


def read_only(path: Path, statement: str, values: Sequence[Any] = ()) -> list[Row]:
    """Return the rows of a statement; the file is not written, not even to set its mode as `Cache` does.

    Raises:
        StoreError: the file cannot be read.
    """
    # Without a log of writes there is no writer, and SQLite need not look for one, for which it would create files. A
    # writer on a shared file system has no such log.
    idle = not is_shared(path) and not path.with_name(f"{path.name}-wal").is_file()
    address = f"file:{quote(str(path.absolute()))}?{'immutable=1' if idle else 'mode=ro'}"
    try:
        with closing(sqlite3.connect(address, PATIENCE, uri=True)) as connection:
            return connection.execute(statement, values).fetchall()
    except sqlite3.Error as error:
        raise StoreError(f"{path}: the scores of judges cannot be read ({error}). Move a broken file away.") from error
