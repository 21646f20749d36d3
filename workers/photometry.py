"""Light and colour: luma statistics, colourfulness, saturation, uniform borders, dominant colours by name."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from workers.picture import Bytes
from workers.sample import Sample

VERSION: int = 1

# Plain names that a person would use, English -> Chinese.
COLOR_NAMES: dict[str, str] = {
    "black": "黑色",
    "dark gray": "深灰色",
    "gray": "灰色",
    "light gray": "浅灰色",
    "white": "白色",
    "red": "红色",
    "dark red": "暗红色",
    "orange": "橙色",
    "brown": "棕色",
    "light brown": "浅棕色",
    "beige": "米色",
    "yellow": "黄色",
    "olive": "橄榄色",
    "green": "绿色",
    "dark green": "深绿色",
    "light green": "浅绿色",
    "teal": "蓝绿色",
    "cyan": "青色",
    "light blue": "浅蓝色",
    "blue": "蓝色",
    "dark blue": "深蓝色",
    "purple": "紫色",
    "light purple": "淡紫色",
    "pink": "粉色",
}
NAMES = tuple(COLOR_NAMES)

UNDEREXPOSED_LUMA = 10
OVEREXPOSED_LUMA = 245

# Border search, all at the color size, in Y, Cr, Cb. A bar's pixels lie within BAR_TOLERANCE of its colour: a JPEG's
# luma rings by 2 to 4, and its chroma, at half the resolution, bleeds from the picture into a coloured bar.
BAR_TOLERANCE = np.array([8, 16, 16], np.int16)
BAR_PURITY = 0.995
# Just inside the bar the picture must begin along a straight line: this share of the line differs from the bar. A
# tower against a night sky, a head on studio white or a line of text fill less than half of their first lines.
BAR_EDGE_SHARE = 0.6
# Two opposite bars of one thickness and colour are evidence in themselves; dark film between black bars needs less.
BAR_PAIR_EDGE_SHARE = 0.25
# Deep enough for what has bled.
BAR_EDGE_PX = 6
# What is left inside must be a picture. Below this share of the whole it is an object on a ground, and with more
# than half of it in the bar's own colour it is print on a page.
BAR_MIN_INNER = 0.2
BAR_MAX_INNER_SAME = 0.5


def photometry(
    samples: Sequence[Sample], *, luma_px: int = 512, color_px: int = 256, min_share: float = 0.05
) -> list[dict[str, Any]]:
    """Light and colour of each sample, one dict per sample (schemas/columns.py, operator `photometry`).

    Luma statistics come from luma at `luma_px`, colour, border and names from
    RGB at `color_px`; at most four colours with a share of at least `min_share`.
    """
    return [
        {**_light(sample.picture.gray_at(luma_px)), **_color(sample.picture.rgb_at(color_px), min_share)}
        for sample in samples
    ]


def _light(luma: Bytes) -> dict[str, Any]:
    counts: Any = cv2.calcHist([luma], [0], None, [256], [0, 256])
    p = counts[:, 0].astype(np.float64) / luma.size
    levels = np.arange(256)
    mean = float(p @ levels)
    seen = p[p > 0]
    return {
        "luma": mean,
        "contrast": math.sqrt(max(0.0, float(p @ (levels - mean) ** 2))),
        "underexposed": float(p[: UNDEREXPOSED_LUMA + 1].sum()),
        "overexposed": float(p[OVEREXPOSED_LUMA:].sum()),
        "entropy": max(0.0, float(-(seen * np.log2(seen)).sum())),
    }


def _color(rgb: Bytes, min_share: float) -> dict[str, Any]:
    """Colourfulness M3 = sqrt(var rg + var yb) + 0.3 sqrt(mean rg^2 + mean yb^2), rg = R - G, yb = (R + G) / 2 - B.

    Hasler and Suesstrunk, "Measuring colourfulness in natural images", Human Vision and Electronic Imaging 2003.
    """
    r, g, b = (plane.astype(np.int16) for plane in cv2.split(rgb))
    rg, yb2 = r - g, r + g - 2 * b
    (rg_mean, rg_sd), (yb2_mean, yb2_sd) = _moments(rg), _moments(yb2)
    high, low = cv2.max(cv2.max(r, g), b), cv2.min(cv2.min(r, g), b)
    names, shares = color_names(rgb, min_share)
    return {
        "colorfulness": math.hypot(rg_sd, yb2_sd / 2) + 0.3 * math.hypot(rg_mean, yb2_mean / 2),
        "saturation": float(cv2.mean(cv2.divide(high - low, cv2.max(high, np.ones_like(high)), dtype=cv2.CV_32F))[0]),
        "border": border(rgb),
        "colors": names,
        "color_shares": shares,
    }


def _moments(values: npt.NDArray[Any]) -> tuple[float, float]:
    mean, deviation = cv2.meanStdDev(values)
    return float(mean[0, 0]), float(deviation[0, 0])


def border(rgb: Bytes) -> float:
    """Share of the picture in uniform bars at its edges (letterbox, pillarbox, frame), of any colour, 0..1.

    A bar is a run of uniform lines at an edge that ends in a straight edge. Sky, night or studio ground that merely
    touches the edge is none, unless it happens to end along one straight line. A blank picture has no border: 0.
    """
    ycc = cv2.cvtColor(rgb, cv2.COLOR_RGB2YCrCb).astype(np.int16)
    height, width = ycc.shape[:2]
    # The four edges as views whose first row is the edge: top, bottom, left, right.
    edges = (ycc, ycc[::-1], ycc.transpose(1, 0, 2), ycc[:, ::-1].transpose(1, 0, 2))
    bars = [_bar(edge) for edge in edges]
    top, bottom, left, right = bars
    inner = ycc[top : height - bottom, left : width - right]
    if not any(bars) or inner.size < BAR_MIN_INNER * ycc.size:
        return 0.0
    insides = (inner, inner[::-1], inner.transpose(1, 0, 2), inner[:, ::-1].transpose(1, 0, 2))
    colors = [np.median(edge[0], axis=0) for edge in edges]
    kept = [0, 0, 0, 0]
    for i, other, across in ((0, 1, 2), (1, 0, 2), (2, 3, 0), (3, 2, 0)):
        if not bars[i] or _same(inner, colors[i]).mean() > BAR_MAX_INNER_SAME:
            continue
        # A thing in the middle of a plain ground has equal margins too, but it has them on all four sides.
        pair = abs(bars[i] - bars[other]) <= max(2, 0.05 * bars[i]) and not any(bars[across : across + 2])
        paired = pair and bool((np.abs(colors[i] - colors[other]) <= BAR_TOLERANCE).all())
        differs = ~_same(insides[i][:BAR_EDGE_PX], colors[i]).all(axis=0)
        if differs.mean() >= (BAR_PAIR_EDGE_SHARE if paired else BAR_EDGE_SHARE):
            kept[i] = bars[i]
    return float(1 - (height - kept[0] - kept[1]) * (width - kept[2] - kept[3]) / (height * width))


def _bar(ycc: npt.NDArray[np.int16]) -> int:
    """Number of leading rows of one colour; 0 when all rows are of it."""
    # Almost every photograph leaves here, after one row.
    ordered = np.sort(ycc[0], axis=0)
    rest = int(len(ordered) * (1 - BAR_PURITY) / 2)
    if (ordered[-1 - rest] - ordered[rest] > 2 * BAR_TOLERANCE).any():
        return 0
    other = np.flatnonzero(_same(ycc, ordered[len(ordered) // 2]).mean(axis=1) < BAR_PURITY)
    return int(other[0]) if other.size else 0


def _same(ycc: npt.NDArray[np.int16], color: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
    """Which pixels are of the bar's colour."""
    same: npt.NDArray[np.bool_] = (np.abs(ycc - color) <= BAR_TOLERANCE).all(axis=2)
    return same


def color_names(rgb: Bytes, min_share: float = 0.05) -> tuple[list[str], list[float]]:
    """Names of the dominant colours of (H, W, 3) and their shares, at most four, most frequent first."""
    r, g, b = (plane.astype(np.uint16) >> 3 for plane in cv2.split(rgb))
    cells = np.bincount(((r << 10) | (g << 5) | b).ravel(), minlength=1 << 15)
    counts = np.bincount(_name_table(), weights=cells, minlength=len(NAMES))
    shares = counts / counts.sum()
    order = sorted(range(len(NAMES)), key=lambda i: (-shares[i], i))[:4]
    chosen = [i for i in order if shares[i] >= min_share] or order[:1]
    return [NAMES[i] for i in chosen], [float(shares[i]) for i in chosen]


@functools.cache
def _name_table() -> npt.NDArray[np.uint8]:
    """Number of the name of each of 32^3 colours; index is r >> 3, g >> 3, b >> 3 in 15 bits."""
    steps = np.arange(32, dtype=np.float32) / 31
    cube = np.stack(np.meshgrid(steps, steps, steps, indexing="ij"), axis=-1).reshape(1, -1, 3)
    lab: Any = cv2.cvtColor(cube, cv2.COLOR_RGB2LAB)
    return np.array([NAMES.index(name_of(*map(float, color))) for color in lab[0]], np.uint8)


def name_of(lightness: float, a: float, b: float) -> str:
    """The name in COLOR_NAMES of one CIELAB (D65) colour.

    Sectors of hue, cut by lightness and chroma where the everyday name changes: dark orange is brown,
    pale orange beige, dark yellow olive, pale red pink. Greys reach further out in shadow, for the warm hues of indoor
    light and the cool ones of an overcast sky.
    """
    chroma, hue = math.hypot(a, b), math.degrees(math.atan2(b, a)) % 360
    if lightness < 7 or (lightness < 22 and chroma < 14):
        return "black"
    tinted = 9 if 30 <= hue < 115 else 11 if 190 <= hue < 290 and lightness < 85 else 7
    if chroma < tinted + (4 if lightness < 45 else 0):
        return _gray(lightness)
    if lightness > 96 and chroma < 12:
        return "white"
    if hue < 42 or hue >= 345:
        return _red(lightness, chroma, hue)
    if hue < 80:
        return _orange(lightness, chroma, hue)
    if hue < 115:
        return _yellow(lightness, chroma, hue)
    if hue < 165:
        if hue < 125 and chroma < 45 and lightness < 60:
            return "olive" if lightness >= 25 else "dark green"
        return "dark green" if lightness < 36 else "light green" if lightness >= 76 and chroma < 75 else "green"
    if hue < 218:
        return "cyan" if lightness >= 68 else "teal"
    # sRGB blue lies at hue 306, among the purples; only its chroma, or its darkness, tells it from them.
    if hue < 300 or (hue < 309 and (chroma >= 70 or lightness < 22)):
        return "light blue" if lightness >= 66 else "dark blue" if lightness < 28 and chroma < 110 else "blue"
    if (hue >= 332 and lightness >= 50) or (lightness >= 60 and chroma >= 60):
        return "pink"
    return "light purple" if lightness >= 66 else "purple"


def _gray(lightness: float) -> str:
    if lightness >= 90:
        return "white"
    return "light gray" if lightness >= 70 else "gray" if lightness >= 40 else "dark gray"


def _red(lightness: float, chroma: float, hue: float) -> str:
    if hue >= 345:
        return "pink" if lightness >= 42 else "dark red"
    if chroma < 30 and lightness < 65:
        return "light brown" if lightness >= 52 else "brown" if lightness >= 22 else "dark red"
    if (lightness >= 62 and chroma < 62) or (hue < 12 and lightness >= 55):
        return "beige" if hue >= 25 and chroma < 25 else "pink"
    return "dark red" if lightness < 38 else "red"


def _orange(lightness: float, chroma: float, hue: float) -> str:
    if (chroma >= 46 and lightness >= 64) or (chroma >= 58 and lightness >= 53):
        return "red" if hue < 48 and lightness < 60 else "orange"
    if lightness >= 72:
        return "beige" if lightness >= 76 or chroma < 35 else "light brown"
    return "light brown" if lightness >= 54 else "brown"


def _yellow(lightness: float, chroma: float, hue: float) -> str:
    if chroma >= 42 and lightness >= 70:
        return "yellow"
    if lightness >= 72:
        return "beige"
    if hue < 92:
        return "light brown" if lightness >= 54 else "brown"
    return "olive"
