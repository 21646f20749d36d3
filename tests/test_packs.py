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

import pyarrow.parquet as pq
import pytest

from curate import pipeline
from curate.progress import Display
from curate.recipe import Recipe
from curate.store import Store
from curate.store.files import LocalFiles
from curate.store.packs import compact
from curate.store.parts import Version, list_parts, open_part, parts_of, read_table
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


def test_an_unknown_part_is_still_not_found(finished_store: Path) -> None:
    compact(LocalFiles(finished_store))
    with pytest.raises(FileNotFoundError):
        read_table(LocalFiles(finished_store), f"{Version('size', 'ab').folder}/none.parquet")
