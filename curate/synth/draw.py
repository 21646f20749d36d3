"""Random numbers keyed by values: the same on every platform, for every Python and numpy.

Only `random.Random.random` is used: its stream is promised not to change, those of the other methods and of numpy's
distributions are not.
"""

from __future__ import annotations

import random
from bisect import bisect
from collections.abc import Sequence
from hashlib import blake2b
from itertools import accumulate
from typing import TypeVar

T = TypeVar("T")


class Draw:
    """A stream of random numbers that its key decides, e.g. `Draw("synth", seed, index, attempt)`."""

    def __init__(self, *key: object) -> None:
        digest = blake2b("|".join(map(str, key)).encode(), digest_size=16).digest()
        self.unit = random.Random(int.from_bytes(digest, "big")).random

    def real(self, low: float, high: float) -> float:
        """Uniform in [low, high)."""
        return low + (high - low) * self.unit()

    def whole(self, low: int, high: int) -> int:
        """Uniform among the whole numbers low..high, both included."""
        return low + int(self.unit() * (high - low + 1))

    def chance(self, probability: float) -> bool:
        """True with this probability."""
        return self.unit() < probability

    def pick(self, options: Sequence[T]) -> T:
        """One of the options, all alike."""
        return options[int(self.unit() * len(options))]

    def weighted(self, options: Sequence[tuple[T, float]]) -> T:
        """One of the (option, weight) pairs."""
        sums = list(accumulate(weight for _, weight in options))
        return options[min(bisect(sums, self.unit() * sums[-1]), len(options) - 1)][0]

    def shuffled(self, options: Sequence[T]) -> list[T]:
        """The options in random order."""
        return [option for _, option in sorted((self.unit(), option) for option in options)]

    def bell(self, deviation: float) -> float:
        """Nearly normal around 0 (the sum of four uniforms), never beyond 3.5 deviations."""
        return deviation * 3**0.5 * (self.unit() + self.unit() + self.unit() + self.unit() - 2)
