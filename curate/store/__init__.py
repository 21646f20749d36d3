"""The caption store: immutable parts, and a DuckDB index over them that can be rebuilt at any time.

from curate.store import Store
Store("demo/store").sql("select drop_reason, count(*) from samples group by 1").df()

files.py   where files lie (local disk, s3://, gs://) and how they are published
parts.py   what one operator wrote for one shard
index.py   captions.duckdb: ingest, views; aligned.py puts the cells of a shard side by side for it
apart.py   the same in a process of its own
derived.py operators that look at the whole store (duplicates, concepts, tiers)
query.py   read-only, sandboxed SQL
verify.py  do parts, ledger and index agree
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa

from curate.errors import StoreError
from curate.store import index, query
from curate.store.files import Files, open_files
from curate.store.parts import Part, Version, list_parts, read_parts


class Store:
    """A store at a local path or s3:// URI. SQL sees the index as of the last ingest.

    A query takes `memory` at most; what is more goes to the folder `spill`, and without one the query fails.
    """

    def __init__(
        self, uri: str | Path, files: Files | None = None, memory: str = query.MEMORY, spill: str = ""
    ) -> None:
        self.uri, self.memory, self.spill = str(uri), memory, spill
        self.files = files or open_files(self.uri)
        self._db: tuple[int, duckdb.DuckDBPyConnection] | None = None

    @property
    def path(self) -> Path:
        """The index file; made from the parts when it is absent."""
        path = index.index_path(self.files)
        if not path.exists():
            self.require()
            self.ingest()
        return path

    def require(self) -> None:
        """Raise StoreError when nothing at the URI looks like a store."""
        if not any(True for _ in self.files.list("runs")):
            raise StoreError(f"{self.uri}: no store here; make one with: curate run RECIPE --set store.uri={self.uri}")

    def sql(self, text: str, parameters: list[Any] | None = None) -> duckdb.DuckDBPyRelation:
        """The result of a read-only query as a DuckDB relation: `.df()`, `.fetchall()`, `.to_arrow_table()`."""
        return self.connection().sql(text, params=parameters)

    def rows(self, text: str, parameters: list[Any] | None = None) -> list[tuple[Any, ...]]:
        """All rows of a read-only query."""
        return self.connection().execute(text, parameters or []).fetchall()

    def connection(self) -> duckdb.DuckDBPyConnection:
        """A sandboxed read-only connection; opened anew when an ingest has put another index in place."""
        inode = self.path.stat().st_ino
        if self._db is None or self._db[0] != inode:
            self.close()
            self._db = inode, query.connect(self.path, self.memory, self.spill)
        return self._db[1]

    def close(self) -> None:
        """Close the connection, if one is open."""
        if self._db is not None:
            self._db[1].close()
            self._db = None

    def ingest(self, closing: Callable[[dict[str, int]], None] | None = None, *, apart: bool = False) -> int:
        """Add new parts to the index; returns how many there were. `closing` is told the counts at the end.

        `apart`: in a process of its own, which takes the memory for it (about half a gigabyte) with it when it ends.
        """
        if not apart:
            return index.update(self.files, closing=closing)
        from curate.store.apart import update  # here, since Python warns when a package imports what `-m` runs

        return update(self.files, closing)

    def rebuild(self) -> int:
        """Make the index anew from the parts; returns how many there are."""
        return index.update(self.files, rebuild=True)

    def cells(self, operator: str, columns: Sequence[str] = ()) -> Iterator[pa.Table]:
        """The cells of an operator's active version from its parts, a shard at a time, sorted by row.

        `shard, row, error` and the named columns (all when none is named). For what the index does not hold: embeddings
        stay in the parts. Nothing comes when the operator has no active version.
        """
        marks = self.rows("SELECT fingerprint FROM operators WHERE active AND operator = $1", [operator])
        for (mark,) in marks:
            shards: dict[str, list[Part]] = {}
            for part in list_parts(self.files, Version(operator, mark)):
                shards.setdefault(part.shard, []).append(part)
            for parts in shards.values():
                table = read_parts(self.files, parts, ["shard", "row", "error", *columns] if columns else None)
                if table is not None:
                    yield table

    def counts(self) -> dict[str, int]:
        """Rows in, kept, dropped, failed, undecided, and rows with a caption in each language."""
        return index.counts(self.connection())

    def drop_reasons(self) -> list[tuple[str, int]]:
        """Rows by drop reason, in the order of the policy."""
        return self.rows(
            "WITH d AS (SELECT drop_reason, count(*) AS rows FROM samples "
            "WHERE keep = FALSE AND drop_reason IS NOT NULL GROUP BY 1) "
            "SELECT drop_reason, rows FROM d LEFT JOIN policy AS p "
            "ON drop_reason IN (p.name, p.name || '_null') ORDER BY p.position, drop_reason"
        )

    def error_words(self) -> list[tuple[str, int]]:
        """Failed rows by error, most frequent first."""
        return self.rows(
            "SELECT error, count(*) FROM samples WHERE error IS NOT NULL GROUP BY error ORDER BY count(*) DESC, error"
        )
