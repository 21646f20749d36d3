"""`curate plan RECIPE`: what a run will take, measured on a sample of its own input.

    curate plan deploy/recipes/embedded.toml --set input.uri=PICTURES --set store.uri=STORE --sample 200 --workers 64

Every operator runs over ranges of the real input, in this process, by the code of the run, into a temporary store. What
a row costs is what it cost there: only rows that pass the gates reach the costly operators. The prediction is written
to STORE/plan.json; the run shows it beside what came of it, and so does the report.
"""

from __future__ import annotations

import dataclasses
import json
import os
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from curate import read
from curate.engine.cells import Cells
from curate.engine.tasks import Compute, Index, Publish, Survey
from curate.engine.worker import Worker
from curate.errors import CurateError, UsageError
from curate.pipeline import Prepared
from curate.plan import Plan
from curate.status import duration
from curate.store.files import Files, LocalFiles

SHARDS = 8  # at most so many shards are sampled
WARM_ROWS = 8  # first calls pay for lazy imports and caches and are not counted
RAY_START_S = 8.0  # Ray and the first workers, on this machine
INDEX_BYTES = 260.0  # of captions.duckdb per row, as docs/benchmarks.md measures it
INDEX_ROWS_PER_S = 30_000.0


@dataclass(frozen=True)
class Prices:
    """What the cluster costs: per CPU and hour, per GPU and hour, per GB of storage and month; in any currency."""

    cpu_hour: float = 0.04
    gpu_hour: float = 2.5
    gb_month: float = 0.023


@dataclass(frozen=True)
class Step:
    """One operator: the share of rows that reach it, seconds for each of those, and whether it needs a GPU."""

    name: str
    share: float
    seconds: float
    gpu: bool
    waits: bool = False
    """It waits for an endpoint: that takes time, and no processor."""


@dataclass(frozen=True)
class Prediction:
    """What a run over `rows` rows will take. `overhead_s` per row: reading, decoding ahead, saving."""

    versions: list[str]
    sampled: int
    rows: int
    workers: int
    gpus: int
    steps: list[Step]
    overhead_s: float
    start_s: float
    part_bytes: float
    seconds: float
    cpu_hours: float
    gpu_hours: float
    storage_gb: float
    cost: float
    cost_month: float


def predict(
    prepared: Prepared,
    sample: int,
    workers: int = 0,
    gpus: int = 0,
    prices: Prices | None = None,
    known: Mapping[str, float] | None = None,
) -> Prediction:
    """Measure `sample` rows and say what all of them take on `workers` CPUs and `gpus` GPUs.

    `known`: seconds per image of steps that run on other machines than this one, e.g. captions on a GPU.
    Raises CurateError when no row of the input can be read.
    """
    plan, prices, known = prepared.plan, prices or Prices(), dict(known or {})
    names = {operator.name for operator in plan.operators[1:]}
    if odd := sorted(set(known) - names):
        raise UsageError(f"--seconds {odd[0]}: no step of this recipe; it has {', '.join(sorted(names))}")
    keys = plan.recipe.engine
    workers = workers or keys.workers or (1 if keys.kind == "inline" else os.cpu_count() or 1)
    with tempfile.TemporaryDirectory(prefix="curate-plan-") as folder:
        found = _Sample(dataclasses.replace(plan, files=LocalFiles(Path(folder))), prepared.shards)
        found.take(sample)
    rows = _rows(prepared.shards, found.shard_rows)
    steps = []
    for stage in plan.stages:
        for operator in plan.operators[stage.first : stage.stop]:
            cells = found.cells[operator.name]
            spent = known.get(operator.name, found.seconds[operator.name] / cells if cells else 0.0)
            pool = plan.pools[stage.pool]
            steps.append(Step(operator.name, cells / found.rows, spent, pool.gpus > 0, not pool.alone))
    gpus = gpus or keys.gpu_workers or int(any(step.gpu for step in steps))
    overhead, part_bytes = found.overhead_s / found.rows, found.part_bytes / found.rows
    cpu = rows * (overhead + sum(step.share * step.seconds for step in steps if not step.gpu and not step.waits))
    waiting = rows * sum(step.share * step.seconds for step in steps if step.waits)
    gpu = rows * sum(step.share * step.seconds for step in steps if step.gpu)
    start = found.load_s + (RAY_START_S if keys.kind == "ray" else 0.0)
    # The pools work side by side, on different shards: the slowest of them sets the pace.
    seconds = start + max(cpu / workers, gpu / gpus if gpus else 0.0, waiting / keys.endpoint_workers)
    storage = rows * (part_bytes + INDEX_BYTES) / 1e9
    hours = seconds / 3600
    return Prediction(
        [str(version) for version in plan.versions], found.rows, rows, workers, gpus, steps, overhead, start,
        part_bytes, seconds, cpu / 3600, gpu / 3600, storage,
        hours * (workers * prices.cpu_hour + gpus * prices.gpu_hour), storage * prices.gb_month,
    )  # fmt: skip


class _Sample:
    """Runs the plan over some ranges of some shards and adds up what it took."""

    def __init__(self, plan: Plan, shards: Sequence[read.Shard]) -> None:
        self.plan = plan
        count = min(len(shards), SHARDS)
        self.shards = [shards[i * len(shards) // count] for i in range(count)]
        self.worker = Worker(plan, isolated=False)
        self.rows = 0
        self.shard_rows: dict[str, int] = {}
        self.cells: Counter[str] = Counter()
        self.seconds: dict[str, float] = defaultdict(float)
        self.overhead_s = self.load_s = self.part_bytes = 0.0

    def take(self, rows: int) -> None:
        """Measure about `rows` rows, spread evenly."""
        started = time.perf_counter()
        for pool in {stage.pool for stage in self.plan.stages}:
            self.worker.load(pool)
        self.load_s = time.perf_counter() - started
        each = -(-rows // max(len(self.shards), 1))
        for shard in self.shards:
            self._shard(shard, each)
        if not self.rows:
            raise CurateError("no row of the sampled shards can be read; a run would say why: curate run RECIPE")

    def _shard(self, shard: read.Shard, wanted: int) -> None:
        started = time.perf_counter()
        answer = self.worker.run(Index(shard))
        if answer.shard_error or not answer.rows:
            return
        indexing = (time.perf_counter() - started) / answer.rows
        self.shard_rows[shard.id] = answer.rows
        chosen = _spread(answer.rows, wanted, self.plan.recipe.engine.range_rows)
        if not self.rows:
            self._warm(shard, chosen)
        parts = sum(_size(self.plan.files, f"parts/{v}") for v in self.plan.versions[1:])
        given = _size(self.plan.files, f"parts/{self.plan.versions[0]}/{shard.id}.parquet") / answer.rows
        wall = inside = 0.0
        for stage in self.plan.stages:
            started = time.perf_counter()
            ranges = self.worker.run(Survey(shard, stage.index)).ranges
            pending = sorted(chosen & {row for rows in ranges for row in rows})
            size = max(self.plan.recipe.engine.range_rows, 1)
            for at in range(0, len(pending), size):
                tally = self.worker.run(Compute(shard, stage.index, tuple(pending[at : at + size]))).tally
                assert tally
                self.cells.update(tally.cells)
                for name, spent in tally.seconds.items():
                    self.seconds[name] += spent
                    inside += spent
            self.worker.run(Publish(shard, stage.index))
            wall += time.perf_counter() - started
        self.rows += len(chosen)
        self.overhead_s += max(wall - inside, 0.0) + indexing * len(chosen)
        after = sum(_size(self.plan.files, f"parts/{v}") for v in self.plan.versions[1:])
        self.part_bytes += after - parts + given * len(chosen)

    def _warm(self, shard: read.Shard, chosen: set[int]) -> None:
        """Call every operator once over a few rows and throw away what they say."""
        cells = Cells(self.plan, shard)
        for stage in self.plan.stages:
            pending = [row for row in cells.pending(stage) if row in chosen][:WARM_ROWS]
            if pending:
                self.worker.run(Compute(shard, stage.index, tuple(pending)))
                cells.load()
        self.plan.files.delete("staging")


def _spread(rows: int, wanted: int, size: int) -> set[int]:
    """About `wanted` of `rows` row numbers in runs of `size`, evenly apart: ranges as a run has them."""
    if wanted >= rows:
        return set(range(rows))
    runs = max(1, wanted // size)
    length = -(-wanted // runs)
    starts = [(rows - length) * i // max(runs - 1, 1) if runs > 1 else (rows - length) // 2 for i in range(runs)]
    return {row for start in starts for row in range(start, start + length)}


def _rows(shards: Sequence[read.Shard], known: Mapping[str, int]) -> int:
    """Rows of the whole input, by the rows per byte of the sampled shards, or their mean where sizes are not known."""
    sizes = {shard.id: shard.size for shard in shards}
    seen = [shard.id for shard in shards if shard.id in known]
    rows = sum(known[shard] for shard in seen)
    have = sum(sizes[shard] for shard in seen)
    rest = [shard.id for shard in shards if shard.id not in known]
    if have and all(sizes[shard] for shard in rest):
        return rows + round(sum(sizes[shard] for shard in rest) * rows / have)
    return rows + round(len(rest) * rows / len(seen))


def _size(files: Files, path: str) -> int:
    here = files.local(path)
    assert here is not None  # samples lie in a temporary folder
    if here.is_file():
        return here.stat().st_size
    return sum(part.stat().st_size for part in here.glob("*.parquet"))


def show(prediction: Prediction, console: Console | None = None) -> None:
    """Print the prediction in 80 columns."""
    console = console or Console(highlight=False)
    console.print(f"measured on {prediction.sampled:,} of about {prediction.rows:,} rows")
    table = Table(box=None, padding=(0, 2, 0, 0))
    for name in ("step", "rows that reach it", "ms per image", "hours of work", "on"):
        table.add_column(name, justify="left" if name in ("step", "on") else "right")
    for step in prediction.steps:
        hours = prediction.rows * step.share * step.seconds / 3600
        table.add_row(
            step.name, f"{step.share:.1%}", f"{1000 * step.seconds:.2f}", f"{hours:,.3g}", "GPU" if step.gpu else "CPU"
        )
    spent = prediction.overhead_s
    table.add_row("read, save", "100.0%", f"{1000 * spent:.2f}", f"{prediction.rows * spent / 3600:,.3g}", "CPU")
    console.print(table)
    gpus = f" and {prediction.gpus} GPUs" if prediction.gpus else ""
    console.print(f"time      {duration(prediction.seconds)} on {prediction.workers} workers{gpus}")
    console.print(f"work      {prediction.cpu_hours:,.3g} CPU hours, {prediction.gpu_hours:,.3g} GPU hours")
    index = duration(prediction.rows / INDEX_ROWS_PER_S)
    console.print(f"storage   {prediction.storage_gb:,.3g} GB of parts and index (the index takes about {index})")
    console.print(f"cost      {prediction.cost:,.2f} for the run, {prediction.cost_month:,.2f} a month for storage")
    if any(step.gpu for step in prediction.steps):
        console.print("GPU steps were timed on this machine; with another one, say --seconds STEP=SECONDS.")


def save(files: Files, prediction: Prediction) -> None:
    """Keep the prediction in the store, for the run to be compared with."""
    files.replace("plan.json", json.dumps(asdict(prediction), indent=1).encode())


def compare(files: Files, versions: Sequence[str], report: Mapping[str, Any]) -> dict[str, Any] | None:
    """Predicted and actual figures of a run that computed what was predicted; None for any other run.

    Per image and step, so that a run of a part of the rows (a resumed one) can be compared too.
    """
    try:
        plan = json.loads(files.read("plan.json"))
    except (OSError, ValueError):
        return None
    cells: Mapping[str, int] = report["cells"]
    if plan["versions"] != list(versions) or not cells:
        return None
    rows = max(cells.values())
    steps = {}
    for step in plan["steps"]:
        if count := cells.get(step["name"], 0):
            actual = report["operator_seconds"].get(step["name"], 0.0) / count
            steps[step["name"]] = {"planned_ms": 1000 * step["seconds"], "actual_ms": 1000 * actual,
                                   "planned_rows": round(step["share"] * rows), "rows": count}  # fmt: skip
    whole = (plan["seconds"] - plan["start_s"]) * rows / max(plan["rows"], 1) + plan["start_s"]
    return {"planned_seconds": round(whole, 3), "seconds": report["seconds"], "steps": steps}
