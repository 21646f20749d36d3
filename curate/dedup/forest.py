"""Union-find over rows that remembers why: one edge, with its reason, for every time two groups became one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]

REASONS = ("bytes", "pixels", "pdq", "turned", "semantic", "caption")


@dataclass(frozen=True)
class Edges:
    """Pairs of rows that are copies of each other: `value` is a distance in bits, a cosine or a Jaccard index."""

    a: Ints
    b: Ints
    reason: npt.NDArray[np.uint8]
    """Index into REASONS."""
    value: npt.NDArray[np.float32]
    turn: npt.NDArray[np.uint8]
    """Index into turns.TURNS: how the picture of `b` must be turned to look like that of `a`."""

    def __len__(self) -> int:
        return len(self.a)

    def take(self, chosen: npt.NDArray[Any]) -> Edges:
        """The edges at some positions."""
        return Edges(*(getattr(self, f.name)[chosen] for f in fields(self)))

    @staticmethod
    def of(a: Ints, b: Ints, reason: str, value: npt.NDArray[Any], turn: npt.NDArray[Any] | None = None) -> Edges:
        """Edges of one reason."""
        why = np.full(len(a), REASONS.index(reason), np.uint8)
        turned = np.zeros(len(a), np.uint8) if turn is None else turn.astype(np.uint8)
        return Edges(a, b, why, value.astype(np.float32), turned)

    @staticmethod
    def together(many: Sequence[Edges]) -> Edges:
        """All of them in one."""
        none = np.zeros(0, np.int64)
        many = [Edges.of(none, none, REASONS[0], none), *many]
        return Edges(*(np.concatenate([getattr(edges, f.name) for edges in many]) for f in fields(Edges)))


class Forest:
    """Groups of `rows` rows; `root[i]` is the smallest row of the group of row i.

    The edges that it keeps are a spanning forest: n - 1 for a group of n, so that a million copies of one placeholder
    cost a million edges and not their square, and every member is still linked to every other by a path of reasons.
    """

    def __init__(self, rows: int, root: Ints | None = None) -> None:
        self.root: Ints = np.arange(rows) if root is None else root
        self._kept: list[Edges] = []

    def join(self, a: Ints, b: Ints) -> Ints:
        """Join the groups of `a[i]` and `b[i]` for all i, in this order; returns those i that changed something."""
        apart = np.flatnonzero(self.root[a] != self.root[b])
        if not len(apart):
            return apart
        parent: dict[int, int] = {}

        def find(x: int) -> int:
            while (up := parent.get(x, x)) != x:
                parent[x] = parent.get(up, up)
                x = up
            return x

        joins = []
        pairs = zip(self.root[a[apart]].tolist(), self.root[b[apart]].tolist(), strict=True)
        for i, (left, right) in enumerate(pairs):
            one, other = find(left), find(right)
            if one != other:
                parent[max(one, other)] = min(one, other)
                joins.append(i)
        renamed = np.arange(len(self.root))
        renamed[list(parent)] = [find(x) for x in list(parent)]
        self.root = renamed[self.root]
        return apart[joins]

    def add(self, edges: Edges) -> None:
        """Join along `edges` and keep those that changed something."""
        joined = self.join(edges.a, edges.b)
        if len(joined):
            self._kept.append(edges.take(joined))

    def edges(self) -> Edges:
        """All edges that joined two groups, in the order in which they did."""
        return Edges.together(self._kept)


def first_equal(keys: npt.NDArray[np.uint64]) -> Ints:
    """For each row of `keys` (n, words) the position of the first row that is equal to it."""
    order = np.lexsort((np.arange(len(keys)), *keys.T[::-1]))
    ordered = keys[order]
    first = np.ones(len(order), np.bool_)
    first[1:] = (ordered[1:] != ordered[:-1]).any(axis=1)
    heads = np.empty(len(order), np.int64)
    heads[order] = order[np.flatnonzero(first)[np.cumsum(first) - 1]]
    return heads


def equal(heads: Ints, rows: Ints, reason: str) -> Edges:
    """Edges from each of `rows` to the one at the same position of `heads` (see first_equal), itself left out."""
    copies = np.flatnonzero(heads != np.arange(len(heads)))
    return Edges.of(rows[heads[copies]], rows[copies], reason, np.zeros(len(copies)))
