"""Aspect-ratio buckets by NovelAI's rule: (width, height) lists, and which bucket a picture belongs to.

Lists are generated as in NovelAI/novelai-aspect-ratio-bucketing (MIT): 19 buckets for 512 px, 33 for 1024 px; `sdxl` is
the list of 40 of SDXL's appendix I. A picture goes to the bucket whose log aspect is nearest, so that 2:1 and 1:2 are
treated alike.
"""

from __future__ import annotations

import re

import numpy as np
import numpy.typing as npt

from curate.errors import UsageError, nearest

Size = tuple[int, int]
Ints = npt.NDArray[np.int32]

# NovelAI's max_ar_error: of longer side / shorter side. A picture further from every bucket is left out.
MAX_ASPECT_ERROR = 4.0
LEAST_PX = 16  # of a side: two latent pixels

_SDXL_TALL = (
    (512, 2048), (512, 1984), (512, 1920), (512, 1856), (576, 1792), (576, 1728), (576, 1664), (640, 1600), (640, 1536),
    (704, 1472), (704, 1408), (704, 1344), (768, 1344), (768, 1280), (832, 1216), (832, 1152), (896, 1152), (896, 1088),
    (960, 1088), (960, 1024),
)  # fmt: skip
# Not the mirror image: 1344 x 704 is not on the published list.
SDXL: tuple[Size, ...] = (
    *_SDXL_TALL,
    (1024, 1024),
    *((h, w) for w, h in reversed(_SDXL_TALL) if (w, h) != (704, 1344)),
)


def generate(max_area: int, low_px: int, high_px: int, base_px: int, step_px: int = 64) -> tuple[Size, ...]:
    """NovelAI's list: for each width the tallest height within `max_area`, the same mirrored, and a square."""
    found: dict[Size, None] = {}
    for width in range(low_px, high_px + 1, step_px):
        height = min(high_px, max_area // width // step_px * step_px)
        if height >= step_px:
            found[width, height] = None
    found |= dict.fromkeys((height, width) for width, height in tuple(found))
    found[base_px, base_px] = None
    return tuple(sorted(found, key=lambda size: (size[0] / size[1], size)))


NAMED: dict[str, tuple[Size, ...]] = {
    "novelai-512": generate(512 * 768, 256, 1024, 512),
    "novelai-1024": generate(1024 * 1024, 512, 2048, 1024),
    "sdxl": SDXL,
}


def parse(text: str) -> tuple[Size, ...]:
    """The buckets that a user names: a list of NAMED, `square-512`, or sizes such as `512x512,640x448`."""
    if text in NAMED:
        return NAMED[text]
    if square := re.fullmatch(r"square-(\d{2,5})", text):
        text = f"{square[1]}x{square[1]}"
    sizes = [re.fullmatch(r"(\d{2,5})x(\d{2,5})", part.strip()) for part in text.split(",")]
    if not all(sizes):
        hint = nearest(text, [*NAMED, "square-512", "square-1024"])
        raise UsageError(f"--buckets {text!r} names no list of buckets{hint}; or write sizes, e.g. 512x512,640x448")
    found = tuple((int(size[1]), int(size[2])) for size in sizes if size)
    for at, size in enumerate(found):
        if min(size) < LEAST_PX or size in found[:at]:
            raise UsageError(f"--buckets {text!r}: {size[0]}x{size[1]} is too small or comes twice")
    return found


def base(buckets: tuple[Size, ...]) -> int:
    """Index of the bucket nearest to a square, the largest of these: where left-overs of all buckets can go."""
    return min(range(len(buckets)), key=lambda i: (abs(np.log(buckets[i][0] / buckets[i][1])), -buckets[i][0]))


def assign(width: Ints, height: Ints, buckets: tuple[Size, ...]) -> Ints:
    """Index of the bucket of each picture (px as displayed), -1 where none is within MAX_ASPECT_ERROR.

    Of two buckets that are equally near, the one that comes first in the order of aspects; of two with one aspect, the
    larger.
    """
    aspects = np.array([np.log(w / h) for w, h in buckets])
    order = np.lexsort((-np.array([w * h for w, h in buckets]), aspects))
    keep = np.concatenate(([True], np.diff(aspects[order]) > 1e-12))
    order = order[keep]
    cuts = (aspects[order][1:] + aspects[order][:-1]) / 2
    wanted = np.log(np.maximum(width, 1) / np.maximum(height, 1))
    found = order[np.searchsorted(cuts, wanted, side="left")]
    far = np.abs(np.exp(np.abs(wanted)) - np.exp(np.abs(aspects[found]))) >= MAX_ASPECT_ERROR
    return np.where(far | (width < 1) | (height < 1), -1, found).astype(np.int32)
