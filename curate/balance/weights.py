"""How many uses each concept gets, and which rows that keeps.

cap     at most so many rows of a concept, all rows of the others (MetaCLIP, Xu et al. 2023)
target  shares of the uses of an epoch: rows of concepts that have too many are thinned, rows of concepts that have
        too few are used up to `repeat` times
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

Reals = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


def capped(counts: Ints, cap: int) -> Reals:
    """Uses of each concept when none may have more than `cap`."""
    return np.minimum(counts, cap).astype(np.float64)


def shares(counts: Ints, names: Sequence[str], alpha: float, wanted: Mapping[str, float]) -> Reals:
    """The share that each concept is to have: as `wanted` says; the rest goes to the others by count ** alpha."""
    out = np.where(counts > 0, np.maximum(counts, 1).astype(np.float64) ** alpha, 0.0)
    given = np.array([name in wanted for name in names])
    asked = np.array([wanted.get(name, 0.0) for name in names])
    left = max(1.0 - asked.sum(), 0.0)
    rest = out[~given].sum()
    out[~given] *= left / rest if rest else 0.0
    out[given] = asked[given]
    return out / out.sum() if out.sum() else out


def uses(counts: Ints, share: Reals, rows: float, repeat: float) -> Reals:
    """Uses of each concept in an epoch of `rows` uses: by share, but no row more than `repeat` times.

    What a concept cannot take goes to the others by their shares, as long as they can.
    """
    most = counts * repeat
    out = np.zeros(len(counts))
    open_ = (counts > 0) & (share > 0)
    left = float(rows)
    while open_.any() and left > 1e-9:
        offer = np.where(open_, share, 0.0)
        offer *= left / offer.sum()
        full = open_ & (out + offer >= most)
        if not full.any():
            return out + offer
        taken = np.where(full, most - out, 0.0)
        out += taken
        left -= taken.sum()
        open_ &= ~full
    return out


def drawn(concept: Ints, keys: npt.NDArray[np.uint64], keep: Ints) -> npt.NDArray[np.bool_]:
    """The `keep[c]` rows of each concept c with the smallest keys; `keys` are hashes of seed and row_id.

    A draw without replacement whose size is exact, that no order or number of workers changes; and when a concept may
    keep more, all that were kept stay.
    """
    order = np.lexsort((keys, concept))
    starts = np.searchsorted(concept[order], np.arange(len(keep)))
    place = np.empty(len(order), np.int64)
    place[order] = np.arange(len(order)) - starts[concept[order]]
    kept: npt.NDArray[np.bool_] = place < keep[concept]
    return kept
