"""Signs in space: a board seen by a camera, on poles, on ropes or on a wall."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from curate.synth.colors import RGB, mixed
from curate.synth.layouts.palette import BLACK, WALLS, WHITE
from curate.synth.spec import Page, Unfit, hexed

STEEL: RGB = (122, 124, 128)
MARGIN_PX = 2


def plane(page: Page, box: tuple[int, int, int, int], ground: dict[str, Any], degrees: float) -> None:
    """Lay a board of `box` (left, top, width, height) into the picture, as a camera sees it that stands a little aside:
    turned by up to `degrees` around the upright axis, a third of it around the level one, and hardly around its own."""
    draw = page.draw
    left, top, wide, high = box
    yaw = math.radians(draw.real(-degrees, degrees))
    pitch = math.radians(draw.real(-degrees, degrees) / 3)
    roll = math.radians(max(-4.0, min(4.0, draw.bell(1.3))))
    away = 2.2 * max(wide, high)
    quad: list[int] = []
    for sx, sy in ((-1, -1), (1, -1), (1, 1), (-1, 1)):
        x, y = sx * wide / 2, sy * high / 2
        x, y = x * math.cos(roll) - y * math.sin(roll), x * math.sin(roll) + y * math.cos(roll)
        x, z = x * math.cos(yaw), x * math.sin(yaw)
        y, z = y * math.cos(pitch) - z * math.sin(pitch), y * math.sin(pitch) + z * math.cos(pitch)
        quad += [round(left + wide / 2 + x * away / (away + z)), round(top + high / 2 + y * away / (away + z))]
    xs, ys = quad[::2], quad[1::2]
    dx = max(0, MARGIN_PX - min(xs)) - max(0, max(xs) - page.width + MARGIN_PX)
    dy = max(0, MARGIN_PX - min(ys)) - max(0, max(ys) - page.height + MARGIN_PX)
    quad = [value + (dy if number % 2 else dx) for number, value in enumerate(quad)]
    if not all(0 <= x <= page.width for x in quad[::2]) or not all(0 <= y <= page.height for y in quad[1::2]):
        raise Unfit("too_large")
    page.plane = {"w": wide, "h": high, "quad": quad, "ground": ground, "tilt": 1, "shade": draw.whole(10, 20)}


def poles(page: Page, count: int) -> None:
    """One or two steel poles from behind the board to the lower edge of the picture."""
    right, below_right, left, below_left = page.plane["quad"][4:8]
    thick = max(4, round(0.02 * page.side))
    for share in (0.5,) if count == 1 else (0.2, 0.8):
        x = left + share * (right - left)
        y = below_left + share * (below_right - below_left) - thick
        page.back("rect", mixed(STEEL, BLACK, 0.25), x - thick / 2, y, thick, page.height - y)
        page.back("rect", mixed(STEEL, WHITE, 0.35), x - thick / 4, y, thick / 3, page.height - y)


def ropes(page: Page) -> None:
    """Two ropes from the upper corners to the upper edge of the picture."""
    for x, y, lean in ((*page.plane["quad"][0:2], 1), (*page.plane["quad"][2:4], -1)):
        page.back("line", (70, 64, 56), x + lean * 6, y + 5, x + lean * 0.1 * y, 0, 2)


def wall(page: Page) -> None:
    """A wall as the ground, plastered or of bricks, and a lamp that lights it."""
    draw = page.draw
    color = draw.pick(WALLS)
    kind = "brick" if draw.chance(0.45) else "wall"
    page.ground = {"kind": kind, "c": hexed(color), "c2": hexed(mixed(color, BLACK, 0.28))}
    lamp(page)


def lamp(page: Page, percent: int = 34) -> None:
    """Light from one side or the other, or from above."""
    page.lamp = [page.draw.whole(-10, 110), page.draw.whole(-30, 20), round(page.draw.real(0.5, 1.0) * percent)]


def on_wall(page: Page, make: Callable[[Page], None]) -> None:
    """What `make` lays out, as a sheet of paper on a wall, higher than wide."""
    width, height = page.width, page.height
    high = round(page.draw.real(0.86, 0.93) * height)
    wide = min(round(0.9 * width), round(page.draw.real(0.7, 0.82) * high))
    page.width, page.height = wide, high
    make(page)
    page.width, page.height = width, height
    sheet = page.ground
    wall(page)
    left = round(page.draw.real(0.3, 0.7) * (width - wide))
    plane(page, (left, (height - high) // 2, wide, high), sheet, 14)
    page.plane["shadow"] = [page.draw.whole(-4, 4), 4, 5, 45]
    page.say |= {"wall": page.ground["c"], "box": [left, (height - high) // 2, left + wide, (height + high) // 2]}
