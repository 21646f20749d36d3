"""Parts: what one operator wrote for one shard, the truth that everything else is derived from.

    parts/<operator>@<fingerprint>/<shard>.parquet        the part
    parts/<operator>@<fingerprint>/<shard>+1.parquet      rows that a later policy or retry added; the later row wins
    parts/<operator>@<fingerprint>/operator.json          what the fingerprint stands for
    parts/<operator>@<fingerprint>/packs/<digest>.parquet small parts put together (packs.py); they keep their names
    staging/<stage>/<shard>/<rows>.parquet                finished ranges of a shard whose parts are not published yet

A visible part is committed. Parts are sorted by row and their bytes depend on their rows alone: no time, no host.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from curate.errors import StoreError
from curate.store.files import Files
from curate.store.packs import Packs

ROW_GROUP_ROWS = 20_000
PACK = re.compile(r"^parts/([a-z_]+)@([0-9a-f]+)/packs/")
PART = re.compile(r"^parts/([a-z_]+)@([0-9a-f]+)/([A-Za-z0-9._=-]{1,200})(?:\+(\d+))?\.parquet$")


class DamagedError(StoreError):
    """A file of the store that does not read, with the way out."""

    def __init__(self, path: str, reason: str) -> None:
        part = parse(path)
        way = f"remove its shard with: curate store forget STORE {part.shard}, and run again" if part else "delete it"
        super().__init__(f"{path} does not read ({reason}); {way}")
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return StoreError, (str(self),)


@dataclass(frozen=True, order=True)
class Version:
    """One operator as it was configured: its name and the fingerprint of all that decides its output."""

    operator: str
    fingerprint: str

    @property
    def folder(self) -> str:
        return f"parts/{self.operator}@{self.fingerprint}"

    def __str__(self) -> str:
        return f"{self.operator}@{self.fingerprint}"


@dataclass(frozen=True, order=True)
class Part:
    """One published file; `sequence` counts the parts of one shard and version."""

    version: Version
    shard: str
    sequence: int = 0

    @property
    def path(self) -> str:
        suffix = f"+{self.sequence}" if self.sequence else ""
        return f"{self.version.folder}/{self.shard}{suffix}.parquet"


def fingerprint(facts: Mapping[str, Any]) -> str:
    """Sixteen hex digits over everything that decides an operator's output; key order does not matter."""
    text = json.dumps(facts, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def parse(path: str) -> Part | None:
    """The part that `path` names, or None for any other file."""
    found = PART.match(path)
    if not found:
        return None
    operator, mark, shard, sequence = found.groups()
    return Part(Version(operator, mark), shard, int(sequence or 0))


def list_parts(files: Files, version: Version | None = None) -> list[Part]:
    """All published parts, or those of one version, sorted."""
    found: set[Part] = set()
    packed: set[Version] = set()
    for path in files.list(f"{version.folder}/" if version else "parts/"):
        if part := parse(path):
            found.add(part)
        elif pack := PACK.match(path):
            packed.add(Version(pack[1], pack[2]))
    for one in packed:
        found.update(part for path in Packs(files, one, anew=True).held() if (part := parse(path)))
    return sorted(found)


def encode(table: pa.Table) -> bytes:
    """`table` as Parquet with bytes that depend on its content alone."""
    out = io.BytesIO()
    table = table.combine_chunks()  # pages end where chunks do
    pq.write_table(table, out, compression="zstd", compression_level=3, row_group_size=ROW_GROUP_ROWS, version="2.6")
    return out.getvalue()


def open_part(files: Files, path: str) -> pq.ParquetFile:
    """The Parquet file at `path`, or the part of that name in a pack; raises FileNotFoundError and pa.ArrowInvalid."""
    try:
        return _opened(files, path)
    except FileNotFoundError:
        return pq.ParquetFile(pa.BufferReader(encode(_packed(files, path))))


def read_table(files: Files, path: str, columns: Iterable[str] | None = None) -> pa.Table:
    """The table in `path`, or some columns of it (`[]`: the schema, without rows); raises FileNotFoundError."""
    names = None if columns is None else list(columns)
    try:
        try:
            with _opened(files, path) as file:
                return file.schema_arrow.empty_table() if names == [] else file.read(columns=names)
        except FileNotFoundError:
            return _packed(files, path, names)
    except pa.ArrowInvalid as why:
        raise DamagedError(path, str(why).splitlines()[0]) from None


def _opened(files: Files, path: str) -> pq.ParquetFile:
    local = files.local(path)
    return pq.ParquetFile(str(local) if local else pa.BufferReader(files.read(path)))


def _packed(files: Files, path: str, columns: Iterable[str] | None = None) -> pa.Table:
    """The table of a part that is no file; raises FileNotFoundError."""
    part = parse(path)
    if not part:
        raise FileNotFoundError(path)
    try:
        return Packs(files, part.version).table(part, columns)
    except FileNotFoundError:  # packed, or made a file again, since the packs were listed
        return Packs(files, part.version, anew=True).table(part, columns)


def read_parts(files: Files, parts: Iterable[Part], columns: Iterable[str] | None = None) -> pa.Table | None:
    """The rows of one shard's parts of one version, sorted by row, the latest part winning; None without parts."""
    tables = [read_table(files, part.path, columns) for part in sorted(parts)]
    if not tables:
        return None
    return tables[0] if len(tables) == 1 else latest(pa.concat_tables(tables, promote_options="default"))


def latest(table: pa.Table) -> pa.Table:
    """`table` sorted by `row`, with only the last of the rows that share a number."""
    rows = table["row"].to_pylist()
    last = {row: index for index, row in enumerate(rows)}
    order = [last[row] for row in sorted(last)]
    return table if order == list(range(len(rows))) else table.take(pa.array(order, pa.int64()))


def parts_of(files: Files, version: Version, shard: str, *, anew: bool = False) -> list[Part]:
    """The published parts of one shard; they are numbered without gaps, so no folder has to be listed.

    On an object store packs are listed once a minute, or `anew`: a part packed meanwhile seems absent until then.
    """
    found: list[Part] = []
    packs: Packs | None = None
    while True:
        part = Part(version, shard, len(found))
        if not files.exists(part.path):
            packs = packs or Packs(files, version, anew=anew)
            if not packs.find(part):
                return found
        found.append(part)


def publish(files: Files, version: Version, shard: str, table: pa.Table) -> bool:
    """Publish the rows of `table` that no part of `shard` holds yet; True when a part was written.

    A race with another writer is lost harmlessly: what the winner published is looked up and only what is still
    missing is offered under the next number. That holds for a winner whose part a compaction has packed meanwhile, too:
    a file of the same name would hide it.
    """
    while True:
        there = parts_of(files, version, shard, anew=True)
        held = read_parts(files, there, ["row"])
        fresh = _without(table, set(held["row"].to_pylist()) if held is not None else set())
        if there and not fresh.num_rows:
            return False
        part = Part(version, shard, len(there))
        if files.create(part.path, _described(part, fresh)):
            if not Packs(files, version, anew=True).find(part):
                return True
            files.delete(part.path)


def publish_beside(files: Files, part: Part, packed: pa.Table) -> None:
    """Publish, under the next number, the rows of the file of `part` that are not among those packed under its name."""
    table = read_table(files, part.path)
    while True:
        there = parts_of(files, part.version, part.shard, anew=True)
        held = read_parts(files, [other for other in there if other != part], ["row"])
        fresh = _without(table, {*packed["row"].to_pylist(), *(held["row"].to_pylist() if held is not None else [])})
        beside = Part(part.version, part.shard, len(there))
        if not fresh.num_rows or files.create(beside.path, _described(beside, fresh)):
            return


def _without(table: pa.Table, rows: set[int]) -> pa.Table:
    fresh = [i for i, row in enumerate(table["row"].to_pylist()) if row not in rows]
    return table if len(fresh) == table.num_rows else table.take(pa.array(fresh, pa.int64()))


def _described(part: Part, table: pa.Table) -> bytes:
    return encode(table.replace_schema_metadata({"operator": str(part.version), "shard": part.shard, **_kept(table)}))


def _kept(table: pa.Table) -> dict[str, str]:
    """Metadata that the writer of the table set on purpose (the identity of the input shard)."""
    return {k.decode(): v.decode() for k, v in (table.schema.metadata or {}).items() if k.startswith(b"shard_")}
