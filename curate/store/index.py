"""captions.duckdb: an index over the parts that can be deleted and rebuilt at any time.

It is never written in place. An update works on a copy beside it, in transactions that hold the rows and the ledger
(`commits`) together, and puts the copy in its place with one rename: a reader keeps the file it opened, a reader's lock
never stops a job, and a kill leaves the old index whole. One updater works at a time (`.index.lock`).

    op_<operator>     cells of all versions of one operator; id = shard number << 32 | row
    wide_cells        one row per input row: the active versions, joined once at ingest and not in every query
    wide              a view of it in which columns that the policy reads have the types that it was checked for
    samples, ...      views (schemas/views.sql)
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import logging
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from importlib.resources import files as resource_files
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa

from curate.errors import StoreError
from curate.policy import Predicate, verdict_sql
from curate.store.files import Files
from curate.store.parts import DamagedError, Part, Version, fingerprint, list_parts, read_table
from schemas.columns import DERIVED, OPERATORS, SAMPLES_FIRST
from schemas.rows import TABLES, identifier

STORAGE_VERSION = "v1.5.0"  # DuckDB 2.0 writes this for 1.5 to read; its own default format is closed to 1.5
SHARDS_PER_TRANSACTION = 256
WIDEN_ROWS = 50_000
# DuckDB's memory, tried in turn. The first is enough for rows of 1 kB and keeps a run's driver small; rows with long
# texts of the input's own may need more.
MEMORY = ("256MB", "1GB", "4GB")
# Of the tables below: an index with another layout, or with other columns than schemas/ declares, is made anew.
LAYOUT = fingerprint({"tables": 2, **{op: [f"{c.name} {c.type}" for c in cs] for op, cs in OPERATORS.items()}})


def index_path(files: Files) -> Path:
    """Where the index of a store lies: in the store's folder, or in the user's cache when the store is remote."""
    local = files.local("captions.duckdb")
    if local:
        return local
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return cache / "curate" / hashlib.sha256(files.uri.encode()).hexdigest()[:16] / "captions.duckdb"


Counts = dict[str, int]


def update(files: Files, *, rebuild: bool = False, closing: Callable[[Counts], None] | None = None) -> int:
    """Bring the index up to date with the parts and the last run; returns the number of parts that were added.

    `closing` is told how the rows stand before the run's record is read for the last time, so that a run can write
    its own counts into that record.
    """
    final = index_path(files)
    final.parent.mkdir(parents=True, exist_ok=True)
    with _lock(final.parent / ".index.lock"):
        for memory in MEMORY:
            try:
                return _update(files, final, rebuild, closing, memory)
            except duckdb.OutOfMemoryException:
                if memory == MEMORY[-1]:
                    raise
    raise AssertionError("MEMORY is empty")


def _update(files: Files, final: Path, rebuild: bool, closing: Callable[[Counts], None] | None, memory: str) -> int:
    draft = final.with_name(".captions.duckdb.draft")
    draft.unlink(missing_ok=True)
    draft.with_name(draft.name + ".wal").unlink(missing_ok=True)
    if final.exists() and not rebuild:
        # The copy is opened and never the file itself, which somebody may hold open with a lock.
        shutil.copyfile(final, draft)
        layout = _layout(draft)
        if layout != LAYOUT:
            draft.unlink()
        if layout is None:
            final.replace(final.with_name("captions.duckdb.damaged"))
    with duckdb.connect(config={"memory_limit": memory, "temp_directory": str(final.parent / ".tmp")}) as db:
        db.execute(f"ATTACH '{_quoted(str(draft))}' AS store (STORAGE_VERSION '{STORAGE_VERSION}')")
        db.execute("USE store")
        added = _Update(db, files).run(closing)
        db.execute("USE memory")
        db.execute("DETACH store")
    with draft.open("rb") as file:
        os.fsync(file.fileno())
    draft.replace(final)
    return added


def _layout(path: Path) -> str | None:
    """The layout of an index file; None for a file that is no sound index."""
    try:
        with duckdb.connect(str(path), read_only=True) as db:
            row = db.execute("SELECT value FROM layout").fetchone()
    except duckdb.Error:
        return None
    return str(row[0]) if row else None


@contextlib.contextmanager
def _lock(path: Path) -> Iterator[None]:
    with path.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            fcntl.flock(file, fcntl.LOCK_EX)  # another update is at work; it takes seconds
        yield


class _Update:
    """One update of the index; `db` has the draft as its current database."""

    def __init__(self, db: duckdb.DuckDBPyConnection, files: Files) -> None:
        self.db = db
        self.files = files

    def run(self, closing: Callable[[Counts], None] | None) -> int:
        self.db.execute("BEGIN")
        self.db.execute(TABLES)
        self.db.execute("CREATE TABLE IF NOT EXISTS layout AS SELECT ? AS value", [LAYOUT])
        for operator in OPERATORS:
            self._operator_table(operator)
        run = self._runs()
        widen_all = self._activate(run) or not self._has_wide()
        known = {path for (path,) in self.db.execute("SELECT path FROM commits").fetchall()}
        parts = [p for p in list_parts(self.files) if p.path not in known and p.version.operator in OPERATORS]
        shards = sorted({part.shard for part in parts})
        self._number(shards)
        self.db.execute("COMMIT")
        for start in range(0, len(shards), SHARDS_PER_TRANSACTION):
            chosen = set(shards[start : start + SHARDS_PER_TRANSACTION])
            new = [part for part in parts if part.shard in chosen]
            try:
                widen_all = self._commit(new, chosen, widen_all)
            except (duckdb.Error, DamagedError):
                self.db.execute("ROLLBACK")
                sound = [part for part in new if self._sound(part)]
                if len(sound) == len(new):
                    raise
                widen_all = self._commit(sound, chosen, widen_all)
        self.db.execute("BEGIN")
        if widen_all:
            self._widen(None)
        self._views(run)
        if closing:
            closing(counts(self.db))
            self._runs()
        self.db.execute("COMMIT")
        self.db.execute("CHECKPOINT")
        return len(parts)

    def _commit(self, parts: Sequence[Part], shards: set[str], widen_all: bool) -> bool:
        """Add parts and ledger in one transaction; returns whether `wide_cells` has to be made anew as a whole."""
        self.db.execute("BEGIN")
        widen_all |= self._add(parts)
        if not widen_all:
            self._widen(shards)
        self.db.execute("COMMIT")
        return widen_all

    def _sound(self, part: Part) -> bool:
        """Whether a part reads; one that does not is left out, with a warning that says the way out."""
        try:
            read_table(self.files, part.path)
        except DamagedError as why:
            logging.getLogger("curate").warning("left out: %s", why)
            return False
        return True

    def _operator_table(self, operator: str) -> None:
        columns = [f'"{c.name}" {_duckdb_type(c.type)}' for c in OPERATORS[operator]]
        fixed = ["id BIGINT", "fingerprint VARCHAR", *columns, "error VARCHAR", "message VARCHAR"]
        self.db.execute(f"CREATE TABLE IF NOT EXISTS op_{operator} ({', '.join(fixed)})")

    def _runs(self) -> dict[str, Any]:
        """Read all run records into the table `runs`; returns the newest one, which decides what is active."""
        newest: dict[str, Any] = {}
        paths = [path for path in self.files.list("runs") if path.endswith("/run.json")]
        for path in sorted(paths, key=lambda path: path.split("/")[1]):  # by run id: '+' sorts before '/'
            newest = json.loads(self.files.read(path))
            counts = newest.get("counts", {})
            self.db.execute(
                "INSERT OR REPLACE INTO runs VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                [
                    newest["run_id"], newest["started"], newest.get("finished"), newest["state"],
                    counts.get("rows"), counts.get("kept"), counts.get("dropped"), counts.get("failed"),
                    newest.get("exit_code"), newest["recipe"], json.dumps(newest.get("report", {})),
                ],
            )  # fmt: skip
        self.db.execute("DELETE FROM shards")
        for shard in newest.get("shards", []):
            values = [shard["shard"], shard["uri"], shard["format"], shard.get("error"), shard.get("message")]
            self.db.execute("INSERT INTO shards VALUES (?, ?, ?, ?, ?)", values)
        self.db.execute("DELETE FROM policy")
        for position, judge in enumerate(newest.get("predicates", [])):  # in the order in which they judge
            self.db.execute("INSERT INTO policy VALUES (?, ?, ?)", [position, judge["name"], judge["sql"]])
        return newest

    def _activate(self, run: dict[str, Any]) -> bool:
        """Note all versions and which are active; True when the active ones changed."""
        before = set(self.db.execute("SELECT operator, fingerprint FROM operators WHERE active").fetchall())
        for path in self.files.list("parts"):
            if not path.endswith("/operator.json"):
                continue
            known = json.loads(self.files.read(path))
            facts = known["facts"]
            self.db.execute(
                "INSERT OR IGNORE INTO operators VALUES (?, ?, FALSE, ?, ?, ?, ?)",
                [known["operator"], known["fingerprint"], facts.get("engine"), facts.get("model"),
                 facts.get("revision"), json.dumps(known, ensure_ascii=False)],
            )  # fmt: skip
        named = {(v["operator"], v["fingerprint"]) for v in run.get("versions", [])}
        named = named or {(operator, mark) for operator, mark in before if operator not in DERIVED}
        active = named | self._derived()
        self.db.execute("UPDATE operators SET active = FALSE")
        for operator, mark in sorted(active):
            self.db.execute(
                "UPDATE operators SET active = TRUE WHERE operator = ? AND fingerprint = ?", [operator, mark]
            )
        return active != before

    def _derived(self) -> set[tuple[str, str]]:
        """The versions of derived operators (curate/store/derived.py) that are to be shown."""
        paths = {path.split("/")[1].removesuffix(".json"): path for path in self.files.list("derived")}
        marks = {op: json.loads(self.files.read(path))["fingerprint"] for op, path in paths.items() if op in DERIVED}
        return set(marks.items())

    def _number(self, shards: Iterable[str]) -> None:
        last = self.db.execute("SELECT coalesce(max(number), -1) FROM shard_numbers").fetchone()
        known = {shard for (shard,) in self.db.execute("SELECT shard FROM shard_numbers").fetchall()}
        new = sorted(set(shards) - known)
        if new and last:
            first = last[0] + 1
            numbers = pa.table({"shard": new, "number": pa.array(range(first, first + len(new)), pa.int32())})
            self.db.register("new_shards", numbers)
            self.db.execute("INSERT INTO shard_numbers SELECT shard, number FROM new_shards")
            self.db.unregister("new_shards")

    def _add(self, parts: Sequence[Part]) -> bool:
        """Insert the rows of `parts` and their ledger entries; True when the input brought new columns."""
        grown = False
        for sequence in sorted({part.sequence for part in parts}):
            for version in sorted({part.version for part in parts if part.sequence == sequence}):
                chosen = [part for part in parts if part.version == version and part.sequence == sequence]
                grown |= self._insert(version, chosen, sequence)
        return grown

    def _insert(self, version: Version, parts: Sequence[Part], sequence: int) -> bool:
        source, parameters = self._source(parts)
        private = [name for name, *_ in self._described(source, parameters) if name.startswith("_")]
        table = f"op_{version.operator}"
        grown = version.operator == "input" and self._grow(table, source, parameters)
        hidden = ", ".join(f'"{name}"' for name in ("shard", "row", *private))
        select = (
            f"SELECT (n.number::BIGINT << 32) | p.row AS id, '{version.fingerprint}' AS fingerprint, "
            f"p.* EXCLUDE ({hidden}) FROM {source} AS p JOIN shard_numbers AS n ON n.shard = p.shard"
        )
        if sequence:
            self.db.execute(
                f"DELETE FROM {table} WHERE fingerprint = '{version.fingerprint}' "
                f"AND id IN (SELECT id FROM ({select}))",
                parameters,
            )
        self.db.execute(f"INSERT INTO {table} BY NAME {select}", parameters)
        counts = dict(self.db.execute(f"SELECT shard, count(*) FROM {source} GROUP BY 1", parameters).fetchall())
        ledger = pa.table(
            {
                "path": [part.path for part in parts],
                "operator": [version.operator] * len(parts),
                "fingerprint": [version.fingerprint] * len(parts),
                "shard": [part.shard for part in parts],
                "sequence": pa.array([part.sequence for part in parts], pa.int32()),
                "rows": pa.array([counts.get(part.shard, 0) for part in parts], pa.int64()),
            }
        )
        self.db.register("new_commits", ledger)
        self.db.execute("INSERT INTO commits SELECT * FROM new_commits")
        self.db.unregister("new_commits")
        return grown

    def _source(self, parts: Sequence[Part]) -> tuple[str, list[Any]]:
        """SQL that reads the parts, and its parameters: DuckDB's own reader on disk, Arrow from remote stores."""
        local = [self.files.local(part.path) for part in parts]
        if all(local):
            return "read_parquet($1, union_by_name = TRUE)", [[str(path) for path in local]]
        tables = [read_table(self.files, part.path) for part in parts]
        self.db.register("remote_parts", pa.concat_tables(tables, promote_options="permissive"))
        return "remote_parts", []

    def _described(self, source: str, parameters: list[Any]) -> list[tuple[str, str]]:
        rows = self.db.execute(f"DESCRIBE SELECT * FROM {source}", parameters).fetchall()
        return [(row[0], row[1]) for row in rows]

    def _grow(self, table: str, source: str, parameters: list[Any]) -> bool:
        """Give the input's table the columns that these parts bring; widen a type on which shards differ."""
        have = {row[0].lower(): row[1] for row in self.db.execute(f"DESCRIBE {table}").fetchall()}
        grown = False
        for name, kind in self._described(source, parameters):
            if name.startswith("_") or name in ("shard", "row"):
                continue
            old = have.get(name.lower())
            if old is None:
                self.db.execute(f"ALTER TABLE {table} ADD COLUMN {identifier(name)} {kind}")
                grown = True
            elif old != kind and (wide := self._common_type(old, kind)) != old:
                self.db.execute(f"ALTER TABLE {table} ALTER COLUMN {identifier(name)} TYPE {wide}")
                grown = True
        return grown

    def _common_type(self, a: str, b: str) -> str:
        try:
            rows = self.db.execute(f"DESCRIBE SELECT NULL::{a} AS v UNION ALL SELECT NULL::{b}").fetchall()
        except duckdb.Error:
            return "VARCHAR"
        return str(rows[0][1])

    def _has_wide(self) -> bool:
        found = self.db.execute(
            "SELECT 1 FROM duckdb_tables() WHERE table_name = 'wide_cells' AND database_name = 'store'"
        ).fetchone()
        return found is not None

    def _widen(self, shards: set[str] | None) -> None:
        """Join the active versions into `wide_cells`, for some shards or (None) for all, replacing what was there.

        The rows go in id order, WIDEN_ROWS at a time: joined as a whole, a million rows with captions took 1.3 GB.
        """
        numbers: list[int] | None = None
        if shards is None:
            self.db.execute(f"CREATE OR REPLACE TABLE wide_cells AS {self._wide_rows('FALSE')}")
        else:
            found = self.db.execute(
                "SELECT number FROM shard_numbers WHERE shard IN (SELECT unnest($1))", [sorted(shards)]
            ).fetchall()
            numbers = sorted(number for (number,) in found)
            low, high = numbers[0] << 32, (numbers[-1] + 1) << 32
            listed = ", ".join(map(str, numbers))
            self.db.execute(f"DELETE FROM wide_cells WHERE id >= {low} AND id < {high} AND id >> 32 IN ({listed})")
        self.db.execute("SET threads = 1")  # a chunk is less than a row group, so more would bring memory and no speed
        for low, high in self._chunks(numbers):
            self.db.execute(f"INSERT INTO wide_cells BY NAME {self._wide_rows(f'id >= {low} AND id < {high}')}")
        self.db.execute("RESET threads")

    def _chunks(self, numbers: list[int] | None) -> Iterator[tuple[int, int]]:
        """Ranges of ids, ascending, that hold about WIDEN_ROWS rows of the shards with these numbers (None: all)."""
        rows = dict(
            self.db.execute(
                "SELECT id >> 32, max(id & 4294967295) + 1 FROM op_input AS i JOIN operators AS o "
                "ON o.operator = 'input' AND o.fingerprint = i.fingerprint AND o.active GROUP BY 1"
            ).fetchall()
        )
        chosen = sorted(rows if numbers is None else set(numbers) & set(rows))
        low, high, held = 0, 0, 0
        for number in chosen:
            for first in range(0, rows[number], WIDEN_ROWS):
                count = min(WIDEN_ROWS, rows[number] - first)
                gap = number - (high >> 32) > 1  # shards between that are not to be joined again
                if held and (gap or held + count > WIDEN_ROWS):
                    yield low, high
                    held = 0
                if not held:
                    low = (number << 32) + first
                high = (number << 32) + first + count
                held += count
        if held:
            yield low, high

    def _wide_rows(self, within: str) -> str:
        """SQL of the rows of `wide_cells` whose ids are within a condition."""
        active = dict(self.db.execute("SELECT operator, fingerprint FROM operators WHERE active").fetchall())
        columns, joins, errors = [], [], []
        for operator in OPERATORS:
            own = self._columns_of(operator)
            here = f"t_{operator}"
            columns += [f"{here}.{identifier(name)}" for name in own]
            mark = active.get(operator, "")
            cells = f"(SELECT * FROM op_{operator} WHERE {within} AND fingerprint = '{mark}') AS {here}"
            if operator == "input":
                joins.append(cells)
            else:
                joins.append(f"LEFT JOIN {cells} ON {here}.id = t_input.id")
                columns.append(f"{here}.id IS NOT NULL AS done_{operator}")
            errors.append(f"{here}.error")
        return (
            f"SELECT t_input.id, n.shard || ':' || (t_input.id & 4294967295) AS row_id, n.shard, "
            f"t_input.id & 4294967295 AS row, {', '.join(columns)}, coalesce({', '.join(errors)}) AS error "
            f"FROM {' '.join(joins)} JOIN shard_numbers AS n ON n.number = t_input.id >> 32 ORDER BY t_input.id"
        )

    def _columns_of(self, operator: str) -> list[str]:
        skip = {"id", "fingerprint", "error", "message"}
        return [row[0] for row in self.db.execute(f"DESCRIBE op_{operator}").fetchall() if row[0] not in skip]

    def _views(self, run: dict[str, Any]) -> None:
        wide = {row[0]: row[1] for row in self.db.execute("DESCRIBE wide_cells").fetchall()}
        retyped = [
            f"TRY_CAST({identifier(name)} AS {kind}) AS {identifier(name)}"
            for name, kind in run.get("types", {}).items()
            if wide.get(name, kind) != kind
        ]
        replace = f" REPLACE ({', '.join(retyped)})" if retyped else ""
        self.db.execute(f"CREATE OR REPLACE VIEW wide AS SELECT *{replace} FROM wide_cells")
        own = [name for name in self._columns_of("input") if name not in SAMPLES_FIRST]
        rest = [c.name for op in OPERATORS for c in OPERATORS[op] if c.name not in SAMPLES_FIRST and c.name in wide]
        others = [name for name in (*rest, *own) if name not in SAMPLES_FIRST]
        predicates = [
            Predicate(p["name"], p["sql"], frozenset(p["columns"]), p["after"]) for p in run.get("predicates", [])
        ]
        path = [v["operator"] for v in run.get("versions", [])]
        done = ["TRUE", *(f"done_{operator}" for operator in path[1:])]
        failing = [f"CASE WHEN {done[p.after]} AND {p.condition} IS NOT TRUE THEN '{p.name}' END" for p in predicates]
        views = resource_files("schemas").joinpath("views.sql").read_text("utf-8")
        self.db.execute(
            views.format(
                columns=", ".join(identifier(name) for name in dict.fromkeys((*SAMPLES_FIRST, *others))),
                verdict=verdict_sql(predicates, done),
                failing=f"list_filter([{', '.join(failing)}], lambda x: x IS NOT NULL)" if failing else "[]::VARCHAR[]",
                captions=" UNION ALL ".join(_caption_selects()),
                scores=" UNION ALL ".join(_score_selects()),
                errors=" UNION ALL ".join(
                    f"SELECT id, '{op}' AS operator, fingerprint, error, message FROM op_{op} WHERE error IS NOT NULL"
                    for op in OPERATORS
                ),
            )
        )


def counts(db: duckdb.DuckDBPyConnection) -> Counts:
    """Rows in, kept, dropped, failed, not decided yet, and kept rows with a caption in each language."""
    names = ("rows", "kept", "dropped", "failed", "undecided", "captions_en", "captions_zh")
    row = db.execute(
        """
        SELECT count(*), count(*) FILTER (keep), count(*) FILTER (NOT keep AND error IS NULL),
            count(*) FILTER (error IS NOT NULL), count(*) FILTER (keep IS NULL),
            count(caption_en) FILTER (keep), count(caption_zh) FILTER (keep)
        FROM samples"""
    ).fetchone()
    return dict(zip(names, row or (0,) * len(names), strict=True))


def _caption_selects() -> Iterator[str]:
    yield """
        SELECT id, 'raw' AS kind,
            CASE WHEN regexp_matches(caption_raw, '[\\x{4e00}-\\x{9fff}]') THEN 'zh' ELSE 'en' END AS language,
            caption_raw AS text, NULL::VARCHAR AS engine, NULL::VARCHAR AS model, NULL::VARCHAR AS revision,
            c.fingerprint, coalesce(o.active, FALSE) AS active
        FROM op_input AS c LEFT JOIN operators AS o ON o.operator = 'input' AND o.fingerprint = c.fingerprint
        WHERE caption_raw IS NOT NULL"""
    for operator, language in (("caption", "en"), ("translate", "zh")):
        yield f"""
        SELECT id, 'synthetic', '{language}', caption_{language}, {operator}_engine, {operator}_model,
            {operator}_revision, c.fingerprint, coalesce(o.active, FALSE)
        FROM op_{operator} AS c LEFT JOIN operators AS o ON o.operator = '{operator}' AND o.fingerprint = c.fingerprint
        WHERE caption_{language} IS NOT NULL"""


def _score_selects() -> Iterator[str]:
    for operator, columns in OPERATORS.items():
        numeric = [c.name for c in columns if pa.types.is_integer(c.type) or pa.types.is_floating(c.type)]
        if numeric:
            names = ", ".join(f"'{name}'" for name in numeric)
            values = ", ".join(f'"{name}"::DOUBLE' for name in numeric)
            yield (
                f"SELECT id, '{operator}' AS operator, fingerprint, unnest([{names}]) AS name, "
                f"unnest([{values}]) AS value FROM op_{operator}"
            )


def _duckdb_type(kind: pa.DataType) -> str:
    if pa.types.is_list(kind):
        return _duckdb_type(kind.value_type) + "[]"
    names = {pa.string(): "VARCHAR", pa.int32(): "INTEGER", pa.int64(): "BIGINT", pa.float32(): "FLOAT"}
    if kind == pa.bool_():
        return "BOOLEAN"
    try:
        return names[kind]
    except KeyError:
        raise StoreError(f"no DuckDB type for Arrow type {kind}") from None


def _quoted(text: str) -> str:
    return text.replace("'", "''")
