"""Grounds: photographs, plain and graded colours, paper, walls, bricks, wood, cloth, metal; the grain of the finish.

Textures are one tile each, of which a piece is taken; they are made once in a process (0.1 s each).
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import cv2
import numpy as np

from curate.synth.canvas import Bytes, Reals, lit, luma_of, spread, tinted
from curate.synth.colors import RGB
from curate.synth.draw import Draw
from curate.synth.spec import World, colored

TILE_PX = 1024
# Deviation of the light that a surface throws back, percent.
ROUGHNESS = {"paper": 1.9, "wall": 3.6, "wood": 7.5, "cloth": 6.0, "metal": 1.5}


def draw_ground(ground: dict[str, Any], width: int, height: int, key: int, world: World) -> Bytes:
    """The pixels of a ground; `key` decides which piece of a texture it shows."""
    kind = ground["kind"]
    if kind == "photo":
        left, top, wide, high = ground["crop"]
        source = world.photographs.pixels(ground["id"])[top : top + high, left : left + wide]
        if (wide, high) == (width, height):
            return source.copy()
        # Photographs are stored little larger than the pictures: INTER_AREA would take four times as long.
        method = cv2.INTER_AREA if wide > 1.6 * width else cv2.INTER_LINEAR
        return np.asarray(cv2.resize(source, (width, height), interpolation=method), np.uint8)
    first, second = colored(ground["c"]), colored(ground["c2"])
    if kind == "gradient":
        return _gradient(first, second, width, height, ground.get("way", "v"))
    if kind == "solid":
        return _flat(first, width, height)
    if kind == "brick":
        return lit(_bricks(first, second, width, height, key), _piece("wall", width, height, key))
    return surface(kind, first, width, height, key)


def surface(kind: str, color: RGB, width: int, height: int, key: int) -> Bytes:
    """Paper, wall, wood, cloth or metal of a colour."""
    return tinted(_piece(kind, width, height, key), color)


def grain(rgb: Bytes, strength: int, x: int, y: int) -> None:
    """Add the grain of a sensor; saturating 8-bit sums, a fourth of the time of signed ones."""
    height, width = rgb.shape[:2]
    plus, minus = _grain(strength)
    while y + height > plus.shape[0] or x + width > plus.shape[1]:
        plus, minus = np.tile(plus, (2, 2, 1)), np.tile(minus, (2, 2, 1))
    cut = slice(y, y + height), slice(x, x + width)
    cv2.add(rgb, plus[cut], dst=rgb)
    cv2.subtract(rgb, minus[cut], dst=rgb)


def shading(rgb: Bytes) -> Bytes:
    """Light and dark of the ground in the large, 0.82..1.18 in 128ths: text on a photograph takes part in it."""
    height, width = rgb.shape[:2]
    wide = cv2.GaussianBlur(luma_of(rgb), (0, 0), 1.5)
    gain = 1 + 0.15 * np.clip(wide / max(1.0, float(wide.mean())) - 1, -1.2, 1.2)
    return spread(gain, width, height)


def _flat(color: RGB, width: int, height: int) -> Bytes:
    """Pixels of one colour; a third of the time of assigning it."""
    row = np.tile(np.array(color, np.uint8), width)
    return np.ascontiguousarray(np.broadcast_to(row, (height, 3 * width))).reshape(height, width, 3)


def _gradient(first: RGB, second: RGB, width: int, height: int, way: str) -> Bytes:
    """From the first colour to the second: downwards (v), to the right (h) or to the lower right (d)."""
    a, b = np.array(first, np.float32), np.array(second, np.float32)
    if way == "d":
        # Each row of pixels is the one above it, moved by one.
        steps = np.linspace(0, 1, width + height, dtype=np.float32)[:, None]
        ramp = (a + (b - a) * steps + 0.5).astype(np.uint8)
        rows = np.lib.stride_tricks.as_strided(ramp, (height, width, 3), (3, 3, 1), writeable=False)
        return np.ascontiguousarray(rows)
    steps = np.linspace(0, 1, height if way == "v" else width, dtype=np.float32)[:, None]
    ramp = (a + (b - a) * steps + 0.5).astype(np.uint8)
    if way == "v":
        rows = np.empty((height, 3 * width), np.uint8)
        rows[:, :3], done = ramp, 3
        while done < 3 * width:  # what is there, once more: a tenth of the time of repeating pixels of three bytes
            more = min(done, 3 * width - done)
            rows[:, done : done + more] = rows[:, :more]
            done += more
        return rows.reshape(height, width, 3)
    return np.ascontiguousarray(np.broadcast_to(ramp.ravel(), (height, 3 * width))).reshape(height, width, 3)


def _bricks(color: RGB, mortar: RGB, width: int, height: int, key: int) -> Bytes:
    """Courses of bricks, each a little lighter or darker than `color` and lit at its upper edge."""
    course = max(12, height // 24)
    length = round(2.9 * course)
    tones = np.clip(np.outer(0.88 + 0.024 * np.arange(11), color), 0, 255)
    # Of a tone its body and its upper edge; after them the mortar.
    palette = np.zeros((1, 256, 3), np.uint8)
    palette[0, :23] = np.concatenate([tones, np.minimum(255, np.rint(1.13 * tones)), [mortar]])
    joint = 22
    draw = Draw("bricks", key)
    courses, bricks = -(-height // course), width // length + 2
    starts = np.array([(length // 2) * (row % 2) + draw.whole(0, 3) for row in range(courses)])
    drawn = np.array([[draw.whole(0, 10) for _ in range(bricks)] for _ in range(courses)], np.uint8)
    at = starts[:, None] + np.arange(width)
    tone = np.take_along_axis(drawn, at // length, 1)
    upright = (at % length == 0) | (at % length == length - 1)
    tone[upright] = joint
    # Three lines of pixels for each course: mortar, upper edges, bodies; every row of pixels is one of them.
    kinds = np.stack([np.full_like(tone, joint), np.where(upright, joint, tone + 11).astype(np.uint8), tone], 1)
    kinds = kinds.reshape(-1, width)
    lines = cv2.LUT(cv2.merge((kinds, kinds, kinds)), palette)
    order = np.array([0, 1] + [2] * (course - 3) + [0]) + 3 * np.arange(courses)[:, None]
    return np.ascontiguousarray(lines[order.ravel()[:height]])


def _piece(kind: str, width: int, height: int, key: int) -> Bytes:
    """A piece of a texture: gain of the light in 128ths."""
    tile = _texture(kind)
    x, y = (key * 389) % (TILE_PX // 2), (key * 613) % (TILE_PX // 2)
    while y + height > tile.shape[0] or x + width > tile.shape[1]:
        tile = np.tile(tile, (2, 2))
    return tile[y : y + height, x : x + width]


@lru_cache(8)
def _texture(kind: str) -> Bytes:
    """A texture: gain of the light in 128ths, around 128."""
    noise = np.random.Generator(np.random.PCG64(20240709))
    fine = noise.standard_normal((TILE_PX, TILE_PX), dtype=np.float32)

    def smooth(across: float, down: float, of: Reals = fine) -> Reals:
        # Wide blurs on less pixels: a tenth of the time.
        step_x, step_y = max(1, int(across / 6)), max(1, int(down / 6))
        small = cv2.resize(of, (TILE_PX // step_x, TILE_PX // step_y), interpolation=cv2.INTER_AREA)
        small = cv2.GaussianBlur(small, (0, 0), sigmaX=across / step_x, sigmaY=down / step_y)
        soft = np.asarray(cv2.resize(small, (TILE_PX, TILE_PX), interpolation=cv2.INTER_LINEAR), np.float32)
        return np.asarray(soft / np.float32(soft.std()), np.float32)

    if kind == "paper":
        field = 0.5 * smooth(1.1, 1.1) + 0.35 * smooth(5, 0.8, fine[::-1]) + 0.6 * smooth(40, 40, fine.T)
    elif kind == "wall":  # plaster: grains, a trowel's strokes, and stains
        field = 0.55 * smooth(0.8, 0.8) + 0.35 * smooth(9, 1.6, fine[::-1]) + 0.75 * smooth(60, 80, fine.T)
    elif kind == "wood":
        field = smooth(60, 1.1) + 0.5 * smooth(120, 7, fine[::-1])
    elif kind == "metal":
        field = 0.25 * smooth(0.7, 0.7) + smooth(150, 150, fine.T)
    else:  # cloth: folds from the top to the bottom, and its weave
        field = smooth(22, 160) + 0.25 * fine
    field = field * np.float32(ROUGHNESS[kind] / 100 / float(field.std()))
    return np.asarray(np.clip(np.rint(128 * (1 + field)), 1, 255), np.uint8)


@lru_cache(16)
def _grain(strength: int) -> tuple[Bytes, Bytes]:
    """What a sensor's noise adds and takes away, 8-bit values, their deviation about `strength`; not quite grey."""
    planes = np.clip(np.rint(strength * _noise()), -127, 127)
    return np.maximum(planes, 0).astype(np.uint8), np.maximum(-planes, 0).astype(np.uint8)


@lru_cache(1)
def _noise() -> Reals:
    noise = np.random.Generator(np.random.PCG64(20240710))
    grey = cv2.GaussianBlur(noise.standard_normal((TILE_PX, TILE_PX), dtype=np.float32), (3, 3), 0.6)
    grey = grey[..., None] / np.float32(grey.std())
    return np.asarray(0.94 * grey + 0.35 * noise.standard_normal((TILE_PX, TILE_PX, 3), dtype=np.float32), np.float32)
