"""Histograms of scores by SQL, with the policy's cuts, laid out for SVG."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import pyarrow as pa

from curate.report.cuts import Cut
from curate.store import Store
from schemas.columns import OPERATORS

BINS = 40
WIDTH, HEIGHT, TOP = (
    320.0,
    96.0,
    14.0,
)  # of the plotting area in SVG units; TOP is room for the count of the highest bar
EXACT_ROWS = 2_000_000  # beyond this quantiles are t-digests: exact ones hold all values in memory
TAIL = 0.005  # share at either end that may be cut off
LONG_TAIL = 2.0  # ... when it is this many times longer than the rest
FEW_ROWS = 20  # from here on to 1 / TAIL rows one row at either end may be cut off


@dataclass(frozen=True)
class Bar:
    """One bin: left edge, width, heights of the kept part and of all in SVG units; its numbers in words."""

    x: float
    width: float
    kept: float
    all: float
    title: str


@dataclass(frozen=True)
class Line:
    """A cut on the axis, or beyond it (`outside`); the side from `x` to `x + width` is rejected."""

    at: float
    reject_x: float
    reject_width: float
    outside: bool
    text: str


@dataclass(frozen=True)
class Histogram:
    """One chart. `highest` is the count of the tallest bar."""

    title: str
    about: str
    bars: list[Bar]
    lines: list[Line]
    ticks: list[tuple[float, str]]
    highest: int
    rows: int
    nulls: int
    median: str
    notes: list[str]

    @property
    def summary(self) -> str:
        """The chart in one sentence, for readers who do not see it."""
        cuts = f"; {', '.join(dict.fromkeys(line.text for line in self.lines))}" if self.lines else ""
        return f"Histogram of {self.title}: {self.rows:,} values, median {self.median}{cuts}"


@dataclass(frozen=True)
class Flat:
    """A column that has the same value on every row."""

    name: str
    value: str
    rows: int


@dataclass(frozen=True)
class _Score:
    """One SQL expression over a row, and what its values are like."""

    expression: str
    title: str
    about: str
    cuts: list[Cut]
    values: int = 0
    low: float = 0.0
    high: float = 0.0
    median: float = 0.0
    axis: _Axis | None = None
    """None when no row has a value or all have the same one."""


def histograms(store: Store, cuts: list[Cut], rows: int) -> tuple[list[Histogram], list[Histogram], list[Flat]]:
    """Charts of what the policy cuts, charts of the other scores, and scores that do not vary."""
    judged: dict[str, list[Cut]] = {}
    for cut in cuts:
        judged.setdefault(cut.expression, []).append(cut)
    have = {row[0] for row in store.rows("SELECT column_name FROM (DESCRIBE samples)")}
    about = {c.name: c.about for columns in OPERATORS.values() for c in columns if _numeric(c.type) and c.name in have}
    scores = [_Score(expression, expression, about.get(expression, ""), own) for expression, own in judged.items()]
    scores += [_Score(f'"{name}"', name, text, []) for name, text in about.items() if name not in judged]
    scores = [measured for score in scores if (measured := _measured(store, score, rows)).values]
    drawn = [(score, score.axis) for score in scores if score.axis]
    charts = [_chart(*pair, bins, rows) for pair, bins in zip(drawn, _counted(store, drawn), strict=True)]
    flat = [Flat(score.title, number(score.low), score.values) for score in scores if not score.axis]
    return [c for c in charts if c.lines], [c for c in charts if not c.lines], flat


def _numeric(kind: pa.DataType) -> bool:
    return bool(pa.types.is_integer(kind) or pa.types.is_floating(kind))


def _value(score: _Score) -> str:
    return f"TRY_CAST(TRY(({score.expression})) AS DOUBLE)"


def _measured(store: Store, score: _Score, rows: int) -> _Score:
    """The score with its range, median and axis. Reads the table `wide`: no verdict is needed for that."""
    source = f"(SELECT {_value(score)} AS v FROM wide)"
    quantile = "quantile_cont" if rows <= EXACT_ROWS else "approx_quantile"
    tail = TAIL
    if rows < 1 / TAIL:
        ((n,),) = store.rows(f"SELECT count(v) FROM {source}")
        tail = max(TAIL, 1 / (n - 1)) if n >= FEW_ROWS else TAIL
    ((n, low, high, quantiles, fractions),) = store.rows(
        f"SELECT count(*), min(v), max(v), {quantile}(v, [{tail}, 0.5, {1 - tail}]), "
        f"count(*) FILTER (v <> floor(v)) FROM {source} WHERE isfinite(v)"
    )
    if not n:
        return score
    axis = _axis(n, low, high, quantiles, score.cuts, not fractions) if low < high or score.cuts else None
    return replace(score, values=n, low=low, high=high, median=quantiles[1], axis=axis)


def _counted(store: Store, scores: list[tuple[_Score, _Axis]]) -> list[dict[int, tuple[int, int]]]:
    """For each score its bins: rows, and kept rows. One pass for all, since the verdict costs more than the bins."""
    if not scores:
        return []
    values, bins, wanted = [], [], []
    for i, (score, axis) in enumerate(scores):
        place = f"({axis.sql(f'v{i}')} - {_exact(axis.start)}) / {_exact(axis.span)} * {axis.bins}"
        inside = f"isfinite(v{i}) AND v{i} BETWEEN {_exact(axis.low)} AND {_exact(axis.high)}"
        values.append(f"{_value(score)} AS v{i}")
        bins.append(f"CASE WHEN {inside} THEN least(floor({place}), {axis.bins - 1})::INTEGER END AS b{i}")
        wanted += [f"histogram(b{i})", f"histogram(b{i}) FILTER (keep)"]
    (row,) = store.rows(
        f"SELECT {', '.join(wanted)} FROM (SELECT keep, {', '.join(bins)} FROM "
        f"(SELECT keep, {', '.join(values)} FROM samples))"
    )
    return [
        {at: (count, (kept or {}).get(at, 0)) for at, count in sorted((rows or {}).items())}
        for rows, kept in zip(row[::2], row[1::2], strict=True)
    ]


def _exact(value: float) -> str:
    """SQL of exactly this number: without the quotes it is a DECIMAL first and may end a bit beside itself."""
    return f"'{value!r}'::DOUBLE"


def _chart(score: _Score, axis: _Axis, bins: dict[int, tuple[int, int]], rows: int) -> Histogram:
    """The chart of a score, laid out."""
    shown = sum(count for count, _ in bins.values())
    highest = max((count for count, _ in bins.values()), default=1)
    step = WIDTH / axis.bins
    bars = []
    for at, (count, kept) in bins.items():
        first, last = (axis.value(axis.start + axis.span * edge / axis.bins) for edge in (at, at + 1))
        span = number(math.ceil(first)) if axis.single else f"{number(first)} to {number(last)}"
        tall = max(count * (HEIGHT - TOP) / highest, 1.0)  # a bin of one row among thousands is still seen
        title = f"{span}: {count:,} rows, {kept:,} kept"
        bars.append(Bar(round(at * step, 2), round(step, 2), round(tall * kept / count, 2), round(tall, 2), title))
    notes = ["logarithmic axis"] if axis.compressed else []
    if score.values > shown:
        hidden = score.values - shown
        word = "outlier" if hidden == 1 else "outliers"
        notes.append(f"{hidden:,} {word} not drawn (from {number(score.low)} to {number(score.high)})")
    lines = [axis.line(cut) for cut in score.cuts]
    nulls = rows - score.values
    return Histogram(
        score.title, score.about, bars, lines, axis.ticks(), highest, score.values, nulls, number(score.median), notes
    )


@dataclass(frozen=True)
class _Axis:
    """From `low` to `high` in units of the score; on a compressed axis places go by log10(1 + v)."""

    low: float
    high: float
    bins: int
    compressed: bool
    single: bool
    """One bin for each whole number."""

    @property
    def start(self) -> float:
        return self.place(self.low)

    @property
    def span(self) -> float:
        return self.place(self.high) - self.start

    def place(self, value: float) -> float:
        return math.log10(1 + value) if self.compressed else value

    def value(self, place: float) -> float:
        return 10**place - 1 if self.compressed else place

    def sql(self, name: str) -> str:
        return f"log10(1 + {name})" if self.compressed else name

    def x(self, value: float) -> float:
        """Where a score lies, SVG units; off the chart for scores beyond the axis."""
        if self.compressed and value <= -1:
            return -1.0
        return round((self.place(value) - self.start) / self.span * WIDTH, 2)

    def line(self, cut: Cut) -> Line:
        """A cut as drawn. Between whole numbers it stands in the gap: `<= 5` is right of the bar of 5."""
        value = cut.value
        if self.single:
            value += 0.5 if cut.above != cut.inclusive else -0.5
        at = self.x(value)
        inside = min(max(at, 0.0), WIDTH)
        x, width = (0.0, inside) if cut.above else (inside, WIDTH - inside)
        return Line(inside, x, round(width, 2), not 0 <= at <= WIDTH, f"{cut.predicate} keeps {cut.text}")

    def ticks(self) -> list[tuple[float, str]]:
        """Places and labels of round numbers on the axis."""
        if self.compressed:
            values = [0.0, *(float(10**k) for k in range(13))]
            inside = [v for v in values if self.low <= v <= self.high]
            if len(inside) < 3:
                values = [m * 10.0**k for k in range(12) for m in (1, 2, 5)]
        else:
            step = _nice((self.high - self.low) / 5)
            if self.single:
                step = max(1.0, step)
            values = [k * step for k in range(math.ceil(self.low / step), math.floor(self.high / step) + 1)]
        labels = [(self.x(v), number(v)) for v in values if self.low <= v <= self.high]
        return [(x, label) for x, label in labels if 4 <= x <= WIDTH - 4] or labels


def _axis(n: int, low: float, high: float, quantiles: list[float], cuts: list[Cut], whole: bool) -> _Axis:
    """An axis that shows nearly all values: a long thin tail is cut off, and a cut nearby is drawn in."""
    q_low, median, q_high = quantiles
    middle = max(q_high - q_low, 1e-9)
    crowded = any(0 < cut.value < 0.05 * q_high for cut in cuts)
    compressed = low >= 0 and q_high > 50 and (q_high > 8 * max(median, 1.0) or crowded)
    if not compressed:
        low = q_low if q_low - low > LONG_TAIL * middle else low
        high = q_high if high - q_high > LONG_TAIL * middle else high
    least, most = low, high
    for cut in cuts:
        near = max(most - least, abs(cut.value))
        beyond = 1.0 if whole else 0.3 * cut.value if compressed else 0.06 * near
        if most <= cut.value <= most + near and not cut.above:
            high = max(high, cut.value + beyond)
        elif least - near <= cut.value <= least and cut.above:
            low = min(low, max(cut.value - beyond, min(0.0, least)))
        elif least - near <= cut.value <= most + near and (cut.value >= 0 or not compressed):
            low, high = min(low, cut.value), max(high, cut.value)
    whole = whole and low == math.floor(low) and high == math.floor(high)
    if whole and not compressed and high - low <= BINS:
        return _Axis(low - 0.5, high + 0.5, int(high - low) + 1, False, True)
    if low == high:
        low, high = low - 0.5, high + 0.5
    axis = _Axis(low, high, min(max(math.ceil(2 * math.sqrt(n)), 12), BINS), compressed, False)
    for cut in cuts[:1]:
        axis = _aligned(axis, cut)
    return axis


def _aligned(axis: _Axis, cut: Cut) -> _Axis:
    """The axis with bins of such a width that the cut stands between two of them and not within one."""
    if not axis.low < cut.value <= axis.high:
        return axis
    way = axis.place(cut.value) - axis.start
    step = way / max(1, round(way / axis.span * axis.bins))
    bins = math.ceil(axis.span / step - 1e-9)
    return replace(axis, high=axis.value(axis.start + bins * step), bins=bins)


def _nice(step: float) -> float:
    """The smallest of 1, 2, 5 times a power of ten that is no less than `step`."""
    power = 10.0 ** math.floor(math.log10(step))
    return next(m * power for m in (1.0, 2.0, 5.0, 10.0) if m * power >= step * (1 - 1e-9))


def _trimmed(value: float, digits: int) -> str:
    text = f"{value:,.{digits}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def number(value: float) -> str:
    """A number for reading: three digits that count, k and M for large ones."""
    size = abs(value)
    scaled: Callable[[float, str], str] = lambda unit, suffix: _trimmed(value / unit, 1) + suffix  # noqa: E731
    if size >= 1e9:
        return scaled(1e9, "G")
    if size >= 1e6:
        return scaled(1e6, "M")
    if size >= 10_000:
        return scaled(1e3, "k")
    if size >= 100 or value == int(value):
        return _trimmed(value, 0)
    return _trimmed(value, 2 - math.floor(math.log10(size))) if size >= 1e-6 else f"{value:.1e}"
