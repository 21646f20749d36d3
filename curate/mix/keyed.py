"""Keyed randomness: every draw is a hash of (seed, epoch, purpose, row), so it needs no state and no order.

A row's key is 64 bits of the MD5 of its `row_id`; DuckDB computes the same as `md5_number_lower(row_id)`. Draws mix
it with the seed, the epoch and the purpose by SplitMix64's finalizer (Steele, Lea, Flood 2014), vectorised.
"""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import numpy.typing as npt

Keys = npt.NDArray[np.uint64]
Reals = npt.NDArray[np.float64]
GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def key_of(text: str) -> int:
    """The key of a row id or group, as DuckDB's md5_number_lower: bytes 8..15 of the digest, little end first."""
    return int.from_bytes(hashlib.md5(text.encode(), usedforsecurity=False).digest()[8:], "little")


def salt(*facts: Any) -> np.uint64:
    """64 bits for (seed, epoch, purpose, ...)."""
    text = "|".join(map(str, facts))
    return np.uint64(int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little"))


def mixed(keys: Keys, *facts: Any) -> Keys:
    """One well mixed 64-bit hash for each key under `facts`."""
    with np.errstate(over="ignore"):
        out = keys ^ salt(*facts)
        out += GOLDEN
        out ^= out >> np.uint64(30)
        out *= np.uint64(0xBF58476D1CE4E5B9)
        out ^= out >> np.uint64(27)
        out *= np.uint64(0x94D049BB133111EB)
        out ^= out >> np.uint64(31)
    return out


def uniform(keys: Keys, *facts: Any) -> Reals:
    """A number in [0, 1) for each key under `facts`: the upper 53 bits of its hash."""
    return (mixed(keys, *facts) >> np.uint64(11)).astype(np.float64) * 2.0**-53


def van_der_corput(number: int, base: int = 2) -> float:
    """The number's digits mirrored at the point, in [0, 1): 0, 1/2, 1/4, 3/4, 1/8, ... for base 2.

    Every run of base^m numbers that starts at a multiple of it falls once into each of base^m equal parts. Shifted by
    this from epoch to epoch, a row passes all choices in proportion: raw and synthetic within two epochs at 50:50.
    """
    if number < 0:
        raise ValueError(f"{number}: numbers of epochs start at 0")
    value, unit = 0.0, 1.0
    while number:
        number, digit = divmod(number, base)
        unit /= base
        value += digit * unit
    return value
