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
DRAWN = "ORDER BY md5(row_id), row_id"


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


def kept_sheet(store: Store, rows: int) -> Sheet:
    """Kept rows."""
    found = _drawn(store, "keep", KEPT_SHOWN, ["width || ' × ' || height"])
    return Sheet("kept", "", rows, _pictures(store, found, THUMB_PX))


def dropped_sheets(store: Store, run: Run, cuts: list[Cut]) -> list[Sheet]:
    """One sheet for each drop reason in the order of the policy, with the values that decided."""
    sheets = []
    by_name = {p.name: p for p in run.predicates}
    for reason, rows in store.drop_reasons()[:REASONS_SHOWN]:
        name = reason if reason in by_name else reason.removesuffix("_null")
        predicate = by_name.get(name)
        read = list(dict.fromkeys(cut.expression for cut in cuts if cut.predicate == name))
        if not read and predicate:
            read = ['"' + column.replace('"', '""') + '"' for column in sorted(predicate.columns)][:3]
        found = _drawn(store, "keep = FALSE AND drop_reason = $1", DROPPED_SHOWN, read, [reason])
        sheets.append(Sheet(reason, predicate.sql if predicate else "", rows, _pictures(store, found, THUMB_PX)))
    return sheets


def captions(store: Store) -> list[Cell]:
    """Rows with captions: the raw one beside the synthetic English and Chinese ones."""
    found = _drawn(
        store, "caption_en IS NOT NULL OR caption_zh IS NOT NULL", CAPTIONS_SHOWN, ["width || ' × ' || height"]
    )
    return _pictures(store, found, CAPTION_PX)


def _drawn(store: Store, where: str, limit: int, notes: list[str], parameters: list[Any] | None = None) -> list[Cell]:
    """Up to `limit` rows that meet `where`, with the values of the expressions `notes`."""
    texts = [f"left({name}, {TEXT_SHOWN + 1})" for name in ("caption_raw", "caption_en", "caption_zh")]
    values = [f"TRY(({note}))" for note in notes]
    rows = store.rows(
        f"SELECT {', '.join(['s.row_id', *texts, *values])} FROM samples AS s "
        f"JOIN (SELECT row_id FROM samples WHERE {where} {DRAWN} LIMIT {limit}) AS drawn(drawn_id) "
        f"ON drawn_id = s.row_id ORDER BY md5(s.row_id), s.row_id",
        parameters,
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


def _pictures(store: Store, cells: list[Cell], side_px: int) -> list[Cell]:
    """Put the thumbnails into the cells."""
    found = originals(store, [cell.row_id for cell in cells])
    for cell in cells:
        data = found.pop(cell.row_id)
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
