"""The eight ways to turn a picture, and what each does to its centred PDQ hash and to its look.

PDQ keeps the signs of a 16 x 16 corner of a discrete cosine transform. Mirroring a picture negates the columns (or
rows) of odd frequency and transposing the picture transposes it, so the hash of a turned picture follows from the hash:
no pixel is read again. The hash must be of a centred grid (`pdq_centred`, workers/identity.py).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

Words = npt.NDArray[np.uint32]
Looks = npt.NDArray[np.uint8]

# A name says how the second picture comes from the first; turning counts clockwise.
TURNS = (
    "", "mirrored", "upside down", "rotated 180", "transposed", "rotated 90", "rotated 270", "transverse",
)  # fmt: skip

_ROWS, _COLUMNS = np.indices((16, 16)) + 1  # the frequencies
_NONE = np.zeros((16, 16), np.int64)
# (transposed first, then these bits differ)
_BITS: tuple[tuple[bool, npt.NDArray[np.uint8]], ...] = tuple(
    (swap, (pattern % 2).astype(np.uint8))
    for swap, pattern in (
        (False, _NONE), (False, _COLUMNS), (False, _ROWS), (False, _ROWS + _COLUMNS),
        (True, _NONE), (True, _COLUMNS), (True, _ROWS), (True, _ROWS + _COLUMNS),
    )
)  # fmt: skip
_ARRAYS: tuple[Callable[[Looks], Looks], ...] = (
    lambda x: x,
    lambda x: x[:, :, ::-1],
    lambda x: x[:, ::-1],
    lambda x: x[:, ::-1, ::-1],
    lambda x: x.swapaxes(1, 2),
    lambda x: x.swapaxes(1, 2)[:, :, ::-1],
    lambda x: x.swapaxes(1, 2)[:, ::-1],
    lambda x: x.swapaxes(1, 2)[:, ::-1, ::-1],
)


def turn_hashes(words: Words, turn: int) -> Words:
    """Hashes (n, 8) of 32-bit words, as they would be had the pictures been turned; `turn` indexes TURNS."""
    if not turn:
        return words
    swap, pattern = _BITS[turn]
    out = np.empty_like(words)
    for start in range(0, len(words), 1 << 16):
        bits = np.unpackbits(words[start : start + (1 << 16)].view(np.uint8), axis=1).reshape(-1, 16, 16)
        bits = (bits.swapaxes(1, 2) if swap else bits) ^ pattern
        out[start : start + (1 << 16)] = np.packbits(bits.reshape(-1, 256), axis=1).view(np.uint32)
    return out


def turn_looks(looks: Looks, turn: int) -> Looks:
    """Looks (n, side, side, 3) as they would be had the pictures been turned."""
    return _ARRAYS[turn](looks)
