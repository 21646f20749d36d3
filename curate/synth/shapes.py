"""Shapes of a spec: rectangles, frames, discs, lines, panes of glass, neon tubes, soft shadows; blur."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from curate.synth.canvas import Bytes, blend, shine, softened
from curate.synth.fittings import FITTINGS
from curate.synth.grounds import surface
from curate.synth.spec import SHEETS, colored, hexed


def draw_shape(rgb: Bytes, shape: Sequence[Any]) -> None:
    """Draw one shape of a spec: its kind, its colour RRGGBB and whole numbers (see `Page.shape`)."""
    kind, color, numbers = shape[0], colored(shape[1]), [int(n) for n in shape[2:]]
    if kind in FITTINGS:
        for part in FITTINGS[kind](color, *numbers):
            draw_shape(rgb, (part[0], hexed(part[1]), *part[2:]))
    elif kind == "rect":
        x, y, w, h = numbers[:4]
        if len(numbers) > 4:
            cv2.fillPoly(rgb, [rounded(x, y, w, h, min(w, h) * numbers[4] // 100)], color, cv2.LINE_AA)
        else:
            cv2.rectangle(rgb, (x, y), (x + w - 1, y + h - 1), color, -1)
    elif kind == "sheet":
        x, y, w, h, material = numbers
        x0, y0 = max(0, x), max(0, y)
        cut = rgb[y0 : y + h, x0 : x + w]
        cut[:] = surface(SHEETS[material], color, cut.shape[1], cut.shape[0], x + y)
    elif kind == "shadow":
        x, y, w, h, sigma, percent = numbers
        reach = 3 * sigma
        x0, y0 = max(0, x - reach), max(0, y - reach)
        cut = rgb[y0 : y + h + reach, x0 : x + w + reach]
        corners = np.array([[x, y], [x + w, y], [x + w, y + h], [x, y + h]], np.float32) - np.array(
            [x0, y0], np.float32
        )
        blend(cut, softened(corners, cut.shape[1], cut.shape[0], sigma), color, percent / 100)
    elif kind == "blur":
        high, wide = rgb.shape[:2]  # at a quarter of the size: a twentieth of the time, and nobody sees it
        small = cv2.resize(rgb, (-(-wide // 4), -(-high // 4)), interpolation=cv2.INTER_AREA)
        rgb[:] = cv2.resize(cv2.GaussianBlur(small, (0, 0), max(0.5, numbers[0] / 4)), (wide, high))
    elif kind == "glass":
        x, y, w, h, percent, corner = numbers
        cut = rgb[y : y + h, x : x + w]
        over = cut.copy()
        cv2.fillPoly(over, [rounded(0, 0, cut.shape[1], cut.shape[0], corner)], color, cv2.LINE_AA)
        rgb[y : y + h, x : x + w] = cv2.addWeighted(over, percent / 100, cut, 1 - percent / 100, 0)
    elif kind == "frame":
        x, y, w, h, thick = numbers
        cv2.rectangle(rgb, (x, y), (x + w - 1, y + h - 1), color, max(1, thick), cv2.LINE_AA)
    elif kind == "neonframe":
        x, y, w, h, thick = numbers
        mask = np.zeros(rgb.shape[:2], np.uint8)
        cv2.polylines(mask, [rounded(x, y, w, h, 20)], True, 255, thick, cv2.LINE_AA)
        shine(rgb, mask, color, 9.0)
        cv2.polylines(rgb, [rounded(x, y, w, h, 20)], True, [(c + 2 * 255) // 3 for c in color], thick, cv2.LINE_AA)
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


def rounded(x: int, y: int, w: int, h: int, radius: int) -> npt.NDArray[np.int32]:
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
