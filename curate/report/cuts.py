"""Where a policy cuts: thresholds read off its predicates by DuckDB's own parser.

least(width, height) >= 256                    ->  least(width, height), keeps [256, ...)
aspect BETWEEN 0.33 AND 3                      ->  aspect, keeps [0.33, 3]
underexposed < 0.8 AND overexposed < 0.8       ->  two cuts
sharpness > 40 OR faces > 0                    ->  none: no single line separates what passes
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import duckdb

# Comparison -> (keeps above, the bound itself passes); the same read from right to left.
ABOVE = {
    "COMPARE_GREATERTHAN": (True, False),
    "COMPARE_GREATERTHANOREQUALTO": (True, True),
    "COMPARE_LESSTHAN": (False, False),
    "COMPARE_LESSTHANOREQUALTO": (False, True),
}
NUMBERS = {"TINYINT", "SMALLINT", "INTEGER", "BIGINT", "HUGEINT", "UTINYINT", "USMALLINT", "UINTEGER", "UBIGINT",
           "UHUGEINT", "FLOAT", "DOUBLE"}  # fmt: skip


@dataclass(frozen=True)
class Cut:
    """One bound on one expression. A row passes above `value`, or below it when `above` is False."""

    predicate: str
    expression: str
    value: float
    above: bool
    inclusive: bool

    @property
    def text(self) -> str:
        """The condition that a kept row meets: `>= 256`."""
        return f"{'>' if self.above else '<'}{'=' if self.inclusive else ''} {self.value:,.6g}"


def read_cuts(predicates: list[tuple[str, str]]) -> list[Cut]:
    """The cuts of (name, SQL) predicates in their order; a predicate that is more than plain bounds has none."""
    with duckdb.connect() as db:
        return [cut for name, sql in predicates for cut in _predicate(db, name, sql)]


def _predicate(db: duckdb.DuckDBPyConnection, name: str, sql: str) -> list[Cut]:
    try:
        row = db.execute("SELECT json_serialize_sql(?::VARCHAR)", [f"SELECT ({sql}\n)"]).fetchone()
        tree = json.loads(row[0]) if row else {}
        return _Reader(db, name, tree).cuts(tree["statements"][0]["node"]["select_list"][0]) or []
    except (duckdb.Error, KeyError, IndexError, TypeError):  # another parser's tree: draw nothing, claim nothing
        return []


class _Reader:
    """Walks one predicate; `tree` is its statement, reused to turn parts of it back into SQL."""

    def __init__(self, db: duckdb.DuckDBPyConnection, name: str, tree: dict[str, Any]) -> None:
        self.db = db
        self.name = name
        self.tree = tree

    def cuts(self, node: dict[str, Any]) -> list[Cut] | None:
        """The cuts of a condition, or None where it says more than bounds can."""
        if node["type"] == "CONJUNCTION_AND":
            found = [self.cuts(child) for child in node["children"]]
            # A conjunct that is no bound (format <> 'GIF') leaves the others true: each of them alone rejects.
            return [cut for cuts in found for cut in cuts or []]
        if node["type"] == "COMPARE_BETWEEN":
            low, high = self.number(node["lower"]), self.number(node["upper"])
            if low is None or high is None or not _columns(node["input"]):
                return None
            text = self.text(node["input"])
            return [Cut(self.name, text, low, True, True), Cut(self.name, text, high, False, True)]
        if node["type"] not in (*ABOVE, "COMPARE_EQUAL"):
            return None
        left, right, flipped = node["left"], node["right"], False
        if not _columns(left):
            left, right, flipped = right, left, True
        value = self.number(right)
        if value is None or not _columns(left):
            return None
        text = self.text(left)
        if node["type"] == "COMPARE_EQUAL":
            return [Cut(self.name, text, value, True, True), Cut(self.name, text, value, False, True)]
        above, inclusive = ABOVE[node["type"]]
        return [Cut(self.name, text, value, above != flipped, inclusive)]

    def text(self, node: dict[str, Any]) -> str:
        """The SQL of one expression of the tree."""
        select = {**self.tree["statements"][0]["node"], "select_list": [node]}
        tree = {**self.tree, "statements": [{**self.tree["statements"][0], "node": select}]}
        row = self.db.execute("SELECT json_deserialize_sql(?::JSON)", [json.dumps(tree)]).fetchone()
        return str(row[0]).removeprefix("SELECT ").rstrip("; ") if row else ""

    def number(self, node: dict[str, Any]) -> float | None:
        """The value of a numeric expression without columns, else None."""
        if _columns(node):
            return None
        text = self.text(node)
        row = self.db.execute(f"SELECT typeof({text}), TRY_CAST({text} AS DOUBLE)").fetchone()
        if not row or row[1] is None or not (row[0] in NUMBERS or row[0].startswith("DECIMAL")):
            return None
        return float(row[1])


def _columns(node: Any) -> bool:
    """Whether an expression reads any column."""
    if isinstance(node, list):
        return any(map(_columns, node))
    if not isinstance(node, dict):
        return False
    return node.get("class") == "COLUMN_REF" or any(map(_columns, node.values()))
