"""Faults of the machine: no room, no right to write, a device without memory, a clock that jumps."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from conftest import part_hashes

from curate import pipeline
from curate.progress import Display
from curate.recipe import Recipe, to_toml
from curate.store import Store
from curate.store.verify import verify
from workers.sample import Sample

Quiet = Callable[[], Display]


class OutOfMemoryError(RuntimeError):
    """As PyTorch names its own."""


def on_a_device(room: int) -> tuple[Any, list[int]]:
    """The path with a face counter whose device holds `room` pictures at once; and the sizes of its calls."""
    calls: list[int] = []

    def count(samples: Sequence[Sample]) -> list[dict[str, Any]]:
        calls.append(len(samples))
        if len(samples) > room:
            raise OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return [{"faces": 0, "face_area": 0.0, "face_boxes": [], "face_engine": "device"} for _ in samples]

    replaced = {"load": lambda recipe: count, "facts": lambda recipe: {"version": 1}, "pool": "gpu"}
    return tuple(dataclasses.replace(op, **replaced) if op.name == "faces" else op for op in pipeline.PATH), calls


def test_a_device_without_room_gets_smaller_batches(recipe: Recipe, quiet: Quiet) -> None:
    path, calls = on_a_device(room=2)
    assert pipeline.run(recipe, path=path, display=quiet()) == 0
    assert max(calls) > 2
    store = Store(recipe.store.uri)
    assert store.rows("SELECT count(*) FROM errors WHERE operator = 'faces'") == [(0,)]
    assert store.rows("SELECT count(faces) FROM samples") == store.rows(
        "SELECT count(*) FROM samples WHERE sharpness_tile >= 60 AND error IS NULL"
    )


def test_a_row_that_does_not_fit_on_the_device_alone_is_flagged(recipe: Recipe, quiet: Quiet) -> None:
    path, _ = on_a_device(room=0)
    pipeline.run(recipe, path=path, display=quiet())
    store = Store(recipe.store.uri)
    assert store.rows("SELECT DISTINCT error FROM errors WHERE operator = 'faces'") == [("out_of_memory",)]
    assert store.rows("SELECT count(*), count(DISTINCT row_id) FROM samples") == [(47, 47)]


def test_a_clock_that_jumps_back_does_not_bring_an_old_run_back(
    finished_store: Path, recipe: Recipe, quiet: Quiet
) -> None:
    (run,) = (finished_store / "runs").iterdir()
    record = json.loads((run / "run.json").read_text("utf-8"))
    later = record["run_id"] = "29990101T000000"
    (run / "run.json").write_text(json.dumps(record), "utf-8")
    run.rename(run.with_name(later))
    stricter = dataclasses.replace(recipe, policy=(("never", "width < 0"),))
    assert pipeline.run(stricter, display=quiet()) == 0
    assert Store(finished_store).counts()["kept"] == 0
    assert sorted(path.name for path in (finished_store / "runs").iterdir()) == [later, f"{later}+0001"]


DISK = """
    set -e
    mount -t tmpfs -o size=$2 tmpfs "$1"
    "$3" -m curate.pipeline "$4" 2> "$5/first.txt" && code=0 || code=$?
    echo $code > "$5/first.code"
    mount -o remount,size=64m "$1"
    "$3" -m curate.pipeline "$4" 2> "$5/second.txt" && code=0 || code=$?
    echo $code > "$5/second.code"
    cp -r "$1" "$5/copy"
    mount -o remount,ro "$1"
    "$3" -m curate.pipeline "$4" 2> "$5/third.txt" && code=0 || code=$?
    echo $code > "$5/third.code"
"""


def test_a_full_disk_and_a_read_only_one_end_in_one_line_and_cost_nothing(
    finished_store: Path, recipe: Recipe, tmp_path: Path
) -> None:
    if subprocess.run(["unshare", "-rm", "true"], capture_output=True).returncode:
        pytest.skip("this machine lets nobody mount in a namespace of their own")
    disk, notes = tmp_path / "disk", tmp_path / "notes"
    disk.mkdir()
    notes.mkdir()
    where = tmp_path / "recipe.toml"
    where.write_text(
        to_toml(dataclasses.replace(recipe, store=dataclasses.replace(recipe.store, uri=str(disk)))), "utf-8"
    )
    script = ["bash", "-c", textwrap.dedent(DISK), "-", disk, "200k", sys.executable, where, notes]
    done = subprocess.run(["unshare", "-rm", *script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    full = (notes / "first.txt").read_text("utf-8")
    assert (notes / "first.code").read_text() == "1\n"
    assert "No space left on device" in full
    assert "run the same command" in full
    assert "Traceback" not in full
    assert (notes / "second.code").read_text() == "0\n", (notes / "second.txt").read_text("utf-8")
    assert part_hashes(notes / "copy") == part_hashes(finished_store)
    assert verify(Store(notes / "copy")) == []
    fixed = (notes / "third.txt").read_text("utf-8")
    assert (notes / "third.code").read_text() == "1\n"
    assert "Read-only file system" in fixed
    assert "Traceback" not in fixed
