"""Pictures from stored specs: at load time, or all of a folder at once.

from curate.synth.again import Specs
rows = Specs("SYNTH")
rows[17]["image"]            # JPEG bytes, drawn now
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from itertools import accumulate
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from curate.errors import UsageError
from curate.synth.fonts import Face
from curate.synth.photographs import Photographs
from curate.synth.pool import worked
from curate.synth.sample import SCHEMA, rendered_again
from curate.synth.shards import claim, open_world, rows_of, shard_files, sweep, write_shard
from curate.synth.spec import Synth, World
from curate.synth.words import Lexicon


class Specs:
    """The rows of a folder of `curate synth`, by number; pictures are drawn when a row is asked for."""

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self.world = open_world(self.folder)
        self.files = [pq.ParquetFile(path) for path in shard_paths(self.folder)]
        self.ends = list(accumulate(file.metadata.num_rows for file in self.files))

    def __len__(self) -> int:
        return self.ends[-1] if self.ends else 0

    def __getitem__(self, number: int) -> dict[str, Any]:
        if not 0 <= number < len(self):
            raise IndexError(f"row {number} of {len(self)}")
        at = bisect_right(self.ends, number)
        file, row = self.files[at], number - (self.ends[at - 1] if at else 0)
        group, before = 0, 0
        while row >= before + file.metadata.row_group(group).num_rows:
            before += file.metadata.row_group(group).num_rows
            group += 1
        names = [name for name in SCHEMA.names if name != "image"]
        found: dict[str, Any] = file.read_row_group(group, columns=names).slice(row - before, 1).to_pylist()[0]
        return found | {"image": rendered_again(self.world, found["synth_spec"]) if found["synth_spec"] else None}


def shard_paths(folder: Path) -> list[Path]:
    """The shards of a folder of `curate synth`, in order; UsageError when there are none."""
    paths = shard_files(folder)
    if not paths:
        raise UsageError(f"{folder}: no shards/synth-*.parquet there; make them with: curate synth -o {folder}")
    return paths


def render_shards(folder: Path, out: Path, workers: int) -> int:
    """Shards with pictures in `out` from the specs in `folder`; returns the rows. Shards that are there are kept."""
    tasks = [(path, out / path.name) for path in shard_paths(folder)]
    if out.resolve() == tasks[0][0].parent.resolve():
        raise UsageError(f"{out} holds the specs themselves; choose another -o")
    world = open_world(folder)  # here, so that what is wrong is said once
    parts = (world.synth, world.faces, world.lexicon, world.photographs.path)
    out.mkdir(parents=True, exist_ok=True)
    claim(out, (folder / "world.sha256").read_text("utf-8").strip(), f"{out} holds pictures of other specs")
    try:
        return sum(worked(_shard, tasks, workers, _load, *parts))
    finally:
        sweep(out)


_WORLDS: list[World] = []  # of a worker process: one


def _load(synth: Synth, faces: tuple[Face, ...], lexicon: Lexicon, pictures: Path | None) -> None:
    _WORLDS[:] = [World(lexicon, faces, Photographs(pictures), synth)]


def _shard(task: tuple[Path, Path]) -> int:
    path, to = task
    file = pq.ParquetFile(path)
    rows = int(file.metadata.num_rows)
    if rows_of(to) == rows:
        return rows

    def batches() -> Iterator[list[dict[str, Any]]]:
        for batch in _batches(file):
            for row in batch:
                row["image"] = rendered_again(_WORLDS[0], row["synth_spec"]) if row["synth_spec"] else None
            yield batch

    write_shard(to, SCHEMA, batches())
    return rows


def _batches(file: pq.ParquetFile) -> Iterator[list[dict[str, Any]]]:
    names = [name for name in SCHEMA.names if name != "image"]
    for group in range(file.metadata.num_row_groups):
        yield file.read_row_group(group, columns=names).to_pylist()
