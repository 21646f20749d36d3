"""What a run shows: a live display on a terminal, one plain line every ten seconds elsewhere, and run_status.json.

`curate status STORE` reads run_status.json, which is replaced atomically, so it works without Ray, without DuckDB and
from another machine.
"""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from curate.engine.driver import Progress
from curate.errors import DONE, TOO_MANY_FAILED_ROWS
from curate.log import log
from curate.plan import Plan

if TYPE_CHECKING:
    from curate.store import Store

PLAIN_EVERY_S = 10.0
STATUS_EVERY_S = 1.0
REMOTE_STATUS_EVERY_S = 5.0  # a put to an object store holds up the driver for some 50 ms
SHARDS_SHOWN = 10  # failed shards that are named at the end; the table `shards` has them all


class Display:
    """Shows one run on a console."""

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console(stderr=True)
        self.live: Live | None = None
        self.started = time.monotonic()
        self.said = 0.0
        self.written = 0.0
        self.run_id = ""

    @contextmanager
    def running(self, plan: Plan, progress: Progress, run_id: str = "") -> Iterator[None]:
        """Show the run while the block lasts, and write its status when it begins and ends."""
        self.started = time.monotonic()
        self.run_id = run_id
        self._status(plan, progress, "running")
        try:
            if plan.recipe.run.log == "json":
                log.info("run started", extra={"fields": {"shards": progress.shards_total}})
                yield
            elif self.console.is_terminal:
                with Live(console=self.console, refresh_per_second=8, transient=True) as self.live:
                    self.show(plan, progress)
                    yield
            else:
                yield
        except BaseException:
            with suppress(OSError):  # a disk that is full has no room for this either
                self._status(plan, progress, "failed")
            raise
        finally:
            self.live = None
        self._status(plan, progress, "interrupted" if progress.interrupted else "finished")

    def show(self, plan: Plan, progress: Progress) -> None:
        """Show the state of the run; cheap enough to be called for every answer."""
        now = time.monotonic()
        if now - self.written >= (STATUS_EVERY_S if plan.files.local("") else REMOTE_STATUS_EVERY_S):
            self._status(plan, progress, "running")
        if self.live:
            self.live.update(self._picture(progress))
        elif now - self.said >= PLAIN_EVERY_S:
            self.said = now
            if plan.recipe.run.log == "json":
                log.info("progress", extra={"fields": self._state(progress)})
            else:
                self.console.print(self._line(progress), highlight=False, soft_wrap=True)

    @contextmanager
    def waiting(self, plan: Plan, progress: Progress, what: str) -> Iterator[None]:
        """Say what the run waits for, and that it lives, while the block keeps this thread busy."""
        progress.waiting_for = what
        over = threading.Event()

        def tell() -> None:
            self.show(plan, progress)
            while not over.wait(STATUS_EVERY_S):
                self.show(plan, progress)

        teller = threading.Thread(target=tell, name="status", daemon=True)
        teller.start()
        try:
            yield
        finally:
            over.set()
            teller.join()
            progress.waiting_for = ""

    def note(self, text: str) -> None:
        """Say something above the live display, or in the JSON log."""
        if log.isEnabledFor(logging.INFO):
            log.warning(text)
        else:
            self.console.print(text, style="yellow", highlight=False)

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        """Show that something after the run is being done."""
        if self.console.is_terminal:
            with self.console.status(name):
                yield
        else:
            yield

    def finished(
        self, plan: Plan, progress: Progress, store: Store, seconds: float, code: int, failed_share: float
    ) -> None:
        """The closing table: rows in, kept, dropped by reason, failed, captions, images/s by operator.

        Not for readers of JSON: the line `run ended` has it all.
        """
        if plan.recipe.run.log == "json":
            return
        self.console.print(summary(store, progress, seconds))
        for shard, (error, message) in sorted(progress.shard_errors.items())[:SHARDS_SHOWN]:
            self.console.print(
                f"shard {shard} failed: {error}: {message}", style="red", highlight=False, soft_wrap=True
            )
        if progress.interrupted:
            self.console.print("Interrupted. Nothing is lost: run the same command to go on.", style="yellow")
        elif code == TOO_MANY_FAILED_ROWS:
            allowed = plan.recipe.run.max_failed_share
            which = f"{len(progress.shard_errors)} shards" if progress.shard_errors else f"{failed_share:.1%} of rows"
            query = "from shards where error is not null" if progress.shard_errors else "from errors"
            self.console.print(
                f"Finished, but {which} failed (run.max_failed_share = {allowed:g}); see: "
                f'curate sql {plan.recipe.store.uri} "{query}"',
                style="red", highlight=False, soft_wrap=True,
            )  # fmt: skip
        elif code == DONE and not progress.tally.cells.total():
            self.console.print("Everything was already done.", style="green")

    def _picture(self, progress: Progress) -> Group:
        total, done = progress.shards_total, progress.shards_done
        computed = max(progress.tally.cells.values(), default=0)
        seconds = max(time.monotonic() - self.started, 1e-6)
        head = Table.grid(padding=(0, 1))
        head.add_row("shards", ProgressBar(total=max(total, 1), completed=done, width=30), f"{done}/{total}")
        text = f"{computed} rows computed, {computed / seconds:.1f} rows/s"
        if progress.tally.errors.total():
            text += f", {progress.tally.errors.total()} with errors"
        if progress.crashes:
            text += f", {progress.crashes} worker crashes"
        body = Table.grid(padding=(0, 2))
        for name, cells in progress.tally.cells.items():
            spent = progress.tally.seconds[name]
            body.add_row(f"  {name}", f"{cells}", f"{cells / spent:.0f}/s per worker" if spent else "")
        parts: list[Any] = [head, Text(text), body]
        if progress.waiting_for:
            parts.append(Text(f"waiting for {progress.waiting_for}", style="yellow"))
        return Group(*parts)

    def _line(self, progress: Progress) -> str:
        computed = max(progress.tally.cells.values(), default=0)
        rate = computed / max(time.monotonic() - self.started, 1e-6)
        line = f"shards {progress.shards_done}/{progress.shards_total}, {computed} rows computed, {rate:.1f} rows/s"
        if progress.tally.errors.total():
            line += f", {progress.tally.errors.total()} errors"
        return f"{line}; waiting for {progress.waiting_for}" if progress.waiting_for else line

    def _status(self, plan: Plan, progress: Progress, state: str) -> None:
        self.written = time.monotonic()
        status = {
            "run_id": self.run_id,
            "state": state,
            "updated": datetime.now(UTC).isoformat(timespec="seconds"),
            **self._state(progress),
        }
        plan.files.replace("run_status.json", json.dumps(status, indent=1).encode())

    def _state(self, progress: Progress) -> dict[str, Any]:
        seconds = time.monotonic() - self.started
        computed = max(progress.tally.cells.values(), default=0)
        left = progress.shards_total - progress.shards_done
        return {
            "seconds": round(seconds, 1),
            "shards_total": progress.shards_total,
            "shards_done": progress.shards_done,
            "shards_failed": len(progress.shard_errors),
            "rows_known": progress.rows_known,
            "rows_done": progress.rows_done,
            "rows_computed": computed,
            "rows_per_second": round(computed / seconds, 2) if seconds else 0.0,
            "eta_seconds": round(seconds / progress.shards_done * left) if progress.shards_done else None,
            "errors": dict(progress.tally.errors),
            "crashes": progress.crashes,
            "waiting_for": progress.waiting_for,
            "workers": {pool: list(counts) for pool, counts in progress.workers.items()},
        }


def summary(store: Store, progress: Progress, seconds: float) -> Table:
    """The table that ends a run; at most 80 columns wide."""
    counts = store.counts()
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    table.add_column(justify="left")
    table.add_column(justify="right")
    table.add_column(justify="left", style="dim")
    table.add_row("rows in", f"{counts['rows']:,}", f"{progress.shards_total} shards, {seconds:.1f} s")
    table.add_row("kept", f"{counts['kept']:,}", "", style="green")
    table.add_row("dropped", f"{counts['dropped']:,}", "")
    for reason, rows in store.drop_reasons():
        table.add_row(f"  {reason}", f"{rows:,}", "")
    table.add_row("failed", f"{counts['failed']:,}", "", style="red" if counts["failed"] else "")
    for error, rows in store.error_words():
        table.add_row(f"  {error}", f"{rows:,}", "")
    if counts["undecided"]:
        table.add_row("not decided yet", f"{counts['undecided']:,}", "")
    table.add_row("captions en / zh", f"{counts['captions_en']:,} / {counts['captions_zh']:,}", "")
    for name, cells in progress.tally.cells.items():
        spent = progress.tally.seconds[name]
        table.add_row(f"  {name}", f"{cells:,}", f"{cells / spent:,.1f} images/s per worker" if spent else "")
    return table
