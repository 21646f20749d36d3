"""What the driver asks of workers, and what they answer.

Tasks carry references (shard, row numbers), never picture bytes; answers carry counts. Everything else goes from
worker to storage directly.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

from curate.read import Shard


@dataclass(frozen=True)
class Index:
    """Read everything of a shard but its pictures and publish it as the part of operator `input`."""

    shard: Shard


@dataclass(frozen=True)
class Survey:
    """Find the rows for which a stage still has something to do."""

    shard: Shard
    stage: int


@dataclass(frozen=True)
class Compute:
    """Run the operators of a stage over some rows and stage the results.

    `stepwise` saves after each operator: used on a single row that may kill the worker, to learn in which operator.
    """

    shard: Shard
    stage: int
    rows: Sequence[int]
    stepwise: bool = False


@dataclass(frozen=True)
class Blame:
    """Write down that a row kills the worker (or never ends) in the first operator that has not answered for it."""

    shard: Shard
    stage: int
    row: int
    error: str
    message: str


@dataclass(frozen=True)
class Publish:
    """Turn the staged ranges of a stage into parts."""

    shard: Shard
    stage: int


Task = Index | Survey | Compute | Blame | Publish


@dataclass
class Tally:
    """Work done: cells are (row, operator) pairs that were computed now and not found in the store."""

    cells: Counter[str] = field(default_factory=Counter)
    seconds: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    errors: Counter[str] = field(default_factory=Counter)
    failures: Counter[tuple[str, str]] = field(default_factory=Counter)
    """Cells that failed, by operator and error."""
    commits: Counter[str] = field(default_factory=Counter)
    """Files written, by kind: `range` (staged) or `part` (published)."""
    commit_seconds: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    gpu_bytes: int = 0
    """The most GPU memory that one worker has held."""

    def add(self, other: Tally) -> None:
        """Add another tally to this one."""
        self.cells.update(other.cells)
        for name, spent in other.seconds.items():
            self.seconds[name] += spent
        self.errors.update(other.errors)
        self.failures.update(other.failures)
        self.commits.update(other.commits)
        for kind, spent in other.commit_seconds.items():
            self.commit_seconds[kind] += spent
        self.gpu_bytes = max(self.gpu_bytes, other.gpu_bytes)

    def committed(self, kind: str, seconds: float) -> None:
        """Note that one file was written."""
        self.commits[kind] += 1
        self.commit_seconds[kind] += seconds


@dataclass(frozen=True)
class Answer:
    """What a worker answers to any task; which fields are set depends on the task."""

    rows: int = 0
    """Index: rows of the shard."""
    ranges: tuple[Sequence[int], ...] = ()
    """Survey: rows still to do, cut into ranges (a `range` where they are consecutive)."""
    staged: bool = False
    """Survey: earlier runs left finished ranges that only have to be published."""
    tally: Tally | None = None
    """Compute, Blame, Publish: what was computed and written."""
    shard_error: tuple[str, str] | None = None
    """The whole shard failed: code and message."""


@dataclass(frozen=True)
class Death:
    """The worker died (or hung and was ended) while it was on the task."""

    reason: str
    seconds: float


Outcome = Answer | Death


def describe(task: Task) -> str:
    """The task in a few words, for progress lines: `compute train-00001 rows 64..127`."""
    verb = type(task).__name__.lower()
    if isinstance(task, Compute):
        return f"{verb} {task.shard.id} rows {task.rows[0]}..{task.rows[-1]}"
    return f"{verb} {task.shard.id}"
