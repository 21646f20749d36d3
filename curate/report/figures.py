"""The report's numbers, each by one bounded query: a store of millions of rows gives as few of them as one of ten."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from curate.policy import Predicate
from curate.store import Store

ERRORS_SHOWN = 100
RUNS_SHOWN = 10
TEXT_SHOWN = 1200
MATRIX_MAX = 16  # predicates up to which pairs are counted: one filtered count for each


@dataclass(frozen=True)
class Run:
    """The last run, as its record tells it."""

    id: str
    started: str
    finished: str
    state: str
    exit_code: int | None
    input: str
    recipe: str
    predicates: tuple[Predicate, ...]
    path: tuple[str, ...]
    """Operators in the order in which they ran."""


@dataclass(frozen=True)
class Step:
    """One predicate of the funnel. `reached` rows came to it, `dropped` ended there, `nulls` of them on a NULL."""

    name: str
    predicate: str
    reached: int
    dropped: int
    nulls: int

    @property
    def left(self) -> int:
        """Rows that go on."""
        return self.reached - self.dropped


@dataclass(frozen=True)
class Overlap:
    """What one predicate rejects, whatever the others say."""

    name: str
    judged: int
    fails: int
    alone: int
    both: tuple[int, ...]
    """Rows that this predicate and the one at each position reject together."""


@dataclass(frozen=True)
class Speed:
    """One operator in one run. `seconds` are those of all workers together; `planned` what `curate plan` had said."""

    operator: str
    cells: int
    seconds: float
    planned: float | None = None

    @property
    def rate(self) -> float | None:
        """Images a second of one worker."""
        return self.cells / self.seconds if self.seconds else None


def last_run(store: Store) -> Run:
    """The newest run that the index holds; one that is under way is not in it, and its policy is not yet the views'."""
    ((run_id,),) = store.rows("SELECT max(run_id) FROM runs")
    record = json.loads(store.files.read(f"runs/{run_id}/run.json")) if run_id else {}
    recipe = record.get("recipe", "")
    return Run(
        record.get("run_id", ""),
        record.get("started", ""),
        record.get("finished", ""),
        record.get("state", "never run"),
        record.get("exit_code"),
        tomllib.loads(recipe).get("input", {}).get("uri", ""),
        recipe,
        tuple(
            Predicate(p["name"], p["sql"], frozenset(p["columns"]), p["after"]) for p in record.get("predicates", [])
        ),
        tuple(v["operator"] for v in record.get("versions", [])),
    )


def funnel(store: Store, run: Run, counts: dict[str, int]) -> list[Step]:
    """The predicates in the order in which they judge, with what each of them drops."""
    dropped = dict(
        store.rows(
            "SELECT drop_reason, count(*) FROM samples WHERE keep = FALSE AND drop_reason IS NOT NULL GROUP BY 1"
        )
    )
    reached = counts["rows"] - counts["failed"]
    steps = []
    for p in run.predicates:
        nulls = dropped.get(f"{p.name}_null", 0)
        steps.append(Step(p.name, p.sql, reached, dropped.get(p.name, 0) + nulls, nulls))
        reached = steps[-1].left
    return steps


def overlap(store: Store, run: Run) -> list[Overlap]:
    """For each predicate the rows that it rejects, those that no other one rejects, and those it shares with others.

    A row is judged by a predicate once the operator behind it has seen the row: costly operators see survivors only,
    so what they would say of rows that were dropped before is not known and not counted.
    """
    n = len(run.predicates)
    if not n or n > MATRIX_MAX:
        return []
    columns = []
    for i, p in enumerate(run.predicates):
        done = f"_done_{run.path[p.after]}" if p.after else "TRUE"
        columns += [f"{done} AS judged_{i}", f"({done} AND {p.condition} IS NOT TRUE) AS fails_{i}"]
    failing = " + ".join(f"fails_{i}::INTEGER" for i in range(n))
    wanted = []
    for i in range(n):
        wanted += [f"count(*) FILTER (judged_{i})", f"count(*) FILTER (fails_{i})"]
        wanted.append(f"count(*) FILTER (fails_{i} AND failing = 1)")
        wanted += [f"count(*) FILTER (fails_{i} AND fails_{j})" for j in range(n)]
    (row,) = store.rows(
        f"SELECT {', '.join(wanted)} FROM (SELECT *, {failing} AS failing FROM "
        f"(SELECT {', '.join(columns)} FROM wide WHERE error IS NULL))"
    )
    width = n + 3
    return [
        Overlap(p.name, row[i * width], row[i * width + 1], row[i * width + 2], row[i * width + 3 : (i + 1) * width])
        for i, p in enumerate(run.predicates)
    ]


def errors(store: Store) -> list[dict[str, Any]]:
    """The first failed rows."""
    return _dicts(
        store,
        "SELECT row_id, operator, error, left(message, 400) AS message FROM errors "
        "ORDER BY shard, row, operator LIMIT ?",
        [ERRORS_SHOWN],
    )


def error_words(store: Store) -> list[tuple[str, str, int]]:
    """Error, operator, count; most frequent first."""
    rows = store.rows("SELECT error, operator, count(*) FROM errors GROUP BY 1, 2 ORDER BY 3 DESC, 1, 2 LIMIT 40")
    return [(str(error), str(operator), int(count)) for error, operator, count in rows]


def shard_errors(store: Store) -> list[dict[str, Any]]:
    """Shards that could not be read."""
    return _dicts(
        store,
        "SELECT shard, error, left(message, 400) AS message FROM shards WHERE error IS NOT NULL ORDER BY shard LIMIT ?",
        [ERRORS_SHOWN],
    )


def speeds(store: Store) -> tuple[str, float, float | None, list[Speed]]:
    """Run id, wall seconds, those that were planned, and operators of the newest run that computed anything."""
    for run_id, text in store.rows("SELECT run_id, report FROM runs ORDER BY run_id DESC LIMIT 200"):
        report = json.loads(text or "{}")
        cells = report.get("cells") or {}
        if cells:
            seconds = report.get("operator_seconds") or {}
            plan = report.get("planned") or {}
            steps = plan.get("steps", {})
            planned = {name: step["planned_ms"] / 1000 * step["rows"] for name, step in steps.items()}
            found = [Speed(name, n, float(seconds.get(name, 0.0)), planned.get(name)) for name, n in cells.items()]
            return run_id, float(report.get("seconds", 0.0)), plan.get("planned_seconds"), found
    return "", 0.0, None, []


def runs(store: Store) -> list[dict[str, Any]]:
    """The newest runs, the last one first."""
    return _dicts(
        store,
        "SELECT run_id, started, state, rows, kept, dropped, failed, exit_code, "
        "(report->>'$.seconds')::DOUBLE AS seconds FROM runs ORDER BY run_id DESC LIMIT ?",
        [RUNS_SHOWN],
    )


def operators(store: Store, run: Run) -> list[dict[str, Any]]:
    """The active version of each operator in the order of the path, with the settings that its fingerprint covers."""
    found = {
        row["operator"]: row
        for row in _dicts(
            store, "SELECT operator, fingerprint, engine, model, revision, facts FROM operators WHERE active"
        )
    }
    for row in found.values():
        facts = json.loads(row["facts"] or "{}").get("facts", {})
        own = {key: value for key, value in facts.items() if key not in ("engine", "model", "revision")}
        row["settings"] = ", ".join(f"{key} = {_shown(value)}" for key, value in own.items() if value not in ("", None))
    order = {name: i for i, name in enumerate(run.path)}
    return sorted(found.values(), key=lambda row: order.get(row["operator"], len(order)))


def others(store: Store) -> int:
    """Versions in the store that are not active."""
    return int(store.rows("SELECT count(*) FROM operators WHERE NOT active")[0][0])


def writers(store: Store) -> dict[str, str]:
    """Who wrote the captions: engine, model and revision of operator `caption` and `translate`, as rows have them."""
    named = {}
    for operator, text in (("caption", "caption_en"), ("translate", "caption_zh")):
        rows = store.rows(
            f"SELECT {operator}_engine, {operator}_model, {operator}_revision FROM samples "
            f"WHERE {text} IS NOT NULL GROUP BY ALL ORDER BY count(*) DESC, 1, 2, 3 LIMIT 3"
        )
        named[operator] = "; ".join(
            ", ".join(
                f"{word} {v}" for word, v in zip(("engine", "model", "revision"), row, strict=True) if v is not None
            )
            for row in rows
        )
    return named


def _shown(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 90 else text[:89] + "…"


def _dicts(store: Store, text: str, parameters: Sequence[Any] = ()) -> list[dict[str, Any]]:
    result = store.connection().execute(text, list(parameters))
    names = [d[0] for d in result.description]
    return [dict(zip(names, row, strict=True)) for row in result.fetchall()]
