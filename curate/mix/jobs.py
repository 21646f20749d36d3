"""Run one function over many jobs: here, in processes of this machine, or as Ray tasks; results as they come.

The main job's engine (curate/engine) is not used: its tasks are ranges of rows that flow through operators and may kill
their worker, here a job is a whole shard, has no state but its files, and is done again after any death. Ray's own
retries are right for that, and a plain pool does without Ray.
"""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from typing import Any, TypeVar

from curate.errors import CurateError, UsageError, nearest

KINDS = ("inline", "processes", "ray")
AHEAD = 2  # jobs handed out for each worker

R = TypeVar("R")


def run(function: Callable[..., R], jobs: Sequence[tuple[Any, ...]], kind: str, workers: int = 0) -> Iterator[R]:
    """`function(*job)` of every job, in no order; the first exception is raised and what has not begun is dropped.

    `workers` 0: one for each CPU of this machine, or of the Ray cluster.
    """
    if kind not in KINDS:
        raise UsageError(f"--engine {kind!r} is not known{nearest(kind, KINDS)}")
    if kind == "inline" or not jobs:
        yield from (function(*job) for job in jobs)
    elif kind == "ray":
        yield from _ray(function, jobs, workers)
    else:
        yield from _processes(function, jobs, min(len(jobs), workers or os.cpu_count() or 1))


def _processes(function: Callable[..., R], jobs: Sequence[tuple[Any, ...]], workers: int) -> Iterator[R]:
    # Spawned and not forked: the parent has threads of Arrow and DuckDB, whose locks a fork would copy as they stand.
    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn")) as pool:
        waiting = iter(jobs)
        under_way: set[Future[R]] = set()
        try:
            while True:
                while len(under_way) < AHEAD * workers and (job := next(waiting, None)) is not None:
                    under_way.add(pool.submit(function, *job))
                if not under_way:
                    return
                ended, under_way = wait(under_way, return_when=FIRST_COMPLETED)
                for future in ended:
                    yield future.result()
        except BrokenProcessPool:
            raise CurateError("a worker process died (out of memory?); run the same command to go on") from None
        finally:
            pool.shutdown(cancel_futures=True)


def _ray(function: Callable[..., R], jobs: Sequence[tuple[Any, ...]], workers: int) -> Iterator[R]:
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
