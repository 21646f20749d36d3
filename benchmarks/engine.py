"""The main job through Ray against a plain multiprocessing pool of the same operators: `python -m benchmarks.engine`.

    --rows N         JPEGs of 512 to 1024 px in Parquet shards of 250, row groups of 50
    --ocr            read text too (every row; several times as long)
    --inline         also the engine without Ray (one process)
    --memory-rows N  rows of the second part: peak memory of the driver, with operators that do nothing

Both sides read the same row groups with as many processes and call the very same worker callables, all embedded
operators but OCR on every row. The pool returns its columns to the parent and stores nothing; the job stages,
publishes and indexes. The two take turns (pool, ray, ray, pool), each in a process of its own. Last line: `RESULT ` and
the figures as JSON.
"""

from __future__ import annotations

import argparse
import io
import json
import multiprocessing
import os
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from benchmarks.process import answer, step
from benchmarks.scorers import photographs
from curate import pipeline
from curate.engine import Engine
from curate.plan import Operator, Plan
from curate.progress import Display
from curate.recipe import Recipe, from_tables
from workers.sample import Sample

TARGET = 0.85
DRIVER_MB = 500
SHARD_ROWS = 250
GROUP_ROWS = 50
BATCH = 16


def main() -> None:
    """Print a table and the RESULT line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rows", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=1, help="times that each side runs")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1, help="worker processes of both sides")
    parser.add_argument("--ocr", action="store_true")
    parser.add_argument("--inline", action="store_true")
    parser.add_argument("--memory-rows", type=int, default=1_000_000, help="0 leaves this part out")
    parser.add_argument("--folder", type=Path, default=Path("bench-data"), help="where shards and stores are made")
    parser.add_argument("--step", choices=("pool", "ray", "inline", "rows"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.step:
        run_step(options)
        return
    figures: dict[str, Any] = {"benchmark": "engine", "processes": options.processes}
    shards = pictures(options.folder / f"engine-{options.rows}", options.rows)
    figures |= compare(options, shards)
    if options.memory_rows:
        figures["driver"] = memory(options)
    print("RESULT " + json.dumps(figures))


def compare(options: argparse.Namespace, shards: Path) -> dict[str, Any]:
    """Rates of both sides over the same shards; the ratio is of the sums, so that each side pays for the same hours."""
    order = [("pool", "ray"), ("ray", "pool")]
    sides = [side for turn in range(options.rounds) for side in order[turn % 2]] + ["inline"] * options.inline
    found: dict[str, list[dict[str, Any]]] = {side: [] for side in sides}
    for side in sides:
        found[side].append(step(*command(options, side, shards, options.processes)))
        print(f"  {side:8}{figures_line(found[side][-1], options.rows)}", flush=True)
    sums = {
        side: {key: sum(one[key] for one in runs) for key in ("seconds", "working")} for side, runs in found.items()
    }
    ratio = sums["pool"]["seconds"] / sums["ray"]["seconds"]
    working = sums["pool"]["working"] / sums["ray"]["working"]
    print(f"  ray / pool: {ratio:.1%} with start-up and index, {working:.1%} from the first row to the last")
    total = options.rows * options.rounds
    return {
        "rows": options.rows, "rounds": options.rounds, "ocr": options.ocr, "ratio": round(ratio, 4),
        "ratio_without_start": round(working, 4), "target": TARGET,
        "pool_rows_per_s": round(total / sums["pool"]["seconds"], 2),
        "ray_rows_per_s": round(total / sums["ray"]["seconds"], 2),
        "pool_rows_per_s_without_start": round(total / sums["pool"]["working"], 2),
        "ray_rows_per_s_without_start": round(total / sums["ray"]["working"], 2),
        "ray_start_s": round(float(np.mean([one["start"] for one in found["ray"]])), 2),
        "ray_index_s": round(float(np.mean([one["end"] for one in found["ray"]])), 2),
        "driver_peak_mb": max(one["peak_mb"] for one in found["ray"]),
        **({"inline_rows_per_s": round(options.rows / sums["inline"]["seconds"], 2)} if options.inline else {}),
    }  # fmt: skip


def figures_line(one: dict[str, Any], rows: int) -> str:
    return (
        f"{rows / one['seconds']:8.1f} rows/s; {rows / one['working']:.1f} without {one['start']:.1f} s of start-up "
        f"and {one['end']:.1f} s of index and end; {one['peak_mb']:.0f} MB peak"
    )


def memory(options: argparse.Namespace) -> dict[str, Any]:
    """Peak memory of the driver, its index included, over many rows of which nothing is computed."""
    shards = small_rows(options.folder / f"rows-{options.memory_rows}", options.memory_rows)
    one = step(*command(options, "rows", shards, options.processes))
    print(
        f"  driver over {options.memory_rows:,} rows: {one['peak_run_mb']:.0f} MB peak while workers run, "
        f"{one['peak_mb']:.0f} MB with the index ({one['seconds']:.0f} s)",
        flush=True,
    )
    return {
        "rows": options.memory_rows, "seconds": one["seconds"], "peak_run_mb": one["peak_run_mb"],
        "peak_mb": one["peak_mb"], "target_peak_mb": DRIVER_MB,
    }  # fmt: skip


def command(options: argparse.Namespace, side: str, shards: Path, processes: int) -> list[str]:
    ocr = ["--ocr"] if options.ocr else []
    return [__spec__.name, "--step", side, "--folder", str(shards), "--processes", str(processes), *ocr]


def run_step(options: argparse.Namespace) -> None:
    """One side, once, in this process."""
    if options.step == "pool":
        run_pool(options.folder, options.processes, options.ocr)
    else:
        run_job(options.folder, options.processes, options.ocr, options.step)


def recipe_of(shards: Path, store: Path, processes: int, ocr: bool, kind: str) -> Recipe:
    """The embedded recipe without a policy: every operator sees every row."""
    return from_tables(
        {
            "input": {"uri": str(shards)}, "store": {"uri": str(store)},
            "ocr": {"engine": "rapidocr" if ocr else "none"},
            "engine": {"kind": "inline" if kind == "inline" else "ray", "workers": processes, "min_workers": processes,
                       "range_rows": 64},
        }
    )  # fmt: skip


def run_job(shards: Path, processes: int, ocr: bool, side: str) -> None:
    """The main job as `curate run` does it; notes when its workers are ready and when the last row is done."""
    store = shards.with_name(shards.name + "-store")
    shutil.rmtree(store, ignore_errors=True)
    recipe = recipe_of(shards, store, processes, ocr, side)
    path: Sequence[Operator] = pipeline.PATH
    if side == "rows":
        recipe = from_tables({
            "input": {"uri": str(shards)}, "store": {"uri": str(store)},
            "engine": {"workers": processes, "min_workers": processes, "range_rows": 2000},
        })  # fmt: skip
        path = NOTHING
    clock = Clock()
    started = time.perf_counter()
    code = pipeline.run(recipe, path=path, make_engine=clock.engine, display=Quiet())
    ended = time.perf_counter()
    assert code == 0, f"the job ended with exit code {code}"
    shutil.rmtree(store)
    answer(
        seconds=round(ended - started, 3), start=round(clock.ready - started, 3),
        working=round(clock.closing - clock.ready, 3), end=round(ended - clock.closing, 3), peak_run_mb=clock.peak_mb,
    )  # fmt: skip


class Quiet(Display):
    """Nothing on the console."""

    def __init__(self) -> None:
        from rich.console import Console

        super().__init__(Console(file=io.StringIO()))


class Clock:
    """Wraps the engine that the recipe asks for, to learn when its workers were ready and when it was closed."""

    def __init__(self) -> None:
        self.ready = 0.0
        self.closing = 0.0
        self.peak_mb = 0.0

    def engine(self, plan: Plan) -> Engine:
        """The engine, with its workers loaded.

        At the priority of this process: Ray lowers that of its workers by 15, and no other side of a comparison does.
        """
        os.environ.setdefault("RAY_worker_niceness", "0")
        engine: Any = pipeline._engine(plan)
        while any(starting for _, starting in engine.workers().values()):
            engine.next(timeout_s=1.0)
        self.ready = time.perf_counter()
        close = engine.close

        def closed() -> None:
            from benchmarks.process import peak_mb

            self.closing = time.perf_counter()
            self.peak_mb = round(peak_mb(), 1)
            close()

        engine.close = closed
        made: Engine = engine
        return made


def run_pool(shards: Path, processes: int, ocr: bool) -> None:
    """The same operators in a pool: a task is a row group, its answer the columns of its rows."""
    files = sorted(shards.glob("*.parquet"))
    tasks = [(str(file), group) for file in files for group in range(pq.ParquetFile(file).num_row_groups)]
    recipe = recipe_of(shards, shards, processes, ocr, "pool")
    os.environ["OMP_NUM_THREADS"] = "1"  # as Ray does for its workers: threads of NumPy would fight the processes
    spawn = multiprocessing.get_context("spawn")
    started = time.perf_counter()
    barrier = spawn.Barrier(processes + 1)
    with spawn.Pool(processes, begin, (recipe, barrier)) as pool:
        barrier.wait()
        ready = time.perf_counter()
        rows = 0
        for columns in pool.imap_unordered(score, tasks):
            rows += len(columns)
        done = time.perf_counter()
        pool.terminate()
    ended = time.perf_counter()
    answer(
        rows=rows, seconds=round(ended - started, 3), start=round(ready - started, 3), working=round(done - ready, 3),
        end=round(ended - done, 3),
    )  # fmt: skip


CALLABLES: list[Any] = []


def begin(recipe: Recipe, barrier: Any) -> None:
    """Load the operators once in each process of the pool."""
    CALLABLES.extend(operator.load(recipe) for operator in pipeline.PATH[1:] if operator.wanted(recipe))
    barrier.wait()


def score(task: tuple[str, int]) -> list[dict[str, Any]]:
    """All columns of the rows of one row group."""
    file, group = task
    table = pq.ParquetFile(file).read_row_group(group, columns=["image", "caption"])
    captions = table["caption"].to_pylist()
    samples = [Sample(row, data, {"caption_raw": captions[row]}) for row, data in enumerate(table["image"].to_pylist())]
    found: list[dict[str, Any]] = []
    for start in range(0, len(samples), BATCH):
        batch = samples[start : start + BATCH]
        for call in CALLABLES:
            for sample, columns in zip(batch, call(batch), strict=True):
                sample.values.update(columns)
        for sample in batch:
            sample.release()
            found.append(sample.values)
    return found


def pictures(folder: Path, rows: int) -> Path:
    """Parquet shards of JPEGs, crops of photographs at 512 to 1024 px with grain; made once."""
    if (folder / ".made").exists():
        return folder
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    random = np.random.default_rng(0)
    sources = [np.asarray(image) for image in photographs()]
    for first in range(0, rows, SHARD_ROWS):
        count = min(SHARD_ROWS, rows - first)
        files = [jpeg(sources[(first + i) % len(sources)], random) for i in range(count)]
        table = pa.table({"image": files, "caption": [f"photograph {first + i}" for i in range(count)]})
        pq.write_table(table, folder / f"train-{first // SHARD_ROWS:05d}.parquet", row_group_size=GROUP_ROWS)
    (folder / ".made").touch()
    return folder


def jpeg(source: np.ndarray[Any, Any], random: np.random.Generator) -> bytes:
    long_side = int(random.integers(512, 1025))
    short_side = round(long_side / float(random.choice([1, 4 / 3, 3 / 2])))
    width, height = (long_side, short_side) if random.random() < 0.6 else (short_side, long_side)
    zoom = max(width / source.shape[1], height / source.shape[0]) * float(random.uniform(1.0, 1.3))
    crop_width, crop_height = int(width / zoom), int(height / zoom)
    left = int(random.integers(0, source.shape[1] - crop_width + 1))
    top = int(random.integers(0, source.shape[0] - crop_height + 1))
    crop = source[top : top + crop_height, left : left + crop_width]
    pixels = cv2.resize(crop, (width, height), interpolation=cv2.INTER_CUBIC)
    grain = random.integers(-5, 6, (height, width, 1), np.int16)
    buffer = io.BytesIO()
    Image.fromarray(np.clip(pixels + grain, 0, 255).astype(np.uint8)).save(buffer, "JPEG", quality=85)
    return buffer.getvalue()


def small_rows(folder: Path, rows: int) -> Path:
    """Parquet shards of 50,000 rows whose pictures are one byte; made once."""
    if (folder / ".made").exists():
        return folder
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for first in range(0, rows, 50_000):
        count = min(50_000, rows - first)
        captions = [f"row {first + i} of many, with a caption of the usual length, more or less" for i in range(count)]
        table = pa.table({"image": pa.array([b"x"] * count), "caption": captions})
        pq.write_table(table, folder / f"train-{first // 50_000:05d}.parquet", row_group_size=10_000)
    (folder / ".made").touch()
    return folder


def unmeasured(samples: Sequence[Sample]) -> list[dict[str, Any]]:
    """A score that costs nothing and looks at nothing."""
    return [{"aesthetic": float(sample.row % 10), "aesthetic_engine": "none"} for sample in samples]


NOTHING = (
    pipeline.PATH[0],
    Operator("aesthetic", lambda recipe: unmeasured, lambda recipe: {"version": 1}, image="none", batch=2000),
)


if __name__ == "__main__":
    main()
