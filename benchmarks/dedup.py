"""Copies among a million hashes, without a false one: `python -m benchmarks.dedup`.

Random 256-bit hashes; one row in twenty is a copy of another with 0 to 31 bits changed, one in twenty differs from
another in 32 to 40 bits and must stay alone. Timed is what `curate dedup` does between reading the store and publishing
its columns: exact and perceptual joins, keepers, tables. Each step runs in a process of its own, so that its memory is
its own. `--turned` looks for mirrored and rotated copies too, `--embeddings N` joins N vectors of 512 numbers inside
k-means cells, `--captions N` names the concepts of N captions. Last line: `RESULT ` and the figures as JSON.
"""

from __future__ import annotations

import argparse
import json
import time
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from benchmarks.process import answer, step

TARGET_S = 60.0
TARGET_MB = 2000.0
SHARE = 20  # one row in so many is a copy, and one a near miss
Words = npt.NDArray[np.uint32]
Ints = npt.NDArray[np.int64]


def planted(count: int, seed: int = 0) -> tuple[Words, Ints, Ints, Ints]:
    """Hashes (count, 8), and the positions of copies, near misses and of what each of both was made from."""
    random = np.random.default_rng(seed)
    words = random.integers(0, 1 << 32, (count, 8), np.uint32)
    made = count // SHARE
    order = random.permutation(count)
    copies, misses, sources = order[:made], order[made : 2 * made], order[2 * made : 4 * made]
    bits = np.concatenate([random.integers(0, 32, made), random.integers(32, 41, made)])
    for start in range(0, 2 * made, 10_000):
        here = slice(start, min(start + 10_000, 2 * made))
        places = np.argsort(random.random((here.stop - here.start, 256)), axis=1)  # distinct bits, in any order
        flips = np.zeros(places.shape, np.uint8)
        np.put_along_axis(flips, places, np.arange(256) < bits[here, None], axis=1)
        words[order[here]] = words[sources[here]] ^ np.packbits(flips, axis=1).view(np.uint32)
    return words, copies, misses, sources


def hashes(count: int, turned: bool) -> None:
    """Time the joins and check every one of them against what was planted."""
    from curate.dedup import Settings, groups, link
    from curate.dedup.rows import Rows

    words, copies, misses, sources = planted(count)
    random = np.random.default_rng(1)
    rows = Rows(
        pa.chunked_array([pa.array(["bench-0"] * count).dictionary_encode()]),
        np.arange(count),
        random.integers(1, 1 << 63, (count, 2), np.uint64),
        random.integers(1, 1 << 63, (count, 2), np.uint64),
        words,
        words,
        np.zeros((count, 3, 3, 3), np.uint8),
        np.ones(count, np.bool_),
        np.full(count, 100, np.int32),
        random.random((2, count)),
        pa.chunked_array([pa.nulls(count, pa.string())]),
        None,
    )
    settings = Settings(turned=turned)
    clock, cpu = time.perf_counter(), time.process_time()
    forest = link(rows, settings)
    linked = time.perf_counter() - clock
    found = groups.group(rows, forest.root, settings)
    table = groups.table(rows, found)
    edges = forest.edges()
    groups.encoded(groups.edge_table(rows, edges, forest.root))
    seconds, cpu = time.perf_counter() - clock, time.process_time() - cpu
    wanted = np.arange(count)
    wanted[copies] = sources[: len(copies)]
    together = forest.root[copies] == forest.root[sources[: len(copies)]]
    apart = forest.root[misses] != forest.root[sources[len(copies) :]]
    # A pair is right when both came from one source; the bits are counted anew, one by one.
    wrong = int((wanted[edges.a] != wanted[edges.b]).sum())
    bits = np.unpackbits((words[edges.a] ^ words[edges.b]).view(np.uint8), axis=1).sum(axis=1)
    far = int((bits > 31).sum()) if not turned else 0
    answer(
        rows=table.num_rows, seconds=seconds, link_seconds=linked, cpu_seconds=cpu, recall=float(together.mean()),
        copies=len(copies), near_misses_apart=float(apart.mean()), false_pairs=wrong + far, edges=len(edges),
    )  # fmt: skip


def embeddings(count: int) -> None:
    """Time the semantic joins of `count` vectors of 512 numbers, one in twenty a near copy of another."""
    from curate.dedup.forest import Forest
    from curate.dedup.rows import Embeddings
    from curate.dedup.semantic import join_semantic

    random = np.random.default_rng(0)
    vectors = random.normal(size=(count, 512)).astype(np.float32) / 512**0.5
    vectors += 2 * random.normal(size=(64, 512)).astype(np.float32)[random.integers(0, 64, count)] / 512**0.5  # themes
    made = count // SHARE
    order = random.permutation(count)
    copies, sources = order[:made], order[made : 2 * made]
    noise = random.normal(size=(made, 512)).astype(np.float32) / 512**0.5
    vectors[copies] = vectors[sources] + 0.3 * noise
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    near = (vectors[copies] * vectors[sources]).sum(axis=1) >= 0.971
    forest = Forest(count)
    clock = time.perf_counter()
    join_semantic(forest, Embeddings(vectors.astype(np.float16), np.arange(count)), 0.97)
    seconds = time.perf_counter() - clock
    edges = forest.edges()
    cosines = (vectors[edges.a] * vectors[edges.b]).sum(axis=1)
    recall = float((forest.root[copies] == forest.root[sources])[near].mean())
    answer(rows=count, seconds=seconds, recall=recall, copies=int(near.sum()), least_cosine=float(cosines.min()))


def captions(count: int) -> None:
    """Time the naming of concepts for `count` pairs of an English and a Chinese caption."""
    from curate.balance.concepts import judge, load

    taxonomy = load("taxonomy.v1")
    nothing = [False] * len(taxonomy.facts)
    english = "A young woman with long hair sits at a wooden table in a cafe, looks out of the window and holds a cup"
    chinese = "一位长发的年轻女子坐在咖啡馆的木桌旁，望着窗外，旁边放着一杯咖啡和一本书，墙上挂着一幅画"
    clock = time.perf_counter()
    for i in range(count):
        judge(taxonomy, (f"{english} {i}", None, f"{chinese}{i}"), nothing)
    seconds = time.perf_counter() - clock
    answer(rows=count, seconds=seconds, rows_per_s=round(count / seconds))


def main() -> None:
    """Print a table and the RESULT line, or run one step for it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000, help="hashes")
    parser.add_argument("--turned", action="store_true", help="mirrored and rotated copies too")
    parser.add_argument("--embeddings", type=int, default=0, help="vectors of the semantic step")
    parser.add_argument("--captions", type=int, default=0, help="captions of the concept step")
    parser.add_argument("--step", choices=("hashes", "turned", "embeddings", "captions"), help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.step in ("hashes", "turned"):
        return hashes(asked.rows, asked.step == "turned")
    if asked.step:
        return {"embeddings": embeddings, "captions": captions}[asked.step](asked.rows)
    steps: dict[str, int] = {"hashes": asked.rows}
    if asked.turned:
        steps["turned"] = asked.rows
    steps |= {name: n for name in ("embeddings", "captions") if (n := getattr(asked, name))}
    found: dict[str, dict[str, Any]] = {}
    for name, count in steps.items():
        found[name] = step("benchmarks.dedup", "--rows", count, "--step", name)
        words = ", ".join(f"{key} {value:,.4g}" for key, value in found[name].items() if key not in ("rows", "seconds"))
        print(f"{name:12s}{count:>12,} rows {found[name]['seconds']:8.1f} s  {words}", flush=True)
    figures = {"benchmark": "dedup", "target_s": TARGET_S, "target_mb": TARGET_MB, "steps": found}
    print("RESULT " + json.dumps(figures))
    return None


if __name__ == "__main__":
    main()
