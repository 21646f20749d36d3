"""Rows of the store by outcome, score and SQL condition, a page at a time."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import urlencode

from curate.errors import UsageError, nearest
from curate.web.reader import Reader, Snapshot
from schemas.columns import OPERATORS

PAGE_ROWS = 48
NUMERIC = ("INTEGER", "BIGINT", "FLOAT", "DOUBLE", "SMALLINT", "TINYINT", "HUGEINT", "UBIGINT", "UINTEGER", "DECIMAL")
ABOUT = {column.name: column.about for columns in OPERATORS.values() for column in columns}
OUTCOMES = {
    "all": "TRUE",
    "kept": "keep IS TRUE",
    "dropped": "drop_reason IS NOT NULL",
    "failed": "error IS NOT NULL",
    "undecided": "keep IS NULL",
}
CARD = "row_id, keep, drop_reason, error, width, height, coalesce(caption_en, caption_raw) AS caption"


@dataclass(frozen=True)
class View:
    """What a gallery page shows; its URL is this and nothing else."""

    show: str = "all"
    where: str = ""
    sort: str = ""
    order: str = "desc"
    page: int = 1

    @classmethod
    def of(cls, query: Mapping[str, str]) -> View:
        """The view that a query string asks for; raises UsageError."""
        page = query.get("page", "1")
        if not (page.isascii() and page.isdigit() and 0 < int(page[:10]) < 10**9):
            raise UsageError(f"page = {page!r} is not a page number")
        order = query.get("order", "desc")
        if order not in ("asc", "desc"):
            raise UsageError(f"order = {order!r} is not known; use asc or desc")
        return cls(query.get("show", "all"), query.get("where", "").strip(), query.get("sort", ""), order, int(page))

    def url(self, **changes: Any) -> str:
        """The address of this view with changes; a change of anything but the page starts at page 1."""
        view = replace(self, **{"page": 1, **changes})
        default = View()
        query = {k: v for k, v in vars(view).items() if v != getattr(default, k)}
        return "/?" + urlencode(query) if query else "/"


def numeric_columns(reader: Reader, store: Snapshot) -> dict[str, str]:
    """Columns that rows can be sorted by, with their meaning."""
    described = reader.cached(store, "DESCRIBE samples")
    return {
        row["column_name"]: ABOUT.get(row["column_name"], "a column of the input")
        for row in described
        if row["column_type"].partition("(")[0] in NUMERIC and row["column_name"] != "row"
    }


def counts(reader: Reader, store: Snapshot, condition: str) -> dict[str, int]:
    """Rows that meet the condition by outcome: `all`, `kept`, ..., then `drop:<reason>` and `error:<word>`."""
    rows = reader.cached(
        store, f"SELECT keep, drop_reason, error, count(*) AS n FROM samples WHERE {condition} GROUP BY ALL"
    )
    found = dict.fromkeys(OUTCOMES, 0)
    reasons: dict[str, int] = {}
    errors: dict[str, int] = {}
    for row in rows:
        found["all"] += row["n"]
        if row["error"]:
            found["failed"] += row["n"]
            errors[row["error"]] = errors.get(row["error"], 0) + row["n"]
        elif row["keep"] is None:
            found["undecided"] += row["n"]
        elif row["keep"]:
            found["kept"] += row["n"]
        else:
            found["dropped"] += row["n"]
            reasons[row["drop_reason"]] = reasons.get(row["drop_reason"], 0) + row["n"]
    judged = [p["name"] for p in reader.record(store)["predicates"]]
    ordered = sorted(reasons, key=lambda reason: (position(judged, reason), reason))
    found |= {f"drop:{reason}": reasons[reason] for reason in ordered}
    return found | {f"error:{word}": errors[word] for word in sorted(errors, key=lambda w: (-errors[w], w))}


def position(judged: list[str], reason: str) -> int:
    """Where in the policy the predicate stands that gave the reason."""
    name = reason if reason in judged else reason.removesuffix("_null")
    return judged.index(name) if name in judged else len(judged)


def page(reader: Reader, store: Snapshot, view: View, condition: str) -> list[dict[str, Any]]:
    """The cards of one page, in an order that has no ties."""
    shown, parameters = outcome(view.show)
    order, value = "shard, row", "NULL"
    if view.sort:
        known = numeric_columns(reader, store)
        if view.sort not in known:
            raise UsageError(f"cannot sort by {view.sort!r}{nearest(view.sort, known)}")
        value = '"' + view.sort + '"'
        order = f"{value} {view.order.upper()} NULLS LAST, shard, row"
    return store.table(
        f"SELECT {CARD}, {value} AS value FROM samples WHERE {condition} AND {shown} ORDER BY {order} "
        f"LIMIT {PAGE_ROWS} OFFSET {(view.page - 1) * PAGE_ROWS}",
        parameters,
    )


def outcome(show: str) -> tuple[str, list[Any]]:
    """SQL for `kept`, `drop:sharp`, `error:truncated`, ... and its parameters."""
    if show in OUTCOMES:
        return OUTCOMES[show], []
    kind, colon, word = show.partition(":")
    if colon and kind in ("drop", "error"):
        return f"{'drop_reason' if kind == 'drop' else 'error'} = $1", [word]
    raise UsageError(f"show = {show!r} is not known{nearest(show, OUTCOMES)}")
