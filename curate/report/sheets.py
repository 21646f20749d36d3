"""Contact sheets and captions: the same few rows every time, as thumbnails inside the page."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass, field
from typing import Any

from PIL import Image

from curate.pictures import originals, thumbnail
from curate.report.cuts import Cut
from curate.report.figures import TEXT_SHOWN, Run
from curate.report.histograms import number
from curate.store import Store
from schemas.errors import RowError

KEPT_SHOWN, DROPPED_SHOWN, CAPTIONS_SHOWN = 24, 16, 12  # a line of the page has eight
REASONS_SHOWN = 20
THUMB_PX, CAPTION_PX = 240, 320

# The order in which rows are drawn: fixed by the row's identity, unrelated to where it lies in the input.
DRAWN = "md5(row_id)"


@dataclass
class Cell:
    """One picture of a sheet. `src` is a data URI, or empty when `missing` says why there is none."""

    row_id: str
    alt: str
    notes: list[str] = field(default_factory=list)
    src: str = ""
    width: int = 0
    height: int = 0
    missing: str = ""
    texts: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Sheet:
    """Some of the `rows` rows with one verdict."""

    name: str
    predicate: str
    rows: int
    cells: list[Cell]


@dataclass(frozen=True)
class Sheets:
    """The sheet of kept rows, and one for each drop reason in the order of the policy."""

    kept: Sheet
    dropped: list[Sheet]


def sheets(store: Store, run: Run, cuts: list[Cut]) -> Sheets:
    """All contact sheets. The rows of all of them are drawn in one pass; dropped ones show the values that decided."""
    drawn = {
        (keep, reason): (rows, row_ids)
        for keep, reason, rows, row_ids in store.rows(
            f"SELECT keep, drop_reason, count(*), arg_min(row_id, {DRAWN}, {max(KEPT_SHOWN, DROPPED_SHOWN)}) "
            "FROM samples WHERE keep OR drop_reason IS NOT NULL GROUP BY keep, drop_reason"
        )
    }
    rows, row_ids = drawn.get((True, None), (0, []))
    cells = _cells(store, row_ids[:KEPT_SHOWN], ["width || ' × ' || height"])
    kept = Sheet("kept", "", rows, pictures(store, cells, THUMB_PX))
    dropped: list[Sheet] = []
    for p in run.predicates:
        read = list(dict.fromkeys(cut.expression for cut in cuts if cut.predicate == p.name))
        read = read or ['"' + column.replace('"', '""') + '"' for column in sorted(p.columns)][:3]
        for reason in (p.name, f"{p.name}_null"):
            rows, row_ids = drawn.get((False, reason), (0, []))
            if rows and len(dropped) < REASONS_SHOWN:
                cells = _cells(store, row_ids[:DROPPED_SHOWN], read)
                dropped.append(Sheet(reason, p.sql, rows, pictures(store, cells, THUMB_PX)))
    return Sheets(kept, dropped)


def captions(store: Store) -> list[Cell]:
    """Rows with captions: the raw one beside the synthetic English and Chinese ones."""
    ((row_ids,),) = store.rows(
        f"SELECT arg_min(row_id, {DRAWN}, {CAPTIONS_SHOWN}) FROM wide "
        "WHERE error IS NULL AND (caption_en IS NOT NULL OR caption_zh IS NOT NULL)"
    )
    return pictures(store, _cells(store, row_ids or [], ["width || ' × ' || height"]), CAPTION_PX)


def _cells(store: Store, row_ids: list[str], notes: list[str]) -> list[Cell]:
    """The rows in this order, with the values of the expressions `notes`."""
    texts = [f"left({name}, {TEXT_SHOWN + 1})" for name in ("caption_raw", "caption_en", "caption_zh")]
    values = [f"TRY(({note}))" for note in notes]
    rows = store.rows(
        f"SELECT {', '.join(['row_id', *texts, *values])} FROM wide WHERE row_id IN (SELECT unnest($1)) "
        f"ORDER BY {DRAWN}, row_id",
        [row_ids],
    )
    cells = []
    for row_id, raw, english, chinese, *found in rows:
        captions = {"raw": _shortened(raw), "en": _shortened(english), "zh": _shortened(chinese)}
        shown = [_value(note, value) for note, value in zip(notes, found, strict=True)]
        alt = next((text for text in (captions["raw"], captions["en"]) if text), f"picture of row {row_id}")
        cells.append(Cell(row_id, alt[:160], shown, texts=captions))
    return cells


def _value(expression: str, value: Any) -> str:
    if isinstance(value, str):
        return value[:60]
    name = expression.strip('"')
    shown = "no value" if value is None else number(float(value)) if isinstance(value, int | float) else str(value)[:60]
    return f"{name} {shown}"


def _shortened(text: str | None) -> str:
    if not text:
        return ""
    return text if len(text) <= TEXT_SHOWN else text[:TEXT_SHOWN].rstrip() + " …"


def pictures(store: Store, cells: list[Cell], side_px: int) -> list[Cell]:
    """Put the thumbnails into the cells."""
    found = originals(store, [cell.row_id for cell in cells])
    for cell in cells:
        data = found[cell.row_id]
        try:
            if isinstance(data, RowError):
                raise data
            small = thumbnail(data, side_px)
        except RowError as why:
            cell.missing = f"{why.code}: {why.message}"
            continue
        cell.width, cell.height = Image.open(io.BytesIO(small)).size
        cell.src = "data:image/jpeg;base64," + base64.b64encode(small).decode()
    return cells
