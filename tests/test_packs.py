"""Compaction: the same parts under the same names in fewer files, whatever happens meanwhile."""

from __future__ import annotations

import dataclasses
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from curate import pipeline
from curate.progress import Display
from curate.recipe import Recipe
from curate.store import Store
from curate.store.files import Files, LocalFiles
from curate.store.packs import compact
from curate.store.parts import Part, Version, encode, list_parts, open_part, parts_of, publish, read_parts, read_table
from curate.store.verify import forget, verify

EVERYTHING = "SELECT * FROM samples ORDER BY row_id"


def loose(store: Path) -> list[Path]:
    """Parts that are files of their own."""
    return [path for path in (store / "parts").rglob("*.parquet") if path.parent.name != "packs"]


def contents(store: Path) -> dict[str, bytes]:
    """The bytes of every part, wherever they are, by name."""
    files = LocalFiles(store)
    made = {}
    for part in list_parts(files):
        with open_part(files, part.path) as file:
            made[part.path] = str((file.read().to_pylist(), file.schema_arrow.metadata)).encode()
    return made


def test_compaction_changes_nothing_but_the_number_of_files(finished_store: Path, recipe: Recipe) -> None:
    before, rows = contents(finished_store), Store(finished_store).rows(EVERYTHING)
    parts = len(loose(finished_store))
    assert compact(LocalFiles(finished_store)) == (parts, parts // 3)  # three shards: one pack for each operator
    assert loose(finished_store) == []
    assert contents(finished_store) == before
    store = Store(finished_store)
    assert verify(store) == []
    store.rebuild()
    assert store.rows(EVERYTHING) == rows
    packs = list((finished_store / "parts").glob("size@*/packs/*.parquet"))
    assert pq.read_table(packs[0]).num_rows == 47  # other tools see one table
    assert compact(LocalFiles(finished_store)) == (0, 0)
    packs[0].rename(packs[0].with_name("renamed.parquet"))
    assert contents(finished_store) == before


def test_a_run_after_compaction_computes_only_what_is_new(
    finished_store: Path, recipe: Recipe, quiet: Callable[[], Display]
) -> None:
    compact(LocalFiles(finished_store))
    assert pipeline.run(recipe, display=quiet()) == 0
    assert loose(finished_store) == []
    looser = dataclasses.replace(recipe, policy=recipe.policy[1:])
    assert pipeline.run(looser, display=quiet()) == 0
    assert {path.name.partition("+")[2] for path in loose(finished_store)} == {"1.parquet"}
    assert verify(Store(finished_store)) == []
    whole = Store(finished_store).rows(EVERYTHING)
    compact(LocalFiles(finished_store))
    assert loose(finished_store) == []
    store = Store(finished_store)
    store.rebuild()
    assert store.rows(EVERYTHING) == whole


def test_a_shard_is_forgotten_out_of_its_packs(finished_store: Path) -> None:
    compact(LocalFiles(finished_store))
    forget(Store(finished_store), "train-00001")
    files = LocalFiles(finished_store)
    assert {part.shard for part in list_parts(files)} == {"train-00000", "train-00002"}
    assert verify(Store(finished_store)) == []
    size = next(part.version for part in list_parts(files) if part.version.operator == "size")
    assert parts_of(files, size, "train-00001") == []
    assert read_table(files, parts_of(files, size, "train-00000")[0].path).num_rows == 20


KILLED = """
    import os, signal, sys
    from pathlib import Path
    from curate.store.files import LocalFiles
    from curate.store.packs import compact

    class Dying(LocalFiles):
        left = int(sys.argv[2])

        def step(self):
            if not Dying.left:
                os.kill(os.getpid(), signal.SIGKILL)
            Dying.left -= 1

        def create(self, path, data):
            self.step()
            return super().create(path, data)

        def delete(self, path):
            self.step()
            super().delete(path)

    compact(Dying(Path(sys.argv[1])))
"""


@pytest.mark.parametrize("step", [0, 1, 11])
def test_a_compaction_that_is_killed_loses_nothing_and_goes_on(finished_store: Path, step: int) -> None:
    before = contents(finished_store)
    command = [sys.executable, "-c", textwrap.dedent(KILLED), str(finished_store), str(step)]
    assert subprocess.run(command, env=os.environ).returncode == -signal.SIGKILL
    assert contents(finished_store) == before
    assert verify(Store(finished_store)) == []
    compact(LocalFiles(finished_store))
    assert contents(finished_store) == before
    assert loose(finished_store) == []


V = Version("size", "0123456789abcdef")


def cells(shard: str, rows: range, width: int = 100) -> pa.Table:
    """Made-up cells of one shard."""
    return pa.table({"shard": [shard] * len(rows), "row": list(rows), "width": [width + row for row in rows]})


def rows_of(files: Files, shard: str) -> list[int]:
    """The rows that readers see of a shard."""
    table = read_parts(files, parts_of(files, V, shard))
    return [] if table is None else list(table["row"].to_pylist())


def test_a_writer_that_slept_through_a_compaction_hides_no_packed_row(tmp_path: Path) -> None:
    files = LocalFiles(tmp_path)
    publish(files, V, "a", cells("a", range(10)))

    class Slow(LocalFiles):
        """Another writer publishes the same part, and a compaction packs it, before this one's put."""

        slept = False

        def create(self, path: str, data: bytes) -> bool:
            if not self.slept and path == Part(V, "b").path:
                self.slept = True
                publish(files, V, "b", cells("b", range(10)))
                assert compact(files) == (2, 1)
            return super().create(path, data)

    assert publish(Slow(tmp_path), V, "b", cells("b", range(3))) is False
    assert rows_of(files, "b") == list(range(10))
    assert publish(Slow(tmp_path), V, "b", cells("b", range(8, 12))) is True
    assert [part.sequence for part in parts_of(files, V, "b")] == [0, 1]
    assert rows_of(files, "b") == list(range(12))


def test_a_file_that_hides_a_packed_part_is_settled_by_the_next_compaction(tmp_path: Path) -> None:
    files = LocalFiles(tmp_path)
    for shard in "abc":
        publish(files, V, shard, cells(shard, range(10)))
    compact(files)
    files.create(Part(V, "b").path, encode(cells("b", range(8, 14))))
    assert rows_of(files, "b") == list(range(8, 14))
    compact(files)
    assert rows_of(files, "b") == list(range(14))
    assert [path.name for path in loose(tmp_path)] == ["b+1.parquet"]
    compact(files)
    assert rows_of(files, "b") == list(range(14))


def test_what_is_read_of_a_pack_does_not_grow_with_it(tmp_path: Path) -> None:
    class Remote(LocalFiles):
        """As an object store: nothing can be opened in place."""

        read_bytes = 0
        reads = 0

        def local(self, path: str) -> None:
            return None

        def read(self, path: str) -> bytes:
            return self._noted(super().read(path))

        def read_range(self, path: str, start: int, length: int) -> bytes:
            return self._noted(super().read_range(path, start, length))

        def _noted(self, data: bytes) -> bytes:
            self.reads += 1
            self.read_bytes += len(data)
            return data

    files = Remote(tmp_path)
    noise = np.random.default_rng(0)
    for i in range(100):
        rows = cells(f"s{i:03d}", range(300)).append_column("noise", pa.array(noise.random(300)))
        files.create(Part(V, f"s{i:03d}").path, encode(rows))
    written = sum(files.sizes("parts/").values())
    assert compact(files) == (100, 1)
    assert files.read_bytes < 2.5 * written  # each part once, the pack once
    assert files.reads < 350
    (pack,) = files.sizes("parts/").values()
    read_table(files, Part(V, "s000").path)  # the footer is known from now on
    files.read_bytes = 0
    assert read_table(files, Part(V, "s042").path).num_rows == 300
    assert files.read_bytes < pack / 50
    assert parts_of(files, V, "zzz") == []
    assert parts_of(files, V, "s042") == [Part(V, "s042")]


def test_an_unknown_part_is_still_not_found(finished_store: Path) -> None:
    compact(LocalFiles(finished_store))
    with pytest.raises(FileNotFoundError):
        read_table(LocalFiles(finished_store), f"{Version('size', 'ab').folder}/none.parquet")
