"""What another threshold would do: the policy with changes, judged over the stored scores, nothing written.

A row that an earlier predicate used to reject has never been to the costly operators. When a change lets it through to
a predicate that needs them, its outcome cannot be known yet; it is counted as `needs scoring` and not as kept.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from curate.errors import UsageError
from curate.policy import UNDECIDED, Predicate, compile_policy, verdict_sql
from curate.web.gallery import CARD, position
from curate.web.reader import Reader, Snapshot
from schemas.columns import OPERATORS

NUMBER = re.compile(r"(?<![\w.\"'])\d+(?:\.\d+)?(?:[eE][+-]?\d+)?(?![\w.\"'])")
TYPED = re.compile(r"\s*([+-]?(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][+-]?\d+)?)\s*")
SIMPLE = re.compile(r"\s*(.+?)\s*(>=|<=|>|<)\s*\(?([+-]?\d+(?:\.\d+)?(?:[eE][+-]?\d+)?)\)?\s*", re.DOTALL)
JOINED = re.compile(r"\b(?:and|or|not|between|case|in|is|like)\b|[<>=!;?]|--|/\*", re.IGNORECASE)
STRIP = 8  # pictures on each side of the cut, and of each kind of change
BINS = 48
DECADES = 50.0  # a histogram whose ends differ by this factor or more has a logarithmic axis


@dataclass(frozen=True)
class Field:
    """One predicate of the form: its text in pieces, numbers apart, as it is and as it was."""

    name: str
    before: str
    now: str
    on: bool
    pieces: tuple[tuple[str, int | None], ...]
    """(text, number of the field) for the numbers, (text, None) for what stands between."""

    @property
    def changed(self) -> bool:
        return self.now != self.before or not self.on


def fields(policy: list[tuple[str, str]], query: Mapping[str, str]) -> list[Field]:
    """The form as filled in: `n.<name>.<i>` a number, `p.<name>` the whole text, `off.<name>` switched off.

    Raises UsageError for a number that is none.
    """
    filled = []
    for name, before in policy:
        whole = query.get(f"p.{name}", "").strip()
        now = whole if whole and whole != before else _with_numbers(name, before, query)
        filled.append(Field(name, before, now, f"off.{name}" not in query, pieces(now)))
    return filled


def pieces(sql: str) -> tuple[tuple[str, int | None], ...]:
    """The text of a predicate cut at its numbers; one piece when it has quotes, where digits may be text."""
    if "'" in sql or '"' in sql or "--" in sql:
        return ((sql, None),)
    found: list[tuple[str, int | None]] = []
    end = 0
    for i, match in enumerate(NUMBER.finditer(sql)):
        found += [(sql[end : match.start()], None), (match.group(), i)]
        end = match.end()
    return (*found, (sql[end:], None))


def _with_numbers(name: str, sql: str, query: Mapping[str, str]) -> str:
    text = ""
    for piece, number in pieces(sql):
        typed = query.get(f"n.{name}.{number}", "").strip() if number is not None else ""
        if typed and typed != piece:
            match = TYPED.fullmatch(typed)
            if not match:
                raise UsageError(f"{name}: {typed!r} is not a number")
            # In brackets, because `x > -` may stand before it and two minus signs begin a comment.
            piece = f"({typed})" if typed[0] in "+-" else typed
        text += piece
    return text


@dataclass(frozen=True)
class Answer:
    """Outcomes before and after, by reason, and how many rows moved."""

    reasons: tuple[tuple[str, int, int], ...]
    """(reason, rows before, rows after); reasons in the order of the policy, then kept and needs scoring."""
    kept: tuple[int, int]
    unknown: tuple[int, int]
    failed: int
    moved: Mapping[str, int]
    strips: Mapping[str, list[dict[str, Any]]]
    cut: Cut | None


@dataclass(frozen=True)
class Cut:
    """Rows that reach one predicate, around its threshold."""

    name: str
    expression: str
    operator: str
    threshold: float
    before: float | None
    below: list[dict[str, Any]]
    above: list[dict[str, Any]]
    bins: tuple[tuple[float, int], ...]
    """(left edge, rows) of a histogram between `low` and `high`."""
    low: float
    high: float
    logarithmic: bool
    """Scores such as sharpness span decades; equal steps would put nearly all rows into the first bin."""

    def at(self, value: float) -> float:
        """Where a value lies between `low` (0) and `high` (1)."""
        if self.logarithmic:
            return math.log(value / self.low) / math.log(self.high / self.low)
        return (value - self.low) / (self.high - self.low)


def compiled(reader: Reader, store: Snapshot, form: list[Field]) -> list[Predicate]:
    """The predicates of the form, checked as a recipe's are; raises UsageError that names the predicate."""
    record = reader.record(store)
    stored = [Predicate(p["name"], p["sql"], frozenset(p["columns"]), p["after"]) for p in record["predicates"]]
    wanted = [field for field in form if field.on]
    if all(field.now == field.before for field in wanted):
        names = {field.name for field in wanted}
        return [p for p in stored if p.name in names]
    for field in wanted:
        if field.now != field.before:
            try:
                store.condition(field.now)
            except UsageError as why:
                raise UsageError(f"{field.name}: {why}") from None
    path = [version["operator"] for version in record["versions"]]
    schema = store.cursor.execute("SELECT * FROM wide LIMIT 0").to_arrow_table().schema
    own = [f for f in schema if f.name not in ("row_id", "error") and not f.name.startswith("_")]
    written = {c.name: path.index(op) for op in path for c in OPERATORS[op]}
    idle = {c.name for op, columns in OPERATORS.items() if op not in path for c in columns}
    usable = pa.schema([f for f in own if f.name not in idle])
    operator_of = {f.name: written.get(f.name, 0) for f in usable}
    return list(compile_policy([(f.name, f.now) for f in wanted], usable, operator_of, where="what if"))


def judge(reader: Reader, store: Snapshot, form: list[Field], cut: str) -> Answer:
    """Outcomes with the form's policy beside those of the store's; `cut` names the predicate to look at closely."""
    record = reader.record(store)
    path = [version["operator"] for version in record["versions"]]
    done = ["TRUE", *(f"_done_{operator}" for operator in path[1:])]
    unchanged = [Field(f.name, f.before, f.before, True, ()) for f in form]
    before = compiled(reader, store, unchanged)
    after = compiled(reader, store, form)
    both = (
        f"SELECT *, {verdict_sql(before, done)} AS verdict_before, {verdict_sql(after, done)} AS verdict_after "
        "FROM wide WHERE error IS NULL"
    )
    rows = reader.cached(
        store, f"SELECT verdict_before AS b, verdict_after AS a, count(*) AS n FROM ({both}) GROUP BY ALL"
    )
    failed = reader.cached(store, "SELECT count(*) AS n FROM wide WHERE error IS NOT NULL")[0]["n"]
    tally: dict[str | None, list[int]] = {None: [0, 0], UNDECIDED: [0, 0]}
    tally |= {p.name: [0, 0] for p in (*after, *before)}
    moved = {"in": 0, "out": 0, "score": 0}
    for row in rows:
        for side, reason in enumerate((row["b"], row["a"])):
            tally.setdefault(reason, [0, 0])[side] += row["n"]
        moved["in"] += row["n"] * (row["b"] is not None and row["a"] is None)
        moved["out"] += row["n"] * (row["b"] is None and row["a"] not in (None, UNDECIDED))
        moved["score"] += row["n"] * (row["b"] != UNDECIDED and row["a"] == UNDECIDED)
    judged = [p.name for p in after]
    reasons = sorted((r for r in tally if r not in (None, UNDECIDED)), key=lambda r: (position(judged, str(r)), str(r)))
    strips = {
        kind: store.table(f"SELECT {CARD_WIDE} FROM ({both}) WHERE {sql} ORDER BY shard, row LIMIT {STRIP}")
        for kind, sql in _MOVED_SQL.items()
        if moved[kind]
    }
    return Answer(
        tuple((str(r), *_pair(tally[r])) for r in reasons),
        _pair(tally[None]), _pair(tally[UNDECIDED]), failed, moved, strips,
        _cut(store, form, after, cut),
    )  # fmt: skip


_MOVED_SQL = {
    "in": "verdict_before IS NOT NULL AND verdict_after IS NULL",
    "out": f"verdict_before IS NULL AND verdict_after <> '{UNDECIDED}'",
    "score": f"verdict_before IS DISTINCT FROM '{UNDECIDED}' AND verdict_after = '{UNDECIDED}'",
}
CARD_WIDE = CARD.replace("keep, drop_reason", "TRUE AS keep, verdict_after AS drop_reason")


def _pair(two: list[int]) -> tuple[int, int]:
    return two[0], two[1]


def cuttable(sql: str) -> tuple[str, str, float] | None:
    """(expression, comparison, threshold) of a predicate like `sharpness_tile >= 60`; None for any other."""
    match = SIMPLE.fullmatch(sql)
    if not match or JOINED.search(match.group(1)) or "'" in sql:
        return None
    return match.group(1), match.group(2), float(match.group(3))


def _cut(store: Snapshot, form: list[Field], after: list[Predicate], wanted: str) -> Cut | None:
    """The wanted predicate, else the first changed one, else the first of the policy that has one threshold."""
    changed = {f.name for f in form if f.changed}
    able = [p for p in after if cuttable(p.sql)]
    able.sort(key=lambda p: (p.name != wanted, p.name not in changed))
    if not able:
        return None
    chosen = able[0]
    expression, comparison, threshold = cuttable(chosen.sql) or ("", "", 0.0)
    was = next((cuttable(f.before) for f in form if f.name == chosen.name), None)
    earlier = after[: after.index(chosen)]
    reached = " AND ".join(["error IS NULL", *(f"{p.condition} IS TRUE" for p in earlier)])
    source = f"(SELECT *, TRY(({expression}\n)::DOUBLE) AS value FROM wide WHERE {reached})"
    card = CARD_WIDE.replace("verdict_after", "NULL")
    below = store.table(
        f"SELECT {card}, value FROM {source} WHERE value < $1 ORDER BY value DESC, shard, row LIMIT {STRIP}",
        [threshold],
    )
    above = store.table(
        f"SELECT {card}, value FROM {source} WHERE value >= $1 ORDER BY value, shard, row LIMIT {STRIP}",
        [threshold],
    )
    bounds = store.table(
        f"SELECT quantile_cont(value, 0.01) AS low, quantile_cont(value, 0.99) AS high FROM {source} "
        "WHERE isfinite(value)"
    )[0]
    old = was[2] if was and was[0] == expression and was[2] != threshold else None
    ends = [end for end in (bounds["low"], bounds["high"], threshold, old) if end is not None]
    low, high = min(ends), max(ends)
    if high == low:
        low, high = low - 0.5, high + 0.5
    logarithmic = low > 0 and high / low >= DECADES
    share = "ln(greatest(value, $1) / $1) / ln($2 / $1)" if logarithmic else "(value - $1) / ($2 - $1)"
    binned = store.table(
        f"SELECT least(greatest(floor({share} * {BINS}), 0), {BINS - 1})::INTEGER AS bin, count(*) AS n "
        f"FROM {source} WHERE isfinite(value) GROUP BY 1",
        [float(low), float(high)],
    )
    heights = {row["bin"]: row["n"] for row in binned}
    edges = [low * (high / low) ** (i / BINS) if logarithmic else low + (high - low) * i / BINS for i in range(BINS)]
    bins = tuple((edge, heights.get(i, 0)) for i, edge in enumerate(edges))
    return Cut(chosen.name, expression, comparison, threshold, old, below[::-1], above, bins, low, high, logarithmic)
