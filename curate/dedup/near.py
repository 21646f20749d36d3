"""Pairs of 256-bit hashes that differ in at most 31 bits: all of them, and without comparing every pair.

A pair with at most 31 differing bits has one of its eight 32-bit words with at most three (8 x 4 = 32 > 31). Each word
is cut into ten groups of bits. The 30 blocks of the Steiner system S(3, 4, 10) are sets of four groups such that any
three groups lie in exactly one block: whatever three bits differ, some block covers them, and the other six groups
(about 19 bits) are equal. So 8 x 30 sorts by "the word without the bits of one block" bring every near pair next to
each other, and at a million random hashes only some 0.8 million chance neighbours each.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import combinations, islice

import numpy as np
import numpy.typing as npt

from curate.dedup.forest import Edges, Forest, Ints

Words = npt.NDArray[np.uint32]
Accept = Callable[[Ints, Ints, npt.NDArray[np.uint8]], npt.NDArray[np.bool_]]

MOST_BITS = 31
WORDS = 8
WORD_BITS = 3  # differing bits that the best word has at most
# From here on chance neighbours cost more than sorts do: sixteen groups (140 blocks, 24 equal bits) are the better cut.
MANY = 30_000_000
WAVE = 4  # sorts that start from the same groups, so that the result does not depend on the number of threads
LONG = 8  # a run is asked at 8, 16, 32, ... neighbours whether it is one group already


def blocks(groups: int) -> list[tuple[int, ...]]:
    """Blocks of four of a Steiner quadruple system on `groups` points (10 or 16): any three points lie in just one."""
    if groups == 10:
        base = ((0, 1, 3, 4), (0, 1, 2, 6), (0, 2, 4, 7))
        return sorted({tuple(sorted((x + i) % 10 for x in block)) for block in base for i in range(10)})
    # The planes of the affine geometry AG(4, 2): four points whose exclusive or is zero.
    return [block for block in combinations(range(16), 4) if block[0] ^ block[1] ^ block[2] ^ block[3] == 0]


def masks(groups: int) -> list[int]:
    """For each block the bits of a 32-bit word that it does not cover."""
    cuts = [round(i * 32 / groups) for i in range(groups + 1)]
    bits = [sum(1 << bit for bit in range(cuts[i], cuts[i + 1])) for i in range(groups)]
    return [0xFFFFFFFF & ~sum(bits[i] for i in block) for block in blocks(groups)]


def differing(one: Words, other: Words) -> npt.NDArray[np.int64]:
    """Number of differing bits of each pair of hashes, (n, 8) words each."""
    counts: Ints = np.bitwise_count(one.view(np.uint64) ^ other.view(np.uint64)).sum(axis=1, dtype=np.int64)
    return counts


def near(
    hashes: Words, turned: Sequence[tuple[int, Words]], bits: int, forest: Forest, accept: Accept, threads: int
) -> None:
    """Join the groups of `forest` by pairs of hashes that differ in at most `bits` (<= 31) bits.

    `hashes` is (rows, 8). Without `turned` any two of them may be a pair; `turned` holds (turn, hashes of all rows as
    they would be had the pictures been turned), and then a pair is one hash as it is and one turned. `accept(a, b,
    turn)` has the last word on rows. Pairs whose rows are in one group already are passed over.
    """
    items = np.concatenate([hashes, *(words for _, words in turned)]) if turned else hashes
    turns = np.array([0, *(turn for turn, _ in turned)], np.uint8)
    jobs = [(word, mask) for word in range(WORDS) for mask in masks(16 if len(items) > MANY else 10)]
    columns = [np.ascontiguousarray(items[:, word]) for word in range(WORDS)]

    def search(job: tuple[int, int]) -> Edges:
        return _search(items, turns, columns[job[0]], job[1], bits, Forest(len(hashes), forest.root), accept)

    with ThreadPoolExecutor(threads) as pool:
        todo = iter(jobs)
        while wave := list(islice(todo, WAVE)):
            for edges in list(pool.map(search, wave)):
                forest.add(edges)


def _search(
    items: Words, turns: npt.NDArray[np.uint8], column: Words, mask: int, bits: int, forest: Forest, accept: Accept
) -> Edges:
    """One sort: near pairs among items that agree in the bits of `mask`, as far as they join groups of `forest`."""
    rows = len(forest.root)
    size = len(items)
    keys = (column & np.uint32(mask)).astype(np.uint64) << np.uint64(32) | np.arange(size, dtype=np.uint64)
    keys.sort()
    order = (keys & np.uint64(0xFFFFFFFF)).astype(np.int64)
    head = (keys >> np.uint64(32)).astype(np.uint32)
    del keys
    word = column[order]
    found = []
    alike = head[1:] == head[:-1]
    ways = {1: alike} if size == rows else {1: alike & (order[:-1] < rows), -1: alike & (order[1:] < rows)}
    for way, chosen in ways.items():
        here = np.flatnonzero(chosen) + (way < 0)
        step = way
        while len(here):
            length = abs(step)
            if length >= LONG and length & (length - 1) == 0 and len(here) * length > size:
                here = _open_runs(here, head, forest.root[order % rows])
            close = here[np.bitwise_count(word[here] ^ word[here + step]) <= WORD_BITS]
            a, b = order[close], order[close + step]
            useful = forest.root[a % rows] != forest.root[b % rows]
            if size > rows:
                useful &= b >= rows
            a, b = a[useful], b[useful]
            distance = differing(items[a], items[b])
            near = distance <= bits
            a, b, distance = a[near], b[near], distance[near]
            turn = turns[b // rows]
            b = b % rows
            good = accept(a, b, turn)
            edges = Edges.of(a[good], b[good], "turned" if size > rows else "pdq", distance[good], turn[good])
            joined = forest.join(edges.a, edges.b)
            if len(joined):
                found.append(edges.take(joined))
            step += way
            here = here[here + step < size] if way > 0 else here[here + step >= 0]
            here = here[head[here] == head[here + step]]
    return Edges.together(found)


def _open_runs(here: Ints, head: Words, root: Ints) -> Ints:
    """Those of the positions `here` whose run of equal keys is not one group yet: a clump costs n, not its square."""
    starts = np.flatnonzero(np.r_[True, head[1:] != head[:-1]])
    low, high = np.minimum.reduceat(root, starts), np.maximum.reduceat(root, starts)
    run = np.searchsorted(starts, here, side="right") - 1
    still_open: Ints = here[low[run] != high[run]]
    return still_open
