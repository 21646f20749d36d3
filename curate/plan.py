"""The plan of a run: which operators, in which version, on which workers, behind which gates.

`curate/pipeline.py` holds the path (the table of operators); here a recipe and that table become a `Plan`, the one
value that every worker of the run receives.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import pyarrow as pa

from curate import policy
from curate.recipe import Recipe
from curate.store.files import Files
from curate.store.parts import Version, fingerprint
from schemas.columns import OPERATORS, indexed
from schemas.errors import RowError
from workers.sample import Sample

# One dict of the declared columns per sample, or the RowError of a row that failed alone. An exception is of the whole
# batch: the engine then halves it until the row at fault stands alone.
Worker = Callable[[Sequence[Sample]], Sequence[dict[str, Any] | RowError]]


@dataclass(frozen=True)
class Pool:
    """One kind of worker process and what each of them takes from the cluster."""

    cpus: float = 1.0
    gpus: float = 0.0
    """Fractions share a GPU: 0.25 lets four workers have one."""
    tasks: int = 1
    """Ranges that one worker is on at once, each in a thread."""
    alone: bool = True
    """Operators run one at a time in a worker, whatever `tasks` says: one device. False: they wait for others' answers,
    know how long at most, and may be called from several threads."""
    most: int = 0
    """Workers at most; 0: as many as there is room for."""


CPU_ONLY = {"cpu": Pool()}


@dataclass(frozen=True)
class Operator:
    """One step of the path: what it needs, where it runs and what decides its output."""

    name: str
    """Its columns are OPERATORS[name] in schemas/columns.py."""
    load: Callable[[Recipe], Worker]
    """Makes the worker; called once in each worker process, so that weights load there and once."""
    facts: Callable[[Recipe], Mapping[str, Any]]
    """What decides its output beside its inputs: code version, parameters, prompt, model and revision."""
    image: Literal["pixels", "encoded", "bytes", "none"] = "pixels"
    """`pixels`: pictures decoded once for all operators of the stage. `encoded`: it decodes for itself. `bytes`: it
    also sees rows whose picture does not decode. `none`: it reads columns only."""
    needs: tuple[str, ...] = ()
    """Columns of earlier operators that it reads; their fingerprints enter its own."""
    costly: bool = False
    """Costly operators see only rows that pass every predicate known by then."""
    pool: str = "cpu"
    """The kind of worker it runs on: see `pools` in curate/pipeline.py."""
    batch: int = 16
    """Rows that it is handed at once, at most."""
    wanted: Callable[[Recipe], bool] = lambda recipe: True
    """Whether the recipe asks for it."""


@dataclass(frozen=True)
class Stage:
    """Consecutive operators of one pool: one task runs them all over a range, on pictures decoded once."""

    index: int
    pool: str
    first: int
    stop: int
    key: str
    """Names the staging folder: hash of the versions of its operators."""


@dataclass(frozen=True)
class Plan:
    """Everything that a worker knows of the run. `versions[i]` is the version of `operators[i]`."""

    recipe: Recipe
    operators: tuple[Operator, ...]
    versions: tuple[Version, ...]
    stages: tuple[Stage, ...]
    predicates: tuple[policy.Predicate, ...]
    schema: pa.Schema
    """Type of every column that predicates and operators may read."""
    files: Files
    pools: Mapping[str, Pool]

    def gate(self, operator: int) -> str | None:
        """SQL that must be TRUE for a row to reach `operator`, or None when nothing holds it back."""
        if self.recipe.run.exhaustive or not self.operators[operator].costly:
            return None
        return policy.gate(self.predicates, operator)


def make_plan(
    recipe: Recipe,
    path: Sequence[Operator],
    input_schema: pa.Schema,
    files: Files,
    pools: Mapping[str, Pool] = CPU_ONLY,
) -> Plan:
    """Choose, fingerprint and order the operators of `path` that `recipe` asks for and compile its policy.

    `input_schema` are the columns of the first operator, `input`, with the input's own. Raises UsageError for a
    predicate over a column that nothing writes.
    """
    operators = tuple(operator for operator in path if operator.wanted(recipe))
    index = {operator.name: i for i, operator in enumerate(operators)}
    writer = dict.fromkeys(input_schema.names, index["input"])
    fields = {field.name: field for field in input_schema}
    for operator in operators[1:]:
        for column in OPERATORS[operator.name]:
            if not indexed(column.type):
                continue  # DuckDB cannot read it, so no predicate may
            writer[column.name] = index[operator.name]
            fields[column.name] = pa.field(column.name, column.type)
    versions: list[Version] = []
    for operator in operators:
        versions.append(version_of(operator, recipe, {versions[writer[c]] for c in operator.needs if c in writer}))
    schema = pa.schema(list(fields.values()))
    return Plan(
        recipe,
        operators,
        tuple(versions),
        _stages(operators, versions),
        policy.compile_policy(recipe.policy, schema, writer, [i for i, op in enumerate(operators) if op.costly]),
        schema,
        files,
        pools,
    )


def version_of(operator: Operator, recipe: Recipe, needs: Iterable[Version] = ()) -> Version:
    """The version of an operator under a recipe; `needs` are the versions of the operators whose columns it reads."""
    facts = {"operator": operator.name, **operator.facts(recipe), "needs": sorted(str(version) for version in needs)}
    if operator.image != "none":
        facts["input"] = _input_facts(recipe)
    return Version(operator.name, fingerprint(facts))


def describe(plan: Plan, operator: int) -> dict[str, Any]:
    """What the fingerprint of one operator stands for, as it is written beside its parts."""
    chosen = plan.operators[operator]
    facts = dict(chosen.facts(plan.recipe))
    return {
        "operator": chosen.name,
        "fingerprint": plan.versions[operator].fingerprint,
        "facts": facts,
        "input": _input_facts(plan.recipe) if chosen.image != "none" else {},
        "needs": list(chosen.needs),
    }


def _input_facts(recipe: Recipe) -> dict[str, Any]:
    """The keys of [input] that decide which bytes a row has; its URI does not, or a copied store would be lost."""
    keys = asdict(recipe.input)
    return {key: keys[key] for key in ("format", "image_column", "root")}


def _stages(operators: Sequence[Operator], versions: Sequence[Version]) -> tuple[Stage, ...]:
    stages: list[Stage] = []
    first = 1  # operator 0 is `input`, which reads whole shards and not ranges
    for i in range(1, len(operators) + 1):
        if i == len(operators) or operators[i].pool != operators[first].pool:
            if i > first:
                key = fingerprint({"versions": [str(v) for v in versions[first:i]]})
                stages.append(Stage(len(stages), operators[first].pool, first, i, key))
            first = i
    return tuple(stages)
