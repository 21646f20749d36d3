"""What `curate dedup` prints: the summary of a run, and the story of the group that one row belongs to."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from rich.cells import cell_len, set_cell_size
from rich.console import Console
from rich.table import Table

from curate.dedup import Outcome, groups
from curate.dedup.forest import REASONS
from curate.errors import CurateError, UsageError
from curate.store import Store
from curate.store.parts import Version, read_table
from curate.table import clean, cut

LISTED = 8  # of the largest groups
MEMBERS = 40  # of one group


def show(store: Store, outcome: Outcome, console: Console | None = None) -> None:
    """Print how many copies there are of which kind, the largest groups, and how to look at them."""
    console = console or Console(highlight=False)
    found, rows = outcome.grouped, outcome.rows
    copies = int((~found.kept).sum())
    sets = len(np.unique(found.root[found.size > 1]))
    console.print(f"{len(rows):,} rows: {copies:,} are copies, in {sets:,} groups; {len(rows) - copies:,} are kept")
    if not copies:
        return
    table = Table(box=None, pad_edge=False)
    for name in ("copy of its keeper by", "rows", "share"):
        table.add_column(name, justify="left" if name.startswith("copy") else "right")
    for i, word in enumerate((*REASONS, "chain")):
        number = int((found.reason == i).sum())
        if number:
            table.add_row(word, f"{number:,}", f"{number / len(rows):.1%}")
    console.print(table)
    if (found.reason == groups.CHAIN).any():
        console.print("chain: linked to its keeper by way of other copies only; --linkage keeper keeps such rows")
    heads = np.flatnonzero((found.root == np.arange(len(rows))) & (found.size > 1))
    largest = heads[np.argsort(-found.size[heads], kind="stable")][:LISTED]
    console.print("largest groups: " + ", ".join(
        f"{name} ({size:,})" for name, size in zip(rows.ids(largest).to_pylist(), found.size[largest], strict=True)
    ))  # fmt: skip
    some = rows.ids(np.flatnonzero(~found.kept)[:1])[0].as_py()
    console.print(f"why: curate dedup {store.uri} --explain {some}")


def explain(store: Store, row_id: str, console: Console | None = None) -> None:
    """Print the members of a row's group and the path of edges that links the row to its keeper.

    Raises UsageError when the row is not there or dedup has not seen it.
    """
    console = console or Console(highlight=False)
    found = store.rows("SELECT dedup_group, dedup_keeper, dedup_size FROM samples WHERE row_id = $1", [row_id])
    if not found:
        raise UsageError(f"no row {row_id!r} in {store.uri}; write it as shard:row")
    group, keeper, size = found[0]
    if group is None:
        raise UsageError(f"{row_id}: dedup has not looked at it; run: curate dedup {store.uri}")
    if size == 1:
        console.print(f"{row_id} has no copies")
        return
    console.print(f"{row_id} is one of {size:,} copies; {keeper} stands for it")
    _members(store, group, row_id, console)
    console.print("how they are linked:")
    for line in _path(edges_of(store, group), row_id, keeper):
        console.print("  " + line, soft_wrap=True)


def edges_of(store: Store, group: str) -> list[dict[str, Any]]:
    """The edges that made a group: `a, b, reason, turn, distance, similarity`."""
    active = store.rows("SELECT fingerprint FROM operators WHERE operator = 'dedup' AND active")
    if not active:
        raise CurateError(f"{store.uri}: no groups; run: curate dedup {store.uri}")
    try:
        table: pa.Table = read_table(store.files, groups.edges_path(Version("dedup", active[0][0])))
    except FileNotFoundError:
        raise CurateError(f"{store.uri}: the edges are gone; run again: curate dedup {store.uri}") from None
    return list(table.filter(pc.equal(table["dedup_group"], group)).to_pylist())


def _members(store: Store, group: str, row_id: str, console: Console) -> None:
    rows = store.rows(
        "SELECT row_id, dedup_keep, dedup_reason, dedup_turn, dedup_distance, width, height, format, bytes, aesthetic, "
        "caption_raw FROM samples WHERE dedup_group = $1 ORDER BY NOT dedup_keep, row_id LIMIT $2", [group, MEMBERS + 1]
    )  # fmt: skip
    lines = [["row", "copy by", "bits", "size", "kB", "aesthetic", "caption"]]
    for id, keep, reason, turn, bits, width, height, format, size, aesthetic, caption in rows[:MEMBERS]:
        lines.append(
            [
                f"{id}{' <' if id == row_id else ''}",
                "kept" if keep else " ".join(filter(None, (reason, turn))),
                "" if bits is None or keep else str(bits),
                f"{width} x {height} {format}" if width else "",
                f"{(size or 0) / 1000:.0f}",
                "" if aesthetic is None else f"{aesthetic:.2f}",
                clean(caption or ""),
            ]
        )
    print_aligned(lines, console)
    if len(rows) > MEMBERS:
        console.print(f"and more: curate sql {store.uri} \"select * from samples where dedup_group = '{group}'\"")


def print_aligned(lines: Sequence[Sequence[str]], console: Console) -> None:
    """Print rows of words in columns; the last word is cut where the terminal ends."""
    widths = [max(map(cell_len, column)) for column in zip(*lines, strict=True)][:-1]
    for line in lines:
        head = "  ".join(set_cell_size(word, width) for word, width in zip(line, widths, strict=False))
        console.print(cut(f"{head}  {line[-1]}", console.width - 1).rstrip(), markup=False, no_wrap=True)


def _path(edges: list[dict[str, Any]], start: str, goal: str) -> list[str]:
    """One line for each edge on the way from `start` to `goal`, or every edge of a keeper."""
    if start == goal:
        return [_line(edge) for edge in edges[:MEMBERS]]
    links: dict[str, list[dict[str, Any]]] = {}
    for edge in edges:
        links.setdefault(edge["a"], []).append(edge)
        links.setdefault(edge["b"], []).append(edge)
    came: dict[str, dict[str, Any]] = {}
    waiting = deque([start])
    while waiting and goal not in came:
        here = waiting.popleft()
        for edge in links.get(here, []):
            there = edge["b"] if edge["a"] == here else edge["a"]
            if there not in came and there != start:
                came[there] = edge
                waiting.append(there)
    lines, here = [], goal
    while here in came:
        edge = came[here]
        lines.append(_line(edge))
        here = edge["b"] if edge["a"] == here else edge["a"]
    return lines[::-1]


def _line(edge: dict[str, Any]) -> str:
    """`a = b  pdq, 12 bits`."""
    how = [edge["reason"]]
    if edge["turn"]:
        how.append(f"{edge['b']} {edge['turn']}")
    if edge["distance"] is not None and edge["reason"] in ("pdq", "turned"):
        how.append(f"{edge['distance']} bits")
    if edge["similarity"] is not None:
        how.append(f"{edge['similarity']:.3f}")
    return f"{edge['a']} = {edge['b']}  {', '.join(how)}"
