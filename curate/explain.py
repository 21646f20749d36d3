"""Why a row was kept, dropped or failed, and where each of its values comes from.

`lineage` gathers it once; `curate explain` prints it and the page of a row (curate/web) shows it.
"""

from __future__ import annotations

import json
from typing import Any

from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from curate.errors import StoreError, UsageError, nearest
from curate.policy import Predicate
from curate.store import Store
from curate.table import clean, cut, format_value
from schemas.columns import OPERATORS, indexed

_ROW = {"row_id", "shard", "row", "error"}
OUTCOME_STYLES = {"kept": "green", "dropped": "yellow", "failed": "red", "undecided": "cyan"}
NEWEST_RUNS = 20  # of those that saw the row; a record is one small file each


def lineage(store: Store, row_id: str) -> dict[str, Any]:
    """Everything that the store knows about one row.

    Keys: `row_id, shard, row, uri, format, outcome` (kept, dropped, failed, undecided), `because` (a sentence),
    `drop_reason, error, values` (the row of `samples`), `operators`, `predicates`, `captions`, `runs`, `former`
    (cells of versions that are no longer active). Raises UsageError with the nearest row when there is none.
    """
    id, shard, row = _find(store, row_id)
    record = last_run(store)
    predicates = [Predicate(p["name"], p["sql"], frozenset(p["columns"]), p["after"]) for p in record["predicates"]]
    path = [version["operator"] for version in record["versions"]]
    values = _one(store, "SELECT * FROM samples WHERE row_id = $1", [row_id])
    judged = _judged(store, id, predicates, path, values)
    cells = _cells(store, id)
    operators = _operators(record, cells, judged)
    uri, format = (store.rows("SELECT uri, format FROM shards WHERE shard = $1", [shard]) or [(None, None)])[0]
    captions = _many(
        store,
        "SELECT kind, language, text, engine, model, revision, fingerprint, active FROM captions "
        "WHERE shard = $1 AND row = $2 ORDER BY kind <> 'raw', active DESC, language, fingerprint",
        [shard, row],
    )
    found: dict[str, Any] = {
        "row_id": row_id, "shard": shard, "row": row, "uri": uri, "format": format,
        "drop_reason": values["drop_reason"], "error": values["error"], "values": values,
        "outcome": _outcome(values), "operators": operators, "predicates": judged, "captions": captions,
        "runs": _runs(store, shard),
        "former": [cell for cell in cells if not cell["active"]],
    }  # fmt: skip
    return found | {"because": _because(found)}


def show(store: Store, row_id: str, console: Console | None = None) -> None:
    """Print the lineage of one row; raises UsageError when there is no such row."""
    console = console or Console(highlight=False)
    found = lineage(store, row_id)
    room = max(console.width, 60)
    title = Text(row_id, style="bold").append("  ").append(found["outcome"], style=OUTCOME_STYLES[found["outcome"]])
    _print(console, title)
    _print(console, Text(found["because"]))
    _identity(console, found, room)
    if found["predicates"]:
        _heading(console, "policy, in the order in which it judges")
        for p in found["predicates"]:
            _predicate(console, p, room)
    _heading(console, "operators, in the order of the path")
    for step in found["operators"]:
        _operator(console, step, room)
    if found["captions"]:
        _heading(console, "captions")
        for caption in found["captions"]:
            _caption(console, caption)
    if found["former"]:
        _heading(console, "versions that are no longer active")
        for cell in found["former"]:
            _print(console, Text(f"  {cell['operator']}@{cell['fingerprint']}  {provenance(cell)}", style="dim"))
    _heading(console, "runs that saw it")
    for run in found["runs"]:
        _print(console, Text(f"  {run['run_id']}  {run['state']}, started {run['started']}"))


def last_run(store: Store) -> dict[str, Any]:
    """The record of the run whose policy and versions the index shows."""
    newest = store.rows("SELECT run_id FROM runs ORDER BY run_id DESC LIMIT 1")
    if not newest:
        return {"predicates": [], "versions": [], "policy": []}
    path = f"runs/{newest[0][0]}/run.json"
    try:
        return dict(json.loads(store.files.read(path)))
    except (OSError, ValueError) as why:
        raise StoreError(f"{store.uri}/{path}: {why}; the next run writes a new record") from None


def provenance(of: dict[str, Any]) -> str:
    """`engine model revision`, as far as they are known."""
    words = [str(of[key]) for key in ("engine", "model", "revision") if of.get(key)]
    return " ".join(dict.fromkeys(words))


def _find(store: Store, row_id: str) -> tuple[int, str, int]:
    """The row's id in the index, its shard and its number there."""
    shard, colon, number = row_id.rpartition(":")
    if not colon or not (number.isascii() and number.isdigit() and len(number) < 19):
        some = store.rows("SELECT row_id FROM samples ORDER BY shard, row LIMIT 1")
        example = f", e.g. {some[0][0]}" if some else ""
        raise UsageError(f"{row_id!r} is no row_id; write it as shard:row{example}")
    known = store.rows("SELECT number FROM shard_numbers WHERE shard = $1", [shard])
    if not known:
        shards = [name for (name,) in store.rows("SELECT shard FROM shard_numbers ORDER BY shard")]
        hint = nearest(shard, shards) if len(shards) <= 20 else nearest(shard, shards).partition("; known")[0]
        raise UsageError(f"no row {row_id!r}: no shard {shard!r} in the store{hint}")
    id = (known[0][0] << 32) | int(number)
    if int(number) >= 1 << 32 or not store.rows("SELECT 1 FROM wide WHERE _id = $1", [id]):
        first, last = store.rows(
            "SELECT min(row), max(row) FROM wide WHERE _id >= $1::BIGINT << 32 AND _id < ($1::BIGINT + 1) << 32",
            [known[0][0]],
        )[0]
        rows = f"rows {first} to {last}; the nearest is {shard}:{last}" if last is not None else "no rows"
        raise UsageError(f"no row {row_id!r}: shard {shard} has {rows}")
    return id, shard, int(number)


def _judged(
    store: Store, id: int, predicates: list[Predicate], path: list[str], values: dict[str, Any]
) -> list[dict[str, Any]]:
    """Each predicate with what it says of this row and the values it read; DuckDB evaluates it, as in the view."""
    if not predicates:
        return []
    done = [f"_done_{operator}" for operator in path[1:]]
    answered = _one(store, f"SELECT {', '.join(['TRUE AS _done_input', *done])} FROM wide WHERE _id = $1", [id])
    row = store.rows(f"SELECT {', '.join(p.condition for p in predicates)} FROM wide WHERE _id = $1", [id])[0]
    judged: list[dict[str, Any]] = []
    stopped = values["error"] is not None
    for p, passed in zip(predicates, row, strict=True):
        waits = passed is None and not answered[f"_done_{path[p.after]}"]
        judged.append(
            {
                "name": p.name,
                "predicate": p.sql,
                "after": path[p.after],
                "passed": passed,
                "reads": {name: values[name] for name in sorted(p.columns) if name in values},
                "waits": waits,
                "stops": passed is not True and not stopped,
            }
        )
        stopped = stopped or passed is not True
    return judged


def _cells(store: Store, id: int) -> list[dict[str, Any]]:
    """What every version of every operator wrote for the row, in the order of the path, active versions first."""
    known = _many(store, "SELECT operator, fingerprint, active, engine, model, revision, facts FROM operators", [])
    failures = _many(store, "SELECT operator, fingerprint, error, message FROM cell_errors WHERE _id = $1", [id])
    failed = {(f["operator"], f["fingerprint"]): f for f in failures}
    cells = []
    for version in sorted(
        known, key=lambda v: (list(OPERATORS).index(v["operator"]), not v["active"], v["fingerprint"])
    ):
        operator, mark = version["operator"], version["fingerprint"]
        if version["active"]:
            done = "TRUE" if operator == "input" else f"_done_{operator}"
            mine = [c.name for c in OPERATORS[operator] if indexed(c.type)]
            columns = "*" if operator == "input" else ", ".join(f'"{name}"' for name in mine)
            rows = _many(store, f"SELECT {columns} FROM wide_cells WHERE _id = $1 AND {done}", [id])
        else:
            rows = _many(store, f"SELECT * FROM former_{operator} WHERE _id = $1 AND _fingerprint = $2", [id, mark])
        failure = failed.get((operator, mark), {"error": None, "message": None})
        others = _ROW | {c.name for op, columns in OPERATORS.items() if op != operator for c in columns}
        cells += [
            {
                **version,
                "facts": json.loads(str(version["facts"] or "{}")),
                "values": {name: value for name, value in row.items() if name[0] != "_" and name not in others},
                "error": failure["error"],
                "message": failure["message"],
            }
            for row in rows
        ]
    return cells


def _operators(
    record: dict[str, Any], cells: list[dict[str, Any]], judged: list[dict[str, Any]]
) -> list[dict[str, Any]]:
    """Each operator of the path: what it wrote, or what kept the row from it."""
    active = {(cell["operator"], cell["fingerprint"]): cell for cell in cells}
    path = [version["operator"] for version in record["versions"]]
    failed = next((cell["operator"] for cell in cells if cell["active"] and cell["error"]), None)
    steps = []
    for i, version in enumerate(record["versions"]):
        cell = active.get((version["operator"], version["fingerprint"]))
        if cell:
            state = "failed" if cell["error"] else "done"
            steps.append({**cell, "state": state, "why": None})
            continue
        gate = next((p["name"] for p in judged if not p["passed"] and path.index(p["after"]) < i), None)
        if failed and path.index(failed) < i:
            why = f"the row failed in {failed}"
        elif gate:
            why = f"the row does not pass {gate}"
        else:
            why = "not run yet"
        steps.append({**version, "state": "not run", "why": why, "values": {}, "error": None, "message": None})
    return steps


def _outcome(values: dict[str, Any]) -> str:
    if values["error"]:
        return "failed"
    if values["keep"] is None:
        return "undecided"
    return "kept" if values["keep"] else "dropped"


def _because(found: dict[str, Any]) -> str:
    if found["outcome"] == "failed":
        step = next((s for s in found["operators"] if s["error"]), None)
        where = f" in {step['operator']}" if step else ""
        return f"Failed{where}: {found['error']}" + (f", {step['message']}" if step and step["message"] else "") + "."
    stop = next((p for p in found["predicates"] if p["stops"]), None)
    if found["outcome"] == "dropped" and stop:
        reads = ", ".join(f"{name} = {format_value(value) or 'NULL'}" for name, value in stop["reads"].items())
        is_what = "is not true" if stop["passed"] is False else "cannot be told, a value is NULL"
        return f"Dropped by {stop['name']}: {stop['predicate']} {is_what} ({reads})."
    if found["outcome"] == "undecided":
        waiting = next((s["operator"] for s in found["operators"] if s["state"] == "not run"), None)
        return f"Not decided yet: waits for {waiting}." if waiting else "Not decided yet."
    count = len(found["predicates"])
    return f"Kept: passes all {count} predicates of the policy." if count else "Kept: the policy is empty."


def _runs(store: Store, shard: str) -> list[dict[str, Any]]:
    """The newest runs that had the row's shard in their input, newest first."""
    seen: list[dict[str, Any]] = []
    for run_id, started, state in store.rows("SELECT run_id, started, state FROM runs ORDER BY run_id DESC"):
        try:
            record = json.loads(store.files.read(f"runs/{run_id}/run.json"))
        except (OSError, ValueError):
            continue
        if any(entry["shard"] == shard for entry in record.get("shards", [])):
            seen.append({"run_id": run_id, "started": str(started), "state": state})
        if len(seen) == NEWEST_RUNS:
            break
    return seen


def _many(store: Store, sql: str, parameters: list[Any]) -> list[dict[str, Any]]:
    result = store.connection().execute(sql, parameters)
    names = [column[0] for column in result.description]
    return [dict(zip(names, row, strict=True)) for row in result.fetchall()]


def _one(store: Store, sql: str, parameters: list[Any]) -> dict[str, Any]:
    return _many(store, sql, parameters)[0]


def _print(console: Console, text: Text) -> None:
    console.print(text, soft_wrap=len(text.plain) <= console.width)


def _heading(console: Console, text: str) -> None:
    console.print()
    console.print(Text(text, style="bold"))


def _identity(console: Console, found: dict[str, Any], room: int) -> None:
    values = found["values"]
    size = f"{values['width']} x {values['height']} px" if values["width"] else None
    kind = ", ".join(str(v) for v in (values["format"], size, f"{values['bytes'] or 0:,} bytes") if v)
    grid = Table.grid(padding=(0, 2))
    for name, value in (
        ("shard", f"{found['uri'] or found['shard']}" + (f" ({found['format']})" if found["format"] else "")),
        ("picture", kind if values["bytes"] else None),
        ("sha256", values["sha256"]),
    ):
        if value:
            grid.add_row(Text(name, style="dim"), Text(cut(clean(value), room - 10), no_wrap=True))
    console.print(grid)


def _predicate(console: Console, p: dict[str, Any], room: int) -> None:
    mark, style = {True: ("pass", "green"), False: ("fail", "red"), None: ("NULL", "yellow")}[p["passed"]]
    if p["waits"]:
        mark, style = " ?  ", "cyan"
    line = Text(" →" if p["stops"] else "  ", style="bold").append(f"{mark}  ", style=style)
    line.append(f"{p['name']}: ", style="bold").append(clean(p["predicate"]))
    line.truncate(room, overflow="ellipsis")
    _print(console, line)
    if p["waits"]:
        reads = f"{p['after']} has not seen the row"
    else:
        reads = ", ".join(f"{name} = {format_value(value) or 'NULL'}" for name, value in p["reads"].items())
    _print(console, Text(cut(f"        {reads}", room), style="dim"))


def _operator(console: Console, step: dict[str, Any], room: int) -> None:
    line = Text(f"  {step['operator']}@{step['fingerprint']}  ", style="bold")
    line.append(provenance(step), style="dim")
    line.truncate(room, overflow="ellipsis")
    _print(console, line)
    if step["why"]:
        _print(console, Text(f"    not run: {step['why']}", style="yellow"))
    if step["error"]:
        error = Text(f"{step['error']}: {clean(step['message'] or '')}", style="red")
        console.print(Padding(error, (0, 0, 0, 4)))
    shown = {name: value for name, value in step["values"].items() if not (step["error"] and value is None)}
    if shown:
        values = Text("  ").join(
            Text.assemble((f"{name}=", "dim"), cut(format_value(value) or "NULL", room - 10 - len(name)))
            for name, value in shown.items()
        )
        console.print(Padding(values, (0, 0, 0, 4)))


def _caption(console: Console, caption: dict[str, Any]) -> None:
    source = provenance(caption) or "as it came"
    active = "" if caption["active"] else ", no longer active"
    line = Text(f"  {caption['kind']} {caption['language']}", style="bold").append(f"  {source}{active}", style="dim")
    _print(console, line)
    console.print(Padding(Text(clean(caption["text"])), (0, 0, 0, 4)))
