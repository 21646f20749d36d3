"""Whether a drawn picture keeps its promises: every glyph inside the picture and readable against what surrounds it.

The colour was chosen for a contrast of 4.5:1 before anything was drawn; here each glyph is measured in the pixels, the
median luminance of its ink against the median of the ring around it, and must have 3:1 (WCAG 2 for large text).
"""

from __future__ import annotations

import math
from itertools import pairwise

import cv2
import numpy as np
import numpy.typing as npt

from curate.synth.colors import AFTER, luminances, ratio
from curate.synth.render import Rendered

# Ink is where coverage is at least this share of the glyph's greatest: strokes of small serif type never reach 255.
CORE = 0.85
RING = np.ones((7, 7), np.uint8)
NEAR = np.ones((3, 3), np.uint8)


def check(drawn: Rendered) -> tuple[str, float]:
    """A reason (empty when all is well) and the smallest contrast of a glyph; 0.0 where it was not measured."""
    if drawn.overlap:
        return "overlap", 0.0
    if not drawn.glyphs:
        return "empty", 0.0
    height, width = drawn.rgb.shape[:2]
    low, high = drawn.quads.min((0, 1)), drawn.quads.max((0, 1))
    if low[0] < 0 or low[1] < 0 or high[0] > width or high[1] > height:
        return "outside", 0.0
    least = min(contrasts(drawn))
    return ("contrast" if least < AFTER else ""), least


def contrasts(drawn: Rendered) -> list[float]:
    """Contrast of every glyph, 1..21; a character without ink (a space) has no glyph."""
    low = np.maximum(0, drawn.quads.min(1).astype(int) - 2)
    high = np.minimum(drawn.ink.shape[::-1], drawn.quads.max(1).astype(int) + 3)
    boxes = np.concatenate([low, high], 1)
    found: list[float] = []
    ends = [
        number for number, glyph in enumerate(drawn.glyphs) if number and glyph.line != drawn.glyphs[number - 1].line
    ]
    for start, end in pairwise([0, *ends, len(boxes)]):
        # Line by line: most of a picture lies around none.
        (left, top), (right, bottom) = low[start:end].min(0).tolist(), high[start:end].max(0).tolist()
        ink = drawn.ink[top:bottom, left:right]
        ring = (cv2.dilate(ink, NEAR) <= 16) & (cv2.dilate(ink, RING) > 64)
        lights = luminances(drawn.rgb[top:bottom, left:right])
        for x0, y0, x1, y1 in (boxes[start:end] - (left, top, left, top)).tolist():
            light, cover = lights[y0:y1, x0:x1], ink[y0:y1, x0:x1]
            core = light[cover >= math.ceil(CORE * max(1, cv2.norm(cover, cv2.NORM_INF)))]
            around = light[ring[y0:y1, x0:x1]]
            found.append(ratio(_median(core), _median(around)) if core.size and around.size else 1.0)
    return found


def strays(drawn: Rendered) -> list[float]:
    """For each glyph the share of its own ink outside its quad, grown by 1 px; needs a traced rendering."""
    assert drawn.labels is not None
    all_ys, all_xs = np.nonzero(drawn.labels)
    numbers = drawn.labels[all_ys, all_xs]
    outside = []
    for number, glyph in enumerate(drawn.glyphs, 1):
        own = numbers == number
        xs, ys = all_xs[own], all_ys[own]
        if not xs.size:
            outside.append(1.0)
            continue
        inside = _inside(glyph.quad, xs + 0.5, ys + 0.5)
        outside.append(1 - float(inside.mean()))
    return outside


def _inside(
    quad: npt.NDArray[np.float32], xs: npt.NDArray[np.float64], ys: npt.NDArray[np.float64]
) -> npt.NDArray[np.bool_]:
    """Whether points lie in a convex quad, clockwise on the screen, or within 1 px of it."""
    inside = np.ones(xs.shape, np.bool_)
    for (ax, ay), (bx, by) in zip(quad, np.roll(quad, -1, 0), strict=True):
        length = max(1e-6, float(np.hypot(bx - ax, by - ay)))
        inside &= ((bx - ax) * (ys - ay) - (by - ay) * (xs - ax)) / length >= -1.0
    return inside


def _median(values: npt.NDArray[np.float32]) -> float:
    """The median of a fresh array, which is put in another order."""
    middle = values.size // 2
    values.partition(middle)
    return float(values[middle])
