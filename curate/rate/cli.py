"""The commands of rating: `curate users`, `curate campaign`, `curate ratings`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from sqlite3 import Row

    from curate.rate.ledger import Ledger
    from curate.store import Store

users_app = typer.Typer(help="Accounts of the rating service.", no_args_is_help=True)
campaign_app = typer.Typer(help="What people rate.", no_args_is_help=True)
ratings_app = typer.Typer(help="The file that holds all ratings.", no_args_is_help=True)

StoreAt = Annotated[str, typer.Argument(metavar="STORE", help="Folder of the store.")]
Name = Annotated[str, typer.Argument(metavar="NAME")]


@contextmanager
def _ledger(store: str) -> Iterator[tuple[Store, Ledger]]:
    from curate.rate.ledger import Ledger, ledger_path
    from curate.store import Store

    opened = Store(store)
    opened.require()
    ledger = Ledger(ledger_path(opened.files))
    try:
        yield opened, ledger
    finally:
        ledger.close()


@users_app.command()
def add(
    store: StoreAt,
    name: Name,
    role: Annotated[str, typer.Option(help="rater, lead or admin.")] = "rater",
    url: Annotated[str, typer.Option(help="Address of the service, for the link.")] = "http://127.0.0.1:8000",
) -> None:
    """Make an account and print the link at which its owner chooses a password."""
    from curate.rate import users

    with _ledger(store) as (_, ledger):
        now = ledger.clock()
        key = ledger.write(lambda db: users.invite(db, users.add(db, name, role, None, now), None, now))
    typer.echo(f"{name} may choose a password, once, within a week: {url.rstrip('/')}/invitation/{key}")


@users_app.command()
def link(
    store: StoreAt,
    name: Name,
    url: Annotated[str, typer.Option(help="Address of the service, for the link.")] = "http://127.0.0.1:8000",
) -> None:
    """Print a new link for an account: for a lost password, or to sign in as `local`."""
    from curate.rate import users

    with _ledger(store) as (_, ledger):
        now = ledger.clock()
        user_id = users.named(ledger.read(), name)["id"]
        kind = "session" if name == users.LOCAL else "password"
        key = ledger.write(lambda db: users.invite(db, user_id, None, now, kind=kind))
    typer.echo(f"{url.rstrip('/')}/invitation/{key}")


@users_app.command("list")
def list_users(store: StoreAt) -> None:
    """List the accounts."""
    with _ledger(store) as (_, ledger):
        rows = ledger.read().execute(
            "SELECT name, role, disabled_ms IS NOT NULL AS off, password IS NULL AS open, "
            "(SELECT coalesce(sum(rated), 0) FROM desks WHERE user_id = users.id) AS rated FROM users ORDER BY name"
        )
        for row in rows:
            state = "disabled" if row["off"] else "no password yet" if row["open"] else ""
            typer.echo(f"{row['name']:<24} {row['role']:<6} {row['rated']:>8,} rated  {state}".rstrip())


@users_app.command()
def role(store: StoreAt, name: Name, role: Annotated[str, typer.Argument(metavar="ROLE")]) -> None:
    """Give an account another role: rater, lead or admin."""
    from curate.rate import users

    with _ledger(store) as (_, ledger):
        user_id = users.named(ledger.read(), name)["id"]
        ledger.write(lambda db: users.set_role(db, user_id, role, None, ledger.clock()))
    typer.echo(f"{name} is {role} now")


@users_app.command()
def disable(store: StoreAt, name: Name) -> None:
    """Disable an account: its sessions end, its votes stay."""
    _switch(store, name, True)


@users_app.command()
def enable(store: StoreAt, name: Name) -> None:
    """Enable an account again."""
    _switch(store, name, False)


@users_app.command()
def audit(store: StoreAt, limit: Annotated[int, typer.Option(help="Entries at most.")] = 50) -> None:
    """Show who did what, newest first."""
    from datetime import UTC, datetime

    with _ledger(store) as (_, ledger):
        rows = ledger.read().execute(
            "SELECT a.*, u.name FROM audit AS a LEFT JOIN users AS u ON u.id = a.user_id ORDER BY a.id DESC LIMIT ?",
            [max(limit, 0)],
        )
        for row in rows:
            at = datetime.fromtimestamp(row["at_ms"] / 1000, UTC).strftime("%Y-%m-%d %H:%M:%S")
            typer.echo(
                f"{at}  {row['name'] or 'command line':<16} {row['action']:<18} {row['subject']} {row['detail']}"
            )


@users_app.command("metrics-token")
def metrics_token(store: StoreAt) -> None:
    """Print the bearer token with which a Prometheus server reads /metrics."""
    from curate.rate import users

    with _ledger(store) as (_, ledger):
        typer.echo(users.metrics_token(ledger.secret))


def _switch(store: str, name: str, off: bool) -> None:
    from curate.rate import users

    with _ledger(store) as (_, ledger):
        user_id = users.named(ledger.read(), name)["id"]
        ledger.write(lambda db: users.set_disabled(db, user_id, off, None, ledger.clock()))
    typer.echo(f"{name} is {'disabled' if off else 'enabled'} now")


@campaign_app.command()
def create(
    store: StoreAt,
    name: Name,
    where: Annotated[str, typer.Option(help='Which images, in SQL: "aesthetic > 5 and faces <= 3".')] = "keep",
    size: Annotated[int, typer.Option(help="Images at most; 0: all.")] = 0,
    sample: Annotated[
        str,
        typer.Option(help="random, stratified:COLUMN, near:COLUMN[:VALUE], predicted, uncertain or disagreeing."),
    ] = "random",
    votes: Annotated[int, typer.Option(help="Votes per image.")] = 3,
    extra_votes: Annotated[
        int, typer.Option(help="More votes where they decide. [default: 1 when votes is at least 3, else 0]")
    ] = -1,
    rubric: Annotated[str, typer.Option(help="kolors, plain, caption-CRITERION, or a TOML file.")] = "kolors",
    keep_tier: Annotated[int, typer.Option(help="Lowest tier that is kept. [default: the rubric's]")] = 0,
    gold: Annotated[Path | None, typer.Option(help="CSV with columns image, tier: images whose tier is known.")] = None,
    exemplars: Annotated[Path | None, typer.Option(help="CSV with columns image, tier: shown as help.")] = None,
    gold_every: Annotated[int, typer.Option(help="One gold image in so many, about; 0: none.")] = 20,
    repeat_every: Annotated[int, typer.Option(help="One hidden repeat in so many, about; 0: none.")] = 25,
    captions: Annotated[str, typer.Option(help="shown, after (the rating) or hidden.")] = "shown",
    captioner: Annotated[
        list[str], typer.Option(help="Whose captions, with a rubric of captions; repeatable. [default: all]")
    ] = [],  # noqa: B006
    rater: Annotated[list[str], typer.Option(help="Account that may rate; repeatable. [default: all]")] = [],  # noqa: B006
    seed: Annotated[int, typer.Option(help="Of the sample and its order.")] = 0,
) -> None:
    """Choose images and let people rate them."""
    from curate.rate import campaign

    plan = campaign.Plan(
        name=name, where=where, size=size, sample=sample, votes=votes,
        extra_votes=None if extra_votes < 0 else extra_votes, rubric=rubric, keep_tier=keep_tier or None,
        gold_every=gold_every, repeat_every=repeat_every, captions=captions, raters=tuple(rater),
        captioners=tuple(captioner), seed=seed,
        gold=campaign.tiers_from_csv(gold) if gold else (),
        exemplars=campaign.tiers_from_csv(exemplars) if exemplars else (),
    )  # fmt: skip
    with _ledger(store) as (opened, ledger):
        made = campaign.create(ledger, opened, plan)
        row = ledger.read().execute("SELECT * FROM campaigns WHERE id = ?", [made]).fetchone()
        what = "captions" if campaign.current_rubric(ledger.read(), made).criterion else "images"
        _say_people(row, max(campaign.available(ledger.read(), made), int(not rater)))
    typer.echo(
        f"campaign {name}: {row['images']:,} {what}, {votes} votes each; rate at /rate/{made} of: curate serve {store}"
    )


@campaign_app.command()
def change(
    store: StoreAt,
    name: Name,
    votes: Annotated[int | None, typer.Option(help="Votes per image.")] = None,
    extra_votes: Annotated[int | None, typer.Option(help="More votes where they decide.")] = None,
    keep_tier: Annotated[int | None, typer.Option(help="Lowest tier that is kept.")] = None,
    gold_every: Annotated[int | None, typer.Option(help="One gold image in so many, about; 0: none.")] = None,
    repeat_every: Annotated[int | None, typer.Option(help="One hidden repeat in so many, about; 0: none.")] = None,
    captions: Annotated[str | None, typer.Option(help="shown, after (the rating) or hidden.")] = None,
    rubric: Annotated[str | None, typer.Option(help="A newer version: kolors, plain, or a TOML file.")] = None,
    rater: Annotated[list[str], typer.Option(help="Account that may rate, in place of those before.")] = [],  # noqa: B006
    everybody: Annotated[bool, typer.Option("--everybody", help="Let every account rate.")] = False,
) -> None:
    """Change a campaign while it runs; images are decided again under the new rule."""
    from curate.errors import UsageError
    from curate.rate import campaign
    from curate.rate import rubric as rubrics

    given = {
        "votes": votes, "extra_votes": extra_votes, "keep_tier": keep_tier, "gold_every": gold_every,
        "repeat_every": repeat_every, "captions": captions,
    }  # fmt: skip
    changes = {key: value for key, value in given.items() if value is not None}
    if rater and everybody:
        raise UsageError("--rater and --everybody: use one of them")
    if not (changes or rubric or rater or everybody):
        raise UsageError("nothing to change; name what: --votes, --keep-tier, --rubric, --rater, ... (see --help)")
    words = rubrics.load(rubric) if rubric else None
    with _ledger(store) as (_, ledger):
        made = campaign.by_name(ledger.read(), name)["id"]
        now = ledger.clock()
        if words:
            ledger.write(lambda db: campaign.change_rubric(db, made, words, None, now))
        if rater or everybody:
            ledger.write(lambda db: campaign.assign(db, made, rater, None, now))
        campaign.change(ledger, made, None, changes)
        row = ledger.read().execute("SELECT * FROM campaigns WHERE id = ?", [made]).fetchone()
        _say_people(row, campaign.available(ledger.read(), made))
    typer.echo(f"campaign {name}: {row['done']:,} of {row['images']:,} images decided")


def _say_people(campaign: Row, people: int) -> None:
    """Say when there are fewer people than votes: such a campaign never decides an image."""
    if people < campaign["votes"]:
        typer.echo(
            f"note: {campaign['votes']} votes need {campaign['votes']} people, and {people or 'nobody'} may rate; "
            "add accounts with `curate users add`, or use --votes 1",
            err=True,
        )


@campaign_app.command("list")
def list_campaigns(store: StoreAt) -> None:
    """List the campaigns and how far they are."""
    with _ledger(store) as (_, ledger):
        for row in ledger.read().execute("SELECT * FROM campaigns ORDER BY id"):
            typer.echo(
                f"{row['name']:<24} {row['state']:<8} {row['done']:>9,} of {row['images']:,} decided, "
                f"{row['cast_votes']:,} votes"
            )


@campaign_app.command()
def state(store: StoreAt, name: Name, state: Annotated[str, typer.Argument(metavar="running|paused|closed")]) -> None:
    """Pause, resume or close a campaign."""
    from curate.rate import campaign

    with _ledger(store) as (_, ledger):
        row = campaign.by_name(ledger.read(), name)
        ledger.write(lambda db: campaign.set_state(db, row["id"], state, None, ledger.clock()))
    typer.echo(f"campaign {name} is {state} now")


@campaign_app.command()
def export(
    store: StoreAt,
    name: Name,
    out: Annotated[Path, typer.Option("--out", "-o", help="File to write: .csv, .jsonl or .parquet.")],
    what: Annotated[str, typer.Option(help="votes, consensus or events.")] = "consensus",
) -> None:
    """Write a campaign's votes, consensus or events to a file, raters under pseudonyms."""
    from curate.errors import UsageError
    from curate.rate import campaign, export

    with _ledger(store) as (_, ledger):
        row = campaign.by_name(ledger.read(), name)
        chunks = export.stream(ledger, row["id"], what, out.suffix.lstrip("."))
        try:
            with out.open("wb") as file:
                for chunk in chunks:
                    file.write(chunk)
        except OSError as why:
            raise UsageError(f"--out {out}: {why.strerror or why}") from None
    typer.echo(f"wrote {out}")


@campaign_app.command()
def release(store: StoreAt, name: Name) -> None:
    """Seal a campaign's ratings as they are into a folder of the store that does not change any more."""
    from curate.rate import campaign, export

    with _ledger(store) as (opened, ledger):
        row = campaign.by_name(ledger.read(), name)
        folder, digest = export.release(ledger, opened.files, row["id"], None)
    typer.echo(f"{folder}  sha256 of the manifest {digest}")


@campaign_app.command()
def quality(store: StoreAt, name: Name) -> None:
    """Show how far people agree, and each rater's figures."""
    from curate.rate import campaign
    from curate.rate.quality import measure

    with _ledger(store) as (_, ledger):
        row = campaign.by_name(ledger.read(), name)
        with ledger.snapshot() as db:
            found = measure(db, row["id"])
    typer.echo(f"alpha (ordinal)      {found.alpha}")
    typer.echo(f"within one tier      {found.within_one}")
    typer.echo(f"unanimous            {found.unanimous}")
    for r in found.raters:
        typer.echo(
            f"{r.name:<20} {r.votes:>6,} votes  kappa gold {r.gold}  kappa others {r.others}  bias {r.bias}"
            + (f"  look at: {', '.join(r.warnings)}" if r.warnings else "")
        )


@ratings_app.command()
def sync(store: StoreAt) -> None:
    """Bring the ratings into the SQL index now (views `ratings`, `consensus`); the server does so by itself."""
    with _ledger(store) as (opened, _):
        opened.ingest()
        count = opened.rows("SELECT count(*), count(tier) FROM consensus")[0]
    typer.echo(f"consensus: {count[0]:,} images, {count[1]:,} decided")


@ratings_app.command()
def backup(store: StoreAt, file: Annotated[Path, typer.Argument(metavar="FILE", help="New file to write.")]) -> None:
    """Copy the ratings to a new file, also while people rate."""
    with _ledger(store) as (_, ledger):
        ledger.backup(file)
    typer.echo(f"wrote {file} ({file.stat().st_size:,} bytes)")


def fit(
    store: StoreAt,
    keep_tier: Annotated[int, typer.Option(help="Tiers from this one on count as kept.", min=2, max=5)] = 4,
    seed: Annotated[int, typer.Option(help="Of the folds.")] = 0,
) -> None:
    """Learn the tier of every row from the images that people rated; writes predicted_tier and a report."""
    from curate.rate.fit import fit as learn

    with _ledger(store) as (opened, ledger):
        report = learn(opened, ledger, keep_tier=keep_tier, seed=seed)
    kappa, exact = report["kappa"], report["exact"]
    images, rows, version = report["images"], report["rows"], report["fingerprint"]
    typer.echo(f"{images:,} rated images, {rows:,} rows predicted (predicted@{version})")
    agreed = kappa["why"] if kappa["value"] is None else f"{kappa['value']:.3f}"
    auc = "undefined" if report["auc"] is None else f"{report['auc']:.3f}"
    typer.echo(
        f"out of fold: kappa {agreed}, exact {exact['value']:.0%}, AUC of tier >= {keep_tier} {auc}, "
        f"calibration error {report['calibration']['error']:.3f}"
    )
    typer.echo("predicted_keep >=      rows   expected precision   measured out of fold")
    for line in report["yield"]:
        m = line["measured"]
        measured = m["why"] if m["value"] is None else f"{m['value']:.0%} [{m['low']:.0%}, {m['high']:.0%}]"
        expected = "" if line["expected"] is None else f"{line['expected']:.0%}"
        typer.echo(f"{line['cut']:>17} {line['rows']:>9,} {expected:>20}   {measured}")
    for line in report["thresholds"][:5]:
        precision = line["precision"]["value"]
        typer.echo(
            f"suggested: {line['column']} {line['operator']} {line['cut']:.4g}  (95 %: {line['low']:.4g} to "
            f"{line['high']:.4g}); precision {line['before']:.0%} -> {precision:.0%} at recall {line['recall']:.0%}"
        )
    typer.echo(f"report: {store}/reports/predicted.json, or /lead/fit of curate serve {store}")
