"""Tasks in Ray actors, on this machine or on a cluster.

Ray Core and not Ray Data: Ray Data retries a row that kills its worker for ever and drops the whole block on an
exception (docs/design.md, decision 8). Actors are never restarted by Ray (`max_restarts=0`) and tasks never retried
(`max_task_retries=0`): the driver decides. An actor always has a task in hand beside the one it is on, so that it never
waits for the driver; when it dies, the first of them is to blame and the others go to another actor. An actor gets no
task before its operators have loaded: a model that does not load stops the run before a row is touched, and loading is
no row's time. So an actor that the cluster has no room for is harmless: it waits, and asks an autoscaler for a node.

Pools grow while tasks queue, up to what the recipe and the cluster allow, and shrink when workers idle. On this
machine, with Ray started for the run alone, what workers take is cut until all of them fit; on a cluster that the run
has joined each takes what the table says, and those without room are the demand that an autoscaler sees.
"""

from __future__ import annotations

import contextlib
import logging
import os
import pickle
import time
from collections import Counter, deque
from dataclasses import dataclass, field
from typing import Any

from curate.engine.tasks import Compute, Death, Outcome, Task, describe
from curate.engine.worker import Worker
from curate.errors import CurateError
from curate.plan import Plan, Pool

QUEUED_PER_ACTOR = 1  # beside those that it works on
OBJECT_STORE_BYTES = 100_000_000  # nothing large crosses it: tasks are references, answers are counts
LOOK_EVERY_S = 2.0  # how often pools are fitted to their queues and to the cluster
IDLE_S = 30.0  # a worker beyond engine.min_workers that has nothing to do for so long is ended
EXCUSES = 3  # a task that was under way in so many excused deaths is to blame after all
STARTS = 3  # workers that may die while they load, one after another, before the run fails


@dataclass(frozen=True)
class _Gone:
    """How an actor died; `excused`: with its node, or because that was short of memory, and not by itself."""

    reason: str
    excused: bool


@dataclass(eq=False)
class _Actor:
    handle: Any
    ready: Any
    """Reference that resolves when the operators are loaded; None after that."""
    tasks: deque[tuple[Task, Any]] = field(default_factory=deque)
    since: float = field(default_factory=time.monotonic)
    """When its first task began, or when it had nothing more to do."""
    shard: str = ""
    """Of the last task that it was given: it may have that one open."""


class _Crew:
    """The actors of one pool and the tasks that wait for them."""

    def __init__(self, need: Pool, least: int) -> None:
        self.need = need
        self.least = least
        self.most = least
        self.actors: list[_Actor] = []
        self.queue: deque[Task] = deque()
        self.threads = need.tasks
        self.failed_starts = 0

    @property
    def room(self) -> int:
        """Tasks that one actor is handed at once."""
        return self.threads + QUEUED_PER_ACTOR


class Cluster:
    """The engine on Ray."""

    def __init__(self, plan: Plan) -> None:
        import ray

        self.ray: Any = ray
        self.plan = plan
        self.connected = not ray.is_initialized()
        self.alone = self.connected and _start(ray)
        """Whether this Ray was started here, for this run, and is no cluster."""
        self.proof = "" if self.alone else _proof(plan)
        self.plan_ref = ray.put(plan)
        self.actor: Any = ray.remote(Worker)
        self.excused: Counter[Task] = Counter()
        self.looked = 0.0
        names = list(dict.fromkeys(stage.pool for stage in plan.stages)) or ["cpu"]
        self.pools = {name: _Crew(plan.pools[name], plan.recipe.engine.min_workers) for name in names}
        self._look()
        for name in self.pools:  # one of each before more of any
            self._grow(name, 1)
        for name, crew in self.pools.items():
            # Models load at once on the GPUs that are there; no node is asked for before a task waits for it.
            there = int(self.gpus / crew.need.gpus) if crew.need.gpus else 0
            self._grow(name, min(crew.most, max(crew.least, there)) - 1)

    def slots(self, pool: str) -> int:
        crew = self.pools[pool]
        return crew.room * crew.most

    def submit(self, pool: str, task: Task) -> None:
        self.pools[pool].queue.append(task)
        self._feed(pool)

    def next(self, timeout_s: float) -> list[tuple[Task, Outcome]]:
        if time.monotonic() - self.looked > LOOK_EVERY_S:
            self._look()
            for pool in self.pools:
                self._shrink(pool)
        for pool, crew in self.pools.items():
            if crew.queue:
                self._stretch(pool)
        done = self._answers(timeout_s)
        ended: list[tuple[Task, Outcome]] = []
        for pool, crew in self.pools.items():
            for actor in list(crew.actors):
                if actor.ready in done:
                    if isinstance(gone := done[actor.ready], _Gone):
                        self._lost(pool, actor, gone, ended)
                        continue
                    actor.ready, actor.since, crew.failed_starts = None, time.monotonic(), 0
                for task, ref in [pair for pair in actor.tasks if pair[1] in done]:
                    outcome = done[ref]
                    if isinstance(outcome, _Gone):
                        self._lost(pool, actor, outcome, ended)
                        break
                    actor.tasks.remove((task, ref))
                    actor.since = time.monotonic()
                    ended.append((task, outcome))
            self._feed(pool)
        return ended

    def queued(self, pool: str) -> int:
        return len(self.pools[pool].queue) if pool in self.pools else 0

    def workers(self) -> dict[str, tuple[int, int]]:
        counts = {}
        for pool, crew in self.pools.items():
            ready = sum(actor.ready is None for actor in crew.actors)
            counts[pool] = ready, len(crew.actors) - ready
        return counts

    def waiting_for(self) -> str:
        everyone = [actor for crew in self.pools.values() for actor in crew.actors]
        oldest = min((actor for actor in everyone if actor.tasks), key=lambda a: a.since, default=None)
        free = self.ray.available_resources().get("CPU", 0)
        if oldest is None:
            loading = sum(actor.ready is not None for actor in everyone)
            return f"{loading} workers to start and load; {free:g} CPUs free"
        state = f"{describe(oldest.tasks[0][0])} for {time.monotonic() - oldest.since:.0f} s"
        return f"{state}; {free:g} CPUs free"

    def close(self) -> None:
        for crew in self.pools.values():
            for actor in crew.actors:
                self.ray.kill(actor.handle)
        self.pools.clear()
        if self.connected:
            self.ray.shutdown()  # leaves a cluster as it is and ends a Ray of its own

    def _answers(self, timeout_s: float) -> dict[Any, Any]:
        """What has come back, by reference; waits for the first one. In one go: each call to Ray costs time."""
        everyone = [actor for crew in self.pools.values() for actor in crew.actors]
        refs = [ref for actor in everyone for _, ref in actor.tasks]
        refs += [actor.ready for actor in everyone if actor.ready is not None]
        if not refs:
            return {}
        done = self.ray.wait(refs, num_returns=len(refs), timeout=0)[0]
        if not done:
            done = self.ray.wait(refs, num_returns=1, timeout=timeout_s)[0]
        try:
            return {ref: _unpacked(answer) for ref, answer in zip(done, self.ray.get(done), strict=True)}
        except Exception:  # one of them is a death or an error: each by itself
            return {ref: self._result(ref) for ref in done}

    def _result(self, ref: Any) -> Any:
        """The answer, or how the actor died; an exception in the worker is raised here."""
        errors = self.ray.exceptions
        try:
            return _unpacked(self.ray.get(ref))
        except errors.RayTaskError as failure:
            raise (failure.cause if isinstance(failure.cause, Exception) else failure) from None
        except (errors.RayActorError, errors.OutOfMemoryError, errors.NodeDiedError) as failure:
            if "creation task" in str(failure):
                last = str(failure).strip().splitlines()[-1].strip()
                raise CurateError(f"no worker starts on the Ray cluster: {last}") from failure
            unreachable = isinstance(failure, (errors.ActorUnavailableError, errors.NodeDiedError))
            # A node that is short of memory ends whom it finds: mostly that is not the fault of the range.
            short = isinstance(failure, errors.OutOfMemoryError) or "low on memory" in str(failure)
            return _Gone(_reason(failure), unreachable or short or "node has died" in str(failure))

    def _lost(self, pool: str, actor: _Actor, gone: _Gone, ended: list[tuple[Task, Outcome]]) -> None:
        """An actor died: blame its first task, unless its node died with it, and hand the others on."""
        crew = self.pools[pool]
        crew.actors.remove(actor)
        crew.failed_starts += actor.ready is not None and not gone.excused
        if crew.failed_starts >= STARTS:
            raise CurateError(f"workers of pool {pool} die while they load: {gone.reason}")
        with contextlib.suppress(Exception):
            self.ray.kill(actor.handle)  # it may only be out of reach, and must not go on
        tasks = [task for task, _ in actor.tasks]
        if tasks:
            first = tasks[0]
            self.excused[first] += gone.excused
            if not gone.excused or self.excused[first] >= EXCUSES:
                ended.append((tasks.pop(0), Death(gone.reason, time.monotonic() - actor.since)))
        crew.queue.extendleft(reversed(tasks))
        if len(crew.actors) < crew.most:
            self._grow(pool, 1)

    def _look(self) -> None:
        """How large each pool may be on the cluster as it is now: nodes come and go."""
        self.looked = time.monotonic()
        keys, total = self.plan.recipe.engine, self.ray.cluster_resources()
        self.cpus, self.gpus = float(total.get("CPU", 0)), float(total.get("GPU", 0))
        for crew in self.pools.values():
            if crew.need.gpus:
                crew.most = keys.gpu_workers or max(1, int(self.gpus / crew.need.gpus))
            elif crew.need.most:
                crew.most = crew.need.most
        rest = [crew for crew in self.pools.values() if not crew.need.gpus and not crew.need.most]
        taken = sum(crew.most * crew.need.cpus for crew in self.pools.values() if crew not in rest)
        for crew in rest:
            crew.most = keys.workers or max(1, int((self.cpus - taken) / crew.need.cpus))
        wanted = [(crew.most if self.alone else 1, crew.need) for crew in self.pools.values()]
        # Fractions where there are fewer CPUs or GPUs than workers: one that can never be placed would wait for ever.
        self.cpu_scale = _scale(self.cpus, sum(count * need.cpus for count, need in wanted))
        self.gpu_scale = _scale(self.gpus, sum(count * need.gpus for count, need in wanted))

    def _stretch(self, pool: str) -> None:
        """Start workers for tasks that wait."""
        crew = self.pools[pool]
        starting = sum(actor.ready is not None for actor in crew.actors)
        wanted = -(-len(crew.queue) // crew.room) - starting
        self._grow(pool, min(wanted, crew.most - len(crew.actors)))

    def _shrink(self, pool: str) -> None:
        """End workers that idle, and those that the cluster has no room for and nobody needs any more."""
        crew = self.pools[pool]
        if crew.queue:
            return
        late = time.monotonic() - IDLE_S
        idle = [actor for actor in crew.actors if not actor.tasks and actor.since < late]
        idle.sort(key=lambda actor: actor.ready is None)  # those that wait for room first
        for actor in idle[: max(len(crew.actors) - crew.least, 0)]:
            crew.actors.remove(actor)
            self.ray.kill(actor.handle)

    def _grow(self, pool: str, count: int) -> None:
        crew = self.pools[pool]
        for _ in range(count):
            options: dict[str, Any] = {
                "num_cpus": crew.need.cpus * self.cpu_scale,
                "max_restarts": 0,
                "max_task_retries": 0,
                "max_concurrency": crew.threads,
            }
            # A recipe that names GPU workers waits for nodes that an autoscaler will add; on this machine none come.
            if crew.need.gpus and (self.gpus or (self.plan.recipe.engine.gpu_workers and not self.alone)):
                options["num_gpus"] = crew.need.gpus * self.gpu_scale
            handle = self.actor.options(**options).remote(self.plan_ref, isolated=True)
            crew.actors.append(_Actor(handle, handle.load.remote(pool, self.proof)))

    def _feed(self, pool: str) -> None:
        """Hand tasks to the workers that have least to do, among these to one that has the task's shard open."""
        crew = self.pools[pool]
        if not crew.queue:
            return
        free = [actor for actor in crew.actors if actor.ready is None and len(actor.tasks) < crew.room]
        while crew.queue and free:
            shard = crew.queue[0].shard.id
            actor = min(free, key=lambda a: (len(a.tasks), a.shard != shard))
            # A row that may kill its worker has it for itself, or a neighbour could be blamed in its place.
            alone = _suspect(crew.queue[0]) or any(_suspect(task) for task, _ in actor.tasks)
            if alone and actor.tasks:
                free.remove(actor)
                continue
            task = crew.queue.popleft()
            if not actor.tasks:
                actor.since = time.monotonic()
            actor.shard = shard
            packed = pickle.dumps(task, pickle.HIGHEST_PROTOCOL)
            actor.tasks.append((task, actor.handle.answer.remote(packed)))
            if len(actor.tasks) >= crew.room:
                free.remove(actor)


def _unpacked(answer: bytes | None) -> Any:
    return None if answer is None else pickle.loads(answer)  # None: its operators have loaded


def _suspect(task: Task) -> bool:
    return isinstance(task, Compute) and task.stepwise


def _scale(have: float, wanted: float) -> float:
    return min(1.0, have / wanted) if have and wanted else 1.0


def _proof(plan: Plan) -> str:
    """A file that this run has put into its store, for workers on other nodes to find; empty where none is needed."""
    path = f"{plan.versions[0].folder}/operator.json"
    return path if plan.files.local(path) and plan.files.exists(path) else ""


def _start(ray: Any) -> bool:
    """Join the cluster that the environment names (False), else start Ray on this machine (True).

    That one has no dashboard and a small object store.
    """
    logging.getLogger("ray").setLevel(logging.ERROR)
    logging.getLogger("ray._private.authentication").setLevel(logging.ERROR)
    common: dict[str, Any] = {"logging_level": "warning", "log_to_driver": False}
    try:
        if os.environ.get("RAY_ADDRESS") or os.environ.get("RAY_JOB_ID"):
            ray.init(address="auto", **common)
            return False
        ray.init(
            address="local",  # else Ray would join any cluster that was started on this machine
            include_dashboard=False,
            object_store_memory=OBJECT_STORE_BYTES,
            _temp_dir=os.environ.get("RAY_TMPDIR"),
            **common,
        )
        return True
    except (ConnectionError, RuntimeError, OSError, ValueError) as why:
        raise CurateError(
            f"Ray does not start: {str(why).splitlines()[0]}; set RAY_AUTH_MODE=token for a cluster with a token, "
            "or run without Ray: --set engine.kind=inline"
        ) from why


def _reason(failure: Exception) -> str:
    """The first informative line of Ray's report on a dead actor."""
    lines = [line.strip() for line in str(failure).splitlines() if line.strip()]
    return next((line for line in lines if "exit" in line.lower() or "killed" in line.lower()), lines[0])[:300]
