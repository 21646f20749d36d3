"""Worker processes of `curate synth`: results in order; Ctrl-C and a killed worker in one line each."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing import active_children, get_context, parent_process
from typing import Any, TypeVar

from curate.errors import CurateError

T = TypeVar("T")
Task = TypeVar("Task")


def worked(
    work: Callable[[Task], T], tasks: Sequence[Task], workers: int, load: Callable[..., None], *args: Any
) -> Generator[T, None, None]:
    """`work` of each task, in their order, by processes that call `load(*args)` first; with one worker in this process.

    No worker outlives Ctrl-C, nor `kill`, which the command takes for it. Raises CurateError when a worker is killed.
    Tasks are to be small, references and no rows: Python 3.11 waits for ever on a pool whose worker dies while its
    queue is full.
    """
    workers = min(workers, len(tasks))
    if workers <= 1:
        load(*args)
        yield from map(work, tasks)
        return
    others = set(active_children())
    # spawn: OpenCV's and Arrow's threads do not survive a fork.
    pool = ProcessPoolExecutor(workers, get_context("spawn"), _begin, (load, args))
    try:
        with _held():
            waiting = [pool.submit(work, task) for task in tasks]
        for done in waiting:
            yield done.result()
    except BrokenProcessPool:
        raise CurateError(
            "a worker process was killed, perhaps because memory ran out; what it had finished stays: "
            "run the same command again, with fewer --workers"
        ) from None
    except BaseException:
        for worker in set(active_children()) - others:
            worker.terminate()  # a terminal's Ctrl-C reaches them too, `kill` does not
        raise
    finally:
        pool.shutdown(cancel_futures=True)


@contextmanager
def _held() -> Iterator[None]:
    """Ctrl-C and `kill` wait for the end of a block: a worker that is half started would tell of them at length.

    Workers start with Ctrl-C blocked, as they inherit it, and end by it quietly once they have begun.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    came: list[int] = []
    before = [(n, signal.signal(n, lambda number, _: came.append(number))) for n in (signal.SIGINT, signal.SIGTERM)]
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        for number, handler in before:
            signal.signal(number, handler)
    if came:
        raise KeyboardInterrupt


def _begin(load: Callable[..., None], args: tuple[Any, ...]) -> None:
    # Without this a worker outlives a parent that is killed: it holds the other end of its own queue.
    threading.Thread(target=_end_with_parent, daemon=True).start()
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    load(*args)


def _end_with_parent() -> None:
    parent = parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
