"""Tasks in this process, one at a time: for debugging, for tests, and where Ray is not wanted.

It has no protection against a row that kills the process; everything else is as on a cluster, byte for byte.
"""

from __future__ import annotations

from collections import deque

from curate.engine.tasks import Outcome, Task, describe
from curate.engine.worker import Worker
from curate.plan import Plan


class Inline:
    """The engine without Ray."""

    def __init__(self, plan: Plan) -> None:
        self.worker = Worker(plan, isolated=False)
        for stage in plan.stages:
            self.worker.load(stage.pool)
        self.queue: deque[Task] = deque()

    def slots(self, pool: str) -> int:
        return 2

    def submit(self, pool: str, task: Task) -> None:
        self.queue.append(task)

    def next(self, timeout_s: float) -> list[tuple[Task, Outcome]]:
        if not self.queue:
            return []
        task = self.queue.popleft()
        return [(task, self.worker.run(task))]

    def workers(self) -> dict[str, tuple[int, int]]:
        return {"inline": (1, 0)}

    def waiting_for(self) -> str:
        return describe(self.queue[0]) if self.queue else "nothing"

    def close(self) -> None:
        self.queue.clear()
