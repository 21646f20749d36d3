"""What is known of one shard: the cells that parts and staged ranges hold, and which ones are still missing.

A cell is what one operator says of one row. An operator is *pending* on a row when it has not answered, the row has not
failed, and the gate before the operator lets the row through. The same SQL decides here and in the store's views.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import duckdb
import pyarrow as pa

from curate.plan import Plan, Stage
from curate.read import InputError, Shard
from curate.store.parts import latest, parts_of, read_parts, read_table
from schemas.columns import FAILURE, OPERATORS
from schemas.rows import identifier

IN_PATH = {name: [c.name for c in columns] for name, columns in OPERATORS.items()}


def staging_folder(stage: Stage, shard: str) -> str:
    """Where the finished ranges of a shard wait until the stage is complete."""
    return f"staging/{stage.key}/{shard}"


def staged_schema(plan: Plan, stage: Stage) -> pa.Schema:
    """A staged range: `row`, then for each operator of the stage its columns, failure and whether it answered."""
    fields = [pa.field("row", pa.int64())]
    for operator in plan.operators[stage.first : stage.stop]:
        fields += [pa.field(f"{operator.name}.{c.name}", c.type) for c in OPERATORS[operator.name] + FAILURE]
        fields.append(pa.field(f"{operator.name}.done", pa.bool_()))
    return pa.schema(fields)


def read_staged(plan: Plan, stage: Stage, shard: str) -> pa.Table | None:
    """All staged ranges of a shard, or None. Another driver may publish and clear them meanwhile: then its parts hold
    them, so parts are to be read after this and not before."""
    paths: list[str] = []
    while True:
        before, paths = paths, sorted(plan.files.list(staging_folder(stage, shard)))
        try:
            return pa.concat_tables([read_table(plan.files, path) for path in paths]) if paths else None
        except FileNotFoundError:
            if paths == before:
                raise


def staged_cells(staged: pa.Table, operator: str) -> pa.Table:
    """The cells of one operator in staged ranges: `row`, its columns, `error`, `message`; sorted, each row once."""
    done = staged.filter(staged[f"{operator}.done"])
    names = [c.name for c in OPERATORS[operator] + FAILURE]
    return latest(pa.table({"row": done["row"], **{name: done[f"{operator}.{name}"] for name in names}}))


def memory() -> duckdb.DuckDBPyConnection:
    """An empty DuckDB in memory."""
    return duckdb.connect(config={"threads": 1})


class Cells:
    """The known cells of one shard, as views in a private in-memory DuckDB.

    That one may belong to the thread that asks (`db`): to make one takes longer than most queries.
    """

    def __init__(self, plan: Plan, shard: Shard, db: duckdb.DuckDBPyConnection | None = None) -> None:
        self.plan = plan
        self.shard = shard
        self.db = db.cursor() if db else memory()
        self.tables: dict[int, pa.Table] = {}
        self.staged: set[int] = set()
        """Stages that have finished ranges which are not published yet."""
        self.load()

    def load(self) -> None:
        """Read what the store holds for the shard now."""
        plan = self.plan
        ranges = {stage: read_staged(plan, stage, self.shard.id) for stage in plan.stages}
        table = read_parts(plan.files, parts_of(plan.files, plan.versions[0], self.shard.id))
        if table is None:
            raise FileNotFoundError(f"shard {self.shard.id} is not indexed")
        self.input = table
        read = set().union(*(p.columns for p in plan.predicates), *(o.needs for o in plan.operators))
        own = [name for name in table.column_names if name == "row" or name in read]
        self.tables = {0: self._typed(table.select(own))}
        for i, operator in enumerate(plan.operators[1:], start=1):
            wanted = ["row", "error", *(name for name in IN_PATH[operator.name] if name in read)]
            cells = read_parts(plan.files, parts_of(plan.files, plan.versions[i], self.shard.id), wanted)
            if cells is not None:
                self.tables[i] = cells
        for stage, staged in ranges.items():
            if staged is None:
                continue
            self.staged.add(stage.index)
            for i in range(stage.first, stage.stop):
                cells = staged_cells(staged, plan.operators[i].name)
                if i in self.tables:
                    cells = latest(pa.concat_tables([cells.select(self.tables[i].column_names), self.tables[i]]))
                if cells.num_rows:
                    self.tables[i] = cells
        self.columns = self._columns()
        for i, table in self.tables.items():
            self.db.register(f"cells_{i}", table)

    def _typed(self, table: pa.Table) -> pa.Table:
        """The columns that predicates read, in the types of the first shard, for which the policy was checked."""
        for i, field in enumerate(table.schema):
            wanted = self.plan.schema.field(field.name).type if field.name in self.plan.schema.names else field.type
            if wanted != field.type:
                try:
                    table = table.set_column(i, field.name, table[field.name].cast(wanted))
                except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as why:
                    raise InputError(
                        "column_type",
                        f"{self.shard.uri}: column {field.name!r} is {field.type}, in the first shard {wanted}, "
                        f"and the policy reads it: {str(why).splitlines()[0]}",
                    ) from None
        return table

    def pending(self, stage: Stage) -> list[int]:
        """Rows, ascending, on which some operator of the stage is pending."""
        wanted = []
        for i in range(stage.first, stage.stop):
            conditions = [f"NOT done_{i}"]
            if self.plan.operators[i].image != "bytes":
                conditions.append("NOT failed")
                gate = self.plan.gate(i)
                conditions += [f"({gate})"] if gate else []
            wanted.append(" AND ".join(conditions))
        query = f"SELECT row FROM ({self._select()}) WHERE {' OR '.join(wanted)} ORDER BY row"
        return [row for (row,) in self.db.execute(query).fetchall()]

    def rows(self, rows: Sequence[int]) -> list[dict[str, Any]]:
        """For each of `rows` its known columns, `done` (indices of operators that answered) and `failed`."""
        query = f"SELECT * FROM ({self._select()}) WHERE row IN (SELECT unnest($1)) ORDER BY row"
        result = self.db.execute(query, [list(rows)])
        names = [d[0] for d in result.description]
        known = []
        for record in result.fetchall():
            values = dict(zip(names, record, strict=True))
            values["done"] = {i for i in range(len(self.plan.operators)) if values.pop(f"done_{i}", False)}
            known.append(values)
        return known

    def _columns(self) -> dict[str, int]:
        """Columns that predicates or operators read, with the operator that writes them."""
        found = {}
        for i, table in self.tables.items():
            found.update({name: i for name in table.column_names if name not in ("row", "error", "shard")})
        return found

    def _select(self) -> str:
        plan = self.plan
        others = [i for i in self.tables if i > 0]
        columns = [f"cells_{i}.{identifier(name)}" for name, i in self.columns.items()]
        read = set().union(*(p.columns for p in plan.predicates), *(o.needs for o in plan.operators))
        missing = [name for name in read if name in plan.schema.names and name not in self.columns]
        if missing:
            self.db.register("cells_missing", plan.schema.empty_table().select(missing))
        columns += [f"missing.{identifier(name)}" for name in missing]
        columns += [f"{f'cells_{i}.row IS NOT NULL' if i in self.tables else 'FALSE'} AS done_{i}" for i in self._all()]
        failed = " OR ".join(f"coalesce(cells_{i}.error IS NOT NULL, FALSE)" for i in others) or "FALSE"
        joins = " ".join(f"LEFT JOIN cells_{i} ON cells_{i}.row = cells_0.row" for i in others)
        if missing:
            joins += " LEFT JOIN cells_missing AS missing ON FALSE"
        return f"SELECT cells_0.row, {', '.join([*columns, f'{failed} AS failed'])} FROM cells_0 {joins}"

    def _all(self) -> Iterable[int]:
        return range(len(self.plan.operators))


def passing(db: duckdb.DuckDBPyConnection, plan: Plan, gate: str, rows: Sequence[dict[str, Any]]) -> list[bool]:
    """Whether each of `rows` (columns known so far) passes the gate; columns take their declared types first."""
    names = sorted(set().union(*(p.columns for p in plan.predicates)))
    types = {name: plan.schema.field(name).type for name in names}
    table = {name: pa.array([row.get(name) for row in rows], types[name]) for name in names}
    db.register("rows_in", pa.table({"position": pa.array(range(len(rows)), pa.int64()), **table}))
    passed = {i for (i,) in db.execute(f"SELECT position FROM rows_in WHERE {gate}").fetchall()}
    return [i in passed for i in range(len(rows))]
