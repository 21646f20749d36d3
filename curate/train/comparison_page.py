"""The report of a comparison: one self-contained page with the 2 x 2, the intervals and the curves."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jinja2
import pyarrow as pa
import pyarrow.compute as pc

from curate.train.log import read_metrics

if TYPE_CHECKING:
    from curate.train.compare import Contrast

WIDTH, ROW, LEFT = 760, 26, 300


def page(
    folders: Sequence[Path],
    arms: Mapping[str, Sequence[pa.Table]],
    means: Mapping[tuple[str, str], float | None],
    contrasts: Sequence[Contrast],
) -> str:
    """HTML of the comparison; nothing in it is fetched from elsewhere."""
    from curate.train.compare import COLUMNS, recipe_at

    recipes = {folder.name: recipe_at(folder) for folder in folders}
    first = next(iter(arms.values()))[0]
    whole = folders[0].parent.parent / "recipe.toml"
    told = {}
    if whole.is_file():
        from curate.train.recipe import load

        told = {arm.name: arm for arm in load(whole).arms}
    shares = {name: f"{told[name].ratio:.0%} raw captions" for name in arms if name in told}
    pairs = [
        (a, b)
        for a in shares
        for b in shares
        if told[a].ratio > told[b].ratio
        and (told[a].where, told[a].ignore_policy, told[a].text) == (told[b].where, told[b].ignore_policy, told[b].text)
        and not (told[a].size_of or told[b].size_of)
    ]
    lines = {folder.name: _lines(folder) for folder in folders}
    context: dict[str, Any] = {
        "arms": list(arms),
        "columns": [column for column, _ in COLUMNS],
        "contrasts": contrasts,
        "curves": {name: curve(_losses(lines[name]), 180, 36) for name in arms},
        "figure": lambda value: "" if value is None else f"{value:.5f}",
        "means": means,
        "plot": intervals(contrasts),
        "rows": len(pc.unique(first["row_id"])),
        "shares": shares,
        "square": pairs[0] if pairs else (),
        "trained": {name: _rows(recipes[name].data.mix) for name in arms},
    }
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("curate.train", "."), autoescape=True, undefined=jinja2.StrictUndefined
    )
    return environment.get_template("comparison.html").render(context)


def intervals(contrasts: Sequence[Contrast]) -> Any:
    """A row for each difference: point, 95 % interval, and a line at 0."""
    from markupsafe import Markup, escape

    if not contrasts:
        return ""
    low, high = min(0.0, *(c.low for c in contrasts)), max(0.0, *(c.high for c in contrasts))
    span = (high - low) or 1.0

    def x(value: float) -> float:
        return round(LEFT + (WIDTH - LEFT - 20) * (value - low) / span, 1)

    height = ROW * len(contrasts) + 34
    bottom = height - 26
    out = [f'<svg viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" role="img" aria-label="differences of losses">']
    out.append(f'<line x1="{x(0)}" x2="{x(0)}" y1="0" y2="{bottom}" stroke="#8896a5" stroke-dasharray="4 3"/>')
    out.append(f'<line x1="{LEFT}" x2="{WIDTH - 20}" y1="{bottom}" y2="{bottom}" stroke="#8896a5"/>')
    for value in ticks(low, high):
        out.append(f'<line x1="{x(value)}" x2="{x(value)}" y1="{bottom}" y2="{bottom + 5}" stroke="#8896a5"/>')
        out.append(
            f'<text x="{x(value)}" y="{bottom + 19}" font-size="12" text-anchor="middle" fill="#5b6b7b">'
            f"{value:+g}</text>"
        )
    for number, c in enumerate(contrasts):
        y = ROW * number + ROW // 2
        color = ("#0a6b3d" if c.difference < 0 else "#a3201f") if c.claim else "#5b6b7b"
        label = escape(f"{c.arm} - {c.against}, {c.column} captions")
        out.append(f'<text x="0" y="{y + 5}" font-size="14" fill="#1c2733">{label}</text>')
        out.append(f'<line x1="{x(c.low)}" x2="{x(c.high)}" y1="{y}" y2="{y}" stroke="{color}" stroke-width="2"/>')
        out.append(f'<circle cx="{x(c.difference)}" cy="{y}" r="4" fill="{color}"/>')
    return Markup("\n".join([*out, "</svg>"]))


def ticks(low: float, high: float) -> list[float]:
    """Round numbers between two ends, 0 among them: three to six."""
    span = (high - low) or 1.0
    step = 10 ** math.floor(math.log10(span))
    step = next(step * part for part in (1, 0.5, 0.25, 0.2) if span / (step * part) >= 3)
    first = math.ceil(low / step - 1e-9)
    return [round(n * step, 12) for n in range(first, math.floor(high / step + 1e-9) + 1)]


def curve(values: Sequence[float], width: int, height: int) -> Any:
    """A small line of values over time."""
    from markupsafe import Markup

    if len(values) < 2:
        return ""
    low, high = min(values), max(values)
    span = (high - low) or 1.0
    points = " ".join(
        f"{width * i / (len(values) - 1):.1f},{2 + (height - 4) * (high - v) / span:.1f}" for i, v in enumerate(values)
    )
    return Markup(
        f'<svg viewBox="0 0 {width} {height}" width="{width}" height="{height}" role="img" aria-label="{high:.4f} to '
        f'{values[-1]:.4f}"><polyline points="{points}" fill="none" stroke="#2f6db3" stroke-width="1.5"/></svg>'
    )


def _lines(folder: Path) -> list[dict[str, Any]]:
    return read_metrics(next(iter(sorted(folder.glob("seed-*/metrics.jsonl"))), folder / "metrics.jsonl"))


def _losses(lines: Sequence[Mapping[str, Any]]) -> list[float]:
    return [float(line["loss"]) for line in lines if line["kind"] == "train"]


def _rows(mix: str) -> int | str:
    from curate.errors import CurateError
    from curate.mix import MixDataset

    try:
        return len(MixDataset(mix, decode=False))
    except CurateError:  # the mix may have been moved since
        return ""
