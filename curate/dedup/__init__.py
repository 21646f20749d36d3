"""Copies of one picture: found by bytes, pixels, perceptual hash, embedding and caption, grouped, and explained.

    curate dedup demo/store

rows.py      what is compared, as arrays
forest.py    union-find that keeps the reason of every join
near.py      hashes within 31 bits of each other, all of them, without comparing every pair
turns.py     what mirroring and rotating do to a hash
semantic.py  embeddings, inside k-means cells
text.py      captions, by MinHash
groups.py    which copy is kept, and how each row stands to it
show.py      the summary, and the story of one group

Nothing is deleted: columns of the derived operator `dedup` say which row is to be used (docs/dedup.md). Every run
judges the whole store, so that a store that has grown gets what it would have got from scratch: a group may gain a
member that links it to another group, which no run that looked at the new rows alone could tell.
"""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass

import numpy as np
import numpy.typing as npt

from curate.dedup import groups
from curate.dedup.forest import Edges, Forest, Ints, equal, first_equal
from curate.dedup.groups import Grouped
from curate.dedup.near import MOST_BITS, near
from curate.dedup.rows import Rows, read
from curate.dedup.semantic import join_semantic
from curate.dedup.text import join_captions
from curate.dedup.turns import TURNS, turn_hashes
from curate.errors import UsageError
from curate.store import Store
from curate.store.derived import publish
from curate.store.parts import Version

VERSION = 1
# One turn of each pair that undo each other: that b rotated by 90 degrees looks like a says that a by 270 does like b.
SEARCHED = tuple(turn for turn in range(1, len(TURNS)) if TURNS[turn] != "rotated 270")


@dataclass(frozen=True)
class Settings:
    """What counts as a copy, and which copy is kept."""

    bits: int = 31
    """Differing bits of two PDQ hashes, at most; -1 leaves perceptual copies alone."""
    quality: int = 50
    """PDQ quality, at least: flatter pictures are compared by bytes and pixels only."""
    color: float = 12.0
    """Mean difference of the colours of 3 x 3 tiles, 0..255, at most."""
    turned: bool = True
    """Look for mirrored and rotated copies too."""
    semantic: float = 0.97
    """Cosine of two embeddings, at least; 0 leaves them alone."""
    captions: float = 0.0
    """Jaccard index of two raw captions, at least; 0 leaves them alone."""
    linkage: str = "group"
    """group: one row of a group is kept. keeper: every row is a direct copy of the one that stands for it."""
    prefer: tuple[str, ...] = ()
    """SQL, the larger wins unless it ends in asc; empty: rows.PREFER."""
    where: str = ""
    """SQL: the rows that take part."""
    pool_captions: bool = False
    """Gather the raw captions of a group at its keeper."""

    def __post_init__(self) -> None:
        """Refuse what has no meaning."""
        if not -1 <= self.bits <= MOST_BITS:
            raise UsageError(f"--bits {self.bits}: 0 to {MOST_BITS} differing bits, or -1 for none of it")
        for name, value, least in (("semantic", self.semantic, -1.0), ("captions", self.captions, 0.0)):
            if not least <= value <= 1.0:
                raise UsageError(f"--{name} {value:g}: at most 1; 0 leaves them alone")
        for name, value, most in (("quality", self.quality, 100), ("color", self.color, 255)):
            if not 0 <= value <= most:
                raise UsageError(f"--{name} {value:g}: 0 to {most}; leave hashes alone with --bits -1")
        if self.linkage not in ("group", "keeper"):
            raise UsageError(f"--linkage {self.linkage}: group or keeper")


@dataclass(frozen=True)
class Outcome:
    """What one run found: all rows, their groups, the edges that made them, and the version it was published as."""

    rows: Rows
    edges: Edges
    grouped: Grouped
    version: Version


def dedup(store: Store, settings: Settings) -> Outcome:
    """Find the copies in a store and publish the columns of operator `dedup`; the old ones stay in the store."""
    want_captions = settings.captions > 0 or settings.pool_captions
    rows = read(store, settings.where, settings.prefer, want_captions, settings.semantic != 0)
    if not len(rows):
        raise UsageError(f"{store.uri}: no row to compare{' where ' + settings.where if settings.where else ''}")
    forest = link(rows, settings)
    grouped = groups.group(rows, forest.root, settings)
    edges = forest.edges()
    facts = {"version": VERSION, "engine": "curate", "revision": str(VERSION), **asdict(settings)}
    version = publish(store.files, "dedup", facts, groups.table(rows, grouped))
    table = groups.edge_table(rows, edges, forest.root)
    store.files.create(groups.edges_path(version), groups.encoded(table))
    return Outcome(rows, edges, grouped, version)


def link(rows: Rows, settings: Settings) -> Forest:
    """Join all rows that are copies of each other, the plainest reasons first: an edge has the strongest that holds."""
    forest = Forest(len(rows))
    for reason, keys in (("bytes", rows.sha256), ("pixels", rows.pixels)):
        known = np.flatnonzero(keys.any(axis=1))
        forest.add(equal(first_equal(keys[known]), known, reason))
    if settings.bits >= 0:
        _link_hashes(forest, rows, settings)
    if settings.semantic and rows.embeddings is not None:
        join_semantic(forest, rows.embeddings, settings.semantic)
    if settings.captions:
        join_captions(forest, rows.captions.to_pylist(), settings.captions)
    return forest


def _link_hashes(forest: Forest, rows: Rows, settings: Settings) -> None:
    """Perceptual copies, as they are and turned; of rows with the same hashes and look the first stands for all."""
    usable = np.flatnonzero(rows.hashed & (rows.quality >= settings.quality))
    if not len(usable):
        return
    looks = np.zeros((len(usable), 8), np.uint32)
    looks.view(np.uint8)[:, :27] = rows.look[usable].reshape(-1, 27)
    heads = first_equal(np.hstack([rows.pdq[usable], rows.centred[usable], looks]).view(np.uint64))
    forest.add(equal(heads, usable, "pdq"))
    few = usable[heads == np.arange(len(usable))]
    _, first, group = np.unique(forest.root[few], return_index=True, return_inverse=True)
    small = Forest(len(few), first[group])

    def accept(a: Ints, b: Ints, turn: npt.NDArray[np.uint8]) -> npt.NDArray[np.bool_]:
        return groups.same_colors(rows, few[a], few[b], turn, settings.color)

    threads = os.cpu_count() or 1
    near(rows.pdq[few], [], settings.bits, small, accept, threads)
    if settings.turned:
        centred = rows.centred[few]
        near(centred, [(turn, turn_hashes(centred, turn)) for turn in SEARCHED], settings.bits, small, accept, threads)
    found = small.edges()
    forest.add(Edges(few[found.a], few[found.b], found.reason, found.value, found.turn))
