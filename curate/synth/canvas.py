"""What is drawn on, and how colour gets there: coverage blended over pixels, light, soft shadows, moved masks."""

from __future__ import annotations

from dataclasses import dataclass, field

import cv2
import numpy as np
import numpy.typing as npt

from curate.synth.colors import RGB

Bytes = npt.NDArray[np.uint8]
Reals = npt.NDArray[np.float32]
Quad = npt.NDArray[np.float32]  # (4, 2): corners clockwise from the start of the text, px of the picture


@dataclass
class Glyph:
    """One visible character: its cell, and the number of its line."""

    character: str
    line: int
    quad: Quad


@dataclass
class Sheet:
    """The picture itself or a plane: pixels, coverage of all glyphs 0..255, and if asked each glyph's number from 1.

    Of every character of the lines `boxes` holds its cell around its middle (left, top, right, bottom), `middles` where
    that is, `angles` its turn; `visible` are character, line and number of those with ink, `starts` where lines begin.
    """

    rgb: Bytes
    ink: Bytes
    labels: npt.NDArray[np.uint16] | None
    boxes: list[tuple[float, float, float, float]] = field(default_factory=list)
    middles: list[tuple[float, float]] = field(default_factory=list)
    angles: list[float] = field(default_factory=list)
    visible: list[tuple[str, int, int]] = field(default_factory=list)
    starts: list[int] = field(default_factory=list)
    turned: list[bool] = field(default_factory=list)
    glyphs: list[Glyph] = field(default_factory=list)
    lines: list[Quad] = field(default_factory=list)
    overlap: bool = False


def blank(rgb: Bytes, trace: bool) -> Sheet:
    """A sheet with these pixels and nothing on it; with `trace` pixels of ink will be labelled."""
    high, wide = rgb.shape[:2]
    labels = np.zeros((high, wide), np.uint16) if trace else None
    return Sheet(rgb, np.zeros((high, wide), np.uint8), labels)


def blend(rgb: Bytes, mask: Bytes, color: RGB | Bytes, strength: float = 1.0, light: Bytes | None = None) -> None:
    """Blend a colour, or a picture of colours, over pixels by a coverage 0..255, perhaps in a light of 128ths.

    In 8 bits by OpenCV: 0.16 ms for a line of 100 x 400 px, where float32 took 2.6 ms.
    """
    if strength < 1:
        mask = np.asarray(cv2.convertScaleAbs(mask, alpha=strength), np.uint8)
    free = cv2.bitwise_not(mask)
    cv2.multiply(rgb, cv2.merge((free, free, free)), dst=rgb, scale=1 / 255)
    share, unit = (mask, 255) if light is None else (cv2.multiply(mask, light, scale=1 / 255), 128)
    if isinstance(color, np.ndarray):
        cv2.add(rgb, cv2.multiply(color, cv2.merge((share, share, share)), scale=1 / unit), dst=rgb)
    elif any(color):
        cv2.add(rgb, cv2.merge([cv2.convertScaleAbs(share, alpha=channel / unit) for channel in color]), dst=rgb)


def spread(gain: Reals, wide: int, high: int) -> Bytes:
    """A light that changes slowly: a few values 0..1.9, spread over a picture, in 128ths."""
    small = np.rint(128 * gain).astype(np.uint8)
    return np.asarray(cv2.resize(small, (wide, high), interpolation=cv2.INTER_LINEAR), np.uint8)


def lit(rgb: Bytes, light: Bytes) -> Bytes:
    """Pixels in a light of 128ths."""
    return np.asarray(cv2.multiply(rgb, cv2.merge((light, light, light)), scale=1 / 128), np.uint8)


def tinted(light: Bytes, color: RGB) -> Bytes:
    """A colour in a light of 128ths."""
    return np.asarray(cv2.merge([cv2.convertScaleAbs(light, alpha=channel / 128) for channel in color]), np.uint8)


def shine(rgb: Bytes, mask: Bytes, color: RGB, sigma: float) -> None:
    """Light of a colour around a mask, added to what is there."""
    size = mask.shape[::-1]
    half = cv2.resize(mask, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA)
    small = cv2.resize(half, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA)
    near = cv2.resize(cv2.GaussianBlur(half, (0, 0), max(0.5, sigma / 2)), size)
    far = cv2.resize(cv2.GaussianBlur(small, (0, 0), max(0.5, sigma * 0.7)), size)
    light = cv2.addWeighted(near, 0.375, far, 0.45, 0)
    planes = [cv2.convertScaleAbs(light, alpha=channel / 255) for channel in color]
    cv2.add(rgb, cv2.merge(planes), dst=rgb)


def softened(outline: Quad, wide: int, high: int, sigma: float) -> Bytes:
    """The soft shadow of a shape with this outline; drawn at a quarter of the size, which nobody sees."""
    small = np.zeros((-(-high // 4), -(-wide // 4)), np.uint8)
    cv2.fillPoly(small, [np.rint((outline / 4 - 0.5) * 16).astype(np.int32)], 255, cv2.LINE_AA, 4)
    return np.asarray(cv2.resize(cv2.GaussianBlur(small, (0, 0), max(0.5, sigma / 4)), (wide, high)), np.uint8)


def soft(mask: Bytes, sigma: int) -> Bytes:
    """A mask, blurred: two boxes are nearly a bell, in a fifth of its time."""
    size = (2 * sigma + 1, 2 * sigma + 1)
    return np.asarray(cv2.blur(cv2.blur(mask, size), size), np.uint8)


def moved(mask: Bytes, dx: int, dy: int) -> Bytes:
    """A mask moved by whole pixels."""
    high, wide = mask.shape
    out = np.zeros_like(mask)
    source = mask[max(0, -dy) : high - max(0, dy), max(0, -dx) : wide - max(0, dx)]
    out[max(0, dy) : high - max(0, -dy), max(0, dx) : wide - max(0, -dx)] = source
    return out


def luma_of(rgb: Bytes) -> Reals:
    """The large shapes of light and dark: 16 x 16 grey values 0..255."""
    few = cv2.resize(rgb, (64, 64), interpolation=cv2.INTER_NEAREST)  # all pixels would take four times as long
    small = cv2.resize(few, (16, 16), interpolation=cv2.INTER_AREA)
    return np.asarray(cv2.cvtColor(small, cv2.COLOR_RGB2GRAY), np.float32)
