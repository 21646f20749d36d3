"""Spec to pixels and quads: a pure function of a spec and its assets.

Every glyph is drawn by itself, so that its quad is known and not measured. A glyph's cell is as wide as its advance and
as high as its size, centred on the ink of 国: the default anchor places CJK text by the font's ascender, which sets
Noto's glyphs 17 px too low at 48 px. A cell grows where ink leaves it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image

from curate.synth.colors import RGB
from curate.synth.draw import Draw
from curate.synth.fonts import Face, opened
from curate.synth.spec import Spec, World, colored

Bytes = npt.NDArray[np.uint8]
Reals = npt.NDArray[np.float32]
Quad = npt.NDArray[np.float32]  # (4, 2): corners clockwise from the start of the text, px of the picture

TILE_PX = 1024
PITCH = 1.06  # of vertical lines, in units of the size


@dataclass
class Glyph:
    """One visible character: its cell, the number of its line, and where its own bitmap lies upright."""

    character: str
    line: int
    quad: Quad


@dataclass
class Rendered:
    """A drawn picture. `ink` is the coverage of all glyphs, 0..255; `labels` each glyph's number from 1, if asked."""

    rgb: Bytes
    ink: Bytes
    glyphs: list[Glyph]
    lines: list[Quad]
    overlap: bool
    labels: npt.NDArray[np.uint16] | None = None


@dataclass
class _Sheet:
    """What is drawn on: the picture itself or a plane."""

    rgb: Bytes
    ink: Bytes
    labels: npt.NDArray[np.uint16] | None
    glyphs: list[Glyph] = field(default_factory=list)
    lines: list[Quad] = field(default_factory=list)
    overlap: bool = False


def render(spec: Spec, world: World, trace: bool = False) -> Rendered:
    """Draw a spec. With `trace` every pixel of ink is labelled with its glyph, for checks of the quads."""
    cv2.setNumThreads(1)
    width, height = spec["size"]
    rgb = _ground(spec["ground"], width, height, spec["index"], world)
    sheet = _sheet(rgb, trace)
    plane = spec.get("plane")
    if plane:
        on = _sheet(_ground(plane["ground"], plane["w"], plane["h"], spec["index"] + 7, world), trace)
        _draw(spec, on, world, None)
        _lay(sheet, on, plane)
    else:
        shade = _shading(rgb) if spec["say"].get("shaded") else None
        _draw(spec, sheet, world, shade)
    grain, x, y, blur, _ = spec["finish"]
    out = sheet.rgb
    if blur:
        out = np.asarray(cv2.GaussianBlur(out, (3, 3), blur / 10), np.uint8)
    if grain:
        out = _textured(out, _tile("grain", grain), x, y)
    return Rendered(out, sheet.ink, sheet.glyphs, sheet.lines, sheet.overlap, sheet.labels)


def encode(rgb: Bytes, quality: int) -> bytes:
    """JPEG bytes."""
    done, data = cv2.imencode(".jpg", cv2.cvtColor(rgb, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, quality])
    if not done:
        raise ValueError("the picture could not be encoded as JPEG")
    return bytes(data)


def clean(text: str, face: Face, px: int) -> Rendered:
    """The text black on white, flat, in one row: what OCR is compared with."""
    pad = px // 2
    sheet = _sheet(np.full((px + 2 * pad, round(1.1 * px * len(text)) + 2 * pad, 3), 255, np.uint8), False)
    line = {"t": text, "f": face.id, "s": px, "c": "101010", "at": [pad, pad + px // 2], "d": "h", "al": "l"}
    _line(sheet, line, face, None)
    return Rendered(sheet.rgb, sheet.ink, sheet.glyphs, sheet.lines, sheet.overlap)


def _sheet(rgb: Bytes, trace: bool) -> _Sheet:
    high, wide = rgb.shape[:2]
    labels = np.zeros((high, wide), np.uint16) if trace else None
    return _Sheet(rgb, np.zeros((high, wide), np.uint8), labels)


def _draw(spec: Spec, sheet: _Sheet, world: World, shade: Reals | None) -> None:
    for shape in spec["shapes"]:
        _shape(sheet, shape)
    for line in spec["lines"]:
        _line(sheet, line, world.by_id[line["f"]], shade)


# ------------------------------------------------------------------------------------------------------------ grounds


def _ground(ground: dict[str, Any], width: int, height: int, key: int, world: World) -> Bytes:
    kind = ground["kind"]
    if kind == "photo":
        left, top, wide, high = ground["crop"]
        source = world.photographs.pixels(ground["id"])[top : top + high, left : left + wide]
        # Photographs are stored little larger than the pictures: INTER_AREA would take four times as long.
        method = cv2.INTER_AREA if wide > 1.6 * width else cv2.INTER_LINEAR
        return np.asarray(cv2.resize(source, (width, height), interpolation=method), np.uint8)
    first, second = colored(ground["c"]), colored(ground["c2"])
    if kind == "gradient":
        rgb = _gradient(first, second, width, height, ground.get("way", "v"))
    else:
        rgb = _flat(first, width, height)
    x, y = (key * 389) % (TILE_PX // 2), (key * 613) % (TILE_PX // 2)
    if kind == "paper":
        rgb = _textured(rgb, _tile("paper", 4), x, y)
    elif kind == "wall":
        rgb = _textured(rgb, _tile("wall", 9), x, y)
    elif kind == "wood":
        rgb = _textured(rgb, _tile("wood", 13), x, y)
    elif kind == "cloth":
        rgb = _textured(rgb, _tile("cloth", 9), x, y)
    elif kind == "brick":
        _bricks(rgb, first, second, key)
        rgb = _textured(rgb, _tile("wall", 9), x, y)
    for x1, y1, x2, y2 in ground.get("ropes", ()):
        cv2.line(rgb, (x1, y1), (x2, y2), (70, 64, 56), 2, cv2.LINE_AA)
    return rgb


def _flat(color: RGB, width: int, height: int) -> Bytes:
    """Pixels of one colour; a third of the time of assigning it."""
    row = np.tile(np.array(color, np.uint8), width)
    return np.ascontiguousarray(np.broadcast_to(row, (height, 3 * width))).reshape(height, width, 3)


def _gradient(first: RGB, second: RGB, width: int, height: int, way: str) -> Bytes:
    a, b = np.array(first, np.float32), np.array(second, np.float32)
    down = np.linspace(0, 1, height, dtype=np.float32)[:, None]
    across = np.linspace(0, 1, width, dtype=np.float32)[None, :]
    if way == "v":
        column = (a + (b - a) * down + 0.5).astype(np.uint8)[:, None, :]
        return np.ascontiguousarray(np.broadcast_to(column, (height, width, 3)))
    if way == "h":
        row = (a + (b - a) * across[0][:, None] + 0.5).astype(np.uint8)[None, :, :]
        return np.ascontiguousarray(np.broadcast_to(row, (height, width, 3)))
    share = ((down + across) * 127.5).astype(np.uint8)
    table = (a + (b - a) * np.linspace(0, 1, 256, dtype=np.float32)[:, None] + 0.5).astype(np.uint8)
    return np.ascontiguousarray(table[share])


def _bricks(rgb: Bytes, first: RGB, mortar: RGB, key: int) -> None:
    """Courses of bricks, each a little lighter or darker than `first`."""
    height, width = rgb.shape[:2]
    course = max(14, height // 18)
    length = round(2.6 * course)
    rgb[:] = mortar
    tones = [tuple(int(min(255, max(0, value * (0.9 + 0.02 * step)))) for value in first) for step in range(11)]
    draw = Draw("bricks", key)
    for row in range(-(-height // course)):
        shift = (length // 2) * (row % 2)
        for x in range(-shift, width, length):
            corner = (x + 1, row * course + 1)
            cv2.rectangle(rgb, corner, (x + length - 2, (row + 1) * course - 2), tones[draw.whole(0, 10)], -1)


@lru_cache(64)
def _tile(kind: str, strength: int) -> tuple[Bytes, Bytes]:
    """A texture: what is added to a ground and what is taken away, 8-bit values, their deviation about `strength`."""
    noise = np.random.Generator(np.random.PCG64(20240709))
    fine = noise.standard_normal((TILE_PX, TILE_PX), dtype=np.float32)
    field_: Any
    if kind == "grain":
        field_ = cv2.GaussianBlur(fine, (3, 3), 0.6)
    elif kind == "paper":
        field_ = cv2.GaussianBlur(fine, (0, 0), 1.2) / 0.25 + cv2.GaussianBlur(fine[::-1], (0, 0), 9) / 0.03
    elif kind == "wall":
        field_ = (
            fine * 0.5 + cv2.GaussianBlur(fine[::-1], (0, 0), 3) / 0.1 + cv2.GaussianBlur(fine.T, (0, 0), 40) / 0.007
        )
    elif kind == "wood":
        rows = cv2.GaussianBlur(fine, (0, 0), sigmaX=60, sigmaY=1.1)
        field_ = rows / rows.std() + 0.5 * cv2.GaussianBlur(fine[::-1], (0, 0), sigmaX=120, sigmaY=7) / 0.02
    else:  # cloth: folds from the top to the bottom, and its weave
        folds = cv2.GaussianBlur(fine, (0, 0), sigmaX=22, sigmaY=160)
        field_ = folds / folds.std() + 0.25 * fine
    field_ = field_ * (strength / float(field_.std()))
    planes = np.repeat(field_[..., None], 3, axis=2)
    if kind == "grain":  # sensors are not quite grey
        planes = planes + 0.35 * strength * noise.standard_normal(planes.shape, dtype=np.float32)
    planes = np.clip(np.rint(planes), -127, 127)
    return np.maximum(planes, 0).astype(np.uint8), np.maximum(-planes, 0).astype(np.uint8)


def _textured(rgb: Bytes, tile: tuple[Bytes, Bytes], x: int, y: int) -> Bytes:
    """Pixels with a texture, from its point (x, y); saturating 8-bit sums, a fourth of the time of signed ones."""
    height, width = rgb.shape[:2]
    plus, minus = tile
    while y + height > plus.shape[0] or x + width > plus.shape[1]:
        plus, minus = np.tile(plus, (2, 2, 1)), np.tile(minus, (2, 2, 1))
    cut = slice(y, y + height), slice(x, x + width)
    return np.asarray(cv2.subtract(cv2.add(rgb, plus[cut]), minus[cut]), np.uint8)


def _shading(rgb: Bytes) -> Reals:
    """Light and dark of the ground in the large, 0.82..1.18: text on a photograph takes part in it."""
    height, width = rgb.shape[:2]
    luma = cv2.cvtColor(cv2.resize(rgb, (16, 16), interpolation=cv2.INTER_AREA), cv2.COLOR_RGB2GRAY)
    wide = cv2.GaussianBlur(luma.astype(np.float32), (0, 0), 1.5)
    field_ = 1 + 0.15 * np.clip(wide / max(1.0, float(wide.mean())) - 1, -1.2, 1.2)
    return np.asarray(cv2.resize(field_, (width, height), interpolation=cv2.INTER_LINEAR), np.float32)


# ------------------------------------------------------------------------------------------------------------- shapes


def _shape(sheet: _Sheet, shape: Sequence[Any]) -> None:
    kind, color, numbers = shape[0], colored(shape[1]), [int(n) for n in shape[2:]]
    rgb = sheet.rgb
    if kind == "rect":
        x, y, w, h = numbers[:4]
        if len(numbers) > 4:
            cv2.fillPoly(rgb, [_rounded(x, y, w, h, min(w, h) * numbers[4] // 100)], color, cv2.LINE_AA)
        else:
            cv2.rectangle(rgb, (x, y), (x + w - 1, y + h - 1), color, -1)
    elif kind == "glass":
        x, y, w, h, percent, corner = numbers
        cut = rgb[y : y + h, x : x + w]
        over = cut.copy()
        cv2.fillPoly(over, [_rounded(0, 0, cut.shape[1], cut.shape[0], corner)], color, cv2.LINE_AA)
        rgb[y : y + h, x : x + w] = cv2.addWeighted(over, percent / 100, cut, 1 - percent / 100, 0)
    elif kind == "frame":
        x, y, w, h, thick = numbers
        cv2.rectangle(rgb, (x, y), (x + w - 1, y + h - 1), color, max(1, thick), cv2.LINE_AA)
    elif kind == "neonframe":
        x, y, w, h, thick = numbers
        mask = np.zeros(rgb.shape[:2], np.uint8)
        cv2.polylines(mask, [_rounded(x, y, w, h, 20)], True, 255, thick, cv2.LINE_AA)
        _glow(rgb, mask, color, 9.0)
        cv2.polylines(rgb, [_rounded(x, y, w, h, 20)], True, [(c + 2 * 255) // 3 for c in color], thick, cv2.LINE_AA)
    elif kind == "disc":
        cv2.circle(rgb, (numbers[0], numbers[1]), max(1, numbers[2]), color, -1, cv2.LINE_AA)
    elif kind == "ring":
        cv2.circle(rgb, (numbers[0], numbers[1]), numbers[2], color, max(1, numbers[3]), cv2.LINE_AA)
    elif kind == "line":
        x1, y1, x2, y2, thick = numbers
        cv2.line(rgb, (x1, y1), (x2, y2), color, max(1, thick), cv2.LINE_AA)
    elif kind == "dots":
        x1, y, x2, step = numbers
        for x in range(x1, x2, step):
            cv2.circle(rgb, (x, y), 1, color, -1, cv2.LINE_AA)
    else:
        cv2.fillPoly(rgb, [np.array(numbers, np.int32).reshape(-1, 2)], color, cv2.LINE_AA)


def _rounded(x: int, y: int, w: int, h: int, radius: int) -> npt.NDArray[np.int32]:
    """The outline of a rectangle with round corners."""
    if radius < 1:
        return np.array([[x, y], [x + w - 1, y], [x + w - 1, y + h - 1], [x, y + h - 1]], np.int32)
    points = []
    far_x, far_y = w - radius - 1, h - radius - 1
    for cx, cy, start in ((far_x, radius, -90), (far_x, far_y, 0), (radius, far_y, 90), (radius, radius, 180)):
        for step in range(7):
            angle = math.radians(start + 15 * step)
            points.append([x + cx + radius * math.cos(angle), y + cy + radius * math.sin(angle)])
    return np.asarray(np.rint(points), np.int32)


# --------------------------------------------------------------------------------------------------------------- text


@lru_cache(4096)
def _middle(path: str, index: int, px: int) -> float:
    """How far the middle of 国 lies below the baseline (negative: above it), px."""
    _, top, _, bottom = opened(path, index, px).getbbox("国", anchor="ls")
    return (top + bottom) / 2


@lru_cache(65536)
def _advance(path: str, index: int, px: int, character: str) -> float:
    if character > "\u2e7f" and character not in "·“”":
        return float(px)
    return float(opened(path, index, px).getlength(character))


@lru_cache(8192)
def _bitmap(path: str, index: int, px: int, character: str) -> tuple[Bytes, int, int]:
    """Coverage of a character 0..255, and the offset of its corner from the origin on the baseline."""
    mask, (left, top) = opened(path, index, px).getmask2(character, "L", anchor="ls")
    # `bytes(mask)` goes through Python's sequence protocol: 56 us a glyph where this takes 19.
    return np.asarray(Image.Image()._new(mask)), int(left), int(top)


def _places(line: dict[str, Any], face: Face) -> list[tuple[str, float, float, float, float]]:
    """Character, middle of its cell (x, y), its turn in radians and advance, for each character of a line."""
    px, text = line["s"], line["t"]
    gap = line.get("gap", 0)
    turn = math.radians(line.get("turn", 0) / 10)
    x, y = line["at"]
    if line["d"] == "v":
        step = px + gap if gap else px * PITCH
        top = y - (len(text) - 1) * step / 2
        return [(c, float(x), top + number * step, 0.0, float(px)) for number, c in enumerate(text)]
    advances = [_advance(face.path, face.index, px, c) for c in text]
    total = sum(advances) + gap * (len(text) - 1)
    start = {"l": 0.0, "c": -total / 2, "r": -total}[line["al"]]
    places = []
    for c, advance in zip(text, advances, strict=True):
        along = start + advance / 2
        if "arc" in line:
            radius = line["arc"]
            angle = along / radius
            place = (x + radius * math.sin(angle), y + radius * (1 - math.cos(angle)), angle)
        else:
            place = (x + along * math.cos(turn), y + along * math.sin(turn), turn)
        places.append((c, *place, advance))
        start += advance + gap
    return places


def _line(sheet: _Sheet, line: dict[str, Any], face: Face, shade: Reals | None) -> None:
    """Draw a line of text with its effects; remember its quads."""
    px = line["s"]
    high, wide = sheet.rgb.shape[:2]
    places = _places(line, face)
    middle = _middle(face.path, face.index, px)
    reach = math.ceil(0.75 * px) + _reach(line)
    xs, ys = [place[1] for place in places], [place[2] for place in places]
    x0, y0 = max(0, math.floor(min(xs)) - reach), max(0, math.floor(min(ys)) - reach)
    x1, y1 = min(wide, math.ceil(max(xs)) + reach), min(high, math.ceil(max(ys)) + reach)
    if x1 <= x0 or y1 <= y0:
        sheet.overlap = True
        return
    mask = np.zeros((y1 - y0, x1 - x0), np.uint8)
    number = len(sheet.lines)
    cells = []
    for character, cx, cy, angle, advance in places:
        bits, left, top = _bitmap(face.path, face.index, px, character)
        # The origin of the glyph, seen from the middle of its cell.
        ox, oy = -advance / 2 + left, -middle + top
        if angle:
            ox, oy = _paste_turned(mask, bits, (cx - x0, cy - y0), (ox, oy), angle)
        else:
            ix, iy = round(cx + ox), round(cy + oy)
            _paste(mask, bits, ix - x0, iy - y0)
            cx, cy = ix - ox, iy - oy  # where rounding to whole pixels has put the middle
        cell = _cell(bits, (ox, oy), advance, px, (cx, cy), angle)
        cells.append(cell)
        if bits.size:
            sheet.glyphs.append(Glyph(character, number, cell))
            if sheet.labels is not None:
                _label(sheet.labels, bits, (cx, cy), (ox, oy), angle, len(sheet.glyphs))
    sheet.lines.append(_around(cells) if "arc" in line else _line_quad(cells, line["d"] == "v"))
    ink = sheet.ink[y0:y1, x0:x1]
    if int(cv2.min(ink, mask).max(initial=0)) > 64:
        sheet.overlap = True
    np.maximum(ink, mask, out=ink)
    _paint(sheet.rgb[y0:y1, x0:x1], mask, line, None if shade is None else shade[y0:y1, x0:x1])


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
    a, b = max(0, x), max(0, y)
    c, d = min(mask.shape[1], x + wide), min(mask.shape[0], y + high)
    if c > a and d > b:
        on = mask[b:d, a:c]
        np.maximum(on, bits[b - y : d - y, a - x : c - x], out=on)


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


def _paste_turned(
    mask: Bytes, bits: Bytes, middle: tuple[float, float], offset: tuple[float, float], angle: float
) -> tuple[float, float]:
    if bits.size:
        turned, left, top = _turned(bits, middle, offset, angle)
        _paste(mask, turned, left, top)
    return offset


def _label(
    labels: npt.NDArray[np.uint16], bits: Bytes, middle: tuple[float, float], offset: tuple[float, float], angle: float,
    number: int,
) -> None:  # fmt: skip
    if angle:
        bits, x, y = _turned(bits, middle, offset, angle)
    else:
        x, y = round(middle[0] + offset[0]), round(middle[1] + offset[1])
    high, wide = bits.shape
    a, b, c, d = max(0, x), max(0, y), min(labels.shape[1], x + wide), min(labels.shape[0], y + high)
    if c > a and d > b:
        on = labels[b:d, a:c]
        on[bits[b - y : d - y, a - x : c - x] > 48] = number


def _cell(
    bits: Bytes, offset: tuple[float, float], advance: float, px: int, middle: tuple[float, float], angle: float
) -> Quad:
    """The quad of a glyph: its cell, grown to hold its ink."""
    left, right, top, bottom = -advance / 2, advance / 2, -px / 2, px / 2
    if bits.size:
        left, right = min(left, offset[0]), max(right, offset[0] + bits.shape[1])
        top, bottom = min(top, offset[1]), max(bottom, offset[1] + bits.shape[0])
    corners = np.array([[left, top], [right, top], [right, bottom], [left, bottom]], np.float32)
    if angle:
        cos, sin = math.cos(angle), math.sin(angle)
        corners = corners @ np.array([[cos, sin], [-sin, cos]], np.float32)
    return np.asarray(corners + np.array(middle, np.float32), np.float32)


def _line_quad(cells: list[Quad], vertical: bool) -> Quad:
    """The quad of a straight line, from its first to its last cell; it grows where a cell in between is higher."""
    first, last = cells[0], cells[-1]
    ends = [first[0], first[1], last[2], last[3]] if vertical else [first[0], last[1], last[2], first[3]]
    quad = np.array(ends, np.float32)
    down = quad[3] - quad[0]
    across = quad[1] - quad[0]
    # In the frame of the quad: how far cells go beyond its sides.
    points = np.concatenate(cells) - quad[0]
    area = float(across[0] * down[1] - across[1] * down[0])
    along = (points[:, 0] * down[1] - points[:, 1] * down[0]) / area
    below = (across[0] * points[:, 1] - across[1] * points[:, 0]) / area
    low_x, high_x, low_y, high_y = min(0, along.min()), max(1, along.max()), min(0, below.min()), max(1, below.max())
    corners = ((low_x, low_y), (high_x, low_y), (high_x, high_y), (low_x, high_y))
    return np.array([quad[0] + x * across + y * down for x, y in corners], np.float32)


def _around(cells: list[Quad]) -> Quad:
    """The upright box around the cells of a bent line."""
    points = np.concatenate(cells)
    low, high = points.min(0), points.max(0)
    return np.array([[low[0], low[1]], [high[0], low[1]], [high[0], high[1]], [low[0], high[1]]], np.float32)


def _paint(rgb: Bytes, mask: Bytes, line: dict[str, Any], shade: Reals | None) -> None:
    """Lay the colour of a line over the pixels, in the order shadow, glow, outline, ink."""
    if "sh" in line:
        dx, dy, blur, percent = line["sh"]
        _cover(
            rgb, _moved(np.asarray(cv2.GaussianBlur(mask, (0, 0), blur), np.uint8), dx, dy), (0, 0, 0), percent / 100
        )
    if "glow" in line:
        _glow(rgb, mask, colored(line["glow"]), line["s"] / 7)
    if "out" in line:
        width, edge = line["out"]
        kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * width + 1, 2 * width + 1))
        _cover(rgb, np.asarray(cv2.dilate(mask, kernel), np.uint8), colored(edge))
    color: Any = colored(line["c"])
    if "grad" in line:
        first, last = np.array(color, np.float32), np.array(colored(line["grad"]), np.float32)
        share = np.clip((np.arange(mask.shape[0], dtype=np.float32) / mask.shape[0] - 0.25) * 2, 0, 1)
        color = (first + (last - first) * share[:, None])[:, None, :]
    if shade is not None:
        color = np.minimum(np.asarray(color, np.float32) * shade[..., None], 255)
    _cover(rgb, mask, color)


def _cover(rgb: Bytes, mask: Bytes, color: Any, strength: float = 1.0) -> None:
    """Blend a colour, or a picture of colours, over pixels by a coverage 0..255.

    In 16 bits, plane by plane: 0.2 ms for a line of 100 x 400 px, where float32 took 2.6 ms.
    """
    share = mask.astype(np.uint16)
    if strength < 1:
        share = np.asarray((share * round(256 * strength)) >> 8, np.uint16)
    rest = 255 - share
    for channel in range(3):
        plane = rgb[..., channel]
        over = color[..., channel].astype(np.uint16) if isinstance(color, np.ndarray) else color[channel]
        plane[:] = (plane * rest + share * over + 127) // 255


def _glow(rgb: Bytes, mask: Bytes, color: RGB, sigma: float) -> None:
    """Light of a colour around a mask, added to what is there."""
    half = cv2.resize(mask, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA)
    small = cv2.resize(half, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA)
    near = cv2.resize(cv2.GaussianBlur(half, (0, 0), max(0.5, sigma / 2)), mask.shape[::-1])
    far = cv2.resize(cv2.GaussianBlur(small, (0, 0), max(0.5, sigma * 0.7)), mask.shape[::-1])
    light = cv2.addWeighted(near, 0.375, far, 0.45, 0)
    planes = [cv2.convertScaleAbs(light, alpha=channel / 255) for channel in color]
    rgb[:] = cv2.add(rgb, cv2.merge(planes))


# -------------------------------------------------------------------------------------------------------------- planes


def _lay(sheet: _Sheet, on: _Sheet, plane: dict[str, Any]) -> None:
    """Lay a plane over the picture: in perspective, in the light of what is around it, with a shadow below it."""
    high, wide = sheet.rgb.shape[:2]
    quad = np.array(plane["quad"], np.float32).reshape(4, 2)
    corners = np.array([[0, 0], [plane["w"], 0], [plane["w"], plane["h"]], [0, plane["h"]]], np.float32)
    # Pixel middles lie at .5: OpenCV's warp counts from them, quads from pixel edges.
    matrix = cv2.getPerspectiveTransform(corners, quad)
    shadow = plane.get("shadow", [0, 0, 0, 0])
    reach = 3 * shadow[2] + max(abs(shadow[0]), abs(shadow[1])) + 2
    x0, y0 = max(0, int(quad[:, 0].min()) - reach), max(0, int(quad[:, 1].min()) - reach)
    x1, y1 = min(wide, math.ceil(quad[:, 0].max()) + reach), min(high, math.ceil(quad[:, 1].max()) + reach)
    moved = _shift(-x0 - 0.5, -y0 - 0.5) @ matrix @ _shift(0.5, 0.5)
    size = (x1 - x0, y1 - y0)
    below = sheet.rgb[y0:y1, x0:x1]
    radius = min(plane["w"], plane["h"]) * plane.get("round", 0) // 100
    outline = _through(matrix, _rounded(0, 0, plane["w"], plane["h"], radius).astype(np.float32) + 0.5)
    cover = np.zeros((y1 - y0, x1 - x0), np.uint8)
    cv2.fillPoly(cover, [np.rint((outline - (x0 + 0.5, y0 + 0.5)) * 16).astype(np.int32)], 255, cv2.LINE_AA, 4)
    pixels = cv2.warpPerspective(on.rgb, moved, size, flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    light = _light(below, plane["shade"])
    if shadow[3]:
        _cover(below, _fallen(cover, shadow), (0, 0, 0), shadow[3] / 100)
    _cover(below, cover, cv2.multiply(pixels, light, scale=1 / 128))
    ink = np.asarray(cv2.warpPerspective(on.ink, moved, size, flags=cv2.INTER_LINEAR), np.uint8)
    np.maximum(sheet.ink[y0:y1, x0:x1], ink, out=sheet.ink[y0:y1, x0:x1])
    if sheet.labels is not None and on.labels is not None:
        sheet.labels[y0:y1, x0:x1] = cv2.warpPerspective(on.labels, moved, size, flags=cv2.INTER_NEAREST)
    sheet.glyphs = [Glyph(g.character, g.line, _through(matrix, g.quad)) for g in on.glyphs]
    sheet.lines = [_through(matrix, line) for line in on.lines]
    sheet.overlap = on.overlap


def _shift(x: float, y: float) -> npt.NDArray[np.float64]:
    return np.array([[1, 0, x], [0, 1, y], [0, 0, 1]], np.float64)


def _through(matrix: Any, quad: Quad) -> Quad:
    return np.asarray(cv2.perspectiveTransform(quad[None], matrix)[0], np.float32)


def _light(below: Bytes, percent: int) -> Bytes:
    """What the light of the surroundings does to a plane, about 128: their large shapes, a little more from above."""
    high, wide = below.shape[:2]
    luma = cv2.cvtColor(cv2.resize(below, (16, 16), interpolation=cv2.INTER_AREA), cv2.COLOR_RGB2GRAY).astype(
        np.float32
    )
    luma = np.asarray(cv2.GaussianBlur(luma, (0, 0), 3), np.float32)
    field_ = 1 + percent / 100 * np.clip(luma / max(1.0, float(luma.mean())) - 1, -0.6, 0.6)
    field_ *= np.linspace(1.05, 0.93, 16, dtype=np.float32)[:, None]
    gain = cv2.resize(np.rint(128 * field_).astype(np.uint8), (wide, high), interpolation=cv2.INTER_LINEAR)
    return np.asarray(cv2.merge((gain, gain, gain)), np.uint8)


def _fallen(cover: Bytes, shadow: Sequence[int]) -> Bytes:
    """The soft shadow of a shape, moved; blurred at a quarter of the size, which nobody sees."""
    high, wide = cover.shape
    dx, dy, sigma, _ = shadow
    small = cv2.resize(cover, (-(-wide // 4), -(-high // 4)), interpolation=cv2.INTER_AREA)
    soft = cv2.resize(cv2.GaussianBlur(small, (0, 0), max(0.5, sigma / 4)), (wide, high))
    return _moved(np.asarray(soft, np.uint8), dx, dy)


def _moved(mask: Bytes, dx: int, dy: int) -> Bytes:
    """A mask moved by whole pixels."""
    high, wide = mask.shape
    moved = np.zeros_like(mask)
    source = mask[max(0, -dy) : high - max(0, dy), max(0, -dx) : wide - max(0, dx)]
    moved[max(0, dy) : high - max(0, -dy), max(0, dx) : wide - max(0, -dx)] = source
    return moved
