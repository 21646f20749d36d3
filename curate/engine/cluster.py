"""Tasks in Ray actors, on this machine or on a cluster.

Ray Core and not Ray Data: Ray Data retries a row that kills its worker for ever and drops the whole block on an
exception (docs/design.md, decision 4). Actors are never restarted by Ray (`max_restarts=0`) and tasks never retried
(`max_task_retries=0`): the driver decides. An actor has at most two tasks, so that it never waits for the driver; when
it dies, the first of them is to blame and the second one is handed to another actor. An actor gets no task before its
operators have loaded: a model that does not load stops the run before a row is touched, and loading is no row's time.
"""

from __future__ import annotations

import logging
import os
import time
from collections import deque
from dataclasses import dataclass, field
from typing import Any

from curate.engine.tasks import Death, Outcome, Task, describe
from curate.engine.worker import Worker
from curate.errors import CurateError
from curate.plan import Plan

TASKS_PER_ACTOR = 2
OBJECT_STORE_BYTES = 100_000_000  # nothing large crosses it: tasks are references, answers are counts


@dataclass(eq=False)
class _Actor:
    handle: Any
    ready: Any
    """Reference that resolves when the operators are loaded; None after that."""
    tasks: deque[tuple[Task, Any]] = field(default_factory=deque)
    since: float = 0.0


class Cluster:
    """The engine on Ray."""

    def __init__(self, plan: Plan) -> None:
        import ray

        self.ray: Any = ray
        self.plan = plan
        self.started_ray = not ray.is_initialized()
        if self.started_ray:
            _start(ray)
        self.plan_ref = ray.put(plan)
        self.actor: Any = ray.remote(Worker)
        self.pools: dict[str, list[_Actor]] = {}
        self.queues: dict[str, deque[Task]] = {}
        pools = list(dict.fromkeys(stage.pool for stage in plan.stages)) or ["cpu"]
        resources = self.ray.cluster_resources()
        cpus, self.gpus = float(resources.get("CPU", 1)), int(resources.get("GPU", 0))
        keys = plan.recipe.engine
        count = {"gpu": keys.gpu_workers or max(1, self.gpus)} if "gpu" in pools else {}
        left = max(1, int(cpus) - sum(count.values()))
        count |= {pool: keys.workers or left for pool in pools if pool != "gpu"}
        # Fractions where there are fewer CPUs than actors: an actor that can never be placed would wait for ever.
        self.share = min(1.0, cpus / sum(count.values()))
        self.gpu_share = min(1.0, self.gpus / count["gpu"]) if "gpu" in count else 0.0
        for pool in pools:
            self.queues[pool] = deque()
            self.pools[pool] = [self._actor(pool) for _ in range(count[pool])]

    def slots(self, pool: str) -> int:
        return TASKS_PER_ACTOR * len(self.pools[pool])

    def submit(self, pool: str, task: Task) -> None:
        self.queues[pool].append(task)
        self._feed(pool)

    def next(self, timeout_s: float) -> list[tuple[Task, Outcome]]:
        everyone = [actor for actors in self.pools.values() for actor in actors]
        refs = [ref for actor in everyone for _, ref in actor.tasks]
        refs += [actor.ready for actor in everyone if actor.ready is not None]
        if not refs or not self.ray.wait(refs, num_returns=1, timeout=timeout_s)[0]:
            return []
        ended: list[tuple[Task, Outcome]] = []
        for pool, actors in self.pools.items():
            for i, actor in enumerate(actors):
                if actor.ready is not None and self._done(actor.ready):
                    self._result(actor.ready)
                    actor.ready = None
                while actor.tasks and self._done(actor.tasks[0][1]):
                    task, ref = actor.tasks.popleft()
                    seconds = time.monotonic() - actor.since
                    actor.since = time.monotonic()
                    outcome = self._result(ref)
                    ended.append((task, Death(outcome, seconds) if isinstance(outcome, str) else outcome))
                    if isinstance(outcome, str):
                        self.queues[pool].extendleft(waiting for waiting, _ in reversed(actor.tasks))
                        actors[i] = self._actor(pool)
                        break
            self._feed(pool)
        return ended

    def _done(self, ref: Any) -> bool:
        return bool(self.ray.wait([ref], timeout=0)[0])

    def _result(self, ref: Any) -> Any:
        """The answer, or (text) how the actor died; an exception in the worker is raised here."""
        try:
            return self.ray.get(ref)
        except self.ray.exceptions.RayTaskError as failure:
            raise (failure.cause if isinstance(failure.cause, Exception) else failure) from None
        except self.ray.exceptions.RayActorError as failure:
            if "creation task" in str(failure):
                last = str(failure).strip().splitlines()[-1].strip()
                raise CurateError(f"no worker starts on the Ray cluster: {last}") from failure
            return _reason(failure)

    def waiting_for(self) -> str:
        oldest = min(
            (a for actors in self.pools.values() for a in actors if a.tasks), key=lambda a: a.since, default=None
        )
        free = self.ray.available_resources().get("CPU", 0)
        if oldest is None:
            loading = sum(a.ready is not None for actors in self.pools.values() for a in actors)
            return f"{loading} workers to start and load; {free:g} CPUs free"
        state = f"{describe(oldest.tasks[0][0])} for {time.monotonic() - oldest.since:.0f} s"
        return f"{state}; {free:g} CPUs free"

    def close(self) -> None:
        for actors in self.pools.values():
            for actor in actors:
                self.ray.kill(actor.handle)
        self.pools.clear()
        if self.started_ray:
            self.ray.shutdown()

    def _actor(self, pool: str) -> _Actor:
        options: dict[str, Any] = {"num_cpus": self.share, "max_restarts": 0, "max_task_retries": 0}
        if pool == "gpu" and self.gpus:
            options["num_gpus"] = self.gpu_share
        handle = self.actor.options(**options).remote(self.plan_ref, isolated=True)
        return _Actor(handle, handle.load.remote(pool))

    def _feed(self, pool: str) -> None:
        queue, actors = self.queues[pool], [actor for actor in self.pools[pool] if actor.ready is None]
        while queue and actors:
            actor = min(actors, key=lambda a: len(a.tasks))
            if len(actor.tasks) >= TASKS_PER_ACTOR:
                return
            task = queue.popleft()
            if not actor.tasks:
                actor.since = time.monotonic()
            actor.tasks.append((task, actor.handle.run.remote(task)))


def _start(ray: Any) -> None:
    """Join the cluster that the environment names, else start Ray on this machine: no dashboard, small object store."""
    logging.getLogger("ray").setLevel(logging.ERROR)
    logging.getLogger("ray._private.authentication").setLevel(logging.ERROR)
    common: dict[str, Any] = {"logging_level": "warning", "log_to_driver": False}
    try:
        if os.environ.get("RAY_ADDRESS") or os.environ.get("RAY_JOB_ID"):
            ray.init(address="auto", **common)
        else:
            ray.init(
                address="local",  # else Ray would join any cluster that was started on this machine
                include_dashboard=False,
                object_store_memory=OBJECT_STORE_BYTES,
                _temp_dir=os.environ.get("RAY_TMPDIR"),
                **common,
            )
    except (ConnectionError, RuntimeError, OSError, ValueError) as why:
        raise CurateError(
            f"Ray does not start: {str(why).splitlines()[0]}; set RAY_AUTH_MODE=token for a cluster with a token, "
            "or run without Ray: --set engine.kind=inline"
        ) from why


def _reason(failure: Exception) -> str:
    """The first informative line of Ray's report on a dead actor."""
    lines = [line.strip() for line in str(failure).splitlines() if line.strip()]
    return next((line for line in lines if "exit" in line.lower() or "killed" in line.lower()), lines[0])[:300]
