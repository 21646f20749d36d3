"""A picture to its bucket: scaled until it covers the bucket, the excess cut off.

Sizes are (width, height) px as displayed. What is reported is what is cut: trainers condition on it (SDXL, 2.2).
"""

from __future__ import annotations

import io
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image

from curate.mix.buckets import Size
from workers.picture import Limits, decode, scaled

Pixels = npt.NDArray[np.uint8]
JPEG_QUALITY = 95
# Rows of a store have passed its own limit; a training set from elsewhere should not take all memory either.
LIMITS = Limits(400.0)


def covering(size: Size, bucket: Size) -> Size:
    """The size to which a picture is scaled, aspect kept, so that it just covers the bucket."""
    width, height = size
    if width * bucket[1] <= height * bucket[0]:
        return bucket[0], max(bucket[1], round(height * bucket[0] / width))
    return max(bucket[0], round(width * bucket[1] / height)), bucket[1]


def cropped(resized: Size, bucket: Size, where: tuple[float, float] | None) -> tuple[int, int]:
    """(left, top) of the bucket in the resized picture: in the centre, or at `where`, two shares in [0, 1)."""
    room = resized[0] - bucket[0], resized[1] - bucket[1]
    if where is None:
        return room[0] // 2, room[1] // 2
    return int(where[0] * (room[0] + 1)), int(where[1] * (room[1] + 1))


def twice(size: Size, stored: Size, scaled: Size, cut: tuple[int, int]) -> tuple[Size, tuple[int, int]]:
    """Size and crop, in terms of the original of `size`, of a cut out of its centre crop at `stored`, scaled.

    The original was scaled to cover `stored` and cropped in its centre; that was scaled to `scaled` and cropped at
    `cut`. One scaling and one crop come to the same, within a pixel.
    """
    first = covering(size, stored)
    left, top = cropped(first, stored, None)
    x, y = scaled[0] / stored[0], scaled[1] / stored[1]
    return (round(first[0] * x), round(first[1] * y)), (round(left * x) + cut[0], round(top * y) + cut[1])


def fitted(data: bytes, resized: Size, crop: tuple[int, int], bucket: Size) -> Pixels:
    """(height, width, 3) uint8 RGB of the bucket's size out of the encoded picture.

    Down as the scorers do (workers/picture.py: about an area mean, at a third of its time), up by cubic; a JPEG is
    decoded at a fraction of its size where that is enough.
    Raises RowError for a picture that does not decode.
    """
    pixels: Any = decode(data, LIMITS, resized).rgb
    if resized[0] > pixels.shape[1]:
        pixels = cv2.resize(pixels, resized, interpolation=cv2.INTER_CUBIC)
    pixels = scaled(pixels, resized)
    left, top = crop
    out: Pixels = pixels[top : top + bucket[1], left : left + bucket[0]]
    return out


def encoded(data: bytes, size: Size, bucket: Size) -> bytes:
    """The centre crop of a picture at its bucket's size, as JPEG of quality 95 without chroma subsampling."""
    resized = covering(size, bucket)
    pixels = fitted(data, resized, cropped(resized, bucket, None), bucket)
    out = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).save(out, "JPEG", quality=JPEG_QUALITY, subsampling=0)
    return out.getvalue()
