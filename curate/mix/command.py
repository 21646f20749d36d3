"""What `curate mix` prints: progress while shards are written, then what was achieved."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from curate.arrow import without_pandas
from curate.errors import CurateError, UsageError, nearest
from curate.mix import jobs
from curate.mix.export import export
from curate.mix.settings import Settings
from curate.mix.verify import verify


def make(settings: Settings, out: str, engine: str, workers: int) -> None:
    """Export with a progress bar on a terminal, and show the achieved ratios."""
    _checked(engine, workers)
    without_pandas()
    console = Console(stderr=True)
    columns = (TextColumn("entries"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task("entries", total=None)
        found = export(
            settings, out, engine, workers, lambda text: console.print(text, highlight=False, soft_wrap=True),
            lambda done, total: bar.update(task, completed=done, total=total),
        )  # fmt: skip
    show(found, out)


def check(directory: str, engine: str, workers: int) -> None:
    """Verify a training set; CurateError when anything disagrees."""
    _checked(engine, workers)
    problems = verify(directory, engine, workers)
    console = Console(highlight=False)
    for problem in problems:
        console.print(problem, soft_wrap=True, markup=False)
    if problems:
        raise CurateError(f"{directory}: {len(problems)} problems; a release cannot be mended, make it anew")
    console.print("files, captions, counts and splits agree with the manifest")


def show(found: dict[str, Any], out: str) -> None:
    """The achieved ratios of a manifest."""
    console = Console(highlight=False)
    table = Table(box=None, pad_edge=False, header_style="bold")
    several = found["settings"]["epochs"] > 1
    names = ["split", *(["epoch"] if several else []), "pool"]
    for name in (*names, "entries", "raw", "synthetic", "raw share", "raw only", "syn. only"):
        table.add_column(name, justify="left" if name in names else "right", no_wrap=True)
    for split, of in found["splits"].items():
        for epoch, got in of["achieved"].items():
            pools = list(got["by_pool"].items())
            for pool, row in [("all", got), *(pools if len(pools) > 1 else [])]:
                share = "" if row["raw_share"] is None else f"{row['raw_share']:.4f}"
                counts = (row["entries"], row["raw"], row["synthetic"])
                fallback = (row["fallback_raw"], row["fallback_synthetic"])
                words = [split, *([epoch] if several else []), pool]
                table.add_row(*words, *(f"{c:,}" for c in counts), share, *(f"{c:,}" for c in fallback))
    console.print(table)
    for reason, count in found["left_out"].items():
        console.print(f"left out: {count:,} rows, {reason}")
    if found["characters"]:
        console.print(
            f"rendered text shows {found['characters']:,} different Chinese characters, "
            f"{found['characters_of_gb2312']:,} of the 6,763 of GB2312"
        )
    console.print(f"wrote {out}: release {found['tree'][:16]}; check it with: curate mix verify {out}", soft_wrap=True)


def _checked(engine: str, workers: int) -> None:
    if engine not in jobs.KINDS:
        raise UsageError(f"--engine {engine!r} is not known{nearest(engine, jobs.KINDS)}")
    if workers < 0:
        raise UsageError(f"--workers {workers}: at least 0")
