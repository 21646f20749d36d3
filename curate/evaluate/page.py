"""The comparison as one self-contained HTML page in the manner of `curate report`: intervals, tables, examples."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from curate.errors import UsageError
from curate.evaluate.compare import COLUMNS, Block
from curate.evaluate.proxies import AVERAGED, CRITERIA
from curate.evaluate.run import PROXIES, Outcome
from curate.evaluate.show import notes
from curate.rate.agreement import Figure
from curate.report.sheets import THUMB_PX, Cell, pictures
from curate.store import Store

EXAMPLES = 3  # of each captioner
TEXT_SHOWN = 600  # characters of a caption
WIDTH, ROW, LEFT, RIGHT = 360, 22, 130, 40


@dataclass(frozen=True)
class Example:
    """A caption with a low score."""

    cell: Cell
    label: str
    language: str
    text: str
    scores: list[tuple[str, str]]
    found: list[str]


def write(store: Store, outcome: Outcome, out: Path) -> None:
    """Write the page to `out`; raises UsageError when it cannot be written."""
    page = render(store, outcome)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(page, "utf-8")
    except OSError as why:
        raise UsageError(f"--html {out}: {why.strerror or why}") from None


def render(store: Store, outcome: Outcome) -> str:
    """The page as text; nothing in it is fetched from elsewhere."""
    from jinja2 import Environment, PackageLoader, StrictUndefined
    from markupsafe import Markup

    import curate.report

    environment = Environment(
        loader=PackageLoader("curate.evaluate", "."), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    environment.filters["count"] = lambda value: f"{value:,}"
    css = (Path(curate.report.__file__).parent / "page.css").read_text("utf-8")
    scorer = next((b.by for b in outcome.blocks if b.by.startswith("judge ")), PROXIES)
    return environment.get_template("page.html").render(
        css=Markup(css), title=Path(store.uri.rstrip("/")).name, store=store.uri, outcome=outcome, columns=COLUMNS,
        notes=list(notes(outcome)), plot=plot, score=_score, difference=_difference, scorer=scorer,
        examples=_examples(store, outcome, scorer),
    )  # fmt: skip


def plot(block: Block, column: int) -> Any:
    """One criterion: a row for each captioner with its mean and interval on a scale of 1 to 5."""
    from markupsafe import Markup, escape

    def x(value: float) -> float:
        return round(LEFT + (WIDTH - LEFT - RIGHT) * (value - 1) / 4, 1)

    height = ROW * len(block.lines) + 18
    label = f"{COLUMNS[column]} by {block.label}"
    out = [f'<svg viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{escape(label)}">']
    for tier in range(1, 6):
        out.append(f'<line x1="{x(tier)}" x2="{x(tier)}" y1="0" y2="{height - 16}"/>')
        out.append(f'<text class="soft" x="{x(tier)}" y="{height - 4}" text-anchor="middle">{tier}</text>')
    for number, line in enumerate(block.lines):
        y, figure = ROW * number + ROW // 2, line.figures[column]
        name = line.captioner.name
        out.append(f'<text x="0" y="{y + 4}">{escape(name if len(name) < 20 else name[:18] + "…")}</text>')
        if figure.value is None:
            continue
        if figure.low is not None and figure.high is not None:
            out.append(f'<line class="interval" x1="{x(figure.low)}" x2="{x(figure.high)}" y1="{y}" y2="{y}"/>')
        out.append(f'<circle cx="{x(figure.value)}" cy="{y}" r="4"/>')
        out.append(f'<text x="{WIDTH}" y="{y + 4}" text-anchor="end">{figure.value:.2f}</text>')
    return Markup("\n".join([*out, "</svg>"]))


def _score(figure: Figure) -> Any:
    from markupsafe import Markup, escape

    if figure.value is None:
        return Markup('<span class="undefined" title="{}">none</span>').format(escape(figure.why))
    interval = "" if figure.low is None or figure.high is None else f" [{figure.low:.2f}, {figure.high:.2f}]"
    return f"{figure.value:.2f}{interval}"


def _difference(figure: Figure) -> Any:
    from markupsafe import Markup

    if figure.value is None or figure.low is None or figure.high is None:
        return "–" if figure.value is None else f"{figure.value:+.2f}"
    kind = "better" if figure.low > 0 else "worse" if figure.high < 0 else "same"
    return Markup('<span class="{}">{}</span>').format(
        kind, f"{figure.value:+.2f} [{figure.low:+.2f}, {figure.high:+.2f}]"
    )


def _examples(store: Store, outcome: Outcome, scorer: str) -> list[Example]:
    """The lowest means of each captioner by one judge, with what decided them."""
    labels = {line.captioner.key: line.captioner.label for block in outcome.blocks for line in block.lines}
    rows = store.rows(
        "SELECT e.row_id, e.fingerprint, e.kind, e.language, c.text, e.found, "
        f"{', '.join(f'e.{name}' for name in CRITERIA)} "
        "FROM evaluations AS e JOIN captions AS c USING (row_id, fingerprint, kind, language) "
        "WHERE e.scorer = $1 AND e.mean IS NOT NULL AND e.mean < 5 QUALIFY row_number() OVER "
        "(PARTITION BY e.fingerprint, e.kind, e.language ORDER BY e.mean, md5(e.row_id)) <= $2 "
        "ORDER BY e.language, e.fingerprint, e.kind, e.mean, md5(e.row_id)", [scorer, EXAMPLES]
    )  # fmt: skip
    cells = pictures(store, [Cell(row[0], "") for row in rows], THUMB_PX)
    found = []
    for cell, (_, mark, kind, language, text, why, *values) in zip(cells, rows, strict=True):
        shown = [(n, f"{v:.1f}") for n, v in zip(CRITERIA, values, strict=True) if v is not None and n in AVERAGED]
        short = text if len(text) <= TEXT_SHOWN else text[:TEXT_SHOWN].rstrip() + " …"
        found.append(
            Example(
                cell, labels.get((mark, kind, language), mark), language, short, shown, why.split("; ") if why else []
            )
        )
    return found
