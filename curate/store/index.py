"""captions.duckdb: an index over the parts that can be deleted and rebuilt at any time.

It is never written in place. An update works on a copy beside it, in transactions that hold the rows and the ledger
(`commits`) together, and puts the copy in its place with one rename: a reader keeps the file it opened, a reader's lock
never stops a job, and a kill leaves the old index whole. One updater works at a time (`.index.lock`).

    wide_cells            one row per input row: the cells of the active versions side by side (aligned.py)
    wide                  a view of it with the columns of all operators, null where no version is active; those that
                          the policy reads have the types that it was checked for
    former_<operator>     cells of versions that are no longer active
    cell_errors           the failures of all versions
    samples, ...          views (schemas/views.sql)

`_id` is shard number << 32 | row. Our own names that begin with `_` meet no column of the input: reading gives those a
prefix.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import logging
import os
import shutil
import sqlite3
from collections import defaultdict
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from importlib.resources import files as resource_files
from pathlib import Path
from typing import Any, NamedTuple

import duckdb
import pyarrow as pa

from curate.errors import StoreError
from curate.policy import Predicate, verdict_sql
from curate.store.aligned import ERRORS, Chunk, of_one_version, side_by_side
from curate.store.files import Files
from curate.store.parts import DamagedError, Part, Version, fingerprint, list_parts
from schemas.columns import DERIVED, OPERATORS, SAMPLES_FIRST, indexed
from schemas.rows import TABLES, identifier

STORAGE_VERSION = "v1.5.0"  # DuckDB 2.0 writes this for 1.5 to read; its own default format is closed to 1.5
# An insert of exactly a row group is packed where it stands; a smaller one is copied behind the last rows first, and
# row groups of odd sizes are packed twice. A quarter of DuckDB's usual row group: it lies in memory unpacked.
ROW_GROUP_ROWS = 30_720
# DuckDB's memory, tried in turn. The first is enough for rows of 1 kB and keeps a run's driver small; rows with long
# texts of the input's own may need more.
MEMORY = ("128MB", "512MB", "4GB")
# Of the tables below: an index with another layout, or with other columns than schemas/ declares, is made anew.
LAYOUT = fingerprint({"tables": 4, **{op: [f"{c.name} {c.type}" for c in cs] for op, cs in OPERATORS.items()}})


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
        options = f"STORAGE_VERSION '{STORAGE_VERSION}', ROW_GROUP_SIZE {ROW_GROUP_ROWS}"
        db.execute(f"ATTACH '{_quoted(str(draft))}' AS store ({options})")
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


class _Batch(NamedTuple):
    """What one transaction adds: rows, the failures among them, and the parts that are in with them."""

    cells: list[pa.Table]
    errors: list[pa.Table]
    parts: list[Part]


class _Update:
    """One update of the index; `db` has the draft as its current database."""

    def __init__(self, db: duckdb.DuckDBPyConnection, files: Files) -> None:
        self.db = db
        self.files = files
        self.numbers: dict[str, int] = {}
        self.shown: list[str] = []  # operators that have an active version

    def run(self, closing: Callable[[Counts], None] | None) -> int:
        self.db.execute("BEGIN")
        self.db.execute(TABLES)
        self.db.execute("CREATE TABLE IF NOT EXISTS layout AS SELECT ? AS value", [LAYOUT])
        run = self._runs()
        before = self._active()
        self._activate(run, before)
        active = self._active()
        known = {path for (path,) in self.db.execute("SELECT path FROM commits").fetchall()}
        parts = [part for part in list_parts(self.files) if part.version.operator in OPERATORS]
        self._number({part.shard for part in parts})
        new = {part for part in parts if part.path not in known}
        turned = before ^ active  # their cells move between `wide_cells` and `former_<operator>`
        wide, former = _groups(parts, new, active, turned)
        self.shown = [op for op in OPERATORS if op == "input" or op in {version.operator for version in active}]
        self._tables(turned, anew=bool(turned) or 2 * len(wide) > len({part.shard for part in parts}))
        self.db.execute("COMMIT")
        self.db.execute("SET threads = 1")  # two threads pack the row groups of one insert several times over
        # Scores are measurements with all their digits: trying to pack them takes a fifth of the insert and saves 4 %.
        self.db.execute("SET disabled_compression_methods = 'alp,alprd'")
        self._fill("wide_cells", wide)
        for operator, groups in former.items():
            self._fill(f"former_{operator}", groups)
        self.db.execute("RESET threads")
        self.db.execute("BEGIN")
        self._views(run)
        self._ratings()
        if closing:
            closing(counts(self.db))
            self._runs()
        self.db.execute("COMMIT")
        self.db.execute("CHECKPOINT")
        return len(new)

    def _tables(self, turned: Iterable[Version], anew: bool) -> None:
        """Make the tables of cells that are not there, and `wide_cells` `anew` when most of it is to be filled.

        When an operator gets its first version, or loses its last, that version turned: `wide_cells` is made anew with
        its columns, or without.
        """
        declared = {op: [f'"{name}" {kind}' for name, kind in _declared(op).items()] for op in OPERATORS}
        if anew:
            self.db.execute("DROP TABLE IF EXISTS wide_cells")
        fixed = ["_id BIGINT", "row_id VARCHAR", "shard VARCHAR", "row BIGINT"]
        done = [f"_done_{operator} BOOLEAN" for operator in self.shown if operator != "input"]
        wide = [*fixed, *(column for operator in self.shown for column in declared[operator]), *done, "error VARCHAR"]
        self.db.execute(f"CREATE TABLE IF NOT EXISTS wide_cells ({', '.join(wide)})")
        for operator, own in declared.items():
            columns = ["_id BIGINT", "_fingerprint VARCHAR", *own]
            self.db.execute(f"CREATE TABLE IF NOT EXISTS former_{operator} ({', '.join(columns)})")
        for version in turned:
            self.db.execute(f"DELETE FROM former_{version.operator} WHERE _fingerprint = ?", [version.fingerprint])

    def _fill(self, table: str, groups: list[list[Part]]) -> None:
        """Put the cells of parts into `table`; a group is all that becomes rows of one shard there.

        A damaged part is left out, with a warning that says the way out, and its shard is done again without it.
        """
        while groups:
            self._remove(table, groups)
            damaged: list[Part] = []
            batches = self._batches(table, groups, damaged)
            with ThreadPoolExecutor(1) as reader:  # reads the next batch while this one is written
                ahead = reader.submit(next, batches, None)
                while (batch := ahead.result()) is not None:
                    ahead = reader.submit(next, batches, None)
                    self._insert(table, batch)
            shards = {part.shard for part in damaged}
            sound = [[part for part in group if part not in damaged] for group in groups if group[0].shard in shards]
            groups = [group for group in sound if group]

    def _batches(self, table: str, groups: Iterable[list[Part]], damaged: list[Part]) -> Iterator[_Batch]:
        """Rows in batches of one schema and one row group; parts that do not read are added to `damaged`."""
        held = _Batch([], [], [])
        for group in groups:
            try:
                for cells, errors in self._read(table, group):
                    if held.cells and cells.schema != held.cells[0].schema:
                        yield held
                        held = _Batch([], [], [])
                    held.cells.append(cells)
                    held.errors.append(errors)
                    while sum(had.num_rows for had in held.cells) >= ROW_GROUP_ROWS:
                        rows = pa.concat_tables(held.cells)
                        yield _Batch([rows.slice(0, ROW_GROUP_ROWS)], held.errors, held.parts)
                        held = _Batch([rows.slice(ROW_GROUP_ROWS)], [], [])
            except DamagedError as why:
                logging.getLogger("curate").warning("left out: %s", why)
                damaged += [part for part in group if part.path == why.path]
            else:
                held.parts.extend(group)
        if held.cells or held.parts:
            yield held

    def _read(self, table: str, group: list[Part]) -> Iterator[Chunk]:
        shard = group[0].shard
        if table != "wide_cells":
            return of_one_version(self.files, self.numbers[shard], group)
        by_operator: dict[str, list[Part]] = defaultdict(list)
        for part in group:
            by_operator[part.version.operator].append(part)
        return side_by_side(self.files, shard, self.numbers[shard], by_operator, self.shown)

    def _insert(self, table: str, batch: _Batch) -> None:
        """Add rows, failures and ledger entries in one transaction."""
        if batch.cells:
            cells = pa.concat_tables(batch.cells)
            self.db.register("new_cells", cells)
            self._grow(table)
        ledger = pa.table(
            {
                "path": [part.path for part in batch.parts],
                "operator": [part.version.operator for part in batch.parts],
                "fingerprint": [part.version.fingerprint for part in batch.parts],
                "shard": [part.shard for part in batch.parts],
                "sequence": pa.array([part.sequence for part in batch.parts], pa.int32()),
            }
        )
        self.db.register("new_commits", ledger)
        self.db.register("new_errors", pa.concat_tables(batch.errors) if batch.errors else ERRORS.empty_table())
        self.db.execute("BEGIN")
        if batch.cells:
            self.db.execute(f"INSERT INTO {table} BY NAME SELECT * FROM new_cells")
        self.db.execute("INSERT INTO cell_errors SELECT * FROM new_errors")
        self.db.execute("INSERT INTO commits SELECT * FROM new_commits")
        self.db.execute("COMMIT")
        for name in ("new_cells", "new_commits", "new_errors"):
            self.db.unregister(name)

    def _remove(self, table: str, groups: Sequence[list[Part]]) -> None:
        """Take out what the index has of these groups: they are put in whole."""
        parts = [part for group in groups for part in group]
        going = pa.table(
            {
                "path": [part.path for part in parts],
                "operator": [part.version.operator for part in parts],
                "fingerprint": [part.version.fingerprint for part in parts],
                "number": pa.array([self.numbers[part.shard] for part in parts], pa.int64()),
            }
        )
        self.db.register("going", going)
        of_version = "" if table == "wide_cells" else "AND g.fingerprint = t._fingerprint"
        self.db.execute(
            f"DELETE FROM {table} AS t WHERE EXISTS (FROM going AS g WHERE g.number = t._id >> 32 {of_version})"
        )
        self.db.execute(
            "DELETE FROM cell_errors AS e WHERE EXISTS (FROM going AS g WHERE g.number = e._id >> 32 "
            "AND g.operator = e.operator AND g.fingerprint = e.fingerprint)"
        )
        self.db.execute("DELETE FROM commits WHERE path IN (SELECT path FROM going)")
        self.db.unregister("going")

    def _grow(self, table: str) -> None:
        """Give `table` the columns that `new_cells` brings; widen a type on which shards differ."""
        have = {name.lower(): kind for name, kind in self._described(table)}
        for name, kind in self._described("new_cells"):
            old = have.get(name.lower())
            if old is None:
                self.db.execute(f"ALTER TABLE {table} ADD COLUMN {identifier(name)} {kind}")
            elif old != kind and (wide := self._common_type(old, kind)) != old:
                self.db.execute(f"ALTER TABLE {table} ALTER COLUMN {identifier(name)} TYPE {wide}")

    def _described(self, table: str) -> list[tuple[str, str]]:
        return [(row[0], row[1]) for row in self.db.execute(f"DESCRIBE {table}").fetchall()]

    def _common_type(self, a: str, b: str) -> str:
        try:
            rows = self.db.execute(f"DESCRIBE SELECT NULL::{a} AS v UNION ALL SELECT NULL::{b}").fetchall()
        except duckdb.Error:
            return "VARCHAR"
        return str(rows[0][1])

    def _runs(self) -> dict[str, Any]:
        """Read all run records into the table `runs`; returns the newest one, which decides what is active."""
        newest: dict[str, Any] = {}
        alive = _alive(self.files)
        paths = [path for path in self.files.list("runs") if path.endswith("/run.json")]
        for path in sorted(paths, key=lambda path: path.split("/")[1]):  # by run id: '+' sorts before '/'
            newest = json.loads(self.files.read(path))
            counts = newest.get("counts", {})
            killed = newest["state"] == "running" and newest["run_id"] != alive
            self.db.execute(
                "INSERT OR REPLACE INTO runs VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                [
                    newest["run_id"], newest["started"], newest.get("finished"),
                    "killed" if killed else newest["state"],
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

    def _active(self) -> set[Version]:
        rows = self.db.execute("SELECT operator, fingerprint FROM operators WHERE active").fetchall()
        return {Version(operator, mark) for operator, mark in rows}

    def _activate(self, run: dict[str, Any], before: Iterable[Version]) -> None:
        """Note all versions, and that those of the last run and the derived ones that are shown are active."""
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
        named = {Version(v["operator"], v["fingerprint"]) for v in run.get("versions", [])}
        named = named or {version for version in before if version.operator not in DERIVED}
        self.db.execute("UPDATE operators SET active = FALSE")
        for version in sorted(named | self._derived()):
            self.db.execute(
                "UPDATE operators SET active = TRUE WHERE operator = ? AND fingerprint = ?",
                [version.operator, version.fingerprint],
            )

    def _derived(self) -> set[Version]:
        """The versions of derived operators (curate/store/derived.py) that are to be shown."""
        paths = {path.split("/")[1].removesuffix(".json"): path for path in self.files.list("derived")}
        shown = {op: json.loads(self.files.read(path)) for op, path in paths.items() if op in DERIVED}
        return {Version(operator, known["fingerprint"]) for operator, known in shown.items()}

    def _number(self, shards: Iterable[str]) -> None:
        """Give new shards numbers; `self.numbers` has all."""
        self.numbers = dict(self.db.execute("SELECT shard, number FROM shard_numbers").fetchall())
        first = max(self.numbers.values(), default=-1) + 1
        new = {shard: number for number, shard in enumerate(sorted(set(shards) - set(self.numbers)), first)}
        if new:
            self.db.register("new_shards", pa.table({"shard": list(new), "number": pa.array(new.values(), pa.int32())}))
            self.db.execute("INSERT INTO shard_numbers SELECT shard, number FROM new_shards")
            self.db.unregister("new_shards")
            self.numbers |= new

    def _ratings(self) -> None:
        """Bring what people said (curate/rate) into the index; a ledger that does not read holds no run back."""
        from curate.rate.mirror import mirror

        try:
            mirror(self.db, self.files)
        except (StoreError, sqlite3.Error) as why:
            logging.getLogger("curate").warning("ratings left out: %s", why)

    def _views(self, run: dict[str, Any]) -> None:
        wide = dict(self._described("wide_cells"))
        retyped = [
            f"TRY_CAST({identifier(name)} AS {kind}) AS {identifier(name)}"
            for name, kind in run.get("types", {}).items()
            if wide.get(name, kind) != kind
        ]
        replace = f" REPLACE ({', '.join(retyped)})" if retyped else ""
        # Those of operators without an active version; and a policy may read one of the input that no row has brought.
        kinds = {name: kind for operator in OPERATORS for name, kind in _declared(operator).items()}
        absent = [
            f", NULL::{kind} AS {identifier(name)}"
            for name, kind in (kinds | run.get("types", {})).items()
            if name not in wide
        ]
        absent += [f", FALSE AS {mark}" for operator in OPERATORS if (mark := f"_done_{operator}") not in wide]
        self.db.execute(f"CREATE OR REPLACE VIEW wide AS SELECT *{replace}{''.join(absent)} FROM wide_cells")
        own = [name for name in wide if name not in {*kinds, *SAMPLES_FIRST} and not name.startswith("_")]
        predicates = [
            Predicate(p["name"], p["sql"], frozenset(p["columns"]), p["after"]) for p in run.get("predicates", [])
        ]
        path = [v["operator"] for v in run.get("versions", [])]
        done = ["TRUE", *(f"_done_{operator}" for operator in path[1:])]
        failing = [f"CASE WHEN {done[p.after]} AND {p.condition} IS NOT TRUE THEN '{p.name}' END" for p in predicates]
        views = resource_files("schemas").joinpath("views.sql").read_text("utf-8")
        active = {version.operator: version.fingerprint for version in self._active()}
        self.db.execute(
            views.format(
                columns=", ".join(identifier(name) for name in dict.fromkeys((*SAMPLES_FIRST, *kinds, *own))),
                verdict=verdict_sql(predicates, done),
                failing=f"list_filter([{', '.join(failing)}], lambda x: x IS NOT NULL)" if failing else "[]::VARCHAR[]",
                captions=" UNION ALL ".join(_caption_selects(active)),
                scores=" UNION ALL ".join(_score_selects(active)),
            )
        )


def _groups(
    parts: Iterable[Part], new: Container[Part], active: Container[Version], turned: Container[Version]
) -> tuple[list[list[Part]], dict[str, list[list[Part]]]]:
    """What has to be put in: for `wide_cells` the active parts of each shard, for `former_<operator>` the parts of each
    shard and version. A shard is put in whole when one of its parts is new, or all are when a version turned."""
    wide: dict[str, list[Part]] = defaultdict(list)
    former: dict[tuple[Version, str], list[Part]] = defaultdict(list)
    for part in parts:
        if part.version in active:
            wide[part.shard].append(part)
        else:
            former[part.version, part.shard].append(part)
    some = bool(turned)
    by_operator: dict[str, list[list[Part]]] = defaultdict(list)
    for (version, _), group in sorted(former.items()):
        if version in turned or any(part in new for part in group):
            by_operator[version.operator].append(group)
    return [group for _, group in sorted(wide.items()) if some or any(part in new for part in group)], by_operator


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


def _alive(files: Files) -> str:
    """The run that wrote its status last, unless it has been silent for too long; of two at once, the other is taken
    for killed until it ends."""
    from curate.status import SILENT_AFTER_S, read_status, silent_s

    try:
        status = read_status(files)
    except StoreError:
        return ""
    return str(status.get("run_id", "")) if silent_s(status, datetime.now(UTC)) <= SILENT_AFTER_S else ""


def _caption_selects(active: Mapping[str, str]) -> Iterator[str]:
    """`_id, kind, language, text, engine, model, revision, fingerprint, active` of all captions."""
    raw = (
        "_id, 'raw' AS kind, CASE WHEN regexp_matches(caption_raw, '[\\x{4e00}-\\x{9fff}]') THEN 'zh' ELSE 'en' END "
        "AS language, caption_raw AS text, NULL::VARCHAR AS engine, NULL::VARCHAR AS model, NULL::VARCHAR AS revision"
    )
    yield from _both("input", raw, "caption_raw IS NOT NULL", active)
    translator = "translate_engine, translate_model, translate_revision"
    for operator, kind, language, column, known in (
        ("caption", "synthetic", "en", "caption_en", "caption_engine, caption_model, caption_revision"),
        ("translate", "synthetic", "zh", "caption_zh", translator),
        ("translate", "translated", "en", "caption_raw_en", translator),
        ("translate", "translated", "zh", "caption_raw_zh", translator),
        ("poster", "poster", "en", "poster_caption_en", "poster_engine, NULL, NULL"),
        ("poster", "poster", "zh", "poster_caption_zh", "poster_engine, NULL, NULL"),
    ):
        yield from _both(operator, f"_id, '{kind}', '{language}', {column}, {known}", f"{column} IS NOT NULL", active)


def _score_selects(active: Mapping[str, str]) -> Iterator[str]:
    """`_id, operator, name, value, fingerprint, active` of all numeric columns, in long form."""
    for operator, columns in OPERATORS.items():
        numeric = [c.name for c in columns if pa.types.is_integer(c.type) or pa.types.is_floating(c.type)]
        if numeric:
            names = ", ".join(f"'{name}'" for name in numeric)
            values = ", ".join(f'"{name}"::DOUBLE' for name in numeric)
            long = f"_id, '{operator}' AS operator, unnest([{names}]) AS name, unnest([{values}]) AS value"
            yield from _both(operator, long, f"_done_{operator}", active)


def _both(operator: str, columns: str, present: str, active: Mapping[str, str]) -> Iterator[str]:
    """`columns` of the active version of an operator, and of all others."""
    if operator in active:
        yield f"SELECT {columns}, '{active[operator]}' AS fingerprint, TRUE AS active FROM wide_cells WHERE {present}"
    there = "TRUE" if present.startswith("_done") else present
    yield f"SELECT {columns}, _fingerprint AS fingerprint, FALSE AS active FROM former_{operator} WHERE {there}"


def _declared(operator: str) -> dict[str, str]:
    """The operator's columns that are in the index, with DuckDB's types."""
    return {column.name: _duckdb_type(column.type) for column in OPERATORS[operator] if indexed(column.type)}


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
