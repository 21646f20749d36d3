"""Who is this picture: hashes of its bytes, of its pixels and of how it looks."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from schemas.errors import RowError
from workers.picture import Bytes, Picture
from workers.sample import Sample

VERSION: int = 2

# PDQ's own grid, and the passes of its box filter (facebook/ThreatExchange, pdq/cpp, `PDQ_NUM_JAROSZ_XY_PASSES`).
GRID = 64
PASSES = 2
CORNER = 16
# PDQ's DCT: row i is the cosine of frequency i + 1 over the grid.
_COSINES = np.sqrt(2 / GRID) * np.cos(
    np.pi / (2 * GRID) * np.outer(np.arange(1, CORNER + 1), 2 * np.arange(GRID) + 1)
).astype(np.float32)

LOOK = 3


NOTHING: dict[str, Any] = dict.fromkeys(("sha256", "pixels_hash", "pdq", "pdq_quality", "pdq_centred", "look"))


def identity(samples: Sequence[Sample], *, long_side_px: int = 512) -> list[dict[str, Any]]:
    """The hashes of each sample, as schemas/columns.py declares them; runs for damaged rows too.

    Bytes that do not decode have all but `sha256` None; a row without bytes has all None. Perceptual hashes are taken
    at one fixed size, see `pdq_at`.
    """
    return [_identity(sample, long_side_px) for sample in samples]


def _identity(sample: Sample, long_side_px: int) -> dict[str, Any]:
    try:
        digest = hashlib.sha256(sample.bytes).hexdigest()
    except RowError:
        return dict(NOTHING)
    try:
        picture = sample.picture
    except RowError:
        return NOTHING | {"sha256": digest}
    pdq, quality = pdq_at(picture, long_side_px)
    return {
        "sha256": digest,
        "pixels_hash": pixels_hash(picture),
        "pdq": pdq,
        "pdq_quality": quality,
        "pdq_centred": centred_at(picture, long_side_px),
        "look": look(picture),
    }


def pixels_hash(picture: Picture) -> str:
    """XXH3-128 of the decoded pixels, upright sRGB, and their shape, as 32 hex digits.

    Equal for a PNG and a BMP of one picture, or one with and one without an EXIF turn. No cryptographic hash: SHA-256
    of the pixels takes 4 ms of the 28 ms that all classical scorers take for 1.5 megapixels, this takes 0.15 ms; and
    an accident needs 2^64 pictures. `sha256` is the identity that must resist malice.
    """
    import xxhash

    height, width, _ = picture.rgb.shape
    digest = xxhash.xxh3_128(picture.rgb.data)
    digest.update(b"%d x %d" % (width, height))
    return str(digest.hexdigest())


def look(picture: Picture) -> str:
    """Mean colour of 3 x 3 tiles, top left to bottom right, 27 bytes of sRGB as 54 hex digits.

    PDQ sees luma, and only the signs of its frequencies: a red and a blue copy of one shirt, or two slopes of light,
    have one hash. Their colours tell them apart (curate/dedup).
    """
    tiles = cv2.resize(picture.rgb_at(256), (LOOK, LOOK), interpolation=cv2.INTER_AREA)
    return tiles.tobytes().hex()


def pdq_at(picture: Picture, long_side_px: int) -> tuple[str, int]:
    """PDQ hash (64 hex digits) and quality (0..100) of the picture at `long_side_px`.

    PDQ blurs luma with two box filters of 1/128 of each side, samples 64 x 64 points and hashes their DCT (Facebook,
    "The TMK+PDQF Video-Hashing Algorithm and the PDQ Image-Hashing Algorithm", 2019). The blur and the sampling are
    done here, by OpenCV on 8 bits; `pdqhash` gets the 64 x 64 luma, on which its own blur is the identity.

    Differing bits against `pdqhash.compute` at the picture's own size, on 38 pictures (323 to 1440 px) of quality
    >= 50: hashed here at that size median 0, maximum 4; at 512 px median 9, 95th percentile 30, maximum 32, because
    PDQ samples points and a smaller picture moves them. One size for all is still the better identity: of 114 copies
    at 71, 50 and 33 % of the size and JPEG quality 80, 75 and 60, all stay within PDQ's 31 bits at 512 px (26 at
    most), but 92 % when each is hashed at its own size (102 at most). 1 ms, where that takes 29 ms per megapixel.
    """
    import pdqhash

    vector, quality = pdqhash.compute(cv2.cvtColor(_grid(picture.gray_at(long_side_px)), cv2.COLOR_GRAY2RGB))
    return np.packbits(vector).tobytes().hex(), int(quality)


def centred_at(picture: Picture, long_side_px: int) -> str:
    """PDQ's hash on a grid that is centred in the picture, 64 hex digits: row i, column j is frequency (i + 1, j + 1).

    PDQ takes the pixel right and below of each grid point. Half a pixel is enough to make the hash of a mirrored
    picture unlike the mirrored hash of the picture, by 16 to 23 bits in the median and past 79 for one picture in
    twenty. On centred points, with the blur centred too, it is 6 to 8 bits, 20 at most (44 photographs and drawings):
    curate/dedup finds turned copies from the hash alone. It is no PDQ hash to others: compare it with its like only.
    """
    luma = picture.gray_at(long_side_px)
    blurred: Any = luma
    window = _window(luma)
    for i in range(PASSES):  # an even window is half a pixel off, once to each side
        anchor = ((window[0] - 1 + i) // 2, (window[1] - 1 + i) // 2)
        blurred = cv2.blur(blurred, window, anchor=anchor, borderType=cv2.BORDER_REPLICATE)
    grid = _between(_between(blurred, 0), 1)
    corner = _COSINES @ grid @ _COSINES.T
    return np.packbits(corner > np.median(corner)).tobytes().hex()


def _between(luma: Any, axis: int) -> npt.NDArray[np.float32]:
    """Linear samples at the centres of GRID equal stretches of an axis."""
    size = luma.shape[axis]
    at = np.clip((np.arange(GRID) + 0.5) * size / GRID - 0.5, 0, size - 1)
    low = at.astype(np.intp)
    share = (at - low).astype(np.float32).reshape((-1, 1) if axis == 0 else (1, -1))
    near, far = luma.take(low, axis), luma.take(np.minimum(low + 1, size - 1), axis)
    return np.asarray(near * (1 - share) + far * share, np.float32)


def _window(luma: Bytes) -> tuple[int, int]:
    """PDQ's box filter at this size, (width, height): 1/128 of each side, at least 1 px."""
    height, width = luma.shape
    return (width + 2 * GRID - 1) // (2 * GRID), (height + 2 * GRID - 1) // (2 * GRID)


def _grid(luma: Bytes) -> Bytes:
    """The 64 x 64 luma that PDQ hashes: Jarosz filter, then point samples."""
    height, width = luma.shape
    window = _window(luma)
    anchor = ((window[0] - 1) // 2, (window[1] - 1) // 2)
    blurred: Any = luma
    for _ in range(PASSES):
        blurred = cv2.blur(blurred, window, anchor=anchor, borderType=cv2.BORDER_REPLICATE)
    rows = ((np.arange(GRID) + 0.5) * height / GRID).astype(np.intp)
    columns = ((np.arange(GRID) + 0.5) * width / GRID).astype(np.intp)
    return np.ascontiguousarray(blurred[rows[:, None], columns])
