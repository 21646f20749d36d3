"""Things that are built of many shapes, so that a spec names them in one: doors, strips of red paper, awnings."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from curate.synth.colors import RGB, mixed
from curate.synth.spec import PAPER, WOOD

WHITE: RGB = (250, 250, 248)
CREAM: RGB = (240, 236, 226)
BLACK: RGB = (20, 20, 20)
GOLD: RGB = (240, 196, 60)
BRASS: RGB = (206, 164, 60)

# Kind, colour, numbers: a shape before it is written into a spec.
Part = tuple[Any, ...]


def door(wood: RGB, x: int, y: int, wide: int, high: int, side: int) -> Iterator[Part]:
    """A double door with two panels a leaf and brass rings; `side` is the picture's shorter one, px."""
    dark, light, edge = mixed(wood, BLACK, 0.5), mixed(wood, WHITE, 0.16), round(0.02 * side)
    yield "shadow", BLACK, x - edge, y - edge, wide + 2 * edge, high + edge, 6, 60
    yield "rect", dark, x - edge, y - edge, wide + 2 * edge, high + edge
    leaf = wide // 2 - 2
    for number in (0, 1):
        a = x + number * wide // 2 + 1
        yield "sheet", wood, a, y, leaf, high, WOOD
        yield "shadow", BLACK, a, y, leaf, edge, 5, 55
        left, right = a + round(0.16 * leaf), a + round(0.84 * leaf)
        for top, bottom in ((0.07, 0.49), (0.6, 0.96)):
            top, bottom = y + round(top * high), y + round(bottom * high)
            yield "line", dark, left, top, right, top, 3
            yield "line", dark, left, top, left, bottom, 3
            yield "line", light, left, bottom, right, bottom, 2
            yield "line", light, right, top, right, bottom, 2
        at, middle = a + round((0.12 if number else 0.88) * leaf), y + round(0.51 * high)
        yield "disc", mixed(BRASS, BLACK, 0.45), at, middle, round(0.017 * side)
        yield "ring", mixed(BRASS, BLACK, 0.3), at, middle + edge, edge, 4
        yield "ring", BRASS, at - 1, middle + edge - 1, edge, 2


def strip(paper: RGB, x: int, y: int, wide: int, high: int) -> Iterator[Part]:
    """Red paper on a wall, with a golden line around it."""
    yield "shadow", BLACK, x + 1, y + 2, wide, high, 3, 55
    yield "sheet", paper, x, y, wide, high, PAPER
    yield "frame", mixed(paper, GOLD, 0.5), x + 4, y + 4, wide - 8, high - 8, 1


def diamond(paper: RGB, x: int, y: int, reach: int) -> Iterator[Part]:
    """A square of red paper on its point, around (x, y)."""
    for color, down in ((mixed(paper, BLACK, 0.35), 3), (paper, 0)):
        yield "poly", color, x, y - reach + down, x + reach, y + down, x, y + reach + down, x - reach, y + down


def awning(stripe: RGB, x: int, y: int, wide: int, fall: int) -> Iterator[Part]:
    """Nine stripes of cloth that fall towards the street, and their shadow."""
    yield "shadow", BLACK, x, y + fall, wide, max(2, fall // 4), 7, 70
    edges = [x + round(number * wide / 9) for number in range(10)]
    ends = [edge + round(0.008 * wide * (number - 4.5)) for number, edge in enumerate(edges)]
    for number in range(9):
        color = stripe if number % 2 == 0 else CREAM
        (a, b), (c, d) = edges[number : number + 2], ends[number : number + 2]
        yield "poly", color, a, y, b, y, d, y + fall, c, y + fall
        yield "rect", mixed(color, BLACK, 0.2), c, y + fall, d - c, max(2, fall // 5)


FITTINGS: dict[str, Callable[..., Iterator[Part]]] = {
    "door": door, "strip": strip, "diamond": diamond, "awning": awning,
}  # fmt: skip
