"""For every (epoch, entry): the raw or a synthetic caption, in which language, which variant.

An *entry* is one appearance of a row in an epoch (a row of weight 2 has two). Both modes are functions of the seed,
the epoch and columns that stand in the training set itself, so a loader, an exporter and `curate mix verify` agree,
whatever the order and the number of workers.

quota    Entries are counted in cells of (bucket, concept, captions there are); each cell's quota is exact within one
         sample, and so is every bucket's, every concept's and the total (rounding.py). Within its cell an entry has a
         fixed keyed rank; from epoch to epoch the ranks turn by the van der Corput sequence, so that at 50:50 an entry
         shows its raw and a synthetic caption in every two epochs, and both languages in every four.
coin     An independent keyed coin for each (epoch, entry): the ratio holds on average only.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import numpy.typing as npt

from curate.mix.keyed import Keys, mixed, uniform, van_der_corput
from curate.mix.rounding import rounded

RAW, EN, ZH = 1, 2, 4  # bits of `options`: which usable captions an entry has
SOURCES = ("raw", "synthetic")
LANGUAGES = ("en", "zh")

Small = npt.NDArray[np.uint8]
Ints = npt.NDArray[np.int32]


@dataclass(frozen=True)
class Policy:
    """What decides captions: share of raw ones where both kinds are there, share of English among synthetic ones."""

    ratio: Fraction
    english: Fraction
    mode: str
    """`quota` or `coin`."""
    seed: int


@dataclass(frozen=True)
class Cell:
    """Entries of one split that share bucket, concept and kinds of captions; numbers of the manifest's lists."""

    bucket: int
    concept: int
    options: int
    entries: int


@dataclass(frozen=True)
class Entries:
    """What a decision reads, one element for each entry."""

    key: Keys
    options: Small
    raws: Small
    """How many raw captions (a copy's captions may be pooled to its keeper)."""
    variants_en: Small
    variants_zh: Small
    cell: Ints
    rank: Ints
    """Place among the entries of the cell in keyed order."""


@dataclass(frozen=True)
class Choice:
    """`source` indexes SOURCES; `variant` counts the raw captions, or the synthetic ones of the language, from 0.

    `language` indexes LANGUAGES for synthetic captions; a raw caption is in the language it is in.
    """

    source: Small
    language: Small
    variant: Small


def choosable(options: Small) -> npt.NDArray[np.bool_]:
    """Where both a raw and a synthetic caption are there; elsewhere the only kind is taken, and counted apart."""
    found: npt.NDArray[np.bool_] = ((options & RAW) != 0) & ((options & (EN | ZH)) != 0)
    return found


def bilingual(options: Small) -> npt.NDArray[np.bool_]:
    """Where synthetic captions are there in both languages."""
    found: npt.NDArray[np.bool_] = (options & (EN | ZH)) == (EN | ZH)
    return found


def decide(policy: Policy, cells: Sequence[Cell], entries: Entries, epoch: int) -> Choice:
    """The captions of one epoch."""
    options = entries.options
    both = bilingual(options)
    if policy.mode == "quota":
        first_en, first_zh, turn, size = _cut(policy, tuple(cells), epoch)
        place = entries.rank + turn[entries.cell]
        place -= np.where(place >= size[entries.cell], size[entries.cell], 0)
        raw = place < first_en[entries.cell]
        english = place < first_zh[entries.cell]
    else:
        raw = uniform(entries.key, policy.seed, epoch, "source") < float(policy.ratio)
        english = uniform(entries.key, policy.seed, epoch, "language") < float(policy.english)
    raw = np.where(choosable(options), raw, (options & RAW) != 0)
    chinese = np.where(both, ~english, (options & ZH) != 0)
    variants = np.where(raw, entries.raws, np.where(chinese, entries.variants_zh, entries.variants_en))
    variant = np.zeros(len(options), np.uint8)
    several = np.flatnonzero(variants > 1)
    if len(several):
        # Base 3, since base 2 turns the sources: an entry that is raw in every even epoch would never see variant 0.
        draw = uniform(entries.key[several], policy.seed, "variant") + van_der_corput(epoch, 3)
        variant[several] = (draw % 1.0 * variants[several]).astype(np.uint8)
    return Choice((~raw).astype(np.uint8), chinese.astype(np.uint8), variant)


@functools.lru_cache(maxsize=8)
def _cut(policy: Policy, cells: tuple[Cell, ...], epoch: int) -> tuple[Ints, Ints, Ints, Ints]:
    """For each cell of an epoch: the places at which English and Chinese begin (raw begins at 0), turn and size."""
    size = np.array([cell.entries for cell in cells], np.int64)
    bucket = np.array([cell.bucket for cell in cells], np.int64)
    concept = np.array([cell.concept for cell in cells], np.int64)
    options = np.array([cell.options for cell in cells], np.uint8)
    free = np.where(choosable(options), size, 0)
    raw = rounded(free, policy.ratio, bucket, concept, policy.seed, epoch, "source")
    spoken = np.where(bilingual(options), size - raw, 0)
    english = rounded(spoken, policy.english, bucket, concept, policy.seed, epoch, "language")
    turn = np.floor(van_der_corput(epoch) * size)
    return raw.astype(np.int32), (raw + english).astype(np.int32), turn.astype(np.int32), size.astype(np.int32)


def celled(bucket: Ints, concept: Ints, options: Small, concepts: int) -> tuple[Ints, tuple[Cell, ...]]:
    """The cell of each entry and the table of cells, in the order of bucket, concept and options."""
    kinds = options & (RAW | EN | ZH)
    code = (bucket.astype(np.int64) * concepts + concept) * 8 + kinds
    counts = np.bincount(code)
    used = np.flatnonzero(counts)
    number = np.zeros(len(counts), np.int32)
    number[used] = np.arange(len(used))
    cells = tuple(Cell(int(c) // 8 // concepts, int(c) // 8 % concepts, int(c) % 8, int(counts[c])) for c in used)
    return number[code], cells


def ranked(key: Keys, cell: Ints, seed: int) -> Ints:
    """The place of each entry among those of its cell, in keyed order."""
    hashed = mixed(key, seed, "rank")  # one to one, so that no two entries tie
    counts = np.bincount(cell)
    # NumPy sorts 16-bit numbers by radix; then each cell fits in cache. Together 2.5 times as fast as one sort.
    order = np.argsort(cell.astype(np.uint16) if len(counts) <= 1 << 16 else cell, kind="stable")
    hashed = hashed[order]
    rank = np.empty(len(cell), np.int32)
    first = 0
    for stop in np.cumsum(counts).tolist():
        rank[order[first:stop][np.argsort(hashed[first:stop])]] = np.arange(stop - first)
        first = stop
    return rank
