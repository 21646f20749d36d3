"""One worker: runs the tasks of a plan in its own process, over its own shards, and writes what it finds.

An exception of an operator is caught at the row: the batch is split until the row at fault stands alone, and that row
gets the error. What no `except` can catch (a segmentation fault, a hang) ends the process; the driver splits the range.

A worker on a GPU is given two tasks at once, each in a thread: one reads, decodes and saves while the other one has the
device. Operators run under one lock, so that they need not care. Those that ask an endpoint run without it, and without
a watch over their time: they wait for somebody else, and say themselves for how long.
"""

from __future__ import annotations

import contextlib
import faulthandler
import hashlib
import json
import os
import pickle
import platform
import resource
import signal
import sys
import threading
import time
import traceback
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa

from curate import read
from curate.engine.cells import Cells, memory, passing, read_staged, staged_cells, staged_schema, staging_folder
from curate.engine.tasks import Answer, Blame, Compute, Index, Publish, Survey, Tally, Task
from curate.errors import CurateError
from curate.plan import Operator, Plan, Stage
from curate.plan import Worker as Callable
from curate.store.parts import DamagedError, encode, parts_of, publish, read_table
from schemas.columns import OPERATORS, ROW
from schemas.errors import RowError
from workers.picture import Limits, header_pixels
from workers.sample import Sample

DECODERS = 4  # threads that decode for a GPU worker
BATCH_PIXELS = 48_000_000  # of decoded pictures held at once: 48 Mpx are 144 MB of RGB


class _Hands(threading.local):
    """What each thread of a worker holds for itself: the cells and the reader of its shard, and a DuckDB."""

    def __init__(self) -> None:
        self.cells: Cells | None = None
        self.reader: tuple[read.Shard, read.Reader] | None = None
        self.db = memory()


class Worker:
    """Runs tasks; operators load on first use and stay. `isolated`: this process may be lost."""

    def __init__(self, plan: Plan, *, isolated: bool) -> None:
        self.plan = plan
        self.isolated = isolated
        self.limits = Limits(max_megapixels=plan.recipe.decode.max_megapixels)
        self.loaded: dict[int, Callable] = {}
        self.device = threading.Lock()
        self.decoders = ThreadPoolExecutor(min(DECODERS, os.cpu_count() or 1))
        self.hands = _Hands()

    def load(self, pool: str, proof: str = "") -> None:
        """Load all operators of a pool now, so that a missing weight stops the run before it starts.

        `proof`: a file of the store that must be there, or this node has a store of its own. Raises ContractError.
        """
        if proof and not self.plan.files.exists(proof):
            raise ContractError(
                f"store.uri = {self.plan.recipe.store.uri!r}: node {platform.node()} does not see the driver's store "
                "there; name a folder that all nodes mount, or s3://"
            )
        for stage in self.plan.stages:
            if stage.pool == pool:
                for i in range(stage.first, stage.stop):
                    self._load(i)
        if self.isolated and not self.plan.pools[pool].gpus:
            _limit_memory(self.plan.recipe.engine.worker_memory_gb)

    def run(self, task: Task) -> Answer:
        """Do one task. Failures of rows and shards are answers; an exception means that the run cannot go on."""
        try:
            match task:
                case Index():
                    return self.index(task)
                case Survey():
                    return self.survey(task)
                case Compute():
                    return self.compute(task)
                case Blame():
                    return self.blame(task)
                case Publish():
                    return self.publish(task)
        except read.InputError as failure:
            return Answer(shard_error=(failure.code, failure.message))
        except DamagedError as failure:
            return Answer(shard_error=("part_damaged", str(failure)))

    def answer(self, task: bytes) -> bytes:
        """As `run`, both pickled: between processes that run the same code that costs far less than Ray's own way."""
        return pickle.dumps(self.run(pickle.loads(task)), pickle.HIGHEST_PROTOCOL)

    def index(self, task: Index) -> Answer:
        """Publish the part of operator `input`; a shard that changed since it was scored fails."""
        plan, shard = self.plan, task.shard
        version = plan.versions[0]
        there = parts_of(plan.files, version, shard.id)
        index = read.index(shard)
        if there:
            known = read_table(plan.files, there[0].path, ["row"])
            before = (known.schema.metadata or {}).get(b"shard_identity", b"").decode()
            if before != index.identity:
                raise read.InputError(
                    "shard_changed",
                    f"{shard.uri} is not the file that was scored before; give the new one another name, "
                    f"or forget the old one with: curate store forget {plan.files.uri} {shard.id}",
                )
            return Answer(rows=known.num_rows)
        table, count = index.table, index.table.num_rows
        columns = {
            "shard": pa.array([shard.id] * count, pa.string()),
            "row": pa.array(range(count), pa.int64()),
            **{name: table[name] for name in table.column_names},
            "error": pa.nulls(count, pa.string()),
            "message": pa.nulls(count, pa.string()),
        }
        metadata = {
            "shard_identity": index.identity,
            "shard_groups": json.dumps(index.groups),
            "shard_image_column": index.image_column,
            "shard_caption_column": index.caption_column,
        }
        part = pa.table(columns).replace_schema_metadata(metadata)
        tally, started = Tally(), time.perf_counter()
        if publish(plan.files, version, shard.id, part):
            tally.committed("part", time.perf_counter() - started)
        return Answer(rows=count, tally=tally)

    def survey(self, task: Survey) -> Answer:
        """Rows on which the stage is pending, cut into ranges that do not share a row group where possible."""
        self.hands.cells = None
        cells = self._open(task)
        pending = cells.pending(self.plan.stages[task.stage])
        stage = self.plan.stages[task.stage]
        widest = max(operator.batch for operator in self.plan.operators[stage.first : stage.stop])
        size = max(self.plan.recipe.engine.range_rows, widest if self.plan.pools[stage.pool].gpus else 1)
        groups = json.loads((cells.input.schema.metadata or {}).get(b"shard_groups", b"[0]"))
        ranges = cut(pending, groups, size)
        return Answer(rows=cells.input.num_rows, ranges=tuple(ranges), staged=task.stage in cells.staged)

    def compute(self, task: Compute) -> Answer:
        """Run the pending operators of the stage on the task's rows and stage what they say."""
        if task.stepwise:
            self.hands.cells = None  # an earlier try may have staged some operators of the row
        cells = self._open(task)
        stage = self.plan.stages[task.stage]
        locators = cells.input.select([n for n in cells.input.column_names if n.startswith("_")])
        found = Found(self.plan, stage)
        known = cells.rows(task.rows)
        batch = max(self.plan.operators[i].batch for i in range(stage.first, stage.stop))
        for start in range(0, len(known), batch):
            self._run_batch(stage, known[start : start + batch], locators, found, task)
        if found.cells and not task.stepwise:
            self._stage(stage, task.shard.id, found)
        found.tally.gpu_bytes = _gpu_bytes()
        return Answer(tally=found.tally)

    def blame(self, task: Blame) -> Answer:
        """Give the row its error, in the first operator that has not answered for it."""
        self.hands.cells = None
        cells = self._open(task)
        stage = self.plan.stages[task.stage]
        done = cells.rows([task.row])[0]["done"]
        guilty = next((i for i in range(stage.first, stage.stop) if i not in done), stage.stop - 1)
        found = Found(self.plan, stage)
        found.fail(guilty, task.row, RowError(task.error, task.message))
        self._stage(stage, task.shard.id, found)
        self.hands.cells = None
        return Answer(tally=found.tally)

    def publish(self, task: Publish) -> Answer:
        """Write the staged cells of every operator of the stage as parts, then clear the staging folder."""
        plan, shard = self.plan, task.shard.id
        stage = plan.stages[task.stage]
        self.hands.cells = None
        staged = read_staged(plan, stage, shard)
        tally = Tally()
        if staged is not None:
            for i in range(stage.first, stage.stop):
                cells = staged_cells(staged, plan.operators[i].name)
                if cells.num_rows:
                    started = time.perf_counter()
                    names = pa.array([shard] * cells.num_rows, pa.string())
                    if publish(plan.files, plan.versions[i], shard, cells.add_column(0, ROW[0].name, names)):
                        tally.committed("part", time.perf_counter() - started)
            plan.files.delete(staging_folder(stage, shard))
        return Answer(tally=tally)

    def _open(self, task: Survey | Compute | Blame) -> Cells:
        if self.hands.cells is None or self.hands.cells.shard != task.shard:
            self.hands.cells = Cells(self.plan, task.shard, self.hands.db)
        return self.hands.cells

    def _read(self, task: Compute, rows: list[int], locators: pa.Table) -> list[bytes | RowError]:
        if self.hands.reader is None or self.hands.reader[0] != task.shard:
            self.hands.reader = task.shard, read.Reader(task.shard)
        return self.hands.reader[1].read(rows, locators.take(pa.array(rows, pa.int64())))

    def _run_batch(
        self, stage: Stage, known: list[dict[str, Any]], locators: pa.Table, found: Found, task: Compute
    ) -> None:
        """Run the stage's operators over one batch of rows; pictures live only here."""
        plan = self.plan
        rows = [values["row"] for values in known]
        wants_images = any(plan.operators[i].image != "none" for i in range(stage.first, stage.stop))
        images = self._read(task, rows, locators) if wants_images else [None] * len(rows)
        samples = [Sample(r, data, v, self.limits) for r, data, v in zip(rows, images, known, strict=True)]
        shares = any(plan.operators[i].image == "pixels" for i in range(stage.first, stage.stop))
        for group in _by_pixels(samples) if shares else [samples]:
            for i in range(stage.first, stage.stop):
                todo = self._pending(i, group)
                if not todo:
                    continue
                size = plan.operators[i].batch
                for at in range(0, len(todo), size):
                    self._ahead(i, todo[at : at + size])
                    with self.device if self._alone(i) else contextlib.nullcontext():
                        started = time.perf_counter()
                        self._run(i, todo[at : at + size], found)
                        found.tally.seconds[plan.operators[i].name] += time.perf_counter() - started
                if task.stepwise:
                    self._stage(stage, task.shard.id, found)
            for sample in group:
                sample.release()

    def _pending(self, i: int, samples: Sequence[Sample]) -> list[Sample]:
        """The samples on which operator `i` is pending, by the same rule as Cells.pending."""
        todo = [s for s in samples if i not in s.values["done"]]
        if self.plan.operators[i].image != "bytes":
            todo = [s for s in todo if not s.values["failed"]]
            gate = self.plan.gate(i)
            if gate and todo:
                passed = passing(self.hands.db, self.plan, gate, [s.values for s in todo])
                todo = [s for s, passes in zip(todo, passed, strict=True) if passes]
        return todo

    def _ahead(self, i: int, samples: list[Sample]) -> None:
        """Decode before the operator's turn at the device, while another task has it; its own call tells what fails."""
        operator = self.plan.operators[i]
        pool = self.plan.pools[operator.pool]
        if operator.image == "pixels" and pool.alone and pool.tasks > 1:
            # No watchdog looks on here: a decoder that never ends is left to the call, which has one.
            seconds = self.plan.recipe.engine.batch_timeout_s
            with contextlib.suppress(Exception):
                list(self.decoders.map(lambda sample: sample.decodes, samples, timeout=seconds))

    def _run(self, i: int, samples: list[Sample], found: Found) -> None:
        """Run one operator on a batch; on an exception halve the batch until the row at fault stands alone."""
        operator = self.plan.operators[i]
        try:
            worker = self._load(i)
            with self._watchdog(len(samples)) if self._alone(i) else contextlib.nullcontext():
                columns = worker(samples)
            _check(operator, samples, columns)
            refused = _refused(operator, columns)
        except ContractError:
            raise
        except Exception as why:
            if len(samples) > 1:
                middle = len(samples) // 2
                self._run(i, samples[:middle], found)
                self._run(i, samples[middle:], found)
            else:
                self._fail(i, samples[0], _as_row_error(why), found)
            return
        for place, (sample, values) in enumerate(zip(samples, columns, strict=True)):
            outcome = refused.get(place, values)
            if isinstance(outcome, RowError):
                self._fail(i, sample, outcome, found)
            else:
                found.add(i, sample.row, outcome)
                sample.values.update(outcome)

    def _fail(self, i: int, sample: Sample, failure: RowError, found: Found) -> None:
        found.fail(i, sample.row, failure)
        sample.values["failed"] = True
        sample.values.update(failure.columns)

    def _alone(self, i: int) -> bool:
        return self.plan.pools[self.plan.operators[i].pool].alone

    def _load(self, i: int) -> Callable:
        if i not in self.loaded:
            try:
                self.loaded[i] = self.plan.operators[i].load(self.plan.recipe)
            except Exception as why:
                name = self.plan.operators[i].name
                # Those that are raised for people to read (WeightsError, EndpointError, ...) need no class in front.
                kind = (
                    "" if isinstance(why, (ValueError, FileNotFoundError, CurateError)) else f"{type(why).__name__}: "
                )
                raise ContractError(f"operator {name} does not load: {kind}{why}") from why
        return self.loaded[i]

    @contextmanager
    def _watchdog(self, rows: int) -> Iterator[None]:
        """End what takes too long: the whole process when it is expendable, else the Python code by an exception."""
        seconds = self.plan.recipe.engine.batch_timeout_s * max(1.0, rows / 16)
        if self.isolated:
            # A C thread that needs no GIL: it ends the process even inside a native loop.
            faulthandler.dump_traceback_later(seconds, exit=True, file=2)
            try:
                yield
            finally:
                faulthandler.cancel_dump_traceback_later()
        elif threading.current_thread() is threading.main_thread():
            before = signal.signal(signal.SIGALRM, _ring)
            signal.setitimer(signal.ITIMER_REAL, seconds)
            try:
                yield
            finally:
                signal.setitimer(signal.ITIMER_REAL, 0)
                signal.signal(signal.SIGALRM, before)
        else:
            yield

    def _stage(self, stage: Stage, shard: str, found: Found) -> None:
        table = found.table()
        data = encode(table)
        rows = table["row"]
        name = f"{rows[0].as_py():012d}-{rows[-1].as_py():012d}-{hashlib.sha256(data).hexdigest()[:12]}.parquet"
        started = time.perf_counter()
        self.plan.files.create(f"{staging_folder(stage, shard)}/{name}", data)
        found.tally.committed("range", time.perf_counter() - started)


class ContractError(CurateError):
    """An operator does not load or broke its contract: that is no row's fault, so the run stops."""


class Found:
    """What the operators of a stage said of some rows."""

    def __init__(self, plan: Plan, stage: Stage) -> None:
        self.plan = plan
        self.schema = staged_schema(plan, stage)
        self.cells: dict[int, dict[str, Any]] = {}
        self.tally = Tally()

    def add(self, i: int, row: int, columns: dict[str, Any], failure: RowError | None = None) -> None:
        """Note the columns that operator `i` gave for `row`."""
        name = self.plan.operators[i].name
        cell = self.cells.setdefault(row, {"row": row})
        cell.update({f"{name}.{column}": value for column, value in columns.items()})
        cell[f"{name}.done"] = True
        self.tally.cells[name] += 1
        if failure:
            cell[f"{name}.error"] = failure.code
            cell[f"{name}.message"] = failure.message
            self.tally.errors[failure.code] += 1
            self.tally.failures[name, failure.code] += 1

    def fail(self, i: int, row: int, failure: RowError) -> None:
        """Note that operator `i` failed on `row`, with what it could still measure."""
        declared = {c.name for c in OPERATORS[self.plan.operators[i].name]}
        self.add(i, row, {k: v for k, v in failure.columns.items() if k in declared}, failure)

    def table(self) -> pa.Table:
        """The cells as a staged range, sorted by row."""
        cells = [self.cells[row] for row in sorted(self.cells)]
        columns = {
            f.name: pa.array([c.get(f.name, False if f.name.endswith(".done") else None) for c in cells], f.type)
            for f in self.schema
        }
        return pa.table(columns, schema=self.schema)


def cut(rows: Sequence[int], groups: Sequence[int], size: int) -> list[Sequence[int]]:
    """Cut ascending `rows` into ranges of at most `size` that end, where they can, with a Parquet row group.

    `groups` are the first rows of the row groups: a group that two ranges share is read by two workers.
    """
    starts = set(groups)
    ranges: list[list[int]] = []
    for row in rows:
        if not ranges or len(ranges[-1]) == size or (row in starts and 2 * len(ranges[-1]) >= size):
            ranges.append([])
        ranges[-1].append(row)
    return [_compact(r) for r in ranges]


def _compact(rows: Sequence[int]) -> Sequence[int]:
    """Consecutive rows as a `range`: a shard of millions of rows must not fill the driver's memory with numbers."""
    consecutive = rows[-1] - rows[0] + 1 == len(rows)
    return range(rows[0], rows[-1] + 1) if consecutive else tuple(rows)


def _by_pixels(samples: Sequence[Sample]) -> Iterator[list[Sample]]:
    """Groups of samples whose decoded pictures fit into memory together."""
    group: list[Sample] = []
    pixels = 0
    for sample in samples:
        size = header_pixels(sample.data) if isinstance(sample.data, bytes) else 0
        if group and pixels + size > BATCH_PIXELS:
            yield group
            group, pixels = [], 0
        group.append(sample)
        pixels += size
    if group:
        yield group


def _check(operator: Operator, samples: Sequence[Sample], columns: Any) -> None:
    declared = {c.name for c in OPERATORS[operator.name]}
    if not isinstance(columns, list) or len(columns) != len(samples):
        raise ContractError(f"operator {operator.name} must return one dict for each of its {len(samples)} rows")
    for values in columns:
        if not isinstance(values, RowError) and set(values) != declared:
            odd = sorted(set(values) ^ declared)
            raise ContractError(f"operator {operator.name} must return its declared columns; differs in {odd}")


def _refused(operator: Operator, columns: Sequence[dict[str, Any] | RowError]) -> dict[int, RowError]:
    """Rows, by place, with a value that Arrow does not take (a lone surrogate, a number out of range): their failures.

    Found here, before anything is built on such a value, and not when a range is written with all its neighbours.
    """
    places = [place for place, values in enumerate(columns) if isinstance(values, dict)]
    refused: dict[int, RowError] = {}
    for column in OPERATORS[operator.name]:
        values = {place: columns[place][column.name] for place in places}  # type: ignore[index]
        if _arrow_takes(list(values.values()), column.type):
            continue
        for place, value in values.items():
            if not _arrow_takes([value], column.type):
                refused[place] = RowError("operator_failed", f"{column.name} = {value!a:.80} is no {column.type}")
    return refused


def _arrow_takes(values: list[Any], type: pa.DataType) -> bool:
    try:
        pa.array(values, type)
    except (pa.ArrowException, UnicodeError, TypeError, ValueError, OverflowError):
        return False
    return True


def _as_row_error(why: Exception) -> RowError:
    if isinstance(why, RowError):
        return why
    if isinstance(why, TimeoutError):
        return RowError("timeout", str(why))
    if isinstance(why, MemoryError) or type(why).__name__ == "OutOfMemoryError":
        return RowError("out_of_memory", f"{type(why).__name__}: {why}")
    at = traceback.extract_tb(why.__traceback__)[-1]
    return RowError("operator_failed", f"{type(why).__name__}: {why} (at {at.name}, line {at.lineno})")


def _limit_memory(gigabytes: float) -> None:
    """Let this process have so much more address space and no more: what would eat the node raises MemoryError.

    On top of what is mapped now, since Ray's workers map its object store and much that they never touch.
    """
    if gigabytes:
        pages = int(Path("/proc/self/statm").read_text("ascii").split()[0])
        limit = pages * resource.getpagesize() + int(gigabytes * 2**30)
        resource.setrlimit(resource.RLIMIT_AS, (limit, resource.getrlimit(resource.RLIMIT_AS)[1]))


def _gpu_bytes() -> int:
    """The most GPU memory that PyTorch has held in this process; 0 where it is not in use."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_initialized():
        return 0
    return int(torch.cuda.max_memory_reserved())


def _ring(signum: int, frame: Any) -> None:
    raise TimeoutError("longer than engine.batch_timeout_s")
