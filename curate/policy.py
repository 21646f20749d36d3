"""Filters are SQL: an ordered list of named DuckDB predicates over score columns.

The same text gates the costly operators inside the job and is the CASE expression of the view `samples`. Predicates
judge in the recipe's order, but those over cheap columns before those over each costly operator's, since they decide
whether it sees the row. The first one that is not TRUE is the row's drop reason; NULL never passes and has its own
reason, `<name>_null`. A predicate that cannot be evaluated on a row (a cast of odd text) is NULL there.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import duckdb
import pyarrow as pa

from curate.errors import UsageError, nearest


@dataclass(frozen=True)
class Predicate:
    """One named condition; `after` is the index in the path of the last operator whose columns it reads."""

    name: str
    sql: str
    columns: frozenset[str]
    after: int

    @property
    def condition(self) -> str:
        """The predicate as part of a larger expression: NULL where it fails to evaluate (a cast of odd text, say).

        The line break ends a comment that the predicate may end in.
        """
        return f"TRY(({self.sql}\n))"


def compile_policy(
    policy: Iterable[tuple[str, str]],
    schema: pa.Schema,
    operator_of: dict[str, int],
    costly: Collection[int] = (),
    where: str = "recipe",
) -> tuple[Predicate, ...]:
    """Check every predicate against the columns in `schema` and put them in the order in which they judge.

    `operator_of` maps a column to the index in the path of the operator that writes it; `costly` are the indices of the
    operators that see survivors only. Raises UsageError that names
    the predicate, what is wrong and the nearest column.
    """
    known = {name.lower(): name for name in schema.names}
    with duckdb.connect() as db:
        db.register("rows_in", pa.table({f.name: pa.nulls(1, f.type) for f in schema}, schema=schema))
        unstable = _unstable(db)
        predicates = []
        for name, sql in policy:
            at = f"{where}: policy.{name} = {sql!r}"
            columns = set()
            for column in _columns(db, sql, unstable, at):
                if column.lower() not in known:
                    raise UsageError(f"{at}: no column {column!r}{nearest(column, schema.names)}")
                columns.add(known[column.lower()])
            _check_type(db, sql, at)
            after = max((operator_of[c] for c in columns), default=0)
            predicates.append(Predicate(name, sql, frozenset(columns), after))
    return tuple(sorted(predicates, key=lambda p: sum(i <= p.after for i in costly)))


def repeatable(sql: str, at: str) -> str:
    """SQL that gives NULL where `sql`, an expression over one row's columns, cannot be evaluated on a row.

    Raises UsageError, which begins with `at`, unless it is one expression that gives the same answer each time. Whether
    the columns exist is for the relation to say that it is used on.
    """
    with duckdb.connect() as db:
        _columns(db, sql, _unstable(db), at)
    return f"TRY(({sql}\n))"


def gate(predicates: Sequence[Predicate], operator: int) -> str | None:
    """SQL that is TRUE for rows which pass every predicate known before the operator at this index, or None."""
    conditions = [p.condition for p in predicates if p.after < operator]
    return " AND ".join(f"{c} IS TRUE" for c in conditions) or None


UNDECIDED = "?"


def verdict_sql(predicates: Sequence[Predicate], done: Sequence[str]) -> str:
    """SQL expression: the row's drop reason, NULL when it passes, UNDECIDED when an operator has not seen it yet.

    `done[i]` is SQL that says whether the operator at index i of the path has answered for the row.
    """
    whens = [f"WHEN NOT {done[1]} THEN '{UNDECIDED}'"] if len(done) > 1 else []
    for p in predicates:
        # FALSE and NULL are told apart inside the branch, so that rows which pass evaluate the predicate once.
        unknown = f"WHEN {done[p.after]} THEN {_literal(p.name + '_null')} ELSE '{UNDECIDED}'"
        failed = f"CASE WHEN {p.condition} IS FALSE THEN {_literal(p.name)} {unknown} END"
        whens.append(f"WHEN {p.condition} IS NOT TRUE THEN {failed}")
    return f"CASE {' '.join(whens)} END" if whens else "NULL::VARCHAR"


def _literal(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


def _unstable(db: duckdb.DuckDBPyConnection) -> set[str]:
    found = db.execute("SELECT DISTINCT function_name FROM duckdb_functions() WHERE stability <> 'CONSISTENT'")
    return {name for (name,) in found.fetchall()}


def _columns(db: duckdb.DuckDBPyConnection, sql: str, unstable: set[str], at: str) -> set[str]:
    """Columns that the predicate reads, from DuckDB's own parser; refuses anything that is not one plain expression."""
    # Without parentheses first, so that `a) OR (b` is no condition; with them, so that `a AS b` is none.
    for text in (f"SELECT {sql}\n", f"SELECT ({sql}\n)"):
        row = db.execute("SELECT json_serialize_sql(?::VARCHAR)", [text]).fetchone()
        tree: dict[str, Any] = json.loads(row[0]) if row else {"error": True}
        if tree.get("error"):
            raise UsageError(f"{at}: {str(tree.get('error_message', 'not SQL')).splitlines()[0]}")
    statements = tree["statements"]
    node = statements[0]["node"]
    one_expression = (
        len(statements) == 1
        and node["type"] == "SELECT_NODE"
        and len(node["select_list"]) == 1
        and node["from_table"]["type"] == "EMPTY"
        and not any(node.get(clause) for clause in ("where_clause", "group_expressions", "having", "qualify"))
        and not node.get("modifiers")
    )
    if not one_expression:
        raise UsageError(f"{at}: must be one condition over a row's columns")
    found: set[str] = set()
    _walk(node["select_list"][0], frozenset(), found, unstable, at)
    return found


def _walk(node: Any, bound: frozenset[str], found: set[str], unstable: set[str], at: str) -> None:
    if isinstance(node, list):
        for child in node:
            _walk(child, bound, found, unstable, at)
        return
    if not isinstance(node, dict):
        return
    kind = node.get("class")
    if kind == "SUBQUERY":
        raise UsageError(f"{at}: subqueries are not possible here, a predicate sees one row")
    if kind == "WINDOW":
        raise UsageError(f"{at}: window functions are not possible here, a predicate sees one row")
    if kind == "FUNCTION" and node.get("function_name") in unstable:
        raise UsageError(f"{at}: {node['function_name']}() gives another answer each time; it must be repeatable")
    if kind == "COLUMN_REF":
        name = str(node["column_names"][0])
        if name not in bound:
            found.add(name)
        return
    if kind == "LAMBDA":
        parameters: set[str] = set()
        _walk(node.get("lhs"), frozenset(), parameters, unstable, at)
        bound |= parameters
        _walk(node.get("expr"), bound, found, unstable, at)
        return
    for child in node.values():
        _walk(child, bound, found, unstable, at)


def _check_type(db: duckdb.DuckDBPyConnection, sql: str, at: str) -> None:
    try:
        described = db.execute(f"DESCRIBE SELECT ({sql}\n) AS verdict FROM rows_in WHERE ({sql}\n)").fetchall()
        db.execute(f"SELECT ({sql}\n) FROM rows_in").fetchall()  # finds 'abc' compared with a number
    except duckdb.Error as why:
        raise UsageError(f"{at}: {str(why).splitlines()[0]}") from None
    if described[0][1] != "BOOLEAN":
        raise UsageError(f"{at}: gives {described[0][1]}, must be true or false; compare it with something")
