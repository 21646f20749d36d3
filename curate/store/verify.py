"""Do the parts hold every row exactly once, and does the index agree with them?

The parts are the truth: a problem of the index is mended by `curate store rebuild`, a problem of a part by
`curate store forget STORE SHARD` and another run.
"""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING

from curate.store.packs import unpack
from curate.store.parts import DamagedError, Part, list_parts, read_table

if TYPE_CHECKING:
    from curate.store import Store


def verify(store: Store) -> list[str]:
    """One line for each problem; empty when all is well."""
    problems: list[str] = []
    files = store.files
    parts = list_parts(files)
    rows: dict[Part, list[int]] = {}
    for part in parts:
        try:
            table = read_table(files, part.path, ["shard", "row"])
        except (OSError, DamagedError) as why:
            problems.append(str(why))
            continue
        rows[part] = table["row"].to_pylist()
        if rows[part] != sorted(set(rows[part])):
            problems.append(f"{part.path}: rows are not ascending and unique")
        if set(table["shard"].unique().to_pylist()) - {part.shard}:
            problems.append(f"{part.path}: holds rows of another shard")
    problems += _rows_without_input(rows)
    committed = {path for (path,) in store.rows("SELECT path FROM commits")}
    for part in rows:
        if part.path not in committed:
            problems.append(f"{part.path}: not in the index; add it with: curate store ingest {store.uri}")
    there = {part.path for part in parts}
    problems += [f"{path}: in the index, but the part is gone" for path in sorted(committed) if path not in there]
    return problems + _samples_against_parts(store, rows) + _cells_against_parts(store, rows)


def _rows_without_input(rows: dict[Part, list[int]]) -> list[str]:
    """Cells of rows that no `input` part has."""
    known: dict[str, set[int]] = defaultdict(set)
    for part, numbers in rows.items():
        if part.version.operator == "input":
            known[part.shard].update(numbers)
    return [
        f"{part.path}: {len(odd)} rows that the shard does not have, e.g. row {min(odd)}"
        for part, numbers in rows.items()
        if (odd := set(numbers) - known[part.shard])
    ]


def _samples_against_parts(store: Store, rows: dict[Part, list[int]]) -> list[str]:
    """`samples` must have each row of the active `input` parts once."""
    active = {mark for (mark,) in store.rows("SELECT fingerprint FROM operators WHERE operator = 'input' AND active")}
    want = {
        f"{part.shard}:{row}"
        for part, numbers in rows.items()
        if part.version.operator == "input" and part.version.fingerprint in active
        for row in numbers
    }
    have = [row_id for (row_id,) in store.rows("SELECT row_id FROM samples")]
    problems = []
    if len(have) != len(set(have)):
        problems.append(f"samples: {len(have) - len(set(have))} rows are there twice")
    if want - set(have):
        problems.append(f"samples: {len(want - set(have))} rows are missing, e.g. {min(want - set(have))}")
    if set(have) - want:
        problems.append(f"samples: {len(set(have) - want)} rows that no part has, e.g. {min(set(have) - want)}")
    return problems


def _cells_against_parts(store: Store, rows: dict[Part, list[int]]) -> list[str]:
    """The index must have as many cells of each active version as its parts hold."""
    problems = []
    for operator, mark in store.rows("SELECT operator, fingerprint FROM operators WHERE active ORDER BY operator"):
        cells: dict[str, set[int]] = defaultdict(set)
        for part, numbers in rows.items():
            if (part.version.operator, part.version.fingerprint) == (operator, mark):
                cells[part.shard].update(numbers)
        done = "TRUE" if operator == "input" else f"_done_{operator}"
        have = dict(store.rows(f"SELECT shard, count(*) FROM wide_cells WHERE {done} GROUP BY shard"))
        for shard in sorted(set(cells) | set(have)):
            if len(cells[shard]) != have.get(shard, 0):
                problems.append(
                    f"{operator}@{mark}: shard {shard} has {len(cells[shard])} cells in its parts and "
                    f"{have.get(shard, 0)} in the index; make it anew with: curate store rebuild {store.uri}"
                )
    return problems


def forget(store: Store, shard: str) -> int:
    """Remove all parts and staged ranges of one shard and rebuild the index; returns how many parts there were."""
    from curate.errors import UsageError, nearest

    parts = [part for part in list_parts(store.files) if part.shard == shard]
    if not parts:
        known = {part.shard for part in list_parts(store.files)}
        raise UsageError(f"{store.uri}: no shard {shard!r}{nearest(shard, known)}")
    for version in {part.version for part in parts}:
        unpack(store.files, version, [shard])
    for part in parts:
        store.files.delete(part.path)
    for path in list(store.files.list("staging")):
        if path.split("/")[2] == shard:
            store.files.delete(path)
    store.rebuild()
    return len(parts)
