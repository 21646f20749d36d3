"""Captions that say nearly the same: MinHash over character shingles, then the Jaccard index itself.

Captions are short, so the shingles are of `SHINGLE` characters; letters are folded and white space is one space.
Two captions with a Jaccard index of 0.8 share one of 25 bands of 5 minima with a chance of 99.995 %, and what is found
is checked: no false pair, whatever the hash does.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from curate.dedup.forest import Edges, Forest, Ints

SHINGLE = 4
BANDS, MINIMA = 25, 5
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
    minima = np.empty((len(rows), BANDS * MINIMA), np.uint64)
    for i, row in enumerate(rows):
        minima[i] = (sets[row] * _FACTORS).min(axis=1)
    for band in range(BANDS):
        columns = minima[:, band * MINIMA : (band + 1) * MINIMA]
        order = np.lexsort((rows, *columns.T))
        alike = (columns[order[1:]] == columns[order[:-1]]).all(axis=1)
        starts = np.flatnonzero(np.r_[True, ~alike])
        for start, stop in zip(starts, np.r_[starts[1:], len(rows)], strict=True):
            if stop - start > 1:
                _join_run(forest, rows[order[start:stop]], sets, least)


def _join_run(forest: Forest, run: Ints, sets: list[Hashes], least: float) -> None:
    """Captions that share a band: each with every other, as long as they are not of one group."""
    for i, a in enumerate(run[:-1]):
        for b in run[i + 1 :][forest.root[run[i + 1 :]] != forest.root[a]]:
            alike = jaccard(sets[a], sets[b])
            if alike >= least:
                forest.add(Edges.of(np.array([a]), np.array([b]), "caption", np.array([alike])))
