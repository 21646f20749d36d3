"""Captions that say nearly the same: MinHash over character shingles, then the Jaccard index itself.

Captions are short, so the shingles are of `SHINGLE` characters; letters are folded and white space is one space.
Two captions with a Jaccard index of 0.8 share one of 25 bands of 5 minima with a chance of 99.995 %, and what is found
is checked: no false pair, whatever the hash does.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

from curate.dedup.forest import Edges, Forest, Ints, first_equal

SHINGLE = 4
BANDS, MINIMA = 25, 5
NEIGHBOURS = 16  # captions of one band that a caption is compared with
UNSURE = 0.15  # four standard deviations of the share of equal minima around the Jaccard index it estimates
BLOCK = 1 << 16
SHORTEST = 20  # shingles: shorter captions ("a cat") are alike without being copies

Hashes = npt.NDArray[np.uint64]
_RANDOM = np.random.default_rng(0)
_FACTORS = _RANDOM.integers(1, 1 << 63, (BANDS * MINIMA, 1), np.uint64) | np.uint64(1)
_POWERS = np.cumprod(np.full(SHINGLE, 0x9E3779B97F4A7C15, np.uint64))


def shingles(caption: str | None) -> Hashes:
    """Hashes of the distinct runs of SHINGLE characters, ascending; empty for a caption that is too short."""
    text = re.sub(r"\s+", " ", unicodedata.normalize("NFKC", caption or "").casefold()).strip()
    codes = np.frombuffer(text.encode("utf-32-le"), np.uint32).astype(np.uint64)
    if len(codes) < SHINGLE + SHORTEST - 1:
        return np.zeros(0, np.uint64)
    runs = np.lib.stride_tricks.sliding_window_view(codes, SHINGLE) * _POWERS
    found: Hashes = np.unique(runs.sum(axis=1, dtype=np.uint64) * np.uint64(0xFF51AFD7ED558CCD))
    return found if len(found) >= SHORTEST else found[:0]


def jaccard(one: Hashes, other: Hashes) -> float:
    """Shared shingles / all shingles of two captions."""
    both = len(np.intersect1d(one, other, assume_unique=True))
    return both / max(len(one) + len(other) - both, 1)


def join_captions(forest: Forest, captions: Sequence[str | None], least: float) -> None:
    """Join rows whose captions have a Jaccard index of at least `least`."""
    sets = [shingles(caption) for caption in captions]
    rows = np.array([i for i, found in enumerate(sets) if len(found)], np.int64)
    if not len(rows):
        return
    minima = np.empty((len(rows), BANDS * MINIMA), np.uint32)
    whole = np.empty((len(rows), 2), np.uint64)
    for i, row in enumerate(rows):
        minima[i] = (sets[row] * _FACTORS).min(axis=1) >> np.uint64(32)
        whole[i] = np.frombuffer(hashlib.blake2b(sets[row].tobytes(), digest_size=16).digest(), np.uint64)
    # Equal captions first, and one of each from there on: a placeholder that stands a million times is one caption.
    heads = first_equal(whole)
    same = np.flatnonzero(heads != np.arange(len(rows)))
    forest.add(Edges.of(rows[heads[same]], rows[same], "caption", np.ones(len(same))))
    few = np.flatnonzero(heads == np.arange(len(rows)))
    rows, minima = rows[few], minima[few]
    for band in range(BANDS):
        for a, b in _pairs(np.roll(minima, -band * MINIMA, axis=1)):
            _join(forest, rows, minima, sets, a, b, least)


def _pairs(minima: npt.NDArray[np.uint32]) -> Iterator[tuple[Ints, Ints]]:
    """Pairs of rows that agree in the first band, each with the NEIGHBOURS that follow it when all minima are sorted.

    So many captions of one template ("a photograph number ... of ...") cost a line each and not a square: those that
    are alike beyond it agree in more minima, stand near each other in the order of some band, and are met there.
    """
    order = np.lexsort(minima.T[::-1])
    first = minima[order, :MINIMA]
    alike = np.flatnonzero((first[1:] == first[:-1]).all(axis=1))
    for step in range(1, NEIGHBOURS + 1):
        yield order[alike], order[alike + step]
        alike = alike[alike + step + 1 < len(order)]
        alike = alike[(first[alike] == first[alike + step + 1]).all(axis=1)]
        if not len(alike):
            return


def _join(
    forest: Forest, rows: Ints, minima: npt.NDArray[np.uint32], sets: list[Hashes], a: Ints, b: Ints, least: float
) -> None:
    """Join those pairs whose Jaccard index is high enough; the share of equal minima tells which to look at."""
    apart = forest.root[rows[a]] != forest.root[rows[b]]
    a, b = a[apart], b[apart]
    likely = [
        (minima[a[low : low + BLOCK]] == minima[b[low : low + BLOCK]]).mean(axis=1) for low in range(0, len(a), BLOCK)
    ]
    likely_at = np.flatnonzero(np.concatenate(likely) >= least - UNSURE) if likely else np.zeros(0, np.int64)
    a, b = rows[a[likely_at]], rows[b[likely_at]]
    alike = np.array([jaccard(sets[i], sets[j]) for i, j in zip(a.tolist(), b.tolist(), strict=True)])
    good = np.flatnonzero(alike >= least)
    forest.add(Edges.of(a[good], b[good], "caption", alike[good]))
