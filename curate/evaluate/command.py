"""The command `curate evaluate`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from curate.errors import UsageError


def evaluate(
    store: Annotated[str, typer.Argument(metavar="STORE", help="Folder or s3:// URI of the store.")],
    rows: Annotated[int, typer.Option(help="Pictures, drawn by key; 0: all.")] = 500,
    where: Annotated[str, typer.Option(metavar="SQL", help="Pictures that take part, e.g. keep.")] = "TRUE",
    captioner: Annotated[
        list[str], typer.Option(help="Name, language, name/language or fingerprint; repeatable. [default: all]")
    ] = [],  # noqa: B006  Typer reads the default and never changes it
    judge: Annotated[str, typer.Option(metavar="URL", help="OpenAI-compatible endpoint whose model is to judge.")] = "",
    model: Annotated[str, typer.Option(help="Model of the judge.")] = "",
    rubric: Annotated[str, typer.Option(help="What the judge is asked: judge.v1, or a .toml file.")] = "judge.v1",
    requests: Annotated[int, typer.Option(help="Requests in flight.", min=1, max=1024)] = 16,
    timeout: Annotated[float, typer.Option(help="Seconds that one request may take.")] = 120.0,
    retries: Annotated[int, typer.Option(help="Further tries of a request that failed.", min=0)] = 5,
    max_side_px: Annotated[
        int, typer.Option(help="Longer side of the picture that the judge sees, px.", min=64)
    ] = 1024,
    again: Annotated[bool, typer.Option("--again", help="Ask once more what was refused or malformed.")] = False,
    lexicon: Annotated[
        str, typer.Option(help="Words and numbers of the proxies: lexicon.v1, or a .toml file.")
    ] = "lexicon.v1",
    seed: Annotated[int, typer.Option(help="Of the draw of pictures and of the intervals.")] = 0,
    format: Annotated[str, typer.Option("--format", "-f", help="table, csv, json (one object a line).")] = "table",
    out: Annotated[Path | None, typer.Option("--out", "-o", help="File for csv or json.")] = None,
    html: Annotated[Path | None, typer.Option(help="Write the tables and examples as one HTML page.")] = None,
    undo: Annotated[
        bool, typer.Option("--undo", help="Take the columns back, and stop; answers and votes stay.")
    ] = False,
) -> None:
    """Compare captioners by five criteria: by rule, by a model as judge, by people."""
    from curate.evaluate import judge as judges
    from curate.evaluate import show
    from curate.evaluate.run import Settings
    from curate.evaluate.run import evaluate as measure
    from curate.store import Store
    from curate.store.derived import withdraw

    if format not in ("table", "csv", "json") or (out and format == "table"):
        raise UsageError(f"--format {format}: use csv or json with --out, or table without")
    if bool(judge) != bool(model):
        raise UsageError(
            "--judge URL and --model NAME belong together, e.g. --judge http://127.0.0.1:8000/v1 --model qwen"
        )
    if timeout <= 0:
        raise UsageError(f"--timeout {timeout:g}: more than 0 seconds")
    opened = Store(store)
    opened.require()
    if undo:
        typer.echo("taken back" if withdraw(opened.files, "evaluate") else "nothing to take back")
        return
    asked = (
        judges.Settings(judge, model, rubric, requests, timeout, retries, 1.0, max_side_px, again) if judge else None
    )
    wanted = Settings(rows, where, tuple(captioner), lexicon, asked, seed)
    with show.Progress() as progress:
        outcome = measure(opened, wanted, progress)
    if html:
        from curate.evaluate.page import write as write_page

        write_page(opened, outcome, html)
    if format == "table":
        show.show(opened, outcome)
        if html:
            typer.echo(f"wrote {html}")
    else:
        show.write(outcome, format, out)
