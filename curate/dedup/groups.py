"""Which copy of a group is kept, how every other stands to it, and the tables that say so."""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from curate.dedup.forest import REASONS, Edges, Ints
from curate.dedup.near import differing
from curate.dedup.rows import Rows
from curate.dedup.semantic import cosine
from curate.dedup.text import jaccard, shingles
from curate.dedup.turns import TURNS, turn_hashes, turn_looks
from curate.store.parts import Version

if TYPE_CHECKING:
    from curate.dedup import Settings

CHAIN = len(REASONS)
SELF = CHAIN + 1
BLOCK = 1 << 16
MOST_GAIN = 1.5  # of brightness


@dataclass(frozen=True)
class Grouped:
    """How each row stands to its group and to the row that is kept for it; arrays over rows."""

    root: Ints
    size: Ints
    keeper: Ints
    reason: Ints
    """Index into REASONS, or CHAIN, or SELF for a row that is its own keeper."""
    turn: Ints
    """Index into TURNS: how the row must be turned to look like its keeper."""
    distance: Ints
    """Differing bits; -1 where one of the two has no hash."""
    similarity: npt.NDArray[np.float32]
    """Cosine; NaN where one of the two has no embedding."""
    captions: dict[int, list[str]]
    """Keeper -> raw captions of its copies, its own first."""

    @property
    def kept(self) -> npt.NDArray[np.bool_]:
        """Rows that are their own keeper."""
        kept: npt.NDArray[np.bool_] = self.reason == SELF
        return kept


def same_colors(rows: Rows, a: Ints, b: Ints, turn: npt.NDArray[Any], most: float) -> npt.NDArray[np.bool_]:
    """Whether the looks of `a[i]` and of `b[i]`, turned, differ by at most `most` of 255 in the mean.

    A copy may be brighter or darker as a whole: `b` is multiplied by what brings it nearest to `a`, within MOST_GAIN.
    """
    near = np.zeros(len(a), np.bool_)
    for kind in np.unique(turn):
        at = np.flatnonzero(turn == kind)
        one = rows.look[a[at]].reshape(-1, 27).astype(np.float32)
        other = turn_looks(rows.look[b[at]], int(kind)).reshape(-1, 27).astype(np.float32)
        gain = (one * other).sum(axis=1) / np.maximum((other * other).sum(axis=1), 1.0)
        gain = np.clip(gain, 1 / MOST_GAIN, MOST_GAIN)[:, None]
        near[at] = np.abs(one - other * gain).mean(axis=1) <= most
    return near


def group(rows: Rows, root: Ints, settings: Settings) -> Grouped:
    """Choose the keepers of the groups in `root` by the order of preference and measure every copy against its own."""
    count = len(rows)
    size = np.bincount(root, minlength=count)[root]
    found = Grouped(
        root, size, np.arange(count), np.full(count, SELF), np.zeros(count, np.int64), np.zeros(count, np.int64),
        np.full(count, np.nan, np.float32), {},
    )  # fmt: skip
    found.distance[~rows.hashed] = -1
    members = np.flatnonzero(size > 1)
    waiting = members[np.lexsort((members, *rows.prefer[::-1, members], root[members]))]
    while len(waiting):
        first = np.r_[True, root[waiting[1:]] != root[waiting[:-1]]]
        heads = waiting[first][np.cumsum(first) - 1]
        copies, keepers = waiting[~first], heads[~first]
        reason, turn, distance, similarity = relation(rows, copies, keepers, settings)
        direct = (reason != CHAIN) | (settings.linkage == "group")
        for values, new in (
            (found.keeper, keepers), (found.reason, reason), (found.turn, turn), (found.distance, distance),
            (found.similarity, similarity),
        ):  # fmt: skip
            values[copies[direct]] = new[direct]
        waiting = copies[~direct]
    if settings.pool_captions:
        found.captions.update(_pooled(rows, found, members))
    return found


def relation(
    rows: Rows, copies: Ints, keepers: Ints, settings: Settings
) -> tuple[Ints, Ints, Ints, npt.NDArray[np.float32]]:
    """Reason, turn, differing bits (-1: no hash) and cosine (NaN: none) of each copy against its keeper."""
    reason = np.full(len(copies), CHAIN)
    turn = np.zeros(len(copies), np.int64)
    distance = np.full(len(copies), -1)
    similarity = np.full(len(copies), np.nan, np.float32)
    if rows.embeddings is not None:
        similarity = cosine(rows.embeddings, copies, keepers)
    for start in range(0, len(copies), BLOCK):
        here = slice(start, start + BLOCK)
        a, k = copies[here], keepers[here]
        distance[here], turn[here], near = _perceptual(rows, a, k, settings)
        close = np.where(turn[here] > 0, REASONS.index("turned"), REASONS.index("pdq"))
        why = reason[here]
        if settings.semantic:
            why[similarity[here] >= settings.semantic] = REASONS.index("semantic")
        why[near] = close[near]
        for name, hashes in (("pixels", rows.pixels), ("bytes", rows.sha256)):
            same = (hashes[a] == hashes[k]).all(axis=1) & hashes[a].any(axis=1)
            why[same] = REASONS.index(name)
        exact = why < REASONS.index("pdq")
        turn[here][exact] = 0
        distance[here][exact & rows.hashed[a]] = 0
    if settings.captions:
        for i in np.flatnonzero(reason == CHAIN):
            texts = (rows.captions[int(row)].as_py() for row in (copies[i], keepers[i]))
            one, other = (shingles(text) for text in texts)
            if len(one) and len(other) and jaccard(one, other) >= settings.captions:
                reason[i] = REASONS.index("caption")
    return reason, turn, distance, similarity


def _perceptual(
    rows: Rows, copies: Ints, keepers: Ints, settings: Settings
) -> tuple[Ints, Ints, npt.NDArray[np.bool_]]:
    """Differing bits, the turn that makes them fewest among those that count, and whether it is a perceptual copy."""
    hashed = rows.hashed[copies] & rows.hashed[keepers]
    fit = hashed & (rows.quality[copies] >= settings.quality) & (rows.quality[keepers] >= settings.quality)
    distance = np.where(hashed, differing(rows.pdq[copies], rows.pdq[keepers]), -1)
    straight = np.zeros(len(copies), np.int64)
    near = fit & (distance <= settings.bits) & same_colors(rows, keepers, copies, straight, settings.color)
    turn = straight.copy()
    if settings.turned:
        best = np.where(near, -1, settings.bits + 1)
        for kind in range(1, len(TURNS)):
            bits = differing(turn_hashes(rows.centred[copies], kind), rows.centred[keepers])
            better = fit & (bits < best)
            better &= same_colors(rows, keepers, copies, np.full(len(copies), kind), settings.color)
            best[better], turn[better], distance[better], near[better] = bits[better], kind, bits[better], True
    return distance, turn, near


def _pooled(rows: Rows, found: Grouped, members: Ints) -> dict[int, list[str]]:
    """The raw captions of each keeper's copies without repeats: its own, then in the order of preference."""
    pooled: dict[int, dict[str, None]] = {}
    for at in rows.best(members)[np.argsort(~found.kept[rows.best(members)], kind="stable")]:
        caption = rows.captions[int(at)].as_py()
        if caption:
            pooled.setdefault(int(found.keeper[at]), {})[caption] = None
    return {keeper: list(captions) for keeper, captions in pooled.items()}


def table(rows: Rows, found: Grouped) -> pa.Table:
    """The columns of operator `dedup` (schemas/columns.py) of all rows."""
    all_rows = np.arange(len(rows))
    ids = rows.ids(all_rows)
    copy = ~found.kept
    words = pa.array([*REASONS, "chain", None])
    turns = pa.array([None, *TURNS[1:]])
    captions = [None] * len(rows)
    for keeper, texts in found.captions.items():
        captions[keeper] = texts  # type: ignore[call-overload]
    columns: dict[str, Any] = {
        "shard": rows.shard.cast(pa.string()),
        "row": pa.array(rows.row),
        "dedup_group": ids.take(pa.array(found.root)),
        "dedup_size": pa.array(found.size, pa.int32()),
        "dedup_keep": pa.array(found.kept),
        "dedup_keeper": ids.take(pa.array(found.keeper)),
        "dedup_reason": words.take(pa.array(found.reason)),
        "dedup_turn": turns.take(pa.array(found.turn)),
        "dedup_distance": pa.array(found.distance, pa.int32(), mask=found.distance < 0),
        "dedup_similarity": pa.array(found.similarity, mask=np.isnan(found.similarity) | ~copy),
        "dedup_captions": pa.array(captions, pa.list_(pa.string())),
    }
    return pa.table(columns)


def edge_table(rows: Rows, edges: Edges, root: Ints) -> pa.Table:
    """Every edge: the group, its two rows, why they are copies and how far apart; sorted by group and rows."""
    order = np.lexsort((edges.b, edges.a, root[edges.a]))
    edges = edges.take(order)
    bits = edges.reason <= REASONS.index("turned")
    return pa.table(
        {
            "dedup_group": rows.ids(root[edges.a]),
            "a": rows.ids(edges.a),
            "b": rows.ids(edges.b),
            "reason": pa.array(REASONS).take(pa.array(edges.reason)),
            "turn": pa.array([None, *TURNS[1:]]).take(pa.array(edges.turn)),
            "distance": pa.array(edges.value.astype(np.int32), mask=~bits),
            "similarity": pa.array(edges.value, mask=bits),
        }
    )


def edges_path(version: Version) -> str:
    """Where the edges of a version lie: beside its parts, in a folder of their own that no shard can be named after."""
    return f"{version.folder}/edges/edges.parquet"


def encoded(edges: pa.Table) -> bytes:
    """The edges as Parquet."""
    out = io.BytesIO()
    pq.write_table(edges, out, compression="zstd", row_group_size=100_000)
    return out.getvalue()
