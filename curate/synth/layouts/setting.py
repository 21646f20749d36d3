"""How lines are set: rows, columns, arcs, and the effects that they get."""

from __future__ import annotations

import math
from typing import Any

from curate.synth.colors import RGB, luminance, ratio
from curate.synth.fonts import Face
from curate.synth.layouts.palette import BLACK, WHITE
from curate.synth.spec import Page, Unfit, ems, hexed


def block(page: Page, texts: list[str], face: Face, vertical: bool) -> tuple[int, int, int, float]:
    """Width and height of a block of lines, px, its size and pitch, at a random scale."""
    draw, s = page.draw, page.side
    longest = max(map(ems, texts))
    if vertical:
        most = min(0.8 * page.height / longest / 1.06, 0.8 * page.width / len(texts) / 1.45, 0.17 * s)
        px = page.fit(["国"], face, page.width, max(face.min_px, draw.real(0.6, 1.0) * most))
        return math.ceil(len(texts) * px * 1.45), math.ceil(longest * px * 1.06), px, px * 1.45
    most = min(0.86 * page.width / longest, 0.15 * s)
    px = page.fit(["国"], face, page.width, max(face.min_px, draw.real(0.55, 1.0) * most))
    if px * longest > 0.9 * page.width:
        raise Unfit("too_small")
    pitch = px * draw.real(1.25, 1.45)
    return math.ceil(px * longest), math.ceil(pitch * (len(texts) - 1) + 1.15 * px), px, pitch


def rows(
    page: Page, texts: list[str], face: Face, px: int, ink: RGB, middle: tuple[float, float], pitch: float, align: str,
    effects: dict[str, Any],
) -> None:  # fmt: skip
    """Lines below one another, around `middle`; turned ones around their own middles along the turned axis."""
    turn = math.radians(effects.get("turn", 0) / 10)
    longest = max(map(ems, texts)) * px
    for number, text in enumerate(texts):
        along = (number - (len(texts) - 1) / 2) * pitch
        across = -longest / 2 if align == "l" else 0
        at = (
            middle[0] - along * math.sin(turn) + across * math.cos(turn),
            middle[1] + along * math.cos(turn) + across * math.sin(turn),
        )
        page.line(text, face, px, ink, at, "line", "h", align, effects)


def columns(
    page: Page, texts: list[str], face: Face, px: int, ink: RGB, middle: tuple[float, float],
    effects: dict[str, Any] | None = None, role: str = "line",
) -> None:  # fmt: skip
    """Columns from the right to the left, their tops in line."""
    pitch = 1.45 * px
    step = 1.06 * px
    top = middle[1] - max(map(len, texts)) * step / 2
    for number, text in enumerate(texts):
        x = middle[0] + ((len(texts) - 1) / 2 - number) * pitch
        page.line(text, face, px, ink, (x, top + len(text) * step / 2), role, "v", effects=effects)


def arc(page: Page, face: Face, ink: RGB, inks: tuple[RGB, ...]) -> None:
    """A line bent along a circle, and one or two straight ones below it."""
    draw, s, w, h = page.draw, page.side, page.width, page.height
    texts = page.words.lines([(4, 8), *[(2, 6)] * draw.whole(0, 2)])
    face = page.able(face, *texts)
    bent, *straight = texts
    span = math.radians(draw.real(70, 150))
    radius = round(min(0.36 * s, 0.4 * h))
    px = page.fit(["国"], face, s, min(radius * span / len(bent) / 1.12, 0.16 * s))
    gap = round((radius * span - len(bent) * px) / max(1, len(bent)))
    at = (w / 2, 0.5 * h - radius * 0.25 - (0.1 * h if straight else 0))
    page.line(bent, face, px, ink, at, "line", "h", effects={"arc": radius, "gap": min(gap, px // 2)})
    if straight:
        small = page.fit(straight, face, 0.6 * w, 0.11 * h)
        half = ((len(bent) - 1) * min(gap, px // 2) + len(bent) * px) / radius / 2
        ends = at[1] + radius * (1 - math.cos(half)) + 0.6 * px  # where the first and the last glyph end
        middle = max(0.64 * h, ends + (0.75 + 0.7 * (len(straight) - 1)) * small)
        rows(page, straight, face, small, ink, (w / 2, middle), 1.4 * small, "c", {})


def effects(page: Page, px: int, ink: RGB, inks: tuple[RGB, ...], busy: bool = False) -> dict[str, Any]:
    """Outline, shadow or a gradient for a share of the lines; more on a busy ground."""
    draw = page.draw
    kind = draw.weighted((("", 0.45 if busy else 0.62), ("out", 0.15), ("sh", 0.3 if busy else 0.14), ("grad", 0.1)))
    if kind == "out" and px >= 30:
        return {"out": [max(2, px // 18), hexed(opposite(ink))]}
    if kind == "sh":
        reach = max(1, px // 22)
        return {"sh": [reach, reach, max(1, px // 24), 60]} if px >= 28 else {}
    if kind == "grad" and px >= 36:
        towards = [other for other in inks if ratio(luminance(other), luminance(ink)) < 2.2 and other != ink]
        return {"grad": hexed(draw.pick(towards))} if towards else {}
    return {}


def opposite(ink: RGB) -> RGB:
    """Black or white, whichever stands out more."""
    return max((BLACK, WHITE), key=lambda color: ratio(luminance(color), luminance(ink)))


def gray(value: float) -> RGB:
    """The grey of a luminance."""
    s = 12.92 * value if value <= 0.0031308 else 1.055 * value ** (1 / 2.4) - 0.055
    level = round(255 * min(1.0, max(0.0, s)))
    return level, level, level
