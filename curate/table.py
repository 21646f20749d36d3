"""The result of `curate sql` on a terminal: a table that never breaks, or one record a block when it is too wide.

Text is cut with `…` by cells and not by characters (a Chinese character takes two), so columns stay straight. What is
cut here is whole in `--format csv` or `json`.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from typing import Any

import pyarrow as pa
from rich.cells import cell_len, set_cell_size
from rich.console import Console
from rich.text import Text

GAP = 2  # cells between columns
LEAST = 8  # cells that a column of cut text keeps at least
SAMPLED = 1000  # rows that decide the widths; printing a million rows should not measure them all first
JOINERS = "\u200c\u200d"  # inside emoji and Indic words
BLOCK_LINES = 4  # lines of one long value in a block


def show(table: pa.Table, limit: int, console: Console | None = None) -> None:
    """Print the first `limit` rows (all for 0) and say so when the table holds more."""
    console = console or Console(highlight=False)
    more = bool(limit) and table.num_rows > limit
    rows = table.slice(0, limit) if limit else table
    columns = [[format_value(value.as_py()) for value in column] for column in rows.columns]
    names = [clean(name) for name in table.column_names]
    numeric = [_is_number(field.type) for field in table.schema]
    widths = _widths(names, columns, numeric, console.width)
    if widths:
        _print_table(console, names, columns, numeric, widths)
    else:
        _print_blocks(console, names, columns)
    if not rows.num_rows:
        _line(console, Text("no rows", style="dim"))
    if more:
        _line(console, Text(f"the first {limit} rows; --limit 0 shows all", style="dim"))


def format_value(value: Any) -> str | None:
    """A value in one line: short floats, compact lists, no control characters; None for NULL."""
    if value is None:
        return None
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return f"{value:.0f}" if 1e4 <= abs(value) < 1e15 else f"{value:.4g}"
    if isinstance(value, bytes):
        return f"<{len(value):,} bytes>"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{clean(str(k))}: {format_value(v) or 'NULL'}" for k, v in value.items()) + "}"
    if isinstance(value, (list, tuple)):
        shown = [format_value(v) or "NULL" for v in value[:6]]
        return "[" + ", ".join(shown) + (f", … {len(value)} in all]" if len(value) > 6 else "]")
    return clean(str(value))


def clean(text: str) -> str:
    """`text` without what would move the cursor or turn the line around; line breaks become `↵`."""
    if text.isascii() and text.isprintable():
        return text
    text = text.replace("\r\n", "\n").replace("\n", "↵").replace("\t", " ")
    return "".join("�" if unicodedata.category(c) in ("Cc", "Cf", "Cs") and c not in JOINERS else c for c in text)


def cut(text: str, width: int) -> str:
    """`text` in at most `width` cells, ending in `…` when something was cut off."""
    if cell_len(text) <= width:
        return text
    return set_cell_size(text, width - 1).rstrip() + "…" if width > 1 else "…"[:width]


def _is_number(kind: pa.DataType) -> bool:
    return bool(pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind))


def _widths(names: list[str], columns: list[list[str | None]], numeric: list[bool], width: int) -> list[int]:
    """Cells for each column so that a row fits the line; empty when it cannot without cutting too much."""
    natural = [
        max([cell_len(name), *(cell_len(v) if v is not None else 4 for v in values[:SAMPLED])])
        for name, values in zip(names, columns, strict=True)
    ]
    room = width - GAP * (len(names) - 1)
    if sum(natural) <= room:
        return natural
    least = [n if is_number else min(n, LEAST) for n, is_number in zip(natural, numeric, strict=True)]
    if sum(least) > room:
        return []
    # The narrow ones get what they want, the wide ones share the rest.
    widths, left = list(least), room - sum(least)
    for i in sorted(range(len(natural)), key=lambda i: natural[i] - least[i]):
        waiting = sum(1 for j in range(len(natural)) if widths[j] < natural[j])
        if waiting:
            extra = min(natural[i] - widths[i], left // waiting)
            widths[i], left = widths[i] + extra, left - extra
    return widths


def _print_table(
    console: Console, names: list[str], columns: list[list[str | None]], numeric: list[bool], widths: list[int]
) -> None:
    heads = [_cell(name, w, right, "bold") for name, w, right in zip(names, widths, numeric, strict=True)]
    _line(console, Text(" " * GAP).join(heads))
    _line(console, Text((" " * GAP).join("─" * w for w in widths), style="dim"))
    for row in zip(*columns, strict=True):
        _line(console, _row(row, widths, numeric))


def _row(row: Sequence[str | None], widths: list[int], numeric: list[bool]) -> Text:
    cells = [
        _cell("NULL", w, right, "dim") if value is None else _cell(value, w, right, "")
        for value, w, right in zip(row, widths, numeric, strict=True)
    ]
    return Text(" " * GAP).join(cells)


def _cell(text: str, width: int, right: bool, style: str) -> Text:
    text = cut(text, width)
    pad = " " * (width - cell_len(text))
    return Text(pad + text if right else text + pad, style=style)


def _print_blocks(console: Console, names: list[str], columns: list[list[str | None]]) -> None:
    """One record a block: a name and its value on each line, long values wrapped."""
    label = min(max((cell_len(name) for name in names), default=0), 24)
    room = max(console.width - label - GAP, 16)
    for number, row in enumerate(zip(*columns, strict=True), start=1):
        _line(console, Text(f"── row {number} ".ljust(console.width - 1, "─"), style="dim"))
        for name, value in zip(names, row, strict=True):
            lines = _wrapped("NULL" if value is None else value, room)
            for i, line in enumerate(lines):
                head = _cell("" if i else name, label, False, "bold")
                _line(console, head + Text(" " * GAP) + Text(line, style="dim" if value is None else ""))


def _wrapped(text: str, width: int) -> list[str]:
    """At most BLOCK_LINES lines of `width` cells; breaks at spaces, or anywhere in text that has none (Chinese)."""
    lines: list[str] = []
    while text and len(lines) < BLOCK_LINES - 1 and cell_len(text) > width:
        head = set_cell_size(text, width)
        kept = len(head) - 1 if text[: len(head)] != head else len(head)  # half a wide character becomes a space
        space = text.rfind(" ", width // 2, kept + 1)
        end = space if space > 0 else kept
        lines.append(text[:end].rstrip())
        text = text[end:].lstrip()
    return [*lines, cut(text, width)] if text or not lines else lines


def _line(console: Console, text: Text) -> None:
    text.rstrip()
    console.print(text, no_wrap=True, crop=False, overflow="ignore", soft_wrap=True)
