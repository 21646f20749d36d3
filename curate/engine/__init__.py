"""Where the work is done: one driver loop, one worker, and two ways to bring them together (inline and Ray).

driver.py   what has to be done next, shard by shard; bisects what kills workers; knows nothing of Ray
worker.py   one process that runs tasks: index, survey, compute, blame, publish
cells.py    what is known of a shard and what is still missing
inline.py   runs tasks in this process
cluster.py  runs tasks in Ray actors
"""

from __future__ import annotations

from typing import Protocol

from curate.engine.tasks import Outcome, Task


class Engine(Protocol):
    """Runs tasks somewhere. A task that was submitted comes back from `next` exactly once, with its outcome."""

    def slots(self, pool: str) -> int:
        """How many tasks of a pool are worth having under way at once."""
        ...

    def submit(self, pool: str, task: Task) -> None:
        """Hand over a task; returns at once."""
        ...

    def next(self, timeout_s: float) -> list[tuple[Task, Outcome]]:
        """Tasks that ended; waits for the first one, at most `timeout_s`. An exception in a worker is raised here."""
        ...

    def queued(self, pool: str) -> int:
        """Tasks of a pool that were handed over and that no worker has yet."""
        ...

    def workers(self) -> dict[str, tuple[int, int]]:
        """For each pool how many workers are ready and how many are starting."""
        ...

    def waiting_for(self) -> str:
        """What the oldest task under way is, since when, and what it lacks."""
        ...

    def close(self) -> None:
        """End all workers."""
        ...
