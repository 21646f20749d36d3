"""Randomness that depends on its key alone: not on what was drawn before, on the rank, the worker or the world size.

    generator(seed, "noise", step, slot).standard_normal((4, 64, 64), dtype=np.float32)

torch.Generator on a CPU keeps 32 bits of its seed, so that some hundred thousand keys already meet; Philox takes 128.
"""

from __future__ import annotations

from hashlib import blake2b
from typing import Any

import numpy as np

GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def digest(*key: object, size: int = 16) -> bytes:
    """BLAKE2b of the parts of a key; texts that would read the same when joined differ."""
    return blake2b("\x1f".join(f"{type(part).__name__}\x1e{part}" for part in key).encode(), digest_size=size).digest()


def generator(*key: object) -> np.random.Generator:
    """A generator of its own for each key."""
    return np.random.Generator(np.random.Philox(key=int.from_bytes(digest(*key), "little")))


def mixed(values: np.ndarray[Any, np.dtype[np.uint64]], *key: object) -> np.ndarray[Any, np.dtype[np.uint64]]:
    """64-bit hashes of `values` under a key (splitmix64, Steele et al. 2014): argsort of them is a keyed shuffle."""
    with np.errstate(over="ignore"):
        x = values ^ np.uint64(int.from_bytes(digest(*key, size=8), "little"))
        x = x + GOLDEN
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return x ^ (x >> np.uint64(31))
