"""`curate run RECIPE --dry-run`: the resolved plan, what is already done, what is left, and the recipe."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table
from rich.text import Text

from curate.engine.cells import Cells
from curate.pipeline import Prepared, parts_done
from curate.plan import Plan
from curate.read import Shard
from curate.recipe import to_toml
from curate.store.parts import list_parts, open_part
from curate.table import clean, cut

COUNTED_PARTS = 2000  # footers are read for up to so many parts, 0.2 ms each
SURVEYED_SHARDS = 50  # the rows to do are counted exactly for up to so many shards, some 20 ms each


def show(prepared: Prepared, console: Console | None = None) -> None:
    """Print the plan in 80 columns, or the width of the terminal, and the recipe below it."""
    console = console or Console(highlight=False)
    plan = prepared.plan
    _head(console, prepared)
    _operators(console, prepared)
    _policy(console, plan)
    console.print()
    console.print(Text("recipe", style="bold"))
    console.print(Text(to_toml(plan.recipe)), soft_wrap=True, end="")


def _head(console: Console, prepared: Prepared) -> None:
    recipe, shards = prepared.plan.recipe, prepared.shards
    kinds = ", ".join(sorted({shard.format for shard in shards}))
    workers = f"{recipe.engine.workers} workers" if recipe.engine.workers else "a worker for each CPU"
    engine = f"ray, {workers}" if recipe.engine.kind == "ray" else "inline, this process"
    for name, value in (
        ("input", f"{recipe.input.uri}   {_count(len(shards), 'shard')}, {kinds}"),
        ("store", prepared.plan.files.uri),
        ("engine", f"{engine}, ranges of {recipe.engine.range_rows} rows"),
    ):
        console.print(Text(f"{name:<8}", style="bold") + Text(clean(value)), soft_wrap=True)


def _operators(console: Console, prepared: Prepared) -> None:
    plan = prepared.plan
    shards, rows = parts_done(plan), rows_done(plan)
    table = Table(box=None, padding=(0, 2, 0, 0), title_justify="left")
    for name in ("operator", "fingerprint", "sees"):
        table.add_column(name, no_wrap=True)
    table.add_column("shards done", justify="right")
    table.add_column("rows done", justify="right")
    total = len(prepared.shards)
    for i, version in enumerate(plan.versions):
        gated = plan.gate(i) is not None
        table.add_row(
            version.operator,
            version.fingerprint,
            "rows that pass so far" if gated else "every row",
            f"{shards[version.operator]:,} of {total:,}",
            "not counted" if rows is None else f"{rows[version.operator]:,}",
        )
    console.print()
    console.print(table)
    console.print()
    console.print(Text("to do   ", style="bold") + Text(to_do(prepared)))


def _policy(console: Console, plan: Plan) -> None:
    console.print()
    if not plan.predicates:
        console.print("No policy: every row that does not fail is kept.")
        return
    console.print(Text("policy  ", style="bold") + Text("in the order in which it judges"))
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    table.add_column(justify="right")
    names = max(len(p.name) for p in plan.predicates)
    waits = max(len(plan.operators[p.after].name) for p in plan.predicates) + len("after ")
    room = max(console.width - names - waits - 10, 20)
    for number, p in enumerate(plan.predicates, start=1):
        table.add_row(str(number), p.name, cut(clean(p.sql), room), f"after {plan.operators[p.after].name}")
    console.print(table)


def rows_done(plan: Plan) -> dict[str, int] | None:
    """Rows in the parts of each operator's present version; None where counting would take long."""
    parts = [part for version in plan.versions for part in list_parts(plan.files, version)]
    if len(parts) > COUNTED_PARTS:
        return None
    done = {version.operator: 0 for version in plan.versions}
    for part in parts:
        if plan.files.local(part.path) is None:
            return None
        with open_part(plan.files, part.path) as file:
            done[part.version.operator] += file.metadata.num_rows
    return done


def to_do(prepared: Prepared) -> str:
    """What a run would compute, as far as it can be known before shards are read."""
    unread: list[Shard] = []
    pending = shards_pending = 0
    surveyed = prepared.shards[:SURVEYED_SHARDS]
    for shard in surveyed:
        try:
            cells = Cells(prepared.plan, shard)
        except FileNotFoundError:
            unread.append(shard)
            continue
        rows = set().union(*(cells.pending(stage) for stage in prepared.plan.stages))
        pending += len(rows)
        shards_pending += bool(rows)
    said = []
    if pending:
        said.append(f"{_count(pending, 'row')} in {_count(shards_pending, 'shard')}")
    if unread:
        said.append(f"all rows of {_count(len(unread), 'shard')} not read yet")
    text = " and ".join(said) or "nothing; everything is done"
    if len(surveyed) < len(prepared.shards):
        text += f" (first {len(surveyed)} of {len(prepared.shards):,} shards)"
    return text


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"
