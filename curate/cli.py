"""The command line: `curate COMMAND ...`. Exit codes: curate/errors.py.

Commands import what they need when they run, so that `curate --help` answers at once.
"""

from __future__ import annotations

import errno
import sys
from pathlib import Path
from typing import Annotated

import typer

from curate.errors import CurateError, UsageError
from curate.evaluate.command import evaluate
from curate.rate.cli import campaign_app, fit, ratings_app, users_app
from curate.synth.command import synth_app

app = typer.Typer(
    name="curate",
    help="Score, filter, recaption, translate, rate and mix image-text pairs for text-to-image training.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
store_app = typer.Typer(help="The derived index and the parts it is made from.", no_args_is_help=True)
app.add_typer(store_app, name="store")
app.command()(fit)
app.command()(evaluate)
app.add_typer(users_app, name="users")
app.add_typer(campaign_app, name="campaign")
app.add_typer(ratings_app, name="ratings")
models_app = typer.Typer(help="Weights: what there is, fetch it, check a recipe's.", no_args_is_help=True)
app.add_typer(models_app, name="models")
app.add_typer(synth_app, name="synth")

Set = Annotated[list[str], typer.Option("--set", metavar="KEY=VALUE", help="Override a recipe key; repeatable.")]
StoreAt = Annotated[str, typer.Argument(metavar="STORE", help="Folder or s3:// URI of the store.")]


@app.command()
def run(
    recipe: Annotated[str, typer.Argument(metavar="RECIPE", help="TOML file, e.g. deploy/recipes/embedded.toml.")],
    set: Set = [],  # noqa: B006  Typer reads the default and never changes it
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the resolved plan and stop.")] = False,
) -> None:
    """Run the main job: read, score, gate, caption, translate, store."""
    from curate import models, pipeline
    from curate.recipe import load

    loaded = load(recipe, set)
    if dry_run:
        from curate.dry_run import show

        models.require(loaded, models.endpoints(loaded))
        show(pipeline.prepare(loaded))
        return
    raise typer.Exit(pipeline.run(loaded))


@app.command()
def submit(
    recipe: Annotated[str, typer.Argument(metavar="RECIPE", help="TOML file of the run, in this folder.")],
    set: Set = [],  # noqa: B006  Typer reads the default and never changes it
    address: Annotated[str, typer.Option(help="Ray's dashboard, http://host:8265; else RAY_API_SERVER_ADDRESS.")] = "",
    name: Annotated[str, typer.Option(help="Submission id; Ray makes one up.")] = "",
    wait: Annotated[bool, typer.Option(help="Follow the log until the job ends.")] = True,
) -> None:
    """Run the main job on a Ray cluster; ends with the run's own exit code."""
    from curate import submit as jobs
    from curate.recipe import load

    jobs.check(load(recipe, set))
    raise typer.Exit(jobs.submit(recipe, set, address, name, wait=wait))


@app.command()
def plan(
    recipe: Annotated[str, typer.Argument(metavar="RECIPE", help="TOML file of the run.")],
    set: Set = [],  # noqa: B006  Typer reads the default and never changes it
    sample: Annotated[int, typer.Option(help="Rows to measure.", min=1)] = 200,
    workers: Annotated[int, typer.Option(help="CPU workers of the cluster; 0: the recipe's, or this machine's.")] = 0,
    gpus: Annotated[int, typer.Option(help="GPUs of the cluster; 0: the recipe's.")] = 0,
    cpu_hour: Annotated[float, typer.Option(help="Price of a CPU for an hour.")] = 0.04,
    gpu_hour: Annotated[float, typer.Option(help="Price of a GPU for an hour.")] = 2.5,
    gb_month: Annotated[float, typer.Option(help="Price of a GB of storage for a month.")] = 0.023,
    seconds: Annotated[
        list[str], typer.Option(metavar="STEP=S", help="Seconds per image of a step that runs elsewhere; repeatable.")
    ] = [],  # noqa: B006  Typer reads the default and never changes it
) -> None:
    """Predict time, GPU hours, storage and cost of a run from a sample of its input."""
    from curate import pipeline, planner
    from curate.recipe import load

    known = {}
    for text in seconds:
        step, _, value = text.partition("=")
        try:
            known[step] = float(value)
        except ValueError:
            raise UsageError(f"--seconds {text!r}: write it as caption=0.4") from None
    prepared = pipeline.prepare(load(recipe, set))
    prices = planner.Prices(cpu_hour, gpu_hour, gb_month)
    prediction = planner.predict(prepared, sample, workers, gpus, prices, known)
    planner.show(prediction)
    planner.save(prepared.plan.files, prediction)


@app.command()
def demo(
    folder: Annotated[Path, typer.Argument(metavar="[DIR]", help="Where the demo goes.")] = Path("demo"),
    engine: Annotated[str, typer.Option(help="ray or inline.")] = "ray",
) -> None:
    """Make sample shards, run the main job over them and write the report."""
    from curate.demo import demo as run_demo

    raise typer.Exit(run_demo(folder, engine))


@app.command()
def status(store: StoreAt) -> None:
    """Progress of the run that is under way, or how the last one ended."""
    from curate.status import show

    show(store)


@app.command()
def report(
    store: StoreAt,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="File to write; default STORE/report.html.")] = None,
) -> None:
    """Write one self-contained HTML page about the store."""
    from curate.report import write_report
    from curate.store import Store

    path = write_report(Store(store), out)
    typer.echo(f"wrote {path}")


@app.command()
def sql(
    store: StoreAt,
    query: Annotated[str, typer.Argument(metavar="SQL", help="One statement over samples, captions, errors, ...")],
    format: Annotated[
        str, typer.Option("--format", "-f", help="table, csv, json (one object a line), parquet. [default: table]")
    ] = "",
    limit: Annotated[int, typer.Option(help="Rows at most; 0: all. [default: 40 for table, all otherwise]")] = -1,
    timeout: Annotated[float, typer.Option(help="Seconds a query may take.")] = 60.0,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="File to write instead of standard output.")] = None,
) -> None:
    """Query the store, read-only and sandboxed."""
    from curate.store import Store
    from curate.store import query as q

    kinds = {".csv": "csv", ".json": "json", ".jsonl": "json", ".parquet": "parquet"}
    if not format:
        format = kinds.get(out.suffix, "") if out else "table"
    if format not in ("table", *kinds.values()) or (out and format == "table"):
        wish = f"--format {format!r}" if format else f"--out {out}"
        raise UsageError(f"{wish}: use --format csv, json or parquet with --out, or table without")
    if limit < -1 or timeout <= 0:
        raise UsageError(f"--limit {limit} --timeout {timeout:g}: a limit is at least 0, a timeout more than 0 seconds")
    rows = (40 if format == "table" else 0) if limit < 0 else limit
    db = Store(store).connection()
    table = q.run(db, query, rows + 1 if format == "table" and rows else rows, timeout)
    if format == "table":
        from curate.table import show

        show(table, rows)
    else:
        q.write(table, format, out)


@app.command()
def explain(
    store: StoreAt,
    row: Annotated[str, typer.Argument(metavar="ROW", help="row_id, e.g. demo-00000:17")],
) -> None:
    """Why a row was kept, dropped or failed, and where each of its values comes from."""
    from curate.explain import show
    from curate.store import Store

    show(Store(store), row)


@app.command()
def mix(
    store: Annotated[str, typer.Argument(metavar="STORE", help="Folder or s3:// URI of the store; or: verify")],
    directory: Annotated[str, typer.Argument(metavar="[DIR]", help="With verify: the training set to check.")] = "",
    out: Annotated[str, typer.Option("--out", "-o", metavar="DIR", help="Folder or s3:// URI to write.")] = "",
    ratio: Annotated[float, typer.Option(help="Share of raw captions where a row has both kinds, 0..1.")] = 0.5,
    languages: Annotated[
        str, typer.Option(help="Shares of languages among synthetic captions; one left out is not used.")
    ] = "en=0.5,zh=0.5",
    mode: Annotated[str, typer.Option(help="quota: exact in every bucket and concept; coin: keyed coin.")] = "quota",
    where: Annotated[str, typer.Option(help="SQL over samples; other rows stay out.")] = "",
    ignore_policy: Annotated[
        bool, typer.Option("--ignore-policy", help="Take rows whatever keep, dedup_keep and balance_keep say.")
    ] = False,
    synthetic: Annotated[str, typer.Option(help="active: the captions that samples shows; all versions rotate.")] = (
        "active"
    ),
    top: Annotated[str, typer.Option(help="SQL of the pool `top`. [default: tier = 5]")] = "",
    top_weight: Annotated[float, typer.Option(help="Appearances of a row of the pool top in an epoch.")] = 1.0,
    text: Annotated[str, typer.Option(help="Store or folder of rendered text (curate synth).")] = "",
    text_cap: Annotated[float, typer.Option(help="Largest share of rendered text, 0..1.")] = 0.1,
    rows: Annotated[int, typer.Option(help="Rows at most, drawn by key; 0: all.")] = 0,
    validation: Annotated[float, typer.Option(help="Share of content groups for the split validation.")] = 0.0,
    buckets: Annotated[
        str, typer.Option(help="novelai-512, novelai-1024, sdxl, square-512 or sizes: 512x512,640x448")
    ] = "novelai-1024",
    epochs: Annotated[int, typer.Option(help="Epochs to write out; MixDataset needs one, and makes all others.")] = 1,
    format: Annotated[str, typer.Option(help="parquet, webdataset, or folder (kohya, diffusers).")] = "parquet",
    resize: Annotated[
        bool, typer.Option("--resize", help="Crop pictures to their bucket; default: original bytes.")
    ] = (False),
    shard_mb: Annotated[int, typer.Option(help="Size of a shard, MB.")] = 256,
    shard_rows: Annotated[int, typer.Option(help="Entries of a shard at most.")] = 10_000,
    columns: Annotated[str, typer.Option(help="Further columns of samples to pass through: a,b,c")] = "",
    seed: Annotated[int, typer.Option(help="Of every draw.")] = 0,
    keep_specs: Annotated[
        bool, typer.Option("--keep-specs", help="Leave specs of rendered text (--specs-only) to MixDataset to draw.")
    ] = False,
    engine: Annotated[str, typer.Option(help="processes, ray, or inline; the bytes are the same.")] = "processes",
    workers: Annotated[int, typer.Option(help="Workers; 0: one for each CPU.")] = 0,
) -> None:
    """Write a training set: which rows, which caption for each, in shards with a manifest; or verify one."""
    from curate.mix import command
    from curate.mix.settings import Settings, parse_languages

    if store == "verify" and directory:
        command.check(directory, engine, workers)
        return
    if directory or not out:
        raise UsageError("write it as: curate mix STORE -o DIR, or: curate mix verify DIR")
    settings = Settings(
        store, ratio, parse_languages(languages), mode, where, ignore_policy, synthetic, top, top_weight, text,
        text_cap, rows, validation, buckets, epochs, format, resize, shard_mb, shard_rows,
        tuple(name.strip() for name in columns.split(",") if name.strip()), seed, keep_specs,
    )  # fmt: skip
    command.make(settings, out, engine, workers)


@app.command()
def dedup(
    store: StoreAt,
    bits: Annotated[int, typer.Option(help="Differing bits of two PDQ hashes, at most 31; -1: not by hash.")] = 31,
    quality: Annotated[int, typer.Option(help="PDQ quality, 0..100, that a picture needs to be compared so.")] = 50,
    color: Annotated[float, typer.Option(help="Mean colour difference of perceptual copies at most, 0..255.")] = 12.0,
    turned: Annotated[bool, typer.Option(help="Look for mirrored and rotated copies.")] = True,
    semantic: Annotated[float, typer.Option(help="Cosine of two embeddings at least; 0: not by embedding.")] = 0.97,
    captions: Annotated[float, typer.Option(help="Jaccard index of two raw captions at least; 0: not by text.")] = 0.0,
    linkage: Annotated[str, typer.Option(help="group: one of a group stays; keeper: direct copies go.")] = "group",
    prefer: Annotated[
        list[str], typer.Option(metavar="SQL", help="What the kept copy has more of (or less: ... asc); repeatable.")
    ] = [],  # noqa: B006  Typer reads the default and never changes it
    where: Annotated[str, typer.Option(metavar="SQL", help="Rows that take part, e.g. keep.")] = "",
    pool_captions: Annotated[bool, typer.Option("--pool-captions", help="Gather a group's captions.")] = False,
    explain: Annotated[str, typer.Option(metavar="ROW", help="Show the copies of one row and why, and stop.")] = "",
    undo: Annotated[bool, typer.Option("--undo", help="Take the columns back, and stop.")] = False,
) -> None:
    """Find copies: by bytes, pixels, perceptual hash, embedding and caption; nothing is deleted."""
    from curate.dedup import Settings
    from curate.dedup import dedup as find
    from curate.dedup.show import explain as show_group
    from curate.dedup.show import show
    from curate.store import Store
    from curate.store.derived import withdraw

    opened = Store(store)
    opened.require()
    if explain:
        show_group(opened, explain)
    elif undo:
        typer.echo("taken back" if withdraw(opened.files, "dedup") else "nothing to take back")
    else:
        wanted = (bits, quality, color, turned, semantic, captions, linkage, tuple(prefer), where, pool_captions)
        show(opened, find(opened, Settings(*wanted)))


@app.command()
def balance(
    store: StoreAt,
    cap: Annotated[int, typer.Option(help="Rows of a concept at most; 0: shares instead.")] = 0,
    alpha: Annotated[float, typer.Option(help="Shares go by count ** alpha: 1 as they are, 0 equal.")] = 0.5,
    target: Annotated[
        list[str], typer.Option(metavar="CONCEPT=SHARE", help="Share of a concept, e.g. people=0.3; repeatable.")
    ] = [],  # noqa: B006  Typer reads the default and never changes it
    rows: Annotated[int, typer.Option(help="Uses in an epoch; 0: one for each row to balance.")] = 0,
    repeat: Annotated[float, typer.Option(help="Uses of one row in an epoch at most.")] = 2.0,
    taxonomy: Annotated[str, typer.Option(help="taxonomy.v1, or a .toml file.")] = "taxonomy.v1",
    engine: Annotated[str, typer.Option(help="auto, keywords, or embedding (CLIP's concept).")] = "auto",
    least: Annotated[float, typer.Option(help="Probability of CLIP's concept at least; less: keywords.")] = 0.3,
    where: Annotated[str, typer.Option(metavar="SQL", help="Rows to balance.")] = "keep AND dedup_keep IS NOT FALSE",
    seed: Annotated[int, typer.Option(help="Of the draw.")] = 1,
    sacrificed: Annotated[
        Path | None, typer.Option(metavar="FILE.csv", help="Write every row that was given up.")
    ] = None,
    undo: Annotated[bool, typer.Option("--undo", help="Take the columns back, and stop.")] = False,
) -> None:
    """Give every row a concept and draw rows so that the concepts are in balance; nothing is deleted."""
    from curate.balance import Settings, shares_of
    from curate.balance import balance as draw
    from curate.balance.show import show, write_sacrificed
    from curate.store import Store
    from curate.store.derived import withdraw

    opened = Store(store)
    opened.require()
    if undo:
        typer.echo("taken back" if withdraw(opened.files, "balance") else "nothing to take back")
        return
    wanted = Settings(taxonomy, engine, least, cap, alpha, shares_of(target), rows, repeat, where, seed)
    show(opened, draw(opened, wanted))
    if sacrificed:
        typer.echo(f"wrote {write_sacrificed(opened, sacrificed):,} rows to {sacrificed}")


@app.command()
def alike(
    store: StoreAt,
    least: Annotated[float, typer.Option(help="Jaccard index of two captions at least.")] = 0.9,
    most: Annotated[int, typer.Option(help="Different pictures that may share a caption.")] = 3,
    where: Annotated[str, typer.Option(metavar="SQL", help="Rows whose captions are compared, e.g. keep.")] = "",
    undo: Annotated[bool, typer.Option("--undo", help="Take the columns back, and stop.")] = False,
) -> None:
    """Find English captions that say nearly the same of different pictures; `curate mix` leaves them out."""
    from curate.alike import Settings
    from curate.alike import alike as find
    from curate.store import Store
    from curate.store.derived import withdraw
    from curate.table import clean, cut

    opened = Store(store)
    opened.require()
    if undo:
        typer.echo("taken back" if withdraw(opened.files, "alike") else "nothing to take back")
        return
    found = find(opened, Settings(least, most, where))
    typer.echo(f"{found.refused:,} of {found.captions:,} captions are shared by more than {most} different pictures")
    for pictures, caption in found.common:
        typer.echo(f"{pictures:>7,} pictures  {cut(clean(caption), 60)}")


@app.command()
def serve(
    store: StoreAt,
    host: Annotated[
        str, typer.Option(help="Address to listen at; only this machine can reach 127.0.0.1.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port; 0 takes a free one.")] = 8000,
    public_url: Annotated[
        str, typer.Option(help="https:// address of the proxy in front, as browsers see it (docs/rating.md).")
    ] = "",
    workers: Annotated[int, typer.Option(help="Processes that answer.", min=1, max=64)] = 1,
) -> None:
    """Serve the pages: rating, campaigns, gallery, what-if, lineage of every row."""
    from curate.store import Store
    from curate.web import serve as serve_pages

    opened = Store(store)
    opened.require()
    serve_pages(opened, host, port, public_url, workers)


@app.command()
def train(
    targets: Annotated[list[str], typer.Argument(metavar="RECIPE", help="TOML file; with --compare: runs or recipes.")],
    set: Set = [],  # noqa: B006  Typer reads the default and never changes it
    compare: Annotated[bool, typer.Option("--compare", help="Compare runs: OUTPUT folders, or recipes.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the resolved plan and stop.")] = False,
) -> None:
    """Train a diffusion model on a mix, or the arms of a comparison."""
    from curate.train.command import train as run_train

    run_train(targets, set, compare, dry_run)


@store_app.command()
def ingest(store: StoreAt) -> None:
    """Add parts that the index does not hold yet."""
    from curate.store import Store

    opened = Store(store)
    opened.require()
    typer.echo(f"added {opened.ingest()} parts")


@store_app.command()
def rebuild(store: StoreAt) -> None:
    """Make captions.duckdb anew from the parts."""
    from curate.store import Store

    opened = Store(store)
    opened.require()
    typer.echo(f"rebuilt from {opened.rebuild()} parts")


@store_app.command()
def verify(store: StoreAt) -> None:
    """Check that every part reads, that no row is missing or twice, and that the index agrees with the parts."""
    from curate.store import Store
    from curate.store.verify import verify as check

    opened = Store(store)
    opened.require()
    problems = check(opened)
    for problem in problems:
        typer.echo(problem)
    if problems:
        raise CurateError(f"{len(problems)} problems; those of the index alone: curate store rebuild {store}")
    typer.echo("parts, ledger and index agree")


@store_app.command()
def compact(store: StoreAt) -> None:
    """Put small parts together into large Parquet files; nothing else notices. Best while no run is under way."""
    from curate.store import Store
    from curate.store.packs import compact as pack

    opened = Store(store)
    opened.require()
    parts, packs = pack(opened.files)
    typer.echo(f"packed {parts} parts into {packs} files")


@store_app.command()
def forget(
    store: StoreAt,
    shard: Annotated[str, typer.Argument(metavar="SHARD", help="Shard whose parts are removed.")],
) -> None:
    """Remove all parts of one shard, so that it is read and scored anew."""
    from curate.store import Store
    from curate.store.verify import forget as remove

    opened = Store(store)
    opened.require()
    typer.echo(f"removed {remove(opened, shard)} parts of {shard}")


@models_app.command("list")
def models_list() -> None:
    """Every model that a recipe can name: size, the key that takes it, whether it is here, its licence."""
    from curate.models import show_list

    show_list()


@models_app.command("pull")
def models_pull(
    names: Annotated[
        list[str] | None, typer.Argument(metavar="[NAME]...", help="Models of `curate models list`.")
    ] = None,
    recipe: Annotated[str, typer.Option(help="Fetch what this recipe needs.")] = "",
    set: Set = [],  # noqa: B006  Typer reads the default and never changes it
) -> None:
    """Fetch weights into CURATE_MODELS or the hub's cache; an interrupted pull goes on where it stopped."""
    from curate.models import needs, pull

    wanted = list(names or [])
    if recipe:
        from curate.recipe import load

        wanted += [need.model.name for need in needs(load(recipe, set)) if need.model and need.problem]
    elif not wanted:
        raise UsageError("name a model (curate models list) or a recipe (--recipe FILE)")
    pull(wanted)


@models_app.command("check")
def models_check(
    recipe: Annotated[str, typer.Argument(metavar="RECIPE", help="TOML file of a run.")],
    set: Set = [],  # noqa: B006  Typer reads the default and never changes it
) -> None:
    """Say what weights a recipe needs and which are missing; exit code 2 when one is."""
    from curate.models import check
    from curate.recipe import load

    check(load(recipe, set))


def main() -> None:
    """Entry point: one clear line and the right exit code for everything that is the user's to mend."""
    try:
        code = app(standalone_mode=False)  # the code of a typer.Exit comes back as the value
        if code == 130:  # what typer makes of Ctrl-C
            raise KeyboardInterrupt
        sys.exit(code if isinstance(code, int) else 0)
    except CurateError as why:
        typer.echo(f"curate: {why}", err=True)
        sys.exit(why.exit_code)
    except typer.Abort:
        sys.exit(1)
    except KeyboardInterrupt:
        typer.echo("curate: interrupted; run the same command to go on", err=True)
        sys.exit(1)
    except (FileExistsError, IsADirectoryError, NotADirectoryError, PermissionError) as why:
        typer.echo(f"curate: {why.filename}: {why.strerror}; name another path", err=True)
        sys.exit(2)
    except Exception as why:
        if isinstance(why, OSError) and why.errno in (errno.EROFS, errno.ENOSPC, errno.EDQUOT):
            where = f"{why.filename}: " if why.filename else ""
            typer.echo(f"curate: {where}{why.strerror}; make room there or name another path", err=True)
            sys.exit(2)
        if type(why).__module__.startswith("click") or hasattr(why, "format_message"):
            typer.echo(f"curate: {why.format_message()}", err=True)  # type: ignore[attr-defined]
            sys.exit(2)
        raise


if __name__ == "__main__":
    main()
