"""Run one function over many jobs: here, in processes of this machine, or as Ray tasks; results as they come.

The main job's engine (curate/engine) is not used: its tasks are ranges of rows that flow through operators and may kill
their worker, here a job is a whole shard, has no state but its files, and is done again after any death. Ray's own
retries are right for that, and a plain pool does without Ray.
"""

from __future__ import annotations

import multiprocessing
import os
import select
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import forkserver, parent_process
from types import TracebackType
from typing import Any, TypeVar

from curate.arrow import without_pandas
from curate.errors import CurateError, UsageError, nearest

KINDS = ("inline", "processes", "ray")
AHEAD = 2  # jobs handed out for each worker
THREADS = 2  # jobs at once in this process: their reads, hashes and writes need no lock of Python

R = TypeVar("R")


class Workers:
    """Workers of one kind (`inline`, `processes`, `ray`), to be left with `with`.

    `count` 0: one for each CPU of this machine, or of the Ray cluster. Processes are forks of one that imports `module`
    at once, while the caller still finds out what there is to do.
    """

    def __init__(self, kind: str, count: int = 0, module: str = "") -> None:
        if kind not in KINDS:
            raise UsageError(f"--engine {kind!r} is not known{nearest(kind, KINDS)}")
        self.kind, self.count = kind, count
        self.pool: Executor | None = None
        if kind == "inline":
            self.count = THREADS
            self.pool = ThreadPoolExecutor(THREADS)
        elif kind == "processes":
            self.count = count or os.cpu_count() or 1
            # Not forked from this process: it has threads of Arrow and DuckDB, whose locks a fork would copy as they
            # stand. The process that is forked has imported and done nothing else.
            forkserver.set_forkserver_preload(["__main__", __name__, *([module] if module else [])])
            forkserver.ensure_running()
            self.pool = ProcessPoolExecutor(
                self.count, multiprocessing.get_context("forkserver"), _begin, (dict(os.environ),)
            )

    def __enter__(self) -> Workers:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, why: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.pool:
            self.pool.shutdown(cancel_futures=True)

    def run(self, function: Callable[..., R], jobs: Iterable[tuple[Any, ...]]) -> Iterator[R]:
        """`function(*job)` of every job, begun as jobs come, in no order.

        The first exception is raised and what has not begun is dropped.
        """
        if self.pool is None:
            yield from _ray(function, jobs, self.count)
            return
        waiting = iter(jobs)
        under_way: set[Future[R]] = set()
        try:
            while True:
                while len(under_way) < AHEAD * self.count and (job := next(waiting, None)) is not None:
                    under_way.add(self.pool.submit(function, *job))
                if not under_way:
                    return
                ended, under_way = wait(under_way, return_when=FIRST_COMPLETED)
                for future in ended:
                    yield future.result()
        except BrokenProcessPool:
            raise CurateError("a worker process died (out of memory?); run the same command to go on") from None


def _begin(environment: dict[str, str]) -> None:
    """Take the parent's environment, since the process that was forked may be older than it; and end when the parent
    does, however it does: one that is killed with -9 tells nobody."""
    os.environ.clear()
    os.environ.update(environment)
    without_pandas()
    parent = parent_process()
    if parent is not None:
        threading.Thread(target=_die_with, args=(parent.sentinel,), daemon=True).start()


def _die_with(sentinel: int) -> None:
    select.select([sentinel], [], [])
    os._exit(1)


def _ray(function: Callable[..., R], jobs: Iterable[tuple[Any, ...]], workers: int) -> Iterator[R]:
    import ray

    client: Any = ray
    started = not client.is_initialized()
    if started:
        client.init(log_to_driver=False, include_dashboard=False)
    try:
        remote = client.remote(function)
        most = AHEAD * (workers or int(client.cluster_resources().get("CPU", 1)))
        waiting = iter(jobs)
        under_way: list[Any] = []
        while True:
            while len(under_way) < most and (job := next(waiting, None)) is not None:
                under_way.append(remote.remote(*job))
            if not under_way:
                return
            ended, under_way = client.wait(under_way, num_returns=1)
            for ref in ended:
                try:
                    yield client.get(ref)
                except client.exceptions.RayTaskError as failure:
                    raise (failure.cause if isinstance(failure.cause, Exception) else failure) from None
    finally:
        if started:
            client.shutdown()
