"""One self-contained HTML page about a store: what came in, what was dropped and why, what the rest looks like.

    curate report demo/store

No script, no outside reference: the page opens from a mail or a disk, prints, and reads on a phone.

    cuts.py         thresholds read off the policy's predicates
    figures.py      the numbers: funnel, overlap, errors, throughput, versions
    histograms.py   scores by SQL, laid out for SVG
    sheets.py       thumbnails and captions
    page.html, page.css
"""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Any

import duckdb

from curate.errors import CurateError, StoreError, UsageError
from curate.report import figures, histograms, sheets
from curate.report.cuts import read_cuts
from curate.store import Store


def write_report(store: Store, out: Path | None = None) -> Path:
    """Write the report to `out`, or to STORE/report.html; returns where it is.

    The same store gives the same bytes. Raises StoreError when there is no store, UsageError for a remote store
    without `out`.
    """
    store.require()
    here = store.files.local("report.html")
    if out is None and here is None:
        raise UsageError(f"{store.uri} is remote; say where the page goes, e.g. --out report.html")
    try:
        page = render(store).encode()
    except duckdb.Error as why:
        raise StoreError(f"{store.uri}: {str(why).splitlines()[0]}; try: curate store rebuild {store.uri}") from None
    try:
        if out is None:
            store.files.replace("report.html", page)
        else:
            out.parent.mkdir(parents=True, exist_ok=True)
            out.write_bytes(page)
    except OSError as why:
        raise CurateError(f"report {out or here}: cannot be written: {why.strerror or why}") from None
    return out or here or Path("report.html")


def render(store: Store) -> str:
    """The page as text."""
    from jinja2 import Environment, PackageLoader, StrictUndefined
    from markupsafe import Markup

    environment = Environment(
        loader=PackageLoader("curate.report", "."), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    environment.filters |= {"count": _count, "share": _share, "seconds": _seconds, "day": _day, "rate": _rate}
    css = (Path(__file__).parent / "page.css").read_text("utf-8")
    return environment.get_template("page.html").render(css=Markup(css), **_contents(store))


def _contents(store: Store) -> dict[str, Any]:
    """Everything that the template shows."""
    run = figures.last_run(store)
    counts = store.counts()
    cuts = read_cuts([(p.name, p.sql) for p in run.predicates])
    cut_charts, charts, flat = histograms.histograms(store, cuts, counts["rows"])
    speed_run, wall, planned_wall, speeds = figures.speeds(store)
    return {
        "title": Path(store.uri.rstrip("/")).name,
        "store": store.uri,
        "run": run,
        "counts": counts,
        "funnel": figures.funnel(store, run, counts),
        "overlap": figures.overlap(store, run),
        "cut_charts": cut_charts,
        "charts": charts,
        "flat": flat,
        "sheets": sheets.sheets(store, run, cuts),
        "captions": sheets.captions(store),
        "writers": figures.writers(store),
        "errors": figures.errors(store),
        "error_words": figures.error_words(store),
        "shard_errors": figures.shard_errors(store),
        "speeds": speeds,
        "speed_run": speed_run,
        "wall": wall,
        "planned_wall": planned_wall,
        "runs": figures.runs(store),
        "operators": figures.operators(store, run),
        "other_versions": figures.others(store),
        "plot": {"width": histograms.WIDTH, "height": histograms.HEIGHT},
    }


def _count(value: int | None) -> str:
    return "–" if value is None else f"{value:,}"


def _share(part: int, whole: int) -> str:
    """A share in per cent; one decimal, and never 0 % or 100 % for what is neither."""
    if not whole:
        return "–"
    share = part / whole
    if 0 < share < 0.0005:
        return "< 0.1 %"
    return "> 99.9 %" if 0.9995 < share < 1 else f"{share:.1%}".replace("%", " %").replace(".0 ", " ")


def _seconds(value: float | None) -> str:
    if value is None:
        return "–"
    if value < 60:
        return f"{value:.3g} s"
    minutes, seconds = divmod(round(value), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min {seconds:02} s"


def _rate(value: float | None) -> str:
    return "–" if value is None else f"{value:,.0f}" if value >= 10 else f"{value:.2g}"


def _day(value: Any) -> str:
    """A time of a run record: to the minute, UTC."""
    text = str(value or "")
    try:
        return datetime.fromisoformat(text).strftime("%Y-%m-%d %H:%M") + " UTC"
    except ValueError:
        return text
