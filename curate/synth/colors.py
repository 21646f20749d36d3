"""Named colours and contrast as WCAG 2 defines it."""

from __future__ import annotations

from functools import lru_cache

import cv2
import numpy as np
import numpy.typing as npt

from workers.photometry import COLOR_NAMES, name_of

RGB = tuple[int, int, int]

BEFORE = 4.5  # contrast that a text colour must have to its ground before anything is drawn
AFTER = 3.0  # and that every glyph must have to what surrounds it afterwards

# Inks and grounds: saturated and plain ones that people really use for signs and print.
INKS: tuple[RGB, ...] = (
    (20, 20, 20), (250, 250, 248), (196, 22, 28), (140, 16, 24), (245, 200, 30), (235, 110, 20), (24, 90, 190),
    (16, 42, 110), (0, 125, 70), (14, 70, 44), (110, 50, 150), (236, 80, 160), (115, 70, 35), (245, 235, 205),
    (60, 60, 62), (120, 200, 240), (0, 130, 140), (255, 160, 180),
)  # fmt: skip
GROUNDS: tuple[RGB, ...] = (
    (255, 255, 255), (246, 240, 224), (235, 226, 200), (230, 238, 245), (250, 228, 232), (222, 240, 222),
    (250, 240, 180), (20, 20, 22), (30, 40, 70), (16, 60, 44), (120, 18, 24), (186, 26, 30), (24, 84, 170),
    (8, 110, 72), (92, 60, 36), (240, 196, 40), (238, 130, 40), (90, 50, 130), (66, 68, 72), (205, 208, 212),
)  # fmt: skip


def _linear() -> npt.NDArray[np.float32]:
    s = np.arange(256) / 255
    return np.where(s <= 0.04045, s / 12.92, ((s + 0.055) / 1.055) ** 2.4).astype(np.float32)


LINEAR = _linear()  # of an 8-bit sRGB value
WEIGHTS = np.array([[0.2126, 0.7152, 0.0722]], np.float32)


def luminances(rgb: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    """Relative luminance 0..1 of (H, W, 3) pixels."""
    return np.asarray(cv2.transform(cv2.LUT(rgb, LINEAR), WEIGHTS), np.float32)


@lru_cache(4096)
def luminance(color: RGB) -> float:
    """Relative luminance 0..1 of one colour."""
    return float(LINEAR[list(color)] @ WEIGHTS[0])


def ratio(first: float, second: float) -> float:
    """Contrast 1..21 of two luminances."""
    return (max(first, second) + 0.05) / (min(first, second) + 0.05)


@lru_cache(4096)
def readable(inks: tuple[RGB, ...], grounds: tuple[float, ...], least: float = BEFORE) -> tuple[RGB, ...]:
    """The inks that have a contrast of `least` to each of the ground luminances."""
    return tuple(ink for ink in inks if all(ratio(luminance(ink), ground) >= least for ground in grounds))


@lru_cache(4096)
def name(color: RGB) -> tuple[str, str]:
    """English and Chinese name of a colour: the names that operator `photometry` writes."""
    lab = cv2.cvtColor(np.array([[color]], np.float32) / 255, cv2.COLOR_RGB2LAB)[0, 0]
    english = name_of(float(lab[0]), float(lab[1]), float(lab[2]))
    return english, COLOR_NAMES[english]


def mixed(first: RGB, second: RGB, share: float) -> RGB:
    """`first` with `share` (0..1) of `second`."""
    return (
        round(first[0] + (second[0] - first[0]) * share),
        round(first[1] + (second[1] - first[1]) * share),
        round(first[2] + (second[2] - first[2]) * share),
    )
