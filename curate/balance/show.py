"""What `curate balance` prints: each concept before and after, and the best of what was given up."""

from __future__ import annotations

import csv
from pathlib import Path

from rich.console import Console
from rich.table import Table

from curate.balance import Outcome
from curate.dedup.show import print_aligned
from curate.errors import UsageError
from curate.store import Store
from curate.table import clean

BEST = 2  # rows that were given up, listed for each concept


def show(store: Store, outcome: Outcome, console: Console | None = None) -> None:
    """Print the table of concepts and, for each that was thinned, the best rows that are not used."""
    console = console or Console(highlight=False)
    by = ", ".join(f"{count:,} by {engine}" for engine, count in outcome.by_engine.items() if count)
    console.print(f"{outcome.rows:,} rows to balance; concepts of all rows: {by}")
    table = Table(box=None, pad_edge=False)
    for name in ("concept", "rows", "share", "kept", "uses", "share after", "given up"):
        table.add_column(name, justify="left" if name == "concept" else "right", no_wrap=True)
    for line in outcome.lines:
        table.add_row(
            line.concept, f"{line.rows:,}", f"{line.share:.1%}", f"{line.kept:,}", f"{line.uses:,.0f}",
            f"{line.share_after:.1%}", f"{line.sacrificed:,}" if line.sacrificed else "",
        )  # fmt: skip
    kept, uses = sum(line.kept for line in outcome.lines), sum(line.uses for line in outcome.lines)
    given_up = sum(line.sacrificed for line in outcome.lines)
    table.add_row("all", f"{outcome.rows:,}", "", f"{kept:,}", f"{uses:,.0f}", "", f"{given_up:,}")
    console.print(table)
    if given_up:
        _best(store, console)


def _best(store: Store, console: Console) -> None:
    console.print("the best of what was given up (all of it: --sacrificed FILE.csv):")
    rows = store.rows(
        "SELECT concept, row_id, aesthetic, caption_raw FROM samples WHERE balance_keep = FALSE "
        "QUALIFY row_number() OVER (PARTITION BY concept ORDER BY aesthetic DESC NULLS LAST, row_id) <= $1 "
        "ORDER BY concept, aesthetic DESC NULLS LAST, row_id", [BEST]
    )  # fmt: skip
    lines = [
        (f"  {concept}", row_id, "" if aesthetic is None else f"{aesthetic:.2f}", clean(caption or ""))
        for concept, row_id, aesthetic, caption in rows
    ]
    print_aligned(lines, console)


def write_sacrificed(store: Store, out: Path) -> int:
    """Write every row that balancing gave up to a CSV file, the best of each concept first; returns how many."""
    rows = store.rows(
        "SELECT row_id, concept, concept_score, aesthetic, width, height, caption_raw FROM samples "
        "WHERE balance_keep = FALSE ORDER BY concept, aesthetic DESC NULLS LAST, row_id"
    )
    try:
        with out.open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(["row_id", "concept", "concept_score", "aesthetic", "width", "height", "caption_raw"])
            writer.writerows(rows)
    except OSError as why:
        raise UsageError(f"--sacrificed {out}: {why.strerror or why}") from None
    return len(rows)
