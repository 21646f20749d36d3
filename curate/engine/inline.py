"""Tasks in this process, one at a time: for debugging, for tests, and where Ray is not wanted.

It has no protection against a row that kills the process; everything else is as on a cluster, byte for byte. Ranges
that wait for an endpoint wait together, in threads: nothing else would keep its requests in flight.
"""

from __future__ import annotations

import threading
from collections import Counter, deque
from queue import Empty, SimpleQueue

from curate.engine.tasks import Compute, Outcome, Task, describe
from curate.engine.worker import Worker
from curate.plan import Plan


class Inline:
    """The engine without Ray."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.worker = Worker(plan, isolated=False)
        for stage in plan.stages:
            self.worker.load(stage.pool)
        self.queue: deque[Task] = deque()
        self.handed: dict[str, SimpleQueue[Task]] = {}
        """Ranges for the threads of each pool whose ranges wait together."""
        self.waiting: Counter[str] = Counter()
        self.ended: SimpleQueue[tuple[str, Task, Outcome | BaseException]] = SimpleQueue()

    def slots(self, pool: str) -> int:
        return 2 if self.plan.pools[pool].alone else self.plan.pools[pool].tasks + 1

    def submit(self, pool: str, task: Task) -> None:
        if self.plan.pools[pool].alone or not isinstance(task, Compute):
            self.queue.append(task)
            return
        if pool not in self.handed:
            self.handed[pool] = SimpleQueue()
            for _ in range(self.plan.pools[pool].tasks):
                threading.Thread(target=self._work, args=(pool,), daemon=True).start()
        self.waiting[pool] += 1
        self.handed[pool].put(task)

    def next(self, timeout_s: float) -> list[tuple[Task, Outcome]]:
        if self.queue:
            task = self.queue.popleft()
            return [(task, self.worker.run(task))]
        if not self.waiting.total():
            return []
        try:
            pool, task, outcome = self.ended.get(timeout=timeout_s)
        except Empty:
            return []
        self.waiting[pool] -= 1
        if isinstance(outcome, BaseException):
            raise outcome
        return [(task, outcome)]

    def queued(self, pool: str) -> int:
        return max(self.waiting[pool] - self.plan.pools[pool].tasks, 0)

    def workers(self) -> dict[str, tuple[int, int]]:
        return {"inline": (1, 0)}

    def waiting_for(self) -> str:
        if self.queue:
            return describe(self.queue[0])
        return f"{self.waiting.total()} ranges at an endpoint" if self.waiting.total() else "nothing"

    def close(self) -> None:
        self.queue.clear()

    def _work(self, pool: str) -> None:
        while True:
            task = self.handed[pool].get()
            try:
                self.ended.put((pool, task, self.worker.run(task)))
            except BaseException as why:
                self.ended.put((pool, task, why))
