"""Pairs of embeddings with a cosine above a threshold, found inside k-means cells (SemDeDup, Abbas et al. 2023).

Every vector is looked at in its two nearest cells, since copies that lie at a border fall on either side of it. Up to
`ALL_PAIRS` vectors make one cell, and then no pair is missed.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from curate.dedup.forest import Edges, Forest, Ints
from curate.dedup.rows import Embeddings

ALL_PAIRS = 8192
BLOCK = 2048
SAMPLE = 40  # vectors that each centroid is learned from
ROUNDS = 8

Vectors = npt.NDArray[np.float32]


def join_semantic(forest: Forest, embeddings: Embeddings, least: float) -> None:
    """Join rows whose embeddings have a cosine of at least `least`."""
    rows = np.flatnonzero(embeddings.of >= 0)
    for members in cells(embeddings.vectors, embeddings.of[rows]):
        for edges in _pairs(embeddings, rows[members], least):
            forest.add(edges)


def cosine(embeddings: Embeddings, a: Ints, b: Ints) -> Vectors:
    """Cosine of the embeddings of rows a[i] and b[i]; NaN where one has none."""
    out = np.full(len(a), np.nan, np.float32)
    for start in range(0, len(a), BLOCK):
        left, right = embeddings.of[a[start : start + BLOCK]], embeddings.of[b[start : start + BLOCK]]
        have = (left >= 0) & (right >= 0)
        one = embeddings.vectors[left[have]].astype(np.float32)
        other = embeddings.vectors[right[have]].astype(np.float32)
        out[start : start + BLOCK][have] = np.einsum("ij,ij->i", one, other)
    return out


def cells(vectors: npt.NDArray[np.float16], at: Ints) -> Iterator[Ints]:
    """Positions in `at` that are to be compared with each other; each belongs to two cells, or all to the only one."""
    if len(at) <= ALL_PAIRS:
        yield np.arange(len(at))
        return
    centres = _centres(vectors, at, round(len(at) ** 0.5))
    nearest = np.empty((len(at), 2), np.int64)
    for start in range(0, len(at), BLOCK):
        block = vectors[at[start : start + BLOCK]].astype(np.float32)
        nearest[start : start + BLOCK] = np.argpartition(-(block @ centres.T), 2, axis=1)[:, :2]
    order = np.argsort(nearest.ravel(), kind="stable")
    counts = np.bincount(nearest.ravel(), minlength=len(centres))
    for members in np.split(order // 2, np.cumsum(counts)[:-1]):
        yield np.sort(members)


def _centres(vectors: npt.NDArray[np.float16], at: Ints, count: int) -> Vectors:
    """Unit centroids by spherical k-means on a sample; always the same for the same vectors."""
    random = np.random.default_rng(0)
    chosen = np.sort(random.choice(len(at), min(len(at), SAMPLE * count), replace=False))
    sample = vectors[at[chosen]].astype(np.float32)
    centres = sample[random.choice(len(sample), count, replace=False)]
    for _ in range(ROUNDS):
        cell = np.concatenate(
            [np.argmax(sample[i : i + BLOCK] @ centres.T, axis=1) for i in range(0, len(sample), BLOCK)]
        )
        order = np.argsort(cell, kind="stable")
        filled, starts = np.unique(cell[order], return_index=True)
        sums = np.add.reduceat(sample[order], starts, axis=0)
        centres[filled] = sums / np.maximum(np.linalg.norm(sums, axis=1, keepdims=True), 1e-12)
    return centres


def _pairs(embeddings: Embeddings, rows: Ints, least: float) -> Iterator[Edges]:
    for i in range(0, len(rows), BLOCK):
        left = embeddings.vectors[embeddings.of[rows[i : i + BLOCK]]].astype(np.float32)
        for j in range(i, len(rows), BLOCK):
            right = embeddings.vectors[embeddings.of[rows[j : j + BLOCK]]].astype(np.float32)
            near = left @ right.T
            if i == j:
                near[np.tril_indices(len(left))] = -1.0
            a, b = np.nonzero(near >= least)
            if len(a):
                yield Edges.of(rows[i + a], rows[j + b], "semantic", near[a, b])
