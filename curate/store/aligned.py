"""The cells of a shard side by side: the parts of several operators read in step, one table row per input row.

Parts are sorted by row, and an operator has cells of input rows only, so walking all files together is the join that a
database would have to sort or hash for. At most `CHUNK_ROWS` rows of a shard are held at a time.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from curate.store.files import Files
from curate.store.parts import DamagedError, Part, latest, open_part
from schemas.columns import OPERATORS, indexed

CHUNK_ROWS = 20_000  # the row group of a part

ERRORS = pa.schema(
    [("_id", pa.int64()), ("operator", pa.string()), ("fingerprint", pa.string()), ("error", pa.string()),
     ("message", pa.string())]
)  # fmt: skip


class Chunk(NamedTuple):
    """Consecutive rows: `cells` for the index's tables, `errors` (schema ERRORS) of all operators on them."""

    cells: pa.Table
    errors: pa.Table


def side_by_side(
    files: Files, shard: str, number: int, parts: Mapping[str, Sequence[Part]], operators: Sequence[str]
) -> Iterator[Chunk]:
    """Rows of the table `wide_cells`, ascending, for a shard with this number in the index.

    `parts` maps each operator to its parts of one version; `input` says which rows there are, and nothing comes without
    it. Columns: `_id, row_id, shard, row`, those of `operators` (null where an operator has no cell), `_done_<op>`,
    `error` (the first operator's), then the input's own. Raises DamagedError.
    """
    if "input" not in parts:
        return
    others = {op: _Cells(files, parts[op]) for op in operators if op != "input" and op in parts}
    for given in _Cells(files, parts["input"]).chunks():
        rows = _rows(given)
        cells = {op: _aligned(cells.until(int(rows[-1]) + 1), rows) for op, cells in others.items()}
        yield _chunk(shard, number, given, rows, cells, parts, operators)


def of_one_version(files: Files, number: int, parts: Sequence[Part]) -> Iterator[Chunk]:
    """Rows of the table `former_<operator>`: one version's cells of a shard with this number in the index.

    Columns: `_id, _fingerprint` and the operator's. Raises DamagedError.
    """
    version = parts[0].version
    for table in _Cells(files, parts).chunks():
        ids = _ids(number, _rows(table))
        fixed = {"_id": ids, "_fingerprint": pa.repeat(version.fingerprint, table.num_rows)}
        own = _own(table) if version.operator == "input" else {}
        cells = pa.table(fixed | _declared(version.operator, table) | own)
        yield Chunk(cells, _errors(ids, {version.operator: table}, {version.operator: parts}))


class _Cells:
    """One version's cells of a shard, row group by row group; a later part wins over an earlier one."""

    def __init__(self, files: Files, parts: Sequence[Part]) -> None:
        self._groups = [_groups(files, part) for part in sorted(parts)]
        self._held: list[pa.Table | None] = [None for _ in self._groups]

    def until(self, stop: int) -> pa.Table | None:
        """All cells not taken yet of rows below `stop`; None when there are none."""
        taken = [table for i in range(len(self._groups)) if (table := self._take(i, stop)) is not None]
        if len(taken) < 2:
            return taken[0] if taken else None
        return latest(pa.concat_tables(taken, promote_options="permissive"))

    def chunks(self) -> Iterator[pa.Table]:
        """All cells, at most CHUNK_ROWS of each part at a time."""
        while heads := [
            int(t["row"][-1].as_py()) for i in range(len(self._groups)) if (t := self._head(i)) is not None
        ]:
            table = self.until(min(heads) + 1)
            assert table is not None
            yield table

    def _head(self, i: int) -> pa.Table | None:
        """What is held of part `i`, after reading on if nothing was."""
        if self._held[i] is None:
            self._held[i] = next(self._groups[i], None)
        return self._held[i]

    def _take(self, i: int, stop: int) -> pa.Table | None:
        taken = []
        while (table := self._head(i)) is not None:
            end = int(np.searchsorted(_rows(table), stop))
            if end:
                taken.append(table.slice(0, end))
            if end < table.num_rows:
                self._held[i] = table.slice(end)
                break
            self._held[i] = None
        return (taken[0] if len(taken) == 1 else pa.concat_tables(taken)) if taken else None


def _groups(files: Files, part: Part) -> Iterator[pa.Table]:
    """The row groups of a part that hold rows."""
    try:
        with open_part(files, part.path) as file:
            columns = [field.name for field in file.schema_arrow if _read(field)]
            for i in range(file.num_row_groups):
                table = file.read_row_group(i, columns=columns, use_threads=False)
                if table.num_rows:
                    yield table
    except (pa.ArrowInvalid, OSError) as why:
        raise DamagedError(part.path, str(why).splitlines()[0]) from None


def _read(field: pa.Field) -> bool:
    return field.name != "shard" and not field.name.startswith("_") and indexed(field.type)


def _aligned(table: pa.Table | None, rows: npt.NDArray[np.int64]) -> pa.Table | None:
    """`table` with one row for each of `rows`, null where it has no cell."""
    if table is None:
        return None
    have = _rows(table)
    if len(have) == len(rows) and (have == rows).all():
        return table
    at = np.searchsorted(have, rows).clip(max=len(have) - 1)
    return table.take(pa.array(at, pa.int64(), mask=have[at] != rows))


def _chunk(
    shard: str,
    number: int,
    given: pa.Table,
    rows: npt.NDArray[np.int64],
    cells: Mapping[str, pa.Table | None],
    parts: Mapping[str, Sequence[Part]],
    operators: Sequence[str],
) -> Chunk:
    ids = _ids(number, rows)
    tables = {"input": given, **{op: table for op, table in cells.items() if table is not None}}
    columns: dict[str, Any] = {
        "_id": ids,
        "row_id": pc.binary_join_element_wise(pa.scalar(shard), given["row"].cast(pa.string()), ":"),
        "shard": pa.repeat(shard, len(rows)),
        "row": given["row"],
    }
    for op in operators:
        columns |= _declared(op, tables.get(op), len(rows))
    for op in operators:
        if op != "input":
            columns[f"_done_{op}"] = tables[op]["row"].is_valid() if op in tables else pa.repeat(False, len(rows))
    columns["error"] = pc.coalesce(*(tables[op]["error"] for op in operators if op in tables))
    return Chunk(pa.table(columns | _own(given)), _errors(ids, tables, parts))


def _declared(operator: str, table: pa.Table | None, rows: int = 0) -> dict[str, Any]:
    """The columns of schemas/columns.py, in their types; null where the parts are of a time before the column."""
    columns: dict[str, Any] = {}
    for column in OPERATORS[operator]:
        if not indexed(column.type):
            continue
        if table is None or column.name not in table.column_names:
            columns[column.name] = pa.nulls(table.num_rows if table else rows, column.type)
        else:
            columns[column.name] = table[column.name].cast(column.type)
    return columns


def _own(table: pa.Table) -> dict[str, Any]:
    """The columns that came with the input."""
    ours = {"row", "error", "message", *(column.name for column in OPERATORS["input"])}
    own = {name: table[name] for name in table.column_names if name not in ours}
    # A column without any value has no type in Arrow; that of other shards will widen this one.
    return {name: pa.nulls(len(c), pa.int32()) if pa.types.is_null(c.type) else c for name, c in own.items()}


def _errors(ids: pa.Array, tables: Mapping[str, pa.Table], parts: Mapping[str, Sequence[Part]]) -> pa.Table:
    found = []
    for op, table in tables.items():
        if table["error"].null_count < table.num_rows:
            failed = table["error"].is_valid()
            count = pc.sum(failed).as_py()
            mark = parts[op][0].version.fingerprint
            texts = [table[name].filter(failed) for name in ("error", "message")]
            columns = [ids.filter(failed), pa.repeat(op, count), pa.repeat(mark, count), *texts]
            found.append(pa.table(columns, schema=ERRORS))
    return pa.concat_tables(found) if found else ERRORS.empty_table()


def _rows(table: pa.Table) -> npt.NDArray[np.int64]:
    return np.asarray(table["row"].to_numpy())


def _ids(number: int, rows: npt.NDArray[np.int64]) -> pa.Array:
    return pa.array((np.int64(number) << 32) | rows)
