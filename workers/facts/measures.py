"""Columns turned into facts: what was measured, sorted into the few classes that the wording knows.

The limits are judgements about words ("dark", "vivid"), not filters: the policy has its own. They were set by
reading captions beside their pictures; the scorers' own docs say what each number means.
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from workers.facts.quoting import pieces_of
from workers.photometry import COLOR_NAMES

NEEDS = (
    "sha256", "width", "height", "aspect", "frames", "sharpness", "sharpness_tile", "luma", "contrast",
    "underexposed", "overexposed", "colorfulness", "saturation", "border", "colors", "color_shares", "faces",
    "face_area", "face_boxes", "ocr_text", "ocr_lines", "ocr_confidence", "ocr_area", "ocr_language", "ocr_boxes",
    "ocr_scores",
)  # fmt: skip

# A line read with less certainty is mentioned, never quoted. With PP-OCRv6 garbled lines of a street photograph and
# of blurred print scored 0.61 and 0.70, the least certain right line of a poster 0.80.
MIN_OCR_SCORE = 0.75
MAX_COLORS = 3
ACHROMATIC = ("black", "white", "gray", "grey", "silver")

RATIOS = ((1, 1), (5, 4), (4, 3), (3, 2), (16, 10), (16, 9), (2, 1), (3, 1))
NUMERALS = {1: "一", 2: "二", 3: "三", 4: "四", 5: "五", 9: "九", 10: "十", 16: "十六"}


@dataclass(frozen=True)
class Faces:
    """Detected faces: number, places (`left`, `center`, `right`; in order from left to right), largest share."""

    count: int
    places: tuple[str, ...]
    area: float | None


@dataclass(frozen=True)
class Text:
    """What OCR read: lines certain enough to quote, whether others were left out, and the place in the frame."""

    lines: tuple[str, ...]
    partial: bool
    place: str | None
    area: float | None
    language: str | None


@dataclass(frozen=True)
class Facts:
    """All that a caption may say; None is unknown. `key` identifies the content and seeds the wording."""

    key: str
    size: tuple[int, int] | None
    shape: str | None
    ratio: tuple[str, str] | None
    frames: int | None
    colors: tuple[tuple[str, float | None], ...]
    brightness: str | None
    contrast: str | None
    black: float | None
    white: float | None
    tone: str | None
    focus: str | None
    border: float | None
    faces: Faces | None
    text: Text | None


def measure(values: dict[str, Any]) -> Facts:
    """Facts of one row from its columns; anything missing, null, NaN or out of its range is unknown."""
    width, height = _number(values, "width", 1), _number(values, "height", 1)
    aspect = width / height if width and height else _number(values, "aspect", 1e-6)
    luma, contrast = _number(values, "luma"), _number(values, "contrast")
    frames, border = _number(values, "frames", 1), _number(values, "border")
    colors = _colors(values)
    return Facts(
        key=str(values.get("sha256") or ""),
        size=(int(width), int(height)) if width and height else None,
        shape=_shape(aspect),
        ratio=_ratio(aspect),
        frames=int(frames) if frames else None,
        colors=colors,
        brightness=_class(
            luma, (15, "black"), (65, "dark"), (95, "dim"), (160, "medium"), (205, "bright"), "brilliant"
        ),
        contrast=_class(contrast, (4, "none"), (15, "flat"), (38, "low"), (62, "medium"), "strong"),
        black=_number(values, "underexposed"),
        white=_number(values, "overexposed"),
        tone=_tone(values, colors),
        focus=_focus(values, contrast),
        border=border,
        faces=_faces(values, width),
        text=_text(values, width, height),
    )


def _number(values: dict[str, Any], name: str, least: float = 0.0) -> float | None:
    value = _single(values.get(name))
    return value if value is not None and value >= least else None


def _single(value: Any) -> float | None:
    """`value` as single precision, None unless finite.

    A part stores reals in single precision, so the translator may read what the captioner had in double precision:
    rounded alike, a value at a limit falls on the same side for both.
    """
    if value is None or not math.isfinite(value):
        return None
    rounded = float(value) if isinstance(value, int) else ctypes.c_float(value).value
    return rounded if math.isfinite(rounded) else None


def _class(value: float | None, *limits: Any) -> str | None:
    """The name of the first (limit, name) that `value` is below, or the last name."""
    if value is None:
        return None
    *bounded, last = limits
    return str(next((name for limit, name in bounded if value < limit), last))


def _shape(aspect: float | None) -> str | None:
    names = ((1 / 3.2, "column"), (1 / 2.1, "tall"), (0.96, "portrait"), (1.042, "square"), (2.1, "landscape"))
    return _class(aspect, *names, (3.2, "wide"), "strip")


def _ratio(aspect: float | None) -> tuple[str, str] | None:
    """A usual ratio within 1.2 % of `aspect`, in both languages: `3:4`, `三比四`."""
    if aspect is None:
        return None
    for long, short in RATIOS:
        wide, high = (long, short) if aspect >= 1 else (short, long)
        if abs(aspect * high / wide - 1) < 0.012:
            return f"{wide}:{high}", f"{NUMERALS[wide]}比{NUMERALS[high]}"
    return None


def _colors(values: dict[str, Any]) -> tuple[tuple[str, float | None], ...]:
    """Dominant colors with their shares; those under 3 % and names without a translation are left out."""
    names = list(values.get("colors") or ())
    shares = [_single(part) for part in values.get("color_shares") or ()]
    if len(shares) != len(names) or None in shares:
        shares = [None] * len(names)
    pairs = [(name, part) for name, part in zip(names, shares, strict=True) if name in COLOR_NAMES]
    unique = dict(reversed(pairs))
    kept = [(name, unique[name]) for name in dict.fromkeys(name for name, _ in pairs)]
    return tuple((name, share) for name, share in kept if share is None or share >= 0.03)[:MAX_COLORS]


def _tone(values: dict[str, Any], colors: tuple[tuple[str, float | None], ...]) -> str | None:
    """`gray`, `muted`, `medium` or `vivid`, from Hasler-Suesstrunk's scale (their "not", "slightly", "quite" colorful).

    Named colors and tone must not contradict each other: a picture of named hues is not called gray, and one of
    black, white and gray alone is not called vivid.
    """
    tone = _class(_number(values, "colorfulness"), (8, "gray"), (30, "muted"), (58, "medium"), "vivid")
    if tone is None:
        tone = _class(_number(values, "saturation"), (0.04, "gray"), (0.22, "muted"), (0.5, "medium"), "vivid")
    hueless = all(name.split()[-1] in ACHROMATIC for name, _ in colors)
    if tone == "gray" and not hueless:
        return "muted"
    if tone == "vivid" and colors and hueless:
        return None
    return tone


def _focus(values: dict[str, Any], contrast: float | None) -> str | None:
    """`soft`, `partial`, `fair` or `crisp`; unknown for a plain surface, where sharpness means nothing.

    Limits are of workers/sharpness.py at its 1024 px: in a blurred clock face the best tile has 7, in a cat's portrait
    of 451 px 73, in a rocket before a plain sky 893 against 108 for the whole, in a page of print 2126 overall.
    """
    whole, tile = _number(values, "sharpness"), _number(values, "sharpness_tile")
    if whole is None or (contrast is not None and contrast < 4):
        return None
    if tile is not None and tile >= 300 and tile >= 5 * whole and whole < 350:
        return "partial"
    if whole < 15 if tile is None else tile < 60:
        return "soft"
    return "crisp" if whole >= 250 else "fair"


def _faces(values: dict[str, Any], width: float | None) -> Faces | None:
    count = _number(values, "faces")
    if count is None:
        return None
    boxes = [box for box in map(_box, values.get("face_boxes") or ()) if len(box) >= 4]
    places: tuple[str, ...] = ()
    if width and len(boxes) == count:
        centers = sorted((box[0] + box[2] / 2) / width for box in boxes)
        places = tuple("left" if x < 0.38 else "right" if x > 0.62 else "center" for x in centers)
    return Faces(int(count), places, _number(values, "face_area", 1e-9))


def _text(values: dict[str, Any], width: float | None, height: float | None) -> Text | None:
    text = values.get("ocr_text")
    if text is None:
        return None
    lines = str(text).split("\n") if text else []
    scores = [_single(score) for score in values.get("ocr_scores") or ()]
    if len(scores) != len(lines):
        confidence = _number(values, "ocr_confidence")
        scores = [1.0 if confidence is None else confidence] * len(lines)
    legible = [i for i, line in enumerate(lines) if pieces_of(line)]
    sure = [i for i in legible if (scores[i] or 0) >= MIN_OCR_SCORE]
    boxes = [box for box in map(_box, values.get("ocr_boxes") or ()) if len(box) == 8]
    return Text(
        lines=tuple(lines[i] for i in sure),
        partial=len(sure) < sum(bool(line.strip()) for line in lines),
        place=_place([boxes[i] for i in sure] if len(boxes) == len(lines) else boxes, width, height),
        area=_number(values, "ocr_area"),
        language=values.get("ocr_language"),
    )


def _place(boxes: list[list[float]], width: float | None, height: float | None) -> str | None:
    """Where the union of `boxes` lies: `top`, `upper left`, ..., `middle`, or `all over` for most of both axes."""
    if not boxes or not width or not height:
        return None
    xs = [x / width for box in boxes for x in box[0::2]]
    ys = [y / height for box in boxes for y in box[1::2]]
    x, y = (min(xs) + max(xs)) / 2, (min(ys) + max(ys)) / 2
    across = "" if max(xs) - min(xs) > 0.6 else "left" if x < 0.36 else "right" if x > 0.64 else ""
    down = "" if max(ys) - min(ys) > 0.6 else "upper" if y < 0.36 else "lower" if y > 0.64 else ""
    if across and down:
        return f"{down} {across}"
    if not across and not down:
        return "all over" if max(xs) - min(xs) > 0.6 and max(ys) - min(ys) > 0.6 else "middle"
    return across or {"upper": "top", "lower": "bottom"}[down]


def _box(box: Sequence[Any] | None) -> list[float]:
    """The numbers of `box`; [] when it is null or one of them is unknown."""
    numbers = [_single(value) for value in box or ()]
    known = [value for value in numbers if value is not None]
    return known if len(known) == len(numbers) else []
