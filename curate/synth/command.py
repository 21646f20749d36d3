"""`curate synth` and its subcommands."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from curate.errors import UsageError

synth_app = typer.Typer(
    help="Rendered Chinese text: shards of pictures whose every character is known.", invoke_without_command=True
)

Out = Annotated[Path | None, typer.Option("--out", "-o", help="Folder of the shards, the report and the manifest.")]
At = Annotated[Path, typer.Argument(metavar="DIR", help="Folder that `curate synth -o` wrote.")]
Fonts = Annotated[str, typer.Option("--fonts", metavar="FOLDER", help="Font files beside the system's.")]


@synth_app.callback()
def synth(
    context: typer.Context,
    out: Out = None,
    rows: Annotated[int, typer.Option("--rows", "-n", min=1, help="Rows to make.")] = 2000,
    seed: Annotated[int, typer.Option(min=0, help="With an index it decides a row.")] = 0,
    recipe: Annotated[str, typer.Option(metavar="TOML", help="File with a section [synth].")] = "",
    set: Annotated[list[str], typer.Option("--set", metavar="KEY=VALUE", help="E.g. synth.sizes=448x576.")] = [],  # noqa: B006
    backgrounds: Annotated[str, typer.Option(metavar="STORE", help="Store, or folder, with photographs.")] = "",
    fonts: Fonts = "",
    specs_only: Annotated[
        bool, typer.Option("--specs-only", help="No pictures: they are rendered when loaded.")
    ] = False,
    verify: Annotated[int, typer.Option(min=0, help="Rows that OCR reads for the report; 0: none.")] = 400,
    workers: Annotated[int, typer.Option(min=0, help="Processes; 0: one for each CPU.")] = 0,
) -> None:
    """Make shards of rendered Chinese text, read a part of them back with OCR, and write the report."""
    context.with_resource(_terminated_as_by_ctrl_c())  # subcommands run within it, too
    if context.invoked_subcommand is not None:
        return
    if out is None:
        raise UsageError("curate synth: say where the shards go: curate synth -o DIR -n 2000")
    from rich.console import Console

    from curate.synth.report import write_report
    from curate.synth.shards import generate, load_recipe
    from curate.synth.verify import verify as read_back

    console = Console(stderr=True)
    named = [f"synth.backgrounds={backgrounds}"] if backgrounds else []
    named += [f"synth.fonts={fonts}"] if fonts else []
    with _to(out):
        world = generate(
            out, rows, seed, load_recipe(recipe or None, [*set, *named]), workers or _cpus(), specs_only, console
        )
        if verify:
            read_back(out, world, verify, workers or _cpus(), console)
        report = write_report(out, world)
    console.print(f"shards: {out / 'shards'}\nreport: {report}", highlight=False)


@synth_app.command("lexicon")
def lexicon(
    out: Annotated[Path, typer.Option("--out", "-o", help="File to write.")] = Path("lexicon.tsv"),
    source: Annotated[str, typer.Option(help="jieba, wordfreq, or a file: counted words or running text.")] = "jieba",
    size: Annotated[int, typer.Option(min=1, help="Most frequent words to keep.")] = 50_000,
    block: Annotated[Path | None, typer.Option(help="File of entries that no word may hold.")] = None,
) -> None:
    """Build the lexicon alone: `word<tab>count`, for a look or for synth.lexicon."""
    from curate.synth import words

    built = words.build(source, size, words.block_list(block) if block else [])
    with _to(out):
        built.save(out)
    covered = sum(character in set("".join(built.words)) for character in words.FLOOR)
    typer.echo(f"wrote {out}: {len(built.words)} words of {built.source}, {covered} of 6763 GB2312 characters")


@synth_app.command("fonts")
def show_fonts(
    fonts: Fonts = "",
    system: Annotated[bool, typer.Option(help="Whether fontconfig is asked.")] = True,
) -> None:
    """List the faces that would be used and what each lacks."""
    from curate.synth import fonts as found
    from curate.synth.words import FLOOR

    for face in found.find(FLOOR, Path(fonts) if fonts else None, system):
        lacks = f"lacks {len(face.missing)}: {face.missing[:20]}" if face.missing else "lacks none"
        typer.echo(f"{face.id}  {face.family} {face.style}  ({face.kind}, from {face.min_px} px)  {lacks}")


@synth_app.command("render")
def render(
    folder: At,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of the shards with pictures.")],
    workers: Annotated[int, typer.Option(min=0, help="Processes; 0: one for each CPU.")] = 0,
) -> None:
    """Make pictures of shards that hold specs only."""
    from curate.synth.again import render_shards

    with _to(out):
        rows = render_shards(folder, out, workers or _cpus())
    typer.echo(f"rendered {rows} rows into {out}")


@synth_app.command("verify")
def verify(
    folder: At,
    rows: Annotated[int, typer.Option(min=1, help="Rows that OCR reads.")] = 400,
    workers: Annotated[int, typer.Option(min=0, help="Processes; 0: one for each CPU.")] = 0,
) -> None:
    """Read rows back with OCR, name the cells that it cannot read, and write the report anew."""
    from rich.console import Console

    from curate.synth.report import write_report
    from curate.synth.shards import open_world
    from curate.synth.verify import verify as read_back

    world = open_world(folder)
    read_back(folder, world, rows, workers or _cpus(), Console(stderr=True))
    typer.echo(f"wrote {write_report(folder, world)}")


@synth_app.command("sheet")
def sheet(
    folder: At,
    out: Annotated[Path, typer.Option("--out", "-o", help="PNG to write.")] = Path("sheet.png"),
    columns: Annotated[int, typer.Option(min=1, help="Pictures in a row.")] = 8,
    rows: Annotated[int, typer.Option(min=1, help="Rows of pictures.")] = 5,
    side: Annotated[int, typer.Option(min=32, help="Side of each, px.")] = 200,
) -> None:
    """Write a contact sheet of the first samples."""
    from curate.synth.report import contact_sheet

    with _to(out):
        contact_sheet(folder, out, columns, rows, side)
    typer.echo(f"wrote {out}")


@contextmanager
def _terminated_as_by_ctrl_c() -> Iterator[None]:
    """SIGTERM raises KeyboardInterrupt, as SIGINT does."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def _to(out: Path) -> Iterator[None]:
    """What is written to `out`; UsageError where nothing can be made, e.g. below /proc."""
    try:
        yield
    except FileNotFoundError as why:
        if why.filename and (str(why.filename).startswith(str(out)) or Path(why.filename) in out.parents):
            raise UsageError(f"-o {out}: cannot be made there ({why.strerror}); name another path") from None
        raise


def _cpus() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
