"""Worker processes of `curate synth`: results in order, Ctrl-C in one line, a killed worker in one line."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context, parent_process
from typing import Any, TypeVar

from curate.errors import CurateError

T = TypeVar("T")
Task = TypeVar("Task")


def worked(
    work: Callable[[Task], T], tasks: Sequence[Task], workers: int, load: Callable[..., None], *args: Any
) -> Iterator[T]:
    """`work` of each task, in their order, by processes that call `load(*args)` first; with one worker in this process.

    Raises CurateError when a worker is killed.
    """
    workers = min(workers, len(tasks))
    if workers <= 1:
        load(*args)
        yield from map(work, tasks)
        return
    # spawn: OpenCV's and Arrow's threads do not survive a fork.
    with ProcessPoolExecutor(workers, get_context("spawn"), _begin, (load, args)) as pool:
        # Workers start with Ctrl-C blocked, as they inherit it, and end by it quietly once they have loaded.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            waiting = [pool.submit(work, task) for task in tasks]
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        try:
            for done in waiting:
                yield done.result()
        except BrokenProcessPool:
            raise CurateError(
                "a worker process was killed, perhaps because memory ran out; what it had finished stays: "
                "run the same command again, with fewer --workers"
            ) from None
        finally:
            pool.shutdown(cancel_futures=True)


def _begin(load: Callable[..., None], args: tuple[Any, ...]) -> None:
    # Without this a worker outlives a parent that is killed: it holds the other end of its own queue.
    threading.Thread(target=_end_with_parent, daemon=True).start()
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    load(*args)


def _end_with_parent() -> None:
    parent = parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
