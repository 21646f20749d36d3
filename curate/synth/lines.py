"""Lines of text: every glyph is drawn by itself, so that its quad is known and not measured.

A glyph's cell is as wide as its advance and as high as its size, centred on the ink of 国: the default anchor places
CJK text by the font's ascender, which sets Noto's glyphs 17 px too low at 48 px. A cell grows where ink leaves it.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image

from curate.synth.canvas import Bytes, Glyph, Quad, Sheet, blend, moved, shine, soft
from curate.synth.colors import RGB
from curate.synth.fonts import Face, opened
from curate.synth.spec import colored

PITCH = 1.06  # of vertical lines, in units of the size
# Chinese characters are drawn by FreeType in one size and scaled from there: of the 14 glyphs of a picture one in eight
# has been drawn before in its own size, nine in ten have been in some size. Pillow takes 0.05 to 0.5 ms for a glyph,
# which it loads three times; scaling takes 0.02 ms. One glyph in a hundred is larger and drawn in its size.
MASTER_PX = 72
LARGEST_PX = 96  # scaled up to this; nobody sees the softer edge
MASTERS = 24_576  # kept in a process, at most; 4 kB each

Drawing = tuple[Bytes, float, float]  # coverage 0..255, and where its corner lies from the origin on the baseline, px


@lru_cache(4096)
def _middle(path: str, index: int, px: int) -> float:
    """How far the middle of 国 lies below the baseline (negative: above it), px."""
    if px <= LARGEST_PX and px != MASTER_PX:
        return _middle(path, index, MASTER_PX) * px / MASTER_PX
    _, top, _, bottom = opened(path, index, px).getbbox("国", anchor="ls")
    return (top + bottom) / 2


@lru_cache(65536)
def _advance(path: str, index: int, px: int, character: str) -> float:
    if character > "\u2e7f" and character not in "·“”":
        return float(px)
    return float(opened(path, index, px).getlength(character))


def glyph(path: str, index: int, px: int, character: str) -> Drawing:
    """A character at a size. Latin ones are drawn in it, so that they keep their common baseline; large ones too."""
    if character <= "\u2e7f":
        return _latin(path, index, px, character)
    if px > LARGEST_PX:
        return _large(path, index, px, character)
    bits, left, top = _master(path, index, MASTER_PX, character)
    share = px / MASTER_PX
    high, wide = bits.shape
    size = max(1, round(wide * share)), max(1, round(high * share))
    way = cv2.INTER_AREA if 2 * px < MASTER_PX else cv2.INTER_LINEAR  # the latter in half the time
    return np.asarray(cv2.resize(bits, size, interpolation=way), np.uint8), left * share, top * share


def _drawn(path: str, index: int, px: int, character: str) -> Drawing:
    mask, (left, top) = opened(path, index, px).getmask2(character, "L", anchor="ls")
    # `bytes(mask)` goes through Python's sequence protocol: 56 us a glyph where this takes 19.
    return np.asarray(Image.Image()._new(mask)), left, top


_master = lru_cache(MASTERS)(_drawn)
_latin = lru_cache(16_384)(_drawn)  # 1 kB each
_large = lru_cache(512)(_drawn)


def _places(line: dict[str, Any], face: Face) -> list[tuple[str, float, float, float, float]]:
    """Character, middle of its cell (x, y), its turn in radians and advance, for each character of a line."""
    px, text = line["s"], line["t"]
    gap = line.get("gap", 0)
    x, y = line["at"]
    if line["d"] == "v":
        step = px + gap if gap else px * PITCH
        top = y - (len(text) - 1) * step / 2
        return [(c, float(x), top + number * step, 0.0, float(px)) for number, c in enumerate(text)]
    advances = [_advance(face.path, face.index, px, c) for c in text]
    total = sum(advances) + gap * (len(text) - 1)
    start = {"l": 0.0, "c": -total / 2, "r": -total}[line["al"]]
    turn = math.radians(line.get("turn", 0) / 10)
    cos, sin = math.cos(turn), math.sin(turn)
    places = []
    for c, advance in zip(text, advances, strict=True):
        along = start + advance / 2
        if "arc" in line:
            radius = line["arc"]
            angle = along / radius
            places.append((c, x + radius * math.sin(angle), y + radius * (1 - math.cos(angle)), angle, advance))
        else:
            places.append((c, x + along * cos, y + along * sin, turn, advance))
        start += advance + gap
    return places


def set_line(sheet: Sheet, line: dict[str, Any], face: Face, shade: Bytes | None) -> None:
    """Draw a line of text with its effects; remember its cells. `shade` is the light on it in 128ths."""
    px = line["s"]
    places = _places(line, face)
    middle = _middle(face.path, face.index, px)
    drawn: list[tuple[Bytes, int, int]] = []
    sheet.starts.append(len(sheet.boxes))
    sheet.turned.append("turn" in line)
    for character, cx, cy, angle, advance in places:
        bits, left, top = glyph(face.path, face.index, px, character)
        # The origin of the glyph, seen from the middle of its cell.
        ox, oy = left - advance / 2, top - middle
        down, across = bits.shape
        if bits.size:
            if angle:
                pasted, ix, iy = _turned(bits, (cx, cy), (ox, oy), angle)
            else:
                pasted, ix, iy = bits, round(cx + ox), round(cy + oy)
                cx, cy = ix - ox, iy - oy  # where rounding to whole pixels has put the middle
            drawn.append((pasted, ix, iy))
            sheet.visible.append((character, len(sheet.starts) - 1, len(sheet.boxes)))
            if sheet.labels is not None:
                _label(sheet.labels, pasted, ix, iy, len(sheet.visible))
        sheet.boxes.append(
            (min(-advance / 2, ox), min(-px / 2, oy), max(advance / 2, ox + across), max(px / 2, oy + down))
        )
        sheet.middles.append((cx, cy))
        sheet.angles.append(angle)
    x0, y0, x1, y1 = _region(line, places, drawn, sheet.rgb.shape[1], sheet.rgb.shape[0])
    if x1 <= x0 or y1 <= y0:
        sheet.overlap = True
        return
    mask = np.zeros((y1 - y0, x1 - x0), np.uint8)
    for pasted, ix, iy in drawn:
        _paste(mask, pasted, ix - x0, iy - y0)
    ink = sheet.ink[y0:y1, x0:x1]
    if int(cv2.min(ink, mask).max()) > 64:
        sheet.overlap = True
    cv2.max(ink, mask, dst=ink)
    _paint(sheet.rgb[y0:y1, x0:x1], mask, line, None if shade is None else shade[y0:y1, x0:x1])


def finish(sheet: Sheet) -> None:
    """Make the quads of glyphs and lines of the cells that `set_line` has remembered, all at once."""
    cells = _cells(sheet.boxes, sheet.middles, sheet.angles)
    sheet.glyphs = [Glyph(character, line, cells[at]) for character, line, at in sheet.visible]
    # The upright box around the cells of a line that is level, upright or bent.
    low = np.minimum.reduceat(cells.min(1), sheet.starts)
    high = np.maximum.reduceat(cells.max(1), sheet.starts)
    sheet.lines = list(np.concatenate((low, high), 1)[:, [[0, 1], [2, 1], [2, 3], [0, 3]]])
    for number, turned in enumerate(sheet.turned):
        if turned:
            end = sheet.starts[number + 1] if number + 1 < len(sheet.starts) else len(cells)
            sheet.lines[number] = _turned_quad(cells[sheet.starts[number] : end])


def _region(
    line: dict[str, Any], places: list[tuple[str, float, float, float, float]], drawn: list[tuple[Bytes, int, int]],
    wide: int, high: int,
) -> tuple[int, int, int, int]:  # fmt: skip
    """Left, top, right and bottom of what a line changes in a picture: its ink and its effects."""
    reach = _reach(line)
    if drawn and "glow" not in line and "grad" not in line:
        x0, y0 = min(ix for _, ix, _ in drawn), min(iy for _, _, iy in drawn)
        x1, y1 = max(ix + bits.shape[1] for bits, ix, _ in drawn), max(iy + bits.shape[0] for bits, _, iy in drawn)
    else:  # a glow, and a gradient from the top to the bottom, go by the cells and not by the ink
        reach += math.ceil(0.75 * line["s"])
        xs, ys = [place[1] for place in places], [place[2] for place in places]
        x0, y0, x1, y1 = math.floor(min(xs)), math.floor(min(ys)), math.ceil(max(xs)), math.ceil(max(ys))
    return max(0, x0 - reach), max(0, y0 - reach), min(wide, x1 + reach), min(high, y1 + reach)


def _reach(line: dict[str, Any]) -> int:
    """How far effects go beyond the glyphs, px."""
    reach = 4
    if "out" in line:
        reach += int(line["out"][0])
    if "sh" in line:
        reach += max(abs(line["sh"][0]), abs(line["sh"][1])) + 3 * int(line["sh"][2])
    if "glow" in line:
        reach += line["s"]
    return reach


def _paste(mask: Bytes, bits: Bytes, x: int, y: int) -> None:
    """The larger of both coverages where a bitmap lies on a mask; parts outside are cut off."""
    high, wide = bits.shape
    on = mask[max(0, y) : max(0, y + high), max(0, x) : max(0, x + wide)]
    if on.shape != bits.shape:
        bits = bits[max(0, -y) :, max(0, -x) :][: on.shape[0], : on.shape[1]]
    if on.size:
        cv2.max(on, bits, dst=on)


def _turned(
    bits: Bytes, middle: tuple[float, float], offset: tuple[float, float], angle: float
) -> tuple[Bytes, int, int]:
    """A bitmap turned around the middle of its cell, and where its corner is."""
    cos, sin = math.cos(angle), math.sin(angle)
    high, wide = bits.shape
    xs = (offset[0], offset[0] + wide)
    ys = (offset[1], offset[1] + high)
    corners = [(middle[0] + x * cos - y * sin, middle[1] + x * sin + y * cos) for x in xs for y in ys]
    left, top = math.floor(min(x for x, _ in corners)) - 1, math.floor(min(y for _, y in corners)) - 1
    right, bottom = math.ceil(max(x for x, _ in corners)) + 1, math.ceil(max(y for _, y in corners)) + 1
    # Pixel (i, j) of the bitmap has its middle at offset + (i, j) + 0.5.
    x, y = offset[0] + 0.5, offset[1] + 0.5
    shift_x = middle[0] + x * cos - y * sin - 0.5 - left
    shift_y = middle[1] + x * sin + y * cos - 0.5 - top
    matrix = np.array([[cos, -sin, shift_x], [sin, cos, shift_y]])
    turned = cv2.warpAffine(bits, matrix, (right - left, bottom - top), flags=cv2.INTER_LINEAR)
    return np.asarray(turned, np.uint8), left, top


def _label(labels: npt.NDArray[np.uint16], bits: Bytes, x: int, y: int, number: int) -> None:
    high, wide = bits.shape
    a, b, c, d = max(0, x), max(0, y), min(labels.shape[1], x + wide), min(labels.shape[0], y + high)
    if c > a and d > b:
        labels[b:d, a:c][bits[b - y : d - y, a - x : c - x] > 48] = number


def _cells(
    boxes: list[tuple[float, float, float, float]], middles: list[tuple[float, float]], angles: list[float]
) -> Quad:
    """The quads of glyphs, (n, 4, 2): cells, grown to hold their ink, turned around their middles."""
    corners = np.array(boxes, np.float32)[:, [[0, 1], [2, 1], [2, 3], [0, 3]]]
    if any(angles):
        cos, sin = np.cos(angles, dtype=np.float32), np.sin(angles, dtype=np.float32)
        corners = corners @ np.stack([cos, sin, -sin, cos], 1).reshape(-1, 2, 2)
    return np.asarray(corners + np.array(middles, np.float32)[:, None], np.float32)


def _turned_quad(cells: Quad) -> Quad:
    """The quad of a turned line, from its first to its last cell; it grows where a cell in between is higher."""
    first, last = cells[0], cells[-1]
    quad = np.array([first[0], last[1], last[2], first[3]], np.float32)
    down = quad[3] - quad[0]
    across = quad[1] - quad[0]
    # In the frame of the quad: how far cells go beyond its sides.
    points = cells.reshape(-1, 2) - quad[0]
    area = float(across[0] * down[1] - across[1] * down[0])
    along = (points[:, 0] * down[1] - points[:, 1] * down[0]) / area
    below = (across[0] * points[:, 1] - across[1] * points[:, 0]) / area
    low_x, high_x, low_y, high_y = min(0, along.min()), max(1, along.max()), min(0, below.min()), max(1, below.max())
    corners = ((low_x, low_y), (high_x, low_y), (high_x, high_y), (low_x, high_y))
    return np.array([quad[0] + x * across + y * down for x, y in corners], np.float32)


def _paint(rgb: Bytes, mask: Bytes, line: dict[str, Any], shade: Bytes | None) -> None:
    """Lay the colour of a line over the pixels, in the order shadow, glow, outline, ink."""
    if "sh" in line:
        dx, dy, blur, percent = line["sh"]
        blend(rgb, moved(soft(mask, blur), dx, dy), (0, 0, 0), percent / 100)
    if "glow" in line:
        shine(rgb, mask, colored(line["glow"]), line["s"] / 7)
    if "out" in line:
        width, edge = line["out"]
        kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * width + 1, 2 * width + 1))
        blend(rgb, np.asarray(cv2.dilate(mask, kernel), np.uint8), colored(edge))
    color: RGB | Bytes = colored(line["c"])
    if "grad" in line:
        a, b = np.array(color, np.float32), np.array(colored(line["grad"]), np.float32)
        share = np.clip((np.arange(mask.shape[0], dtype=np.float32) / mask.shape[0] - 0.25) * 2, 0, 1)
        color = np.repeat((a + (b - a) * share[:, None]).astype(np.uint8)[:, None], mask.shape[1], axis=1)
    blend(rgb, mask, color, light=shade)
