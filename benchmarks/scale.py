"""The driver over very many ranges, and a GPU worker that must not wait: `python -m benchmarks.scale`.

    --ranges N      ranges of fake work of 10 ms each, through real Ray actors (default 100,000)
    --actors N      workers that wait their 10 ms side by side (default 16)
    --feed-rows N   JPEGs of 1 MP for the second part: a model that takes 50 ms a batch, on one worker
    --feed-batch N  pictures that it takes at once (default 2: what two cores can decode meanwhile)

First part: ranges a second, CPU and memory of the driver. Second part: the share of time in which the device has
nothing to do between its first and its last batch, with the engine's two tasks a GPU worker and with one.
Last line: `RESULT ` and the figures as JSON.
"""

from __future__ import annotations

import argparse
import dataclasses
import io
import json
import os
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from curate import pipeline
from curate.engine import cluster
from curate.engine.driver import Progress, drive
from curate.engine.tasks import Answer, Compute, Index, Survey, Tally, Task
from curate.engine.worker import Worker
from curate.plan import Operator, Plan
from curate.read import InputSpec, Shard
from curate.recipe import Recipe, from_tables
from workers.sample import Sample

RANGES_PER_SHARD = 100
ROWS = 64
WORK_S = 0.010
MODEL_S = 0.050


class FakeWorker(Worker):
    """Answers as a worker does, after 10 ms for a range, without data."""

    def __init__(self, plan: Plan, *, isolated: bool) -> None:
        """Nothing to open."""

    def load(self, pool: str, proof: str = "") -> None:
        """Nothing to load."""

    def run(self, task: Task) -> Answer:
        """Ranges once for each shard; then nothing is left."""
        rows = RANGES_PER_SHARD * ROWS
        if isinstance(task, Index):
            return Answer(rows=rows)
        if isinstance(task, Survey):
            # The driver asks twice, perhaps two actors: a file remembers what this process cannot.
            mark = Path(tempfile.gettempdir()) / f"curate-scale-{os.environ['CURATE_SCALE']}" / task.shard.id
            if mark.exists():
                return Answer(rows=rows)
            mark.touch()
            return Answer(rows=rows, ranges=tuple(range(at, at + ROWS) for at in range(0, rows, ROWS)))
        tally = Tally()
        if isinstance(task, Compute):
            time.sleep(WORK_S)
            tally.cells["aesthetic"] += len(task.rows)
        return Answer(tally=tally)


def main() -> None:
    """Print the figures and the RESULT line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--ranges", type=int, default=100_000)
    parser.add_argument("--actors", type=int, default=16)
    parser.add_argument("--feed-rows", type=int, default=640)
    parser.add_argument("--feed-batch", type=int, default=2)
    options = parser.parse_args()
    figures: dict[str, Any] = {"benchmark": "scale"}
    with tempfile.TemporaryDirectory() as folder:
        if options.ranges:
            figures |= scheduling(Path(folder), options.ranges, options.actors)
        if options.feed_rows:
            figures |= feeding(Path(folder), options.feed_rows, options.feed_batch)
    print("RESULT " + json.dumps(figures))


def scheduling(folder: Path, ranges: int, actors: int) -> dict[str, Any]:
    """Drive `ranges` ranges through Ray."""
    os.environ["CURATE_SCALE"] = str(os.getpid())
    marks = Path(tempfile.gettempdir()) / f"curate-scale-{os.getpid()}"
    marks.mkdir()
    write(folder / "in", 1)
    recipe = recipe_of(folder, workers=actors, min_workers=actors, batch_timeout_s=60.0)
    plan = pipeline.prepare(recipe, NOTHING).plan
    shards: Iterator[Shard] = (
        Shard(f"shard-{i:07d}", f"/nowhere/{i}.parquet", "parquet", InputSpec("/nowhere"))
        for i in range(-(-ranges // RANGES_PER_SHARD))
    )
    cluster.Worker = FakeWorker  # type: ignore[misc]
    engine = cluster.Cluster(plan)
    while engine.workers()["cpu"][1]:  # workers take seconds to start, and more than one on a small machine
        engine.next(1.0)
    progress = Progress(-(-ranges // RANGES_PER_SHARD))
    me = psutil.Process()
    peak, said = 0, time.monotonic()

    def watch(state: Progress) -> None:
        nonlocal peak, said
        if time.monotonic() - said > 1:
            said = time.monotonic()
            peak = max(peak, me.memory_info().rss)

    cpu, started = me.cpu_times(), time.perf_counter()
    drive(plan, engine, shards, progress, watch, lambda: False)
    seconds = time.perf_counter() - started
    after = me.cpu_times()
    engine.close()
    for mark in marks.iterdir():
        mark.unlink()
    marks.rmdir()
    done = progress.tally.cells["aesthetic"] // ROWS
    busy = (after.user + after.system - cpu.user - cpu.system) / seconds
    print(f"{done:,} ranges in {seconds:.0f} s: {done / seconds:,.0f} ranges/s with {actors} workers")
    print(f"driver: {busy:.0%} of a CPU, {peak / 2**20:,.0f} MB at most; load of the machine {os.getloadavg()[0]:.1f}")
    return {
        "ranges": done, "ranges_per_s": round(done / seconds), "driver_cpu": round(busy, 2),
        "driver_mb": round(peak / 2**20), "actors": actors, "load": round(os.getloadavg()[0], 1),
    }  # fmt: skip


class FakeModel:
    """A model on a device of its own: 50 ms a batch, and notes when it had something to do."""

    def __init__(self, notes: str) -> None:
        self.notes = notes

    def __call__(self, samples: Sequence[Sample]) -> list[dict[str, Any]]:
        for sample in samples:
            assert sample.picture.rgb.shape[0]
        begin = time.perf_counter()
        time.sleep(MODEL_S)
        with Path(self.notes).open("a") as file:
            file.write(f"{begin} {time.perf_counter()}\n")
        return [{"faces": 0, "face_area": 0.0, "face_boxes": [], "face_engine": "fake"} for _ in samples]


def feeding(folder: Path, rows: int, batch: int) -> dict[str, Any]:
    """The device's idle share, with one task a GPU worker and with two."""
    write(folder / "pictures", rows)
    cpu_s = decoding_s(folder / "pictures")
    shares = {}
    for tasks in (1, 2):
        notes = folder / f"notes-{tasks}"
        notes.touch()
        recipe = recipe_of(folder, store=f"store-{tasks}", source="pictures", range_rows=4 * batch)
        model = Operator(
            "faces", lambda recipe, notes=str(notes): FakeModel(notes), lambda recipe: {"version": 1},  # type: ignore[misc]
            image="pixels", pool="gpu", batch=batch,
        )  # fmt: skip
        prepared = pipeline.prepare(recipe, (pipeline.PATH[0], pipeline.PATH[1], model))
        pools = prepared.plan.pools
        plan = dataclasses.replace(
            prepared.plan, pools={**pools, "gpu": dataclasses.replace(pools["gpu"], tasks=tasks)}
        )
        engine = cluster.Cluster(plan)
        drive(plan, engine, prepared.shards, Progress(1), lambda p: None, lambda: False)
        engine.close()
        spans = sorted(tuple(map(float, line.split())) for line in notes.read_text().splitlines())
        whole = spans[-1][1] - spans[0][0]
        shares[tasks] = 1 - sum(end - begin for begin, end in spans) / whole
        print(
            f"{tasks} tasks a GPU worker: {len(spans)} batches of {batch}, the device idles {shares[tasks]:.0%} of them"
        )
    wanted = batch * cpu_s / MODEL_S
    print(f"decoding {cpu_s * 1000:.1f} ms a picture: the device wants {wanted:.1f} of {os.cpu_count()} cores")
    return {
        "idle_one_task": round(shares[1], 3), "idle_two_tasks": round(shares[2], 3), "feed_rows": rows,
        "feed_batch": batch, "decode_cores_wanted": round(wanted, 1),
    }  # fmt: skip


def decoding_s(folder: Path) -> float:
    """Seconds of one core that reading a picture into pixels takes."""
    data = pq.read_table(folder / "a.parquet")["image"].to_pylist()[:40]
    started = time.perf_counter()
    for row, one in enumerate(data):
        assert Sample(row, one, {}).decodes
    return (time.perf_counter() - started) / len(data)


def write(folder: Path, rows: int) -> None:
    """One shard of JPEGs of 1 MP."""
    folder.mkdir(exist_ok=True)
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    data = []
    for i in range(rows):
        out = io.BytesIO()
        Image.fromarray(np.roll(noise, i, 0)).resize((1152, 896), Image.Resampling.BICUBIC).save(
            out, "JPEG", quality=85
        )
        data.append(out.getvalue())
    pq.write_table(pa.table({"image": pa.array(data, pa.binary())}), folder / "a.parquet", row_group_size=64)


def recipe_of(folder: Path, store: str = "store", source: str = "in", **engine: Any) -> Recipe:
    """A recipe without a policy."""
    recipe = from_tables({"input": {"uri": str(folder / source)}, "store": {"uri": str(folder / store)}})
    return dataclasses.replace(recipe, engine=dataclasses.replace(recipe.engine, **engine))


def nothing(samples: Sequence[Sample]) -> list[dict[str, Any]]:
    """Never called."""
    raise AssertionError


NOTHING = (
    pipeline.PATH[0],
    Operator("aesthetic", lambda recipe: nothing, lambda recipe: {"version": 1}, image="none", batch=ROWS),
)


if __name__ == "__main__":
    main()
