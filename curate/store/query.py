"""Read-only, sandboxed SQL over the index.

The connection can read the index file and nothing else: no other file, no network, no extension, no setting can be
changed back. What DuckDB itself cannot promise (it has no users) is that the file system is out of reach of a bug in
it; for SQL from strangers, run the command under an account that cannot write the store (docs/security.md).
"""

from __future__ import annotations

import csv
import json
import math
import sys
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from curate.errors import StoreError, UsageError

MEMORY = "1GB"
MAX_CONDITION = 2000  # characters


def connect(path: Path, memory: str = MEMORY, spill: str = "") -> duckdb.DuckDBPyConnection:
    """A sandboxed read-only connection to the index file; what `memory` does not hold goes to the folder `spill`.

    The file is attached to a private in-memory database: DuckDB hands every `connect(path)` of a process the same
    instance, which would still read the old file after an ingest has put another one in its place.
    """
    db = duckdb.connect(config={"memory_limit": memory})
    try:
        quoted = str(path).replace("'", "''")
        db.execute(f"ATTACH '{quoted}' AS store (READ_ONLY)")
        db.execute("USE store")
    except duckdb.Error as why:
        db.close()
        raise StoreError(f"{path}: {str(why).splitlines()[0]}; rebuild it with: curate store rebuild") from None
    quoted = spill.replace("'", "''")
    db.execute(f"SET temp_directory = '{quoted}'")
    db.execute("SET enable_external_access = false")
    db.execute("SET autoinstall_known_extensions = false")
    db.execute("SET autoload_known_extensions = false")
    db.execute("SET lock_configuration = true")
    return db


@contextmanager
def deadline(db: duckdb.DuckDBPyConnection, seconds: float) -> Iterator[None]:
    """Interrupt whatever runs on the connection after `seconds`."""
    timer = threading.Timer(seconds, db.interrupt)
    timer.start()
    try:
        yield
    except duckdb.InterruptException:
        raise UsageError(f"the query took longer than {seconds:g} s; give it more with --timeout") from None
    finally:
        timer.cancel()


def run(db: duckdb.DuckDBPyConnection, text: str, limit: int, seconds: float) -> pa.Table:
    """The first `limit` rows of one statement (all for 0); raises UsageError with DuckDB's own first line."""
    with deadline(db, seconds):
        try:
            statements = duckdb.extract_statements(text)
            if len(statements) != 1:
                raise UsageError(f"one statement at a time, not {len(statements)}")
            result = db.execute(text)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # DuckDB 2.0 warns of a copy; a relation would not run every statement
                reader = result.to_arrow_reader(10_000)
            batches, left = [], limit
            for batch in reader:
                batches.append(batch.slice(0, left) if limit else batch)
                left -= batch.num_rows
                if limit and left <= 0:
                    break
            table = pa.Table.from_batches(batches, schema=reader.schema)
            return table.rename_columns(_unique(table.column_names))
        except duckdb.InterruptException:
            raise
        except duckdb.Error as why:
            raise UsageError(f"SQL: {first_line(why)}") from None


def condition(db: duckdb.DuckDBPyConnection, text: str) -> str:
    """`text` checked to be one SQL expression over the columns of `samples`, in parentheses; raises UsageError.

    It may have subqueries: the connection reaches nothing but the index.
    """
    if len(text) > MAX_CONDITION:
        raise UsageError(f"the condition has {len(text):,} characters; {MAX_CONDITION:,} are possible")
    try:
        found = db.execute("SELECT json_serialize_sql($1::VARCHAR)", [f"SELECT {text}\n"]).fetchone()
        tree = json.loads(found[0]) if found else {}
        if tree.get("error"):
            raise UsageError(f"not SQL: {str(tree.get('error_message', '')).splitlines()[0]}")
        node = tree["statements"][0]["node"]
        alone = (
            len(tree["statements"]) == 1
            and node["type"] == "SELECT_NODE"
            and len(node["select_list"]) == 1
            and node["from_table"]["type"] == "EMPTY"
            and not any(node.get(clause) for clause in ("where_clause", "group_expressions", "having", "qualify"))
            and not node.get("modifiers")
            and not node["select_list"][0].get("alias")
        )
        if not alone:
            raise UsageError("not one condition; write it as after WHERE, e.g. width > 1024 AND faces = 0")
        described = db.execute(f"DESCRIBE SELECT ({text}\n) AS verdict FROM samples WHERE ({text}\n)").fetchone()
    except duckdb.InterruptException:
        raise
    except duckdb.Error as why:
        raise UsageError(first_line(why)) from None
    if described and described[1] != "BOOLEAN":
        raise UsageError(f"gives {described[1]}, must be true or false; compare it with something")
    return f"({text}\n)"


def first_line(why: duckdb.Error) -> str:
    """What DuckDB says in one line, with the columns that it would have understood."""
    lines = str(why).splitlines()
    candidates = next((line for line in lines if line.startswith("Candidate bindings:")), "")
    return f"{lines[0]} {candidates}".strip()


def _unique(names: list[str]) -> list[str]:
    """`names`, with a number behind those that were there before: a row written as an object has each name once."""
    taken: set[str] = set()
    for i, name in enumerate(names):
        number = 0
        while names[i] in taken:
            number += 1
            names[i] = f"{name}_{number}"
        taken.add(names[i])
    return names


def write(table: pa.Table, kind: str, out: Path | None) -> None:
    """Write the rows as csv, json (one object a line) or parquet to a file or to standard output."""
    try:
        _write(table, kind, out)
    except OSError as why:
        raise UsageError(f"--out {out}: {why.strerror or why}") from None


def _write(table: pa.Table, kind: str, out: Path | None) -> None:
    if kind == "parquet":
        if out is None and sys.stdout.isatty():
            raise UsageError("parquet is not for a terminal; add --out FILE or redirect the output")
        pq.write_table(table, out if out else sys.stdout.buffer)
        return
    with out.open("w", encoding="utf-8", newline="") if out else _stdout() as file:
        if kind == "json":
            for row in table.to_pylist():
                file.write(_json(row) + "\n")
        else:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(table.column_names)
            for row in table.to_pylist():
                writer.writerow([_cell(value) for value in row.values()])


@contextmanager
def _stdout() -> Iterator[IO[str]]:
    yield sys.stdout


def _cell(value: Any) -> Any:
    return _json(value) if isinstance(value, (list, dict)) else value


def _json(value: Any) -> str:
    """JSON as its grammar has it: NaN and infinities are null, bytes are hex, anything else is its text."""
    return json.dumps(_plain(value), ensure_ascii=False, allow_nan=False)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, bytes):
        return value.hex()
    return value if isinstance(value, (str, int, bool, type(None))) else str(value)
