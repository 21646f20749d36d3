"""Planes: a sign, a notice or a banner with its text, laid over the picture in perspective."""

from __future__ import annotations

import math
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from curate.synth.canvas import Bytes, Glyph, Quad, Reals, Sheet, blend, lit, luma_of, softened
from curate.synth.shapes import rounded


def lay(sheet: Sheet, on: Sheet, plane: dict[str, Any]) -> None:
    """Lay a plane over the picture: in perspective, in the light of what is around it, with a shadow below it."""
    high, wide = sheet.rgb.shape[:2]
    quad = np.array(plane["quad"], np.float32).reshape(4, 2)
    corners = np.array([[0, 0], [plane["w"], 0], [plane["w"], plane["h"]], [0, plane["h"]]], np.float32)
    # Pixel middles lie at .5: OpenCV's warp counts from them, quads from pixel edges.
    matrix = cv2.getPerspectiveTransform(corners, quad)
    dx, dy, sigma, percent = plane.get("shadow", (0, 0, 0, 0))
    reach = 3 * sigma + max(abs(dx), abs(dy)) + 2
    x0, y0 = max(0, int(quad[:, 0].min()) - reach), max(0, int(quad[:, 1].min()) - reach)
    x1, y1 = min(wide, math.ceil(quad[:, 0].max()) + reach), min(high, math.ceil(quad[:, 1].max()) + reach)
    here = slice(y0, y1), slice(x0, x1)
    size = (x1 - x0, y1 - y0)
    moved = _shift(-x0 - 0.5, -y0 - 0.5) @ matrix @ _shift(0.5, 0.5)
    below = sheet.rgb[here]
    radius = min(plane["w"], plane["h"]) * plane.get("round", 0) // 100
    outline = _through(matrix, rounded(0, 0, plane["w"], plane["h"], radius).astype(np.float32) + 0.5)
    mask = np.zeros((y1 - y0, x1 - x0), np.uint8)
    cv2.fillPoly(mask, [np.rint((outline - (x0 + 0.5, y0 + 0.5)) * 16).astype(np.int32)], 255, cv2.LINE_AA, 4)
    pixels = np.asarray(
        cv2.warpPerspective(on.rgb, moved, size, flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE), np.uint8
    )
    pixels = lit(pixels, _light(below, plane["shade"]))
    if percent:
        blend(below, softened(mask, dx, dy, sigma), (0, 0, 0), percent / 100)
    blend(below, mask, pixels)
    ink = np.asarray(cv2.warpPerspective(on.ink, moved, size, flags=cv2.INTER_LINEAR), np.uint8)
    np.maximum(sheet.ink[here], ink, out=sheet.ink[here])
    if sheet.labels is not None and on.labels is not None:
        sheet.labels[here] = cv2.warpPerspective(on.labels, moved, size, flags=cv2.INTER_NEAREST)
    sheet.glyphs = [Glyph(g.character, g.line, _through(matrix, g.quad)) for g in on.glyphs]
    sheet.lines = [_through(matrix, line) for line in on.lines]
    sheet.overlap = on.overlap


def _shift(x: float, y: float) -> npt.NDArray[np.float64]:
    return np.array([[1, 0, x], [0, 1, y], [0, 0, 1]], np.float64)


def _through(matrix: Any, quad: Quad) -> Quad:
    return np.asarray(cv2.perspectiveTransform(quad[None], matrix)[0], np.float32)


def _light(below: Bytes, percent: int) -> Reals:
    """What the light of the surroundings does to a plane: their large shapes, and a little more from above."""
    luma = np.asarray(cv2.GaussianBlur(luma_of(below), (0, 0), 3), np.float32)
    gain = 1 + percent / 100 * np.clip(luma / max(1.0, float(luma.mean())) - 1, -0.6, 0.6)
    return np.asarray(gain * np.linspace(1.05, 0.93, 16, dtype=np.float32)[:, None], np.float32)
