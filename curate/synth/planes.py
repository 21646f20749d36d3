"""Planes: a sign, a notice or a banner with its text, laid over the picture in perspective."""

from __future__ import annotations

import math
from typing import Any

import cv2
import numpy as np

from curate.synth.canvas import Bytes, Glyph, Quad, Reals, Sheet, blend, luma_of, softened, spread
from curate.synth.shapes import rounded


def lay(sheet: Sheet, on: Sheet, plane: dict[str, Any]) -> None:
    """Lay a plane over the picture: in perspective, in the light of what is around it, with a shadow below it."""
    quad = np.array(plane["quad"], np.float32).reshape(4, 2)
    corners = np.array([[0, 0], [plane["w"], 0], [plane["w"], plane["h"]], [0, plane["h"]]], np.float32)
    matrix = cv2.getPerspectiveTransform(corners, quad)
    dx, dy, sigma, percent = plane.get("shadow", (0, 0, 0, 0))
    radius = min(plane["w"], plane["h"]) * plane.get("round", 0) // 100
    outline = _through(matrix, rounded(0, 0, plane["w"], plane["h"], radius).astype(np.float32) + 0.5)
    if percent:
        below, x0, y0 = _around(sheet, quad, 3 * sigma + max(abs(dx), abs(dy)) + 2)
        fallen = outline - np.array([x0 - dx, y0 - dy], np.float32)
        blend(below, softened(fallen, below.shape[1], below.shape[0], sigma), (0, 0, 0), percent / 100)
    below, x0, y0 = _around(sheet, quad, 1)
    mask = _filled(outline, below, x0, y0)
    across, down = _seen_from(matrix, below.shape[1], below.shape[0], x0, y0)
    # Four channels are warped in the time of three.
    seen = cv2.remap(cv2.merge((on.rgb, on.ink)), across, down, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    ink = cv2.min(cv2.extractChannel(seen, 3), mask)
    pixels = np.asarray(cv2.cvtColor(seen, cv2.COLOR_RGBA2RGB), np.uint8)
    blend(below, mask, pixels, light=_light(below, plane["shade"]))
    here = slice(y0, y0 + below.shape[0]), slice(x0, x0 + below.shape[1])
    np.maximum(sheet.ink[here], ink, out=sheet.ink[here])
    if sheet.labels is not None and on.labels is not None:
        sheet.labels[here] = cv2.remap(on.labels, across, down, cv2.INTER_NEAREST)
    quads = _through(matrix, np.stack([glyph.quad for glyph in on.glyphs]).reshape(-1, 2)).reshape(-1, 4, 2)
    sheet.glyphs = [Glyph(g.character, g.line, cell) for g, cell in zip(on.glyphs, quads, strict=True)]
    sheet.lines = [_through(matrix, line) for line in on.lines]
    sheet.overlap = on.overlap


def _around(sheet: Sheet, quad: Quad, reach: int) -> tuple[Bytes, int, int]:
    """The pixels around a quad, and where they begin."""
    high, wide = sheet.rgb.shape[:2]
    x0, y0 = max(0, int(quad[:, 0].min()) - reach), max(0, int(quad[:, 1].min()) - reach)
    x1, y1 = min(wide, math.ceil(quad[:, 0].max()) + reach), min(high, math.ceil(quad[:, 1].max()) + reach)
    return sheet.rgb[y0:y1, x0:x1], x0, y0


def _filled(outline: Quad, below: Bytes, x0: int, y0: int) -> Bytes:
    """Coverage of an outline over pixels that begin at (x0, y0)."""
    mask = np.zeros(below.shape[:2], np.uint8)
    # OpenCV counts from the middles of pixels, in 16ths; quads from their edges.
    cv2.fillPoly(mask, [np.rint((outline - (x0 + 0.5, y0 + 0.5)) * 16).astype(np.int32)], 255, cv2.LINE_AA, 4)
    return mask


def _seen_from(matrix: Any, wide: int, high: int, x0: int, y0: int) -> tuple[Reals, Reals]:
    """Of pixels that begin at (x0, y0), where each is on the plane: cv2.warpPerspective in half its time."""
    back = np.linalg.inv(matrix).astype(np.float32)
    x = np.arange(x0, x0 + wide, dtype=np.float32) + np.float32(0.5)
    y = (np.arange(y0, y0 + high, dtype=np.float32) + np.float32(0.5))[:, None]
    depth = back[2, 0] * x + (back[2, 1] * y + back[2, 2])
    np.reciprocal(depth, out=depth)
    found = []
    for row in back[:2] - np.float32(0.5) * back[2]:
        place = row[0] * x + (row[1] * y + row[2])
        place *= depth
        found.append(place)
    return found[0], found[1]


def _through(matrix: Any, points: Quad) -> Quad:
    return np.asarray(cv2.perspectiveTransform(points[None], matrix)[0], np.float32)


def _light(below: Bytes, percent: int) -> Bytes:
    """What the light of the surroundings does to a plane: their large shapes, and a little more from above."""
    luma = np.asarray(cv2.GaussianBlur(luma_of(below), (0, 0), 3), np.float32)
    gain = 1 + percent / 100 * np.clip(luma / max(1.0, float(luma.mean())) - 1, -0.6, 0.6)
    gain = gain * np.linspace(1.05, 0.93, 16, dtype=np.float32)[:, None]
    return spread(gain, below.shape[1], below.shape[0])
