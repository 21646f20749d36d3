"""OCR round trip: what a sample of the pictures really says, read line by line and paired with a clean render.

Each line is cut out by its quad, horizontal ones as they are, all others glyph by glyph and set in a row, so that the
quads are put to the test too. The same string is drawn black on white with the same face and size and read by the same
model: a line that is wrong in both is OCR's fault and says nothing about the picture. Each sampled row is also rendered
again from its spec, which must give the same bytes, with every pixel of ink labelled by its glyph.

Lines with the same face, effect and size make a cell. A cell whose reading is surely below the target goes into
quarantine.json, and a run with `synth.quarantine` draws it no more.
"""

from __future__ import annotations

import json
import math
import os
import unicodedata
from bisect import bisect_left
from collections import defaultdict
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
from rich.console import Console

from curate.synth import check
from curate.synth.again import shard_paths
from curate.synth.colors import AFTER
from curate.synth.fonts import Face
from curate.synth.photographs import Photographs
from curate.synth.pool import worked
from curate.synth.render import Rendered, clean, encode, render
from curate.synth.spec import Spec, Synth, World, cell
from curate.synth.words import LEVEL_1, Lexicon
from workers.ocr import RapidOcr, revision

Bytes = npt.NDArray[np.uint8]
Quad = npt.NDArray[np.float32]
Part = tuple[Path, int, list[int]]  # a shard, a row group of it, and rows of that

EXACT = 0.97  # share of lines that a cell must be read exactly in, where the clean render is
LEAST_LINES = 20  # of a cell, before it is judged
MARGIN = 0.14  # around a cut line, in units of its height
CHUNK = 20  # rows that a worker is given at once
LINE_PX = 48  # height of OCR's input
# Marks that OCR writes in another width than the picture does.
SAME = str.maketrans(
    {"￥": "¥", "：": ":", "，": ",", "（": "(", "）": ")", "！": "!", "？": "?", "“": '"', "”": '"', "。": "."}
)

# GB2312's characters of level 1: a line that has others too is harder for OCR than for people.
COMMON = frozenset(LEVEL_1)


@dataclass(frozen=True)
class Read:
    """One line: what it says, what was read in the picture and in the clean render, with edits and length."""

    index: int
    line: int
    text: str
    scene: str
    clean: str
    scene_edits: int
    clean_edits: int
    tier: str
    layout: str
    face: str
    effect: str
    size: str


@dataclass(frozen=True)
class Row:
    """One row: its glyphs, those below the contrast, those with ink outside their quad, and whether its bytes recur."""

    index: int
    glyphs: int
    faint: int
    strays: int
    least: float
    same_bytes: bool


def verify(out: Path, world: World, rows: int, workers: int, console: Console) -> dict[str, Any]:
    """Read `rows` rows of `out` back; writes and returns verify.json, and writes quarantine.json."""
    revision()  # a missing model fails here and not in a worker
    reads: list[Read] = []
    checked: list[Row] = []
    with console.status("reading back") if console.is_terminal else console:
        parts = (world.synth, world.faces, world.lexicon, world.photographs.path)
        for lines, done in worked(_work, sampled(out, rows), workers, _load, *parts):
            reads += lines
            checked += done
    found = summary(reads, checked)
    _write(out / "verify.json", found)
    _write(out / "quarantine.json", {"cells": [c for c in found["cells"] if c["quarantined"]]})
    if reads:
        table = pa.Table.from_pylist([asdict(read) for read in reads])
        partial = out / f".reads.arrow.{os.getpid()}"
        with pa.OSFile(str(partial), "wb") as file, pa.ipc.new_file(file, table.schema) as writer:
            writer.write_table(table)
        partial.replace(out / "reads.arrow")
    return found


def sampled(out: Path, rows: int) -> list[Part]:
    """Where rows at equal distances over all shards are."""
    files = [pq.ParquetFile(path) for path in shard_paths(out)]
    total = sum(file.metadata.num_rows for file in files)
    wanted = sorted({round((number + 0.5) * total / rows - 0.5) for number in range(min(rows, total))})
    parts: list[Part] = []
    before = 0
    for path, file in zip(shard_paths(out), files, strict=True):
        for group in range(file.metadata.num_row_groups):
            end = before + file.metadata.row_group(group).num_rows
            inside = [number - before for number in wanted[bisect_left(wanted, before) : bisect_left(wanted, end)]]
            parts += [(path, group, inside[at : at + CHUNK]) for at in range(0, len(inside), CHUNK)]
            before = end
    return parts


def rows_at(part: Part) -> list[dict[str, Any]]:
    """Feasible rows: `index`, `spec` and, where there is one, `image`."""
    path, group, inside = part
    file = pq.ParquetFile(path)
    names = [name for name in ("image", "synth_index", "synth_spec") if name in file.schema_arrow.names]
    return [
        {"index": row["synth_index"], "spec": row["synth_spec"], "image": row.get("image")}
        for row in file.read_row_group(group, columns=names).take(inside).to_pylist()
        if row["synth_spec"]
    ]


def read_row(ocr: RapidOcr, world: World, row: dict[str, Any]) -> tuple[list[Read], Row]:
    """Read one row back and render it again."""
    spec: Spec = json.loads(row["spec"])
    drawn = render(spec, world, trace=True)
    data = encode(drawn.rgb, spec["finish"][4])
    pixels = _decoded(row["image"] or data)
    contrasts = check.contrasts(drawn)
    strays = check.strays(drawn)
    lines = [_read_line(ocr, world, spec, drawn, pixels, number) for number in range(len(spec["lines"]))]
    return lines, Row(
        spec["index"], len(drawn.glyphs), sum(value < AFTER for value in contrasts),
        sum(share > 0.005 for share in strays), min(contrasts), row["image"] is None or row["image"] == data,
    )  # fmt: skip


def _read_line(ocr: RapidOcr, world: World, spec: Spec, drawn: Rendered, pixels: Bytes, number: int) -> Read:
    line = spec["lines"][number]
    face = world.by_id[line["f"]]
    straight = line["d"] == "h" and "arc" not in line
    control = clean(line["t"], face, line["s"])
    scene, _ = ocr.read(_cut_out(pixels, drawn, number, straight))
    flat, _ = ocr.read(_cut_out(control.rgb, control, 0, straight))
    effect, size = cell(spec, line, face)[1:]
    return Read(
        spec["index"], number, line["t"], scene, flat, edits(plain(line["t"]), plain(scene)),
        edits(plain(line["t"]), plain(flat)), spec["tier"], spec["layout"], f"{face.family} {face.style}", effect, size,
    )  # fmt: skip


def summary(reads: list[Read], rows: list[Row]) -> dict[str, Any]:
    """The figures of the report, all of them counts and shares."""
    paired = [read for read in reads if read.clean_edits == 0]
    exact = [read for read in paired if read.scene_edits == 0]
    glyphs = sum(row.glyphs for row in rows)
    characters = sum(len(plain(read.text)) for read in reads)
    paired_characters = sum(len(plain(read.text)) for read in paired)
    groups: dict[tuple[str, str, str], list[Read]] = defaultdict(list)
    for read in paired:
        groups[read.face, read.effect, read.size].append(read)
    cells = [_cell(*key, found) for key, found in sorted(groups.items())]
    common = [read for read in reads if not any(c > "\u2e7f" and c not in COMMON for c in plain(read.text))]
    return {
        "rows": len(rows), "lines": len(reads), "characters": characters,
        "clean_exact": len(paired), "exact": len(exact),
        "exact_share": _share(len(exact), len(paired)),
        "clean_cer": _share(sum(read.clean_edits for read in reads), characters),
        "scene_cer": _share(sum(read.scene_edits for read in reads), characters),
        "common_lines": len(common),
        "clean_cer_common": _share(sum(r.clean_edits for r in common), sum(len(plain(r.text)) for r in common)),
        "paired_cer": _share(sum(read.scene_edits for read in paired), paired_characters),
        "glyphs": glyphs, "faint": sum(row.faint for row in rows),
        "least_contrast": min((r.least for r in rows), default=0),
        "strays": sum(row.strays for row in rows), "inside_share": _share(glyphs - sum(r.strays for r in rows), glyphs),
        "same_bytes": sum(row.same_bytes for row in rows),
        "by": {key: _by(paired, key) for key in ("tier", "layout", "face", "effect", "size")},
        "cells": cells,
        "worst": [asdict(read) for read in sorted(paired, key=lambda r: (-r.scene_edits / len(r.text), r.index))
                  if read.scene_edits][:24],
        "ocr": revision(),
    }  # fmt: skip


def edits(wanted: str, got: str) -> int:
    """Levenshtein distance."""
    row = list(range(len(got) + 1))
    for i, a in enumerate(wanted, 1):
        left, row[0] = row[0], i
        for j, b in enumerate(got, 1):
            left, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, left + (a != b))
    return row[-1]


def plain(text: str) -> str:
    """Text as OCR is held to it: NFKC, no spaces, marks of one width."""
    return "".join(unicodedata.normalize("NFKC", text.translate(SAME)).split())


def upper(good: int, total: int) -> float:
    """Upper end of the 95 % Wilson interval of a share."""
    z = 1.96
    share, n = good / total, total
    middle = share + z * z / (2 * n)
    return (middle + z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))) / (1 + z * z / n)


def straightened(pixels: Bytes, quad: Quad) -> Bytes:
    """A line, cut out by its quad with a margin and made a rectangle."""
    along, down = quad[1] - quad[0], quad[3] - quad[0]
    high, wide = float(np.hypot(*down)), float(np.hypot(*along))
    pad_x, pad_y = along / wide * high * MARGIN, down * MARGIN
    grown = np.array(
        [quad[0] - pad_x - pad_y, quad[1] + pad_x - pad_y, quad[2] + pad_x + pad_y, quad[3] - pad_x + pad_y], np.float32
    )
    return _cut(pixels, grown, round(wide + 2 * MARGIN * high), round(high * (1 + 2 * MARGIN)))


def _cut_out(pixels: Bytes, drawn: Rendered, number: int, straight: bool) -> Bytes:
    """One line as OCR is given it; the clean render is cut in the same way."""
    if straight:
        return straightened(pixels, drawn.lines[number])
    return _in_a_row(pixels, [glyph.quad for glyph in drawn.glyphs if glyph.line == number])


def _in_a_row(pixels: Bytes, cells: list[Quad]) -> Bytes:
    """The cells of a line side by side, each upright."""
    tiles = []
    for quad in cells:
        middle = quad.mean(0)
        grown = middle + (quad - middle) * np.float32(1.08)
        high = float(np.hypot(*(quad[3] - quad[0])))
        wide = float(np.hypot(*(quad[1] - quad[0])))
        tiles.append(_cut(pixels, grown, max(4, round(LINE_PX * wide / high)), LINE_PX))
    return np.concatenate(tiles, axis=1)


def _cut(pixels: Bytes, quad: Quad, wide: int, high: int) -> Bytes:
    """A quad as a rectangle of its own size. Pixel middles lie at .5, hence the halves."""
    corners = np.array([[0, 0], [wide, 0], [wide, high], [0, high]], np.float32)
    matrix = cv2.getPerspectiveTransform(quad.astype(np.float32) - np.float32(0.5), corners - np.float32(0.5))
    cut = cv2.warpPerspective(pixels, matrix, (wide, high), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    return np.asarray(cut, np.uint8)


_LOADED: list[tuple[RapidOcr, World]] = []  # of a worker process: one


def _load(synth: Synth, faces: tuple[Face, ...], lexicon: Lexicon, pictures: Path | None) -> None:
    _LOADED[:] = [(RapidOcr(), World(lexicon, faces, Photographs(pictures), synth))]


def _work(part: Part) -> tuple[list[Read], list[Row]]:
    done = [read_row(*_LOADED[0], row) for row in rows_at(part)]
    return [read for lines, _ in done for read in lines], [row for _, row in done]


def _decoded(data: bytes) -> Bytes:
    return np.asarray(cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB), np.uint8)


def _cell(face: str, effect: str, size: str, reads: list[Read]) -> dict[str, Any]:
    exact = sum(read.scene_edits == 0 for read in reads)
    bad = len(reads) >= LEAST_LINES and upper(exact, len(reads)) < EXACT
    return {
        "face": face, "effect": effect, "size": size, "lines": len(reads), "exact": exact,
        "share": _share(exact, len(reads)), "quarantined": bad,
    }  # fmt: skip


def _by(reads: list[Read], key: str) -> list[dict[str, Any]]:
    groups: dict[str, list[Read]] = defaultdict(list)
    for read in reads:
        groups[getattr(read, key)].append(read)
    return [
        {
            "name": name, "lines": len(found), "exact": (exact := sum(read.scene_edits == 0 for read in found)),
            "share": _share(exact, len(found)),
            "cer": _share(sum(r.scene_edits for r in found), sum(len(plain(r.text)) for r in found)),
        }
        for name, found in sorted(groups.items())
    ]  # fmt: skip


def _share(part: int, whole: int) -> float | None:
    return part / whole if whole else None


def _write(path: Path, value: dict[str, Any]) -> None:
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    partial.write_text(json.dumps(value, ensure_ascii=False, indent=1), "utf-8")
    partial.replace(path)
