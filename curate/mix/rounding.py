"""A table of shares to whole numbers, exact in every margin at once.

Each cell of a table becomes floor or ceiling of its value, such that every row sum, every column sum and the total is
floor or ceiling of its own value too. Rounding cell by cell would let a bucket be off by as many samples as it has
concepts. Such a rounding always exists (Bacharach 1966; Cox 1987, "A constructive procedure for unbiased controlled
rounding"); this one is Cox's with the random walk of Gandhi et al. 2006, so that the expectation of every cell is its
value: a cell of one row is not raw in every epoch.
"""

from __future__ import annotations

from collections import defaultdict
from fractions import Fraction

import numpy as np
import numpy.typing as npt

from curate.mix.keyed import mixed

Counts = npt.NDArray[np.int64]


def rounded(counts: Counts, share: Fraction, rows: Counts, columns: Counts, *facts: object) -> Counts:
    """Whole numbers near `counts * share`, drawn by `facts` (seed, epoch, purpose).

    Cell i stands in row `rows[i]` and column `columns[i]` of the table; several cells may stand at one place.
    """
    whole = [int(n) * share.numerator // share.denominator for n in counts]
    edges = [int(n) * share.numerator % share.denominator for n in counts]  # in units of 1 / denominator
    ends = [(("row", int(r)), ("column", int(c))) for r, c in zip(rows, columns, strict=True)]
    _close(edges, ends, share.denominator)
    _walk(edges, ends, share.denominator, facts)
    up = [edge // share.denominator for edge in edges[: len(counts)]]
    return np.array([a + b for a, b in zip(whole, up, strict=True)], np.int64)


Vertex = tuple[str, int]


def _close(edges: list[int], ends: list[tuple[Vertex, Vertex]], unit: int) -> None:
    """Add what each row, each column and the total lack to be whole, as cells of one more column and one more row."""
    lacks: dict[Vertex, int] = defaultdict(int)
    for edge, (row, column) in zip(edges, ends, strict=True):
        lacks[row] -= edge
        lacks[column] -= edge
    corner = 0
    for vertex in sorted(lacks):
        slack = lacks[vertex] % unit
        if vertex[0] == "row":
            corner -= slack
        edges.append(slack)
        ends.append((vertex, ("column", -1)) if vertex[0] == "row" else (("row", -1), vertex))
    edges.append(corner % unit)
    ends.append((("row", -1), ("column", -1)))


def _walk(edges: list[int], ends: list[tuple[Vertex, Vertex]], unit: int, facts: tuple[object, ...]) -> None:
    """Make all edges 0 or `unit`, the sum at every vertex unchanged.

    As all sums are whole, a vertex with one fractional edge has another, so a walk along fractional edges closes a
    cycle. Raising every second of its edges and lowering the others by the same amount ends at least one of them.
    """
    at: dict[Vertex, dict[int, None]] = defaultdict(dict)
    for i, edge in enumerate(edges):
        if edge % unit:
            at[ends[i][0]][i] = None
            at[ends[i][1]][i] = None
    draws = iter(mixed(np.arange(len(edges), dtype=np.uint64), *facts).tolist())
    for start in [end for pair in ends for end in pair]:
        while at[start]:
            path: list[int] = []
            seen = {start: 0}
            here = start
            while True:
                last = path[-1] if path else -1
                edge = next(i for i in at[here] if i != last)
                path.append(edge)
                here = ends[edge][1] if ends[edge][0] == here else ends[edge][0]
                if here in seen:
                    break
                seen[here] = len(path)
            cycle = path[seen[here] :]
            up, down = cycle[::2], cycle[1::2]
            rise = min([unit - edges[i] for i in up] + [edges[i] for i in down])
            fall = min([edges[i] for i in up] + [unit - edges[i] for i in down])
            step = rise if next(draws) % (rise + fall) < fall else -fall
            for i in cycle:
                edges[i] += step if i in up else -step
                if edges[i] % unit == 0:
                    del at[ends[i][0]][i], at[ends[i][1]][i]
