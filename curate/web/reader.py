"""Read-only SQL for many requests at once, always on the newest index."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import duckdb

from curate.errors import CurateError, UsageError
from curate.explain import last_run
from curate.store import Store
from curate.store.query import condition, connect, deadline, first_line

QUERY_S = 10.0
KEPT_ANSWERS = 64


class TooSlow(CurateError):
    """A query of a page took longer than QUERY_S."""


class Snapshot(Store):
    """A store whose SQL runs on one cursor, over one state of the index; for one request or one thread."""

    def __init__(self, store: Store, cursor: duckdb.DuckDBPyConnection, generation: int) -> None:
        super().__init__(store.uri, store.files)
        self.cursor = cursor
        self.generation = generation

    def connection(self) -> duckdb.DuckDBPyConnection:
        return self.cursor

    def table(self, sql: str, parameters: list[Any] | None = None) -> list[dict[str, Any]]:
        """All rows as dicts; raises UsageError with DuckDB's first line, TooSlow after QUERY_S."""
        with deadline(self.cursor, QUERY_S):
            try:
                result = self.cursor.execute(sql, parameters or [])
                names = [column[0] for column in result.description]
                return [dict(zip(names, row, strict=True)) for row in result.fetchall()]
            except duckdb.InterruptException:
                raise TooSlow(f"the query took longer than {QUERY_S:g} s; a narrower condition helps") from None
            except duckdb.Error as why:
                raise UsageError(first_line(why)) from None

    def condition(self, text: str) -> str:
        """`text` checked to be one SQL condition over the columns of a row (curate/store/query.py)."""
        with deadline(self.cursor, QUERY_S):
            try:
                return condition(self.cursor, text)
            except duckdb.InterruptException:
                raise TooSlow(f"the condition took longer than {QUERY_S:g} s; a narrower one helps") from None


class _Index:
    """One state of the index: its own connection, and how many snapshots use it."""

    def __init__(self, path: Path, inode: int) -> None:
        self.inode = inode
        self.db = connect(path)
        self.users = 0


class Reader:
    """Hands out snapshots of one store.

    When an ingest has replaced the index file, new snapshots get a connection to the new one; the old connection stays
    open until the last snapshot of it is given back, so neither waits for the other.
    """

    def __init__(self, store: Store) -> None:
        self.store = store
        self._lock = threading.Lock()
        self._index: _Index | None = None
        self._answers: OrderedDict[tuple[int, str], Any] = OrderedDict()

    @contextmanager
    def open(self) -> Iterator[Snapshot]:
        """A snapshot for the time of the block."""
        with self._lock:
            index = self._newest()
            index.users += 1
        try:
            cursor = index.db.cursor()
            cursor.execute("USE store")  # a cursor starts in the private in-memory database
            yield Snapshot(self.store, cursor, index.inode)
        finally:
            with self._lock:
                cursor.close()
                index.users -= 1
                if not index.users and index is not self._index:
                    index.db.close()

    def close(self) -> None:
        """Close the connection to the index."""
        with self._lock:
            if self._index and not self._index.users:
                self._index.db.close()
            self._index = None

    def _newest(self) -> _Index:
        path = self.store.path
        inode = path.stat().st_ino
        if self._index is None or self._index.inode != inode:
            old, self._index = self._index, _Index(path, inode)
            if old and not old.users:
                old.db.close()
        return self._index

    def cached(self, snapshot: Snapshot, sql: str) -> list[dict[str, Any]]:
        """As `snapshot.table`, remembering the answer for as long as the index stays."""
        key = (snapshot.generation, sql)
        with self._lock:
            if key in self._answers:
                self._answers.move_to_end(key)
                return list(self._answers[key])
        rows = snapshot.table(sql)
        with self._lock:
            self._answers[key] = rows
            while len(self._answers) > KEPT_ANSWERS:
                self._answers.popitem(last=False)
        return rows

    def record(self, snapshot: Snapshot) -> dict[str, Any]:
        """The record of the run whose policy the index shows."""
        key = (snapshot.generation, "record")
        with self._lock:
            if key in self._answers:
                return dict(self._answers[key])
        record = last_run(snapshot)
        with self._lock:
            self._answers[key] = record
        return record
