"""Operators that look at the whole store and not at one picture: duplicate groups, concepts, predicted tiers, losses.

    parts/<operator>@<fingerprint>/<shard>.parquet    their rows, parts like all others
    derived/<operator>.json                           which version `samples` shows; its absence shows none

The fingerprint covers the content of the rows too: what a group or a weight is depends on every other row, so the same
parameters over a store that has grown are another version. Older versions stay in the store.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from curate.errors import StoreError
from curate.store import index
from curate.store.files import Files
from curate.store.parts import Version, encode, fingerprint
from curate.store.parts import publish as publish_part
from schemas.columns import DERIVED, part_schema


def publish(files: Files, operator: str, facts: Mapping[str, Any], table: pa.Table) -> Version:
    """Write the rows of a derived operator, make that version the active one and bring the index up to date.

    `table` has `shard` (string), `row` (int64) and the columns that schemas/columns.py declares for `operator`, in any
    row order; columns that it lacks are null. `facts` say how it was made: parameters, engine, model, revision. Rows
    that it leaves out have NULL in `samples`. Publishing the same rows again changes nothing.
    """
    if operator not in DERIVED:
        raise StoreError(f"{operator!r} is not a derived operator (schemas.columns.DERIVED)")
    table = _fitted(table, part_schema(operator))
    digest = hashlib.sha256()
    for _, rows in _by_shard(table):
        digest.update(encode(rows))
    version = Version(operator, fingerprint({"operator": operator, **facts, "rows": digest.hexdigest()}))
    for shard, rows in _by_shard(table):
        publish_part(files, version, shard, rows)
    described = {
        "operator": operator,
        "fingerprint": version.fingerprint,
        "facts": dict(facts),
        "input": {},
        "needs": [],
    }
    files.create(f"{version.folder}/operator.json", json.dumps(described, indent=1, ensure_ascii=False).encode())
    files.replace(f"derived/{operator}.json", json.dumps({"fingerprint": version.fingerprint}).encode())
    index.update(files)
    return version


def withdraw(files: Files, operator: str) -> bool:
    """Show no version of a derived operator any more; its parts stay. False when none was shown."""
    path = f"derived/{operator}.json"
    if not files.exists(path):
        return False
    files.delete(path)
    index.update(files)
    return True


def _by_shard(table: pa.Table) -> Iterator[tuple[str, pa.Table]]:
    """The rows of each shard of a table that is sorted by shard."""
    if not table.num_rows:
        return
    runs = pc.run_end_encode(table["shard"].combine_chunks())
    first = 0
    for shard, end in zip(runs.values.to_pylist(), runs.run_ends.to_pylist(), strict=True):
        yield shard, table.slice(first, end - first)
        first = end


def _fitted(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """`table` with the columns and types of `schema`, sorted by shard and row."""
    unknown = set(table.column_names) - set(schema.names)
    if unknown:
        raise StoreError(f"columns {sorted(unknown)} are not declared in schemas/columns.py")
    columns = [
        table[field.name].cast(field.type) if field.name in table.column_names else pa.nulls(table.num_rows, field.type)
        for field in schema
    ]
    return pa.Table.from_arrays(columns, schema=schema).sort_by([("shard", "ascending"), ("row", "ascending")])
