"""The driver: decides what is done next, shard by shard, and never touches a row itself.

A shard goes through index, then for each stage survey, compute (its ranges, in parallel) and publish; the survey after
a publish proves that the stage is complete. At most `engine.open_shards` shards are open: that is the backpressure.
A worker that dies takes one range with it; the range is halved until the row at fault stands alone, which is then
flagged `worker_crash` or `timeout`. Rows in = rows out.
"""

from __future__ import annotations

import time
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

from curate.engine import Engine
from curate.engine.tasks import Answer, Blame, Compute, Death, Index, Outcome, Publish, Survey, Tally, Task
from curate.errors import CurateError
from curate.log import log
from curate.plan import Plan
from curate.read import Shard

MAX_SURVEYS = 10  # a stage that is still pending after so many rounds makes no progress


@dataclass
class Progress:
    """The state of a run, as it is shown and written to run_status.json."""

    shards_total: int
    shards_done: int = 0
    rows_known: int = 0
    rows_done: int = 0
    crashes: int = 0
    tally: Tally = field(default_factory=Tally)
    shard_errors: dict[str, tuple[str, str]] = field(default_factory=dict)
    waiting_for: str = ""
    interrupted: bool = False
    queued: dict[str, int] = field(default_factory=dict)
    """Tasks that wait for a worker, by pool."""
    running: dict[str, int] = field(default_factory=dict)
    """Tasks that were handed to the engine, by pool."""
    workers: dict[str, tuple[int, int]] = field(default_factory=dict)
    """Workers that are ready and that are starting, by pool."""
    parts_not_indexed: int = 0
    """Parts that this run has published and the index does not hold yet."""


class _Ready:
    """Tasks of one pool that can be done now: light ones first, then ranges.

    A worker that has a shard open goes on with that shard: to open one is some dozen requests on an object store. So
    the shard of a range that just ended comes next, and ranges of the others take turns.
    """

    def __init__(self) -> None:
        self.light: deque[Task] = deque()
        self.ranges: dict[str, deque[Task]] = {}
        self.freed: deque[str] = deque()

    def __len__(self) -> int:
        return len(self.light) + sum(map(len, self.ranges.values()))

    def add(self, tasks: Iterable[Task]) -> None:
        """Line up tasks; the light ones, which open and close shards, in front."""
        for task in tasks:
            if isinstance(task, Compute):
                self.ranges.setdefault(task.shard.id, deque()).append(task)
            else:
                self.light.appendleft(task)

    def ended(self, task: Task) -> None:
        """A worker has room again, which has the task's shard open."""
        if isinstance(task, Compute):
            self.freed.append(task.shard.id)

    def take(self) -> Task | None:
        """The next task to hand over."""
        if self.light:
            return self.light.popleft()
        while self.freed and self.freed[0] not in self.ranges:
            self.freed.popleft()
        shard = self.freed.popleft() if self.freed else next(iter(self.ranges), None)
        if shard is None:
            return None
        tasks = self.ranges.pop(shard)
        task = tasks.popleft()
        if tasks:
            self.ranges[shard] = tasks  # at the end: the others have their turn before
        return task

    def drop(self, shard: str) -> None:
        """Forget the ranges of a shard that failed."""
        self.ranges.pop(shard, None)


class _Job:
    """One open shard: which stage it is in and how many of its tasks are under way."""

    def __init__(self, shard: Shard, plan: Plan) -> None:
        self.shard = shard
        self.plan = plan
        self.rows = 0
        self.open = 0
        self.surveys: Counter[int] = Counter()
        self.crashes = 0
        self.blamed = 0
        self.failed: tuple[str, str] | None = None
        self.done = False
        self.tally = Tally()
        """Of the stage that is under way."""

    def answered(self, task: Task, answer: Answer) -> list[Task]:
        """What has to be done after `task` was answered."""
        if answer.shard_error:
            return self._fail(*answer.shard_error)
        match task:
            case Index():
                self.rows = answer.rows
                return self._stage(0)
            case Survey(stage=stage):
                self.surveys[stage] += 1
                if self.surveys[stage] > MAX_SURVEYS:
                    raise CurateError(f"shard {self.shard.id}: stage {stage} is not done after {MAX_SURVEYS} rounds")
                if answer.ranges:
                    return [Compute(self.shard, stage, rows) for rows in answer.ranges]
                return [Publish(self.shard, stage)] if answer.staged else self._stage(stage + 1)
            case Compute(stage=stage) | Blame(stage=stage):
                return [] if self.open else [Publish(self.shard, stage)]
            case Publish(stage=stage):
                return [Survey(self.shard, stage)]

    def died(self, task: Task, death: Death) -> list[Task]:
        """What has to be done after a worker died on `task`."""
        self.crashes += 1
        if not isinstance(task, Compute):
            if self.crashes > 3:
                return self._fail("shard_crash", f"{type(task).__name__.lower()} killed its worker: {death.reason}")
            return [task]
        if len(task.rows) > 1:
            middle = len(task.rows) // 2
            halves = task.rows[:middle], task.rows[middle:]
            return [Compute(self.shard, task.stage, rows, stepwise=len(rows) == 1) for rows in halves]
        if not task.stepwise:
            return [Compute(self.shard, task.stage, task.rows, stepwise=True)]
        self.blamed += 1
        if self.blamed > self.plan.recipe.engine.max_crashes_per_shard:
            return self._fail("too_many_crashes", f"{self.blamed} rows killed a worker, the last one: {death.reason}")
        limit = self.plan.recipe.engine.batch_timeout_s
        hung = death.seconds >= limit
        error, message = (
            ("timeout", f"longer than engine.batch_timeout_s = {limit:g} s in one operator")
            if hung
            else ("worker_crash", f"the worker process died on this row: {death.reason}")
        )
        return [Blame(self.shard, task.stage, task.rows[0], error, message)]

    def _stage(self, stage: int) -> list[Task]:
        if stage < len(self.plan.stages):
            return [Survey(self.shard, stage)]
        self.done = True
        return []

    def _fail(self, code: str, message: str) -> list[Task]:
        self.failed = (code, message)
        self.done = True
        return []


def drive(
    plan: Plan,
    engine: Engine,
    shards: Iterable[Shard],
    progress: Progress,
    show: Callable[[Progress], None],
    stopping: Callable[[], bool],
) -> None:
    """Take every shard through all stages. Ends early, with what is under way finished, when `stopping` says so."""
    waiting: Iterator[Shard] = iter(shards)
    jobs: dict[str, _Job] = {}
    ready: dict[str, _Ready] = defaultdict(_Ready)
    under_way: Counter[str] = Counter()
    exhausted = False
    heard = time.monotonic()
    while True:
        if stopping():
            progress.interrupted = True
            ready.clear()
            exhausted = True
        while not exhausted and len(jobs) < _open_shards(plan, engine):
            shard = next(waiting, None)
            if shard is None:
                exhausted = True
                break
            jobs[shard.id] = _Job(shard, plan)
            _queue(plan, ready, jobs[shard.id], [Index(shard)])
        for pool, tasks in ready.items():
            slots = engine.slots(pool)
            while under_way[pool] < slots and (next_task := tasks.take()):
                under_way[pool] += 1
                engine.submit(pool, next_task)
        if not under_way.total():
            return
        ended = engine.next(timeout_s=1.0)
        if ended:
            heard = time.monotonic()
        progress.waiting_for = engine.waiting_for() if time.monotonic() - heard > 5 else ""
        handed = {pool: engine.queued(pool) for pool in {*ready, *under_way}}
        progress.queued = {pool: count + len(ready[pool]) for pool, count in handed.items()}
        progress.running = {pool: under_way[pool] - count for pool, count in handed.items()}
        progress.workers = engine.workers()
        for task, outcome in ended:
            under_way[_pool(plan, task)] -= 1
            ready[_pool(plan, task)].ended(task)
            if job := jobs.get(task.shard.id):  # none: a last range of a shard that failed meanwhile
                _queue(plan, ready, job, _settle(job, task, outcome, progress))
                if job.done:
                    del jobs[task.shard.id]
                    for tasks in ready.values():
                        tasks.drop(task.shard.id)
        show(progress)


def _settle(job: _Job, task: Task, outcome: Outcome, progress: Progress) -> list[Task]:
    """Count what came back and return what has to be done next."""
    job.open -= 1
    if isinstance(outcome, Death):
        progress.crashes += 1
        log.warning("worker died: %s", outcome.reason, extra={"fields": _fields(job, task)})
        then = job.died(task, outcome)
    else:
        if outcome.tally:
            progress.tally.add(outcome.tally)
            progress.parts_not_indexed += outcome.tally.commits["part"]
            job.tally.add(outcome.tally)
            if isinstance(task, Compute):
                log.debug("range done", extra={"fields": _fields(job, task)})
        if isinstance(task, Publish):
            log.info("stage done", extra={"fields": _fields(job, task) | _told(job.tally)})
            job.tally = Tally()
        then = job.answered(task, outcome)
        if isinstance(task, Index) and not job.failed:
            progress.rows_known += job.rows
    if job.done:
        progress.shards_done += 1
        if job.failed:
            progress.shard_errors[job.shard.id] = job.failed
            log.error(
                "shard failed: %s", job.failed[1], extra={"fields": {"shard": job.shard.id, "error": job.failed[0]}}
            )
        else:
            progress.rows_done += job.rows
            log.info("shard done", extra={"fields": {"shard": job.shard.id, "rows": job.rows}})
    for blamed in then:
        if isinstance(blamed, Blame):
            fields = _fields(job, blamed) | {"error": blamed.error}
            log.error("row at fault: %s", blamed.message, extra={"fields": fields})
    return then


def _told(tally: Tally) -> dict[str, object]:
    """What the line that closes a stage of a shard says of the work."""
    seconds = {step: round(spent, 3) for step, spent in tally.seconds.items()}
    return {"cells": dict(tally.cells), "seconds": seconds, "errors": dict(tally.errors)}


def _fields(job: _Job, task: Task) -> dict[str, object]:
    """What a log line says of a task."""
    fields: dict[str, object] = {"shard": task.shard.id, "task": type(task).__name__.lower()}
    if not isinstance(task, Index):
        stage = job.plan.stages[task.stage]
        fields["steps"] = [operator.name for operator in job.plan.operators[stage.first : stage.stop]]
    if isinstance(task, Compute):
        fields["rows"] = [task.rows[0], task.rows[-1]]
    if isinstance(task, Blame):
        fields["row"] = task.row
    return fields


def _queue(plan: Plan, ready: dict[str, _Ready], job: _Job, tasks: list[Task]) -> None:
    """Line up tasks of a shard, which has so many more under way."""
    job.open += len(tasks)
    for task in tasks:
        ready[_pool(plan, task)].add([task])


def _pool(plan: Plan, task: Task) -> str:
    """Compute runs where its operators need it; the rest is light and runs on the first pool."""
    first = plan.stages[0].pool if plan.stages else "cpu"
    return plan.stages[task.stage].pool if isinstance(task, Compute) else first


def _open_shards(plan: Plan, engine: Engine) -> int:
    return plan.recipe.engine.open_shards or max(2, engine.slots(plan.stages[0].pool if plan.stages else "cpu"))
