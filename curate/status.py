"""`curate status STORE`: how far the run is that is under way, or how the last one ended.

Reads run_status.json and nothing else (curate/progress.py writes it), so it works without Ray, without DuckDB and from
another machine.
"""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

from rich.console import Console
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from curate.errors import StoreError
from curate.store.files import Files, open_files

SILENT_AFTER_S = 30.0  # the status is written every second or after each answer; a range takes less than this
STYLES = {"running": "cyan", "finished": "green", "interrupted": "yellow", "failed": "red"}


def show(store_uri: str, console: Console | None = None, now: datetime | None = None) -> None:
    """Print the state of the run; raises StoreError when there is no store or no run has begun in it."""
    console = console or Console(highlight=False)
    status = read_status(open_files(store_uri))
    for line in describe(status, silent_s(status, now or datetime.now(UTC))):
        console.print(line)


def read_status(files: Files) -> dict[str, Any]:
    """What run_status.json of the store says; raises StoreError when there is none or it does not read."""
    try:
        text = files.read("run_status.json")
    except OSError:
        raise StoreError(
            f"{files.uri}: no run has begun here; start one with: curate run RECIPE --set store.uri={files.uri}"
        ) from None
    try:
        status = json.loads(text)
    except ValueError as why:
        raise StoreError(f"{files.uri}/run_status.json: damaged ({why}); the next run writes it anew") from None
    return dict(status)


def silent_s(status: dict[str, Any], now: datetime) -> float:
    """Seconds since a running run last said something; 0 for a run that ended."""
    if status["state"] != "running":
        return 0.0
    return max((now - datetime.fromisoformat(status["updated"])).total_seconds(), 0.0)


def describe(status: dict[str, Any], silent: float) -> list[Text | Table]:
    """The lines of `curate status`."""
    state, total, done = status["state"], status["shards_total"], status["shards_done"]
    head = Text(state, style=STYLES.get(state, ""))
    if silent > SILENT_AFTER_S:
        head = Text(f"{state}, but no sign of life since {duration(silent)}", style="red")
    head.append(f"   {'started' if state == 'running' else 'took'} ", style="dim")
    head.append(f"{duration(status['seconds'] + silent)}{' ago' if state == 'running' else ''}")
    bar = Table.grid(padding=(0, 1))
    failed = f", {status['shards_failed']} failed" if status["shards_failed"] else ""
    bar.add_row("shards", ProgressBar(total=max(total, 1), completed=done, width=30), f"{done:,} of {total:,}{failed}")
    lines: list[Text | Table] = [head, bar]
    rows = Text(f"rows   {status['rows_done']:,} done of {status['rows_known']:,} known, ")
    rows.append(f"{status['rows_computed']:,} computed, {status['rows_per_second']:,g} rows/s")
    lines.append(rows)
    if state == "running" and silent <= SILENT_AFTER_S:
        eta = status["eta_seconds"]
        lines.append(Text(f"left   {duration(eta) if eta is not None else 'not known before the first shard is done'}"))
    for pool, (ready, starting) in status.get("workers", {}).items():
        more = f", {starting} starting" if starting else ""
        lines.append(Text(f"workers {pool}: {ready}{more}", style="dim"))
    if status["errors"]:
        words = sorted(status["errors"].items(), key=lambda item: (-item[1], item[0]))
        text = "errors " + ", ".join(f"{count:,} {word}" for word, count in words)
        lines.append(Text(text, style="yellow"))
    if status["crashes"]:
        lines.append(Text(f"worker crashes: {status['crashes']:,}", style="yellow"))
    if status["waiting_for"]:
        lines.append(Text(f"waiting for {status['waiting_for']}", style="yellow"))
    if silent > SILENT_AFTER_S:
        lines.append(Text("Killed, perhaps. Nothing is lost: run the same command to go on."))
    elif state in ("interrupted", "failed"):
        lines.append(Text("Nothing is lost: run the same command to go on."))
    return lines


def duration(seconds: float) -> str:
    """`40 s`, `12 min`, `3 h 20 min`, `2 d 4 h`."""
    whole = round(seconds)
    if whole < 120:
        return f"{whole} s"
    minutes = whole // 60
    if minutes < 120:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours < 48 else f"{hours // 24} d {hours % 24} h"
