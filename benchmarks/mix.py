"""`curate mix` against its targets.

    python -m benchmarks.mix [decide|choose|plan|export|load] [--gb 1] [--rows 4000000]

decide   rows a second of one core (processor time): captions of one epoch, alone and with the cells and ranks that are
         computed once for all epochs; target 2 million
choose   choosing among `--rows` rows (a fifth in groups, three quarters drawn, two splits), and among a tenth of
         them, each in a process of its own: seconds, memory, disk; target: memory that does not grow
plan     the plan of an export over `--rows` rows, in a process of its own: seconds, and bytes of memory a row, above
         a plan over a hundredth of them
export   shards of photographs to a Parquet and a WebDataset export, against `cp` of the same input files with fsync,
         both by the same number of processes, turn and turn about; target 80 % of the copy's rate
load     pictures a second of one MixDataset and one core, decoding included, at 512 px buckets: originals of 640 to
         2048 px, and an export resized to its buckets (4:4:4, quality 95); by processor time, by the clock, and the
         share of time that a consumer of 200 pictures a second waits with one worker; target 200

Last line: `RESULT ` and the figures as JSON.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from statistics import median
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.scorers import jpegs
from curate.mix import decide as d
from curate.mix.export import export
from curate.mix.keyed import mixed
from curate.mix.settings import Settings
from curate.mix.sources import LIGHT_ROWS
from curate.read import InputSpec, discover, index
from curate.recipe import Input, Recipe, StoreAt, to_toml
from curate.store import Store
from curate.store.files import LocalFiles
from curate.store.parts import Version, publish
from schemas.columns import part_schema
from workers.picture import header_size

PATH = ("input", "size", "identity", "caption", "translate")
VERSIONS = {op: Version(op, f"{i:016x}") for i, op in enumerate(PATH)}
SHARD_ROWS = 10_000
PLAN = """
import resource, sys, time
from curate.mix import plan
from curate.mix.settings import Settings
from curate.store.files import open_files
clock = time.perf_counter()
with plan.made(Settings(sys.argv[1], validation=0.01), open_files(sys.argv[2])) as (_, jobs):
    print(len(list(jobs)))
print(time.perf_counter() - clock, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""
CHOOSE = """
import resource, sys, tempfile, threading, time
from pathlib import Path
from benchmarks.mix import Many
from curate.mix.choose import Chosen
from curate.mix.settings import Settings
count, most = int(sys.argv[1]), 0
with tempfile.TemporaryDirectory(dir=sys.argv[2]) as folder:
    clock = time.perf_counter()
    with Chosen([Many(count)], Settings("store", validation=0.05, rows=count * 3 // 4), Path(folder)) as rows:
        for split in rows.cells():
            for number, batch in enumerate(rows.entries(split)):
                if number % 1000 == 0:
                    most = max(most, sum(path.stat().st_size for path in Path(folder).iterdir()))
    print(time.perf_counter() - clock, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, most)
"""
COPY = """
import os, shutil, sys
for name in sys.argv[2:]:
    to = os.path.join(sys.argv[1], os.path.basename(name))
    shutil.copyfile(name, to)
    with open(to, 'rb') as file:
        os.fsync(file.fileno())
"""


def decision(rows: int) -> dict[str, Any]:
    """Millions of rows a second for the plan's part of the decision, and for the captions of an epoch."""
    noise = np.random.default_rng(0)
    key = mixed(np.arange(rows, dtype=np.uint64), "rows")
    options = noise.choice([7, 7, 7, 3, 6, 1], rows).astype(np.uint8)
    bucket, concept = noise.integers(0, 33, rows).astype(np.int32), noise.integers(0, 14, rows).astype(np.int32)
    ones = np.ones(rows, np.uint8)
    found: dict[str, Any] = {"rows": rows}
    clock = time.process_time()
    cell, cells = d.celled(bucket, concept, options, 14)
    rank = d.ranked(key, cell, 1)
    plan_s = time.process_time() - clock
    entries = d.Entries(key, options, ones, ones, ones, cell, rank)
    for mode in ("quota", "coin"):
        policy = d.Policy(Fraction(1, 2), Fraction(1, 2), mode, 1)
        seconds = []
        for epoch in range(3):
            clock = time.process_time()
            d.decide(policy, cells, entries, epoch)
            seconds.append(time.process_time() - clock)
        found[f"{mode}_epoch_mrows_s"] = round(rows / median(seconds) / 1e6, 2)
        if mode == "quota":
            found["quota_with_ranks_mrows_s"] = round(rows / (median(seconds) + plan_s) / 1e6, 2)
    print(f"decide, {rows:,} rows: " + ", ".join(f"{k} {v}" for k, v in found.items() if k != "rows"))
    return found


def make_store(folder: Path, gb: float) -> Path:
    """A store over shards of photographs, 640 to 2048 px, about `gb` * 10^9 bytes; 400 different pictures repeat."""
    pictures = jpegs(400)
    sizes = [header_size(data) or (0, 0) for data in pictures]
    (folder / "shards").mkdir(parents=True)
    per_shard = 100_000_000 // (sum(map(len, pictures)) // len(pictures))
    number = 0
    for shard in range(max(2, round(gb * 10))):
        at = [(number + i) % len(pictures) for i in range(per_shard)]
        number += per_shard
        table = {"image": [pictures[i] for i in at], "caption": [f"photograph {shard} {i} of Beijing" for i in at]}
        pq.write_table(
            pa.table(table), folder / "shards" / f"s-{shard:05d}.parquet", compression="NONE", row_group_size=200
        )
    spec = InputSpec(str(folder / "shards"))
    files = LocalFiles(folder / "store")
    found = discover(spec)
    for place, shard in enumerate(found):
        table = index(shard).table
        at = [(place * per_shard + i) % len(pictures) for i in range(table.num_rows)]
        facts: dict[str, list[Any]] = {
            "bytes": [len(pictures[i]) for i in at], "width": [sizes[i][0] for i in at],
            "height": [sizes[i][1] for i in at], "sha256": [hashlib.sha256(pictures[i]).hexdigest() for i in at],
        }  # fmt: skip
        parts_of_shard(files, shard.id, table, facts)
    finished(files, spec, [{"shard": s.id, "uri": s.uri, "format": s.format} for s in found])
    return folder / "store"


def parts_of_shard(files: LocalFiles, shard: str, table: pa.Table, facts: dict[str, list[Any]]) -> None:
    """Publish the parts of one shard: its input columns, the facts of its pictures, and two captions a row."""
    count = table.num_rows
    columns: dict[str, list[Any]] = facts | {
        "caption_en": [f"a synthetic caption of some length, number {i} " * 8 for i in range(count)],
        "caption_zh": [f"一段合成的描述，第{i}号。" * 8 for i in range(count)],
    }
    fixed = {"shard": pa.array([shard] * count), "row": pa.array(range(count), pa.int64())}
    own = dict(zip(table.column_names, table.columns, strict=True))
    empty = {"error": pa.nulls(count, pa.string()), "message": pa.nulls(count, pa.string())}
    publish(files, VERSIONS["input"], shard, pa.table({**fixed, **own, **empty}))
    for operator in PATH[1:]:
        schema = part_schema(operator)
        known = fixed | {
            name: pa.array(v, schema.field(name).type) for name, v in columns.items() if name in schema.names
        }
        values = [known.get(field.name, pa.nulls(count, field.type)) for field in schema]
        publish(files, VERSIONS[operator], shard, pa.Table.from_arrays(values, schema=schema))


def finished(files: LocalFiles, spec: InputSpec, shards: list[dict[str, Any]]) -> None:
    """Record a finished run over the shards, and build the index."""
    for version in VERSIONS.values():
        described = {"operator": version.operator, "fingerprint": version.fingerprint, "facts": {}}
        files.create(f"{version.folder}/operator.json", json.dumps(described).encode())
    record = {
        "run_id": "20260101T000000", "started": "2026-01-01T00:00:00+00:00", "state": "finished",
        "recipe": to_toml(dataclasses.replace(Recipe(), input=Input(spec.uri), store=StoreAt(files.uri))),
        "versions": [{"operator": v.operator, "fingerprint": v.fingerprint} for v in VERSIONS.values()],
        "shards": shards, "predicates": [],
    }  # fmt: skip
    files.replace(f"runs/{record['run_id']}/run.json", json.dumps(record).encode())
    Store(files.uri).ingest()


class Many:
    """Rows of a large store, as `sources.Source` would say them."""

    def __init__(self, rows: int) -> None:
        self.rows = rows

    def together(self) -> Iterator[tuple[int, int]]:
        """As of Source."""
        yield from ((first, min(first + LIGHT_ROWS, self.rows)) for first in range(0, self.rows, LIGHT_ROWS))

    def light(self, first: int, stop: int) -> dict[str, Any]:
        """As of Source."""
        noise = np.random.default_rng(first)
        count = stop - first
        place = np.arange(first, stop)
        grouped = noise.random(count) < 0.2
        concepts = np.array([f"concept {i}" for i in range(14)], object)
        return {
            "shard": (place // SHARD_ROWS).astype(np.int32), "row": place % SHARD_ROWS,
            "key": mixed(place.astype(np.uint64), "rows"), "digest": mixed(place.astype(np.uint64), "digest"),
            "group": np.where(grouped, noise.integers(1, self.rows // 5, count), 0).astype(np.uint64),
            "unseen_dedup": ~grouped, "unseen_balance": np.zeros(count, np.bool_),
            "width": noise.integers(512, 2048, count), "height": noise.integers(512, 2048, count),
            "bytes": noise.integers(50_000, 500_000, count),
            **{name: np.ones(count, np.uint8) for name in ("raw", "en", "zh")}, "weight": np.ones(count),
            "concept": pa.chunked_array([noise.choice(concepts, count)]),
            "pool": pa.chunked_array([["natural"] * count]),
        }  # fmt: skip


def choosing(folder: Path, rows: int) -> dict[str, Any]:
    """Seconds, peak memory and temporary files of choosing among `rows` rows, and among a tenth of them."""
    found: dict[str, Any] = {"rows": rows}
    for count in (rows // 10, rows):
        done = subprocess.run(
            [sys.executable, "-c", CHOOSE, str(count), str(folder)], check=True, capture_output=True, text=True
        )
        seconds, peak, disk = done.stdout.splitlines()[-1].split()
        found[f"{count}_s"], found[f"{count}_mb"] = round(float(seconds), 1), round(int(peak) / 1000)
        found[f"{count}_disk_mb"] = round(int(disk) / 1e6)
    print("choose: " + ", ".join(f"{k} {v}" for k, v in found.items()))
    return found


def planning(folder: Path, rows: int) -> dict[str, Any]:
    """Seconds and peak memory of the plan of an export of `rows` rows, 10,000 to a shard; no pictures are there."""
    found: dict[str, Any] = {"rows": rows}
    noise = np.random.default_rng(0)
    for count in (rows // 100, rows):
        at = folder / f"plan-{count}"
        files = LocalFiles(at / "store")
        names = [f"s-{number:05d}" for number in range(-(-count // SHARD_ROWS))]
        for name in names:
            captions = pa.table({"caption_raw": [f"photograph {name} {i}" for i in range(SHARD_ROWS)]})
            facts: dict[str, list[Any]] = {
                "bytes": [250_000] * SHARD_ROWS, "width": noise.integers(512, 2048, SHARD_ROWS).tolist(),
                "height": noise.integers(512, 2048, SHARD_ROWS).tolist(),
                "sha256": [f"{name}{i:0{64 - len(name)}x}" for i in range(SHARD_ROWS)],
            }  # fmt: skip
            parts_of_shard(files, name, captions, facts)
        finished(
            files, InputSpec(str(at)), [{"shard": n, "uri": f"{at}/{n}.parquet", "format": "parquet"} for n in names]
        )
        done = subprocess.run(
            [sys.executable, "-c", PLAN, str(at / "store"), str(at / "out")], check=True, capture_output=True, text=True
        )
        seconds, peak = done.stdout.splitlines()[-1].split()
        found[f"{count}_s"], found[f"{count}_mb"] = round(float(seconds), 1), round(int(peak) / 1000)
        shutil.rmtree(at)
    found["bytes_a_row"] = round((found[f"{rows}_mb"] - found[f"{rows // 100}_mb"]) * 1e6 / (rows - rows // 100))
    print("plan: " + ", ".join(f"{k} {v}" for k, v in found.items()))
    return found


def copy(folder: Path, processes: int) -> float:
    """Seconds that `processes` need to copy the input shards to disk, interpreter start included."""
    out = folder / "copy"
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir()
    names = sorted(str(path) for path in (folder / "shards").iterdir())
    clock = time.perf_counter()
    running = [subprocess.Popen([sys.executable, "-c", COPY, str(out), *names[i::processes]]) for i in range(processes)]
    if any(process.wait() for process in running):
        raise RuntimeError("the copy failed")
    return time.perf_counter() - clock


def exporting(folder: Path, store: Path, turns: int) -> dict[str, Any]:
    """Rates of copy and export in MB/s, and their ratio, for one and two processes."""
    size = sum(path.stat().st_size for path in (folder / "shards").iterdir()) / 1e6
    found: dict[str, Any] = {"mb": round(size)}
    for processes in (1, 2):
        seconds: dict[str, list[float]] = {"copy": [], "parquet": [], "webdataset": []}
        for _ in range(turns):
            seconds["copy"].append(copy(folder, processes))
            for format in ("parquet", "webdataset"):
                shutil.rmtree(folder / "out", ignore_errors=True)
                os.sync()
                clock = time.perf_counter()
                asked = Settings(str(store), format=format)
                export(asked, str(folder / "out"), "inline" if processes == 1 else "processes", processes)
                seconds[format].append(time.perf_counter() - clock)
                shutil.rmtree(folder / "out")
        for name, values in seconds.items():
            found[f"{name}_{processes}_mb_s"] = round(size / median(values))
            if name != "copy":
                found[f"{name}_{processes}_ratio"] = round(median(seconds["copy"]) / median(values), 3)
        print(
            f"export, {size:.0f} MB, {processes} processes: "
            + json.dumps({k: v for k, v in found.items() if k != "mb"})
        )
    return found


def loading(folder: Path, store: Path) -> dict[str, Any]:
    """Pictures a second of one core, and how long a consumer of 200 a second waits with one worker."""
    import torch

    from curate.mix.loader import MixDataset  # not above: every worker process of an export would import torch

    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    found: dict[str, Any] = {}
    for name, resize in (("originals", False), ("resized", True)):
        out = folder / f"load-{name}"
        asked = Settings(str(store), buckets="novelai-512", resize=resize, rows=1200, shard_mb=100)
        export(asked, str(out), "inline")
        data = MixDataset(out, batch_size=8)
        count = 0
        for batch in data:  # warm
            count += len(batch["row_id"])
            if count >= 80:
                break
        data.seek(1)
        count, cpu, clock = 0, time.process_time(), time.perf_counter()
        for batch in data:
            count += len(batch["row_id"])
        found[f"{name}_img_s"] = round(count / (time.perf_counter() - clock), 1)
        found[f"{name}_img_per_cpu_s"] = round(count / (time.process_time() - cpu), 1)
        found["state_bytes"] = len(json.dumps(data.state_dict()))
        data.seek(2)
        waited, steps, started = 0.0, 0, time.perf_counter()
        batches = iter(data.loader(1, prefetch_factor=8))
        next(batches)
        begun = time.perf_counter()
        while True:
            clock = time.perf_counter()
            batch = next(batches, None)
            if batch is None:
                break
            waited += time.perf_counter() - clock
            steps += 1
            left = begun + (steps * 8) / 200 + waited - time.perf_counter()
            time.sleep(max(0.0, left))  # the accelerator's time
        found[f"{name}_wait_share"] = round(waited / (time.perf_counter() - begun), 4)
        found[f"{name}_first_batch_s"] = round(begun - started, 2)
        print(f"load, {name}: " + json.dumps({k: v for k, v in found.items() if k.startswith(name)}))
    return found


def main() -> None:
    """Print figures and the RESULT line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="*", default=["decide", "choose", "plan", "export", "load"])
    parser.add_argument("--gb", type=float, default=1.0, help="size of the exported store, 10^9 bytes")
    parser.add_argument("--rows", type=int, default=4_000_000, help="rows of the decision and of the plan")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--folder", type=Path, help="where to work; default: a temporary folder")
    asked = parser.parse_args()
    figures: dict[str, Any] = {"benchmark": "mix"}
    if "decide" in asked.what:
        figures["decide"] = decision(asked.rows)
    with tempfile.TemporaryDirectory(dir=asked.folder) as name:
        folder = Path(name)
        if "choose" in asked.what:
            figures["choose"] = choosing(folder, asked.rows)
        if "plan" in asked.what:
            figures["plan"] = planning(folder, asked.rows)
        if {"export", "load"} & set(asked.what):
            store = make_store(folder, asked.gb)
        if "export" in asked.what:
            figures["export"] = exporting(folder, store, asked.turns)
        if "load" in asked.what:
            figures["load"] = loading(folder, store)
    print("RESULT " + json.dumps(figures))


if __name__ == "__main__":
    main()
