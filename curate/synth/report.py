"""One self-contained HTML page about a run of `curate synth`, and a contact sheet as a PNG.

curate synth sheet SYNTH -o sheet.png
"""

from __future__ import annotations

import base64
import json
import os
from collections import Counter
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import pyarrow.compute as pc
import pyarrow.parquet as pq

from curate.errors import UsageError
from curate.synth.again import shard_paths
from curate.synth.render import encode, render
from curate.synth.spec import World
from curate.synth.verify import EXACT, straightened
from curate.synth.words import FLOOR, LEVEL_1

Bytes = npt.NDArray[np.uint8]

SHOWN = {"pure": 8, "composed": 16, "structured": 16}
THUMB_PX = 220
TIERS = {
    "pure": "Text on a plain ground", "composed": "Text on photographs", "structured": "Posters, signs, couplets, lists"
}  # fmt: skip
FEW_FONTS = 3
MILLION = 1_000_000


def write_report(out: Path, world: World) -> Path:
    """Write `out`/report.html from the manifest, the shards and, where there is one, verify.json."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    manifest = json.loads((out / "manifest.json").read_text("utf-8"))
    checked = out / "verify.json"
    verified = json.loads(checked.read_text("utf-8")) if checked.exists() else None
    environment = Environment(
        loader=PackageLoader("curate.synth", "."), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    environment.filters |= {"count": lambda n: f"{n:,}", "percent": _percent}
    characters = coverage_of(out, world)
    page = environment.get_template("report.html").render(
        manifest=manifest, verified=verified, targets=targets(verified, characters) if verified else [],
        sheets=[(TIERS[tier], _thumbs(out, world, tier, SHOWN[tier])) for tier in TIERS],
        characters=characters, worst=_worst(out, world, verified), few=FEW_FONTS,
    )  # fmt: skip
    path = out / "report.html"
    partial = out / f".report.html.{os.getpid()}"
    partial.write_text(page, "utf-8")
    partial.replace(path)
    return path


def targets(verified: dict[str, Any], characters: dict[str, Any]) -> list[dict[str, str]]:
    """What is promised and what was measured, for the table at the head of the page."""
    glyphs, faint, rows = verified["glyphs"], verified["faint"], verified["rows"]
    exact, cer, inside = verified["exact_share"], verified["paired_cer"], verified["inside_share"]
    same, turns = verified["same_bytes"], characters["turns_per_million"]
    clear = f"{_percent(1 - faint / glyphs if glyphs else None)} of {glyphs:,}"
    found: list[tuple[str, str, str, bool]] = [
        ("glyphs with a contrast of at least 3:1", "100 %", clear, not faint),
        ("glyphs with all ink in their quad, grown by 1 px", ">= 99.9 %", _percent(inside), (inside or 0) >= 0.999),
        (
            "lines read exactly, where the clean render is", f">= {EXACT:.0%}",
            f"{_percent(exact)} of {verified['clean_exact']:,}", (exact or 0) >= EXACT,
        ),
        ("characters read wrong in those lines (paired CER)", "<= 1 %", _percent(cer), (cer or 0) <= 0.01),
        ("rows with the same bytes when rendered again", "all", f"{same:,} of {rows:,}", same == rows),
        ("turns of each GB2312 character per million rows", ">= 100", f"{turns:.0f}", turns >= 100),
    ]  # fmt: skip
    return [{"what": w, "target": t, "found": f, "good": "yes" if good else "no"} for w, t, f, good in found]


def coverage_of(out: Path, world: World) -> dict[str, Any]:
    """Appearances of the characters of GB2312 in the rows of `out`, and how many faces draw each."""
    counts: Counter[str] = Counter()
    rare = rows = 0
    for path in shard_paths(out):
        table = pq.read_table(path, columns=["synth_texts", "synth_spec"])
        for texts in table["synth_texts"].to_pylist():
            counts.update("".join(texts or ()))
        numbers = pc.extract_regex(table["synth_spec"], '"rare":(?P<n>[0-9]+)')
        rare += sum(int(found["n"]) for found in numbers.to_pylist() if found)
        rows += table.num_rows
    shown = sorted(counts[character] for character in FLOOR)
    supported = {character: sum(face.covers(character) for face in world.faces) for character in FLOOR}
    return {
        "rows": rows, "distinct": len(counts), "total": sum(counts.values()),
        "covered": sum(map(bool, shown)), "of": len(FLOOR), "level_1": sum(bool(counts[c]) for c in LEVEL_1),
"quantiles": [(share, shown[int(share * (len(shown) - 1))]) for share in (0, 0.01, 0.1, 0.5, 0.9, 1)],
        "least": sorted(FLOOR, key=lambda c: (counts[c], FLOOR.index(c)))[:60],
        "most": [(c, counts[c]) for c in sorted(FLOOR, key=lambda c: -counts[c])[:20]],
        "faces": sorted(Counter(supported.values()).items()),
        "few": "".join(character for character in FLOOR if supported[character] < FEW_FONTS)[:200],
        "few_count": sum(count < FEW_FONTS for count in supported.values()),
        # The turn of a character comes once in 6,763 rare words, whatever else brings it.
        "turns_per_million": rare / max(1, rows) * MILLION / len(FLOOR),
    }  # fmt: skip


def contact_sheet(folder: Path, out: Path, columns: int, rows: int, side_px: int) -> Path:
    """A PNG of the first samples of each tier, in the tiers' own shares."""
    from curate.synth.shards import open_world

    world = open_world(folder)
    tiles = [_square(pixels, side_px) for pixels, _ in _pictures(folder, world, None, columns * rows)]
    if not tiles:
        raise UsageError(f"{folder}: no feasible row to show")
    tiles += [np.full_like(tiles[0], 255)] * (-len(tiles) % columns)
    lines = [np.concatenate(tiles[at : at + columns], axis=1) for at in range(0, len(tiles), columns)]
    # 256 colours of its own: a third of the size, and hardly anybody sees it.
    from PIL import Image

    sheet = Image.fromarray(np.concatenate(lines, axis=0)).quantize(256, dither=Image.Dither.FLOYDSTEINBERG)
    out.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(out, "PNG", optimize=True)
    return out


def _pictures(out: Path, world: World, tier: str | None, most: int) -> list[tuple[Bytes, dict[str, Any]]]:
    """The first feasible rows of a tier, rendered from their specs."""
    found: list[tuple[Bytes, dict[str, Any]]] = []
    columns = ["synth_tier", "synth_spec", "synth_caption_zh", "synth_caption_en", "synth_index"]
    for path in shard_paths(out):
        for row in pq.read_table(path, columns=columns).to_pylist():
            if row["synth_spec"] and tier in (None, row["synth_tier"]):
                found.append((render(json.loads(row["synth_spec"]), world).rgb, row))
                if len(found) == most:
                    return found
    return found


def _thumbs(out: Path, world: World, tier: str, most: int) -> list[dict[str, Any]]:
    return [
        {
            "src": _source(_shrunk(pixels, THUMB_PX)), "index": row["synth_index"], "zh": row["synth_caption_zh"],
            "en": row["synth_caption_en"],
        }
        for pixels, row in _pictures(out, world, tier, most)
    ]  # fmt: skip


def _worst(out: Path, world: World, verified: dict[str, Any] | None) -> list[dict[str, Any]]:
    """Lines that were read wrong, cut out of their pictures."""
    if not verified:
        return []
    specs: dict[int, str] = {}
    for path in shard_paths(out):
        table = pq.read_table(path, columns=["synth_index", "synth_spec"])
        specs |= dict(zip(table["synth_index"].to_pylist(), table["synth_spec"].to_pylist(), strict=True))
    shown = []
    for read in verified["worst"]:
        if specs.get(read["index"]):
            drawn = render(json.loads(specs[read["index"]]), world)
            cut = straightened(drawn.rgb, drawn.lines[read["line"]])
            shown.append(read | {"src": _source(_shrunk(cut, 260))})
    return shown


def _shrunk(pixels: Bytes, side_px: int) -> Bytes:
    height, width = pixels.shape[:2]
    scale = min(1.0, side_px / max(height, width))
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    return np.asarray(cv2.resize(pixels, size, interpolation=cv2.INTER_AREA), np.uint8)


def _square(pixels: Bytes, side_px: int) -> Bytes:
    """A picture on a white square."""
    small = _shrunk(pixels, side_px)
    tile = np.full((side_px, side_px, 3), 255, np.uint8)
    top, left = (side_px - small.shape[0]) // 2, (side_px - small.shape[1]) // 2
    tile[top : top + small.shape[0], left : left + small.shape[1]] = small
    return tile


def _source(pixels: Bytes) -> str:
    return "data:image/jpeg;base64," + base64.b64encode(encode(pixels, 80)).decode()


def _percent(share: float | None) -> str:
    if share is None:
        return "–"
    return f"{100 * share:.2f} %".replace(".00 %", " %")
