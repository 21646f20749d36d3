"""`curate store compact`: many small parts as few large Parquet files, which hold the very same parts.

    parts/<operator>@<fingerprint>/packs/<digest>.parquet

A pack holds parts of one version and one schema, one after another, each in row groups of its own. Its footer says
which row groups are which part, so that a part that is no file any more is read from its pack, under its own name and
with its own bytes: nothing else in the store knows the difference. Tools that read Parquet see one large table with
`shard` and `row`.

A pack is published before the first of its parts is removed, and a part is removed only when the pack gives back its
very bytes. A kill at any point leaves every part readable, and the next compaction goes on.
"""

from __future__ import annotations

import hashlib
import io
import json
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

if TYPE_CHECKING:
    from curate.store.files import Files
    from curate.store.parts import Part, Version

PACK_BYTES = 256 * 2**20
SMALL_BYTES = 32 * 2**20  # parts above this are large enough
KEY = b"curate_pack"
LIST_EVERY_S = 60.0


def folder(version: Version) -> str:
    """Where the packs of a version lie."""
    return f"{version.folder}/packs"


class Packs:
    """The packs of one version. On an object store they are listed once a minute: a run asks for every new part."""

    def __init__(self, files: Files, version: Version, *, anew: bool = False) -> None:
        self.files = files
        paths = _listed(files, folder(version), anew)
        key = files.uri, folder(version)
        if key not in _held or _held[key][0] != paths:
            _held[key] = paths, {part: (path, where) for path in paths for part, where in _footer(files, path).items()}
        self.holds: Mapping[str, tuple[str, dict[str, Any]]] = _held[key][1]
        """For the path of each packed part, its pack and where it is in there."""

    def part(self, path: str) -> bytes:
        """The bytes of the part that was published as `path`; raises FileNotFoundError."""
        from curate.store.parts import encode

        if path not in self.holds:
            raise FileNotFoundError(path)
        pack, where = self.holds[path]
        with _opened(self.files, pack) as file:
            groups = list(range(where["first"], where["first"] + where["groups"]))
            table = file.read_row_groups(groups) if groups else file.schema_arrow.empty_table()
        return encode(table.replace_schema_metadata(dict(where["metadata"]) or None))


_listings: dict[tuple[str, str], tuple[float, tuple[str, ...]]] = {}
_held: dict[tuple[str, str], tuple[tuple[str, ...], dict[str, tuple[str, dict[str, Any]]]]] = {}


def _listed(files: Files, where: str, anew: bool) -> tuple[str, ...]:
    if files.local(where):
        return tuple(sorted(files.list(where)))
    key, now = (files.uri, where), time.monotonic()
    if anew or key not in _listings or _listings[key][0] < now - LIST_EVERY_S:
        _listings[key] = now, tuple(sorted(files.list(where)))
    return _listings[key][1]


def _footer(files: Files, path: str) -> dict[str, dict[str, Any]]:
    """What a pack holds: for the path of each part its row groups and its metadata."""
    with _opened(files, path) as file:
        found: dict[str, dict[str, Any]] = json.loads((file.schema_arrow.metadata or {})[KEY])
    return found


def _opened(files: Files, path: str) -> pq.ParquetFile:
    local = files.local(path)
    return pq.ParquetFile(str(local) if local else pa.BufferReader(files.read(path)))


def compact(files: Files) -> tuple[int, int]:
    """Pack the small parts of every version; returns how many parts were packed and how many packs were made."""
    from curate.store.parts import list_parts, read_table

    by_version: dict[Version, list[Part]] = defaultdict(list)
    for part in list_parts(files):
        by_version[part.version].append(part)
    packed = packs = 0
    for version, parts in sorted(by_version.items()):
        held = Packs(files, version, anew=True).holds
        loose: dict[str, list[Part]] = defaultdict(list)
        for part in parts:
            if part.path in held:
                _remove(files, version, [part])  # an earlier compaction was killed before it came to this
                continue
            schema = read_table(files, part.path, []).schema.remove_metadata()
            loose[str(schema)].append(part)
        for group in loose.values():
            for batch in _batches(files, group):
                _pack(files, version, batch)
                packed += len(batch)
                packs += 1
                _remove(files, version, batch)
    return packed, packs


def _batches(files: Files, parts: list[Part]) -> Iterator[list[Part]]:
    """Small parts that become one pack together; a part alone is none."""
    batch: list[Part] = []
    size = 0
    for part in parts:
        length = len(files.read(part.path))
        if length > SMALL_BYTES:
            continue
        batch.append(part)
        size += length
        if size >= PACK_BYTES:
            yield batch
            batch, size = [], 0
    if len(batch) > 1:
        yield batch


def _pack(files: Files, version: Version, parts: list[Part]) -> None:
    """Publish one pack of these parts."""
    from curate.store.parts import ROW_GROUP_ROWS, read_table

    places: dict[str, dict[str, Any]] = {}
    tables = []
    groups = 0
    for part in parts:
        table = read_table(files, part.path)
        count = -(-table.num_rows // ROW_GROUP_ROWS)
        metadata = [(key.decode(), value.decode()) for key, value in (table.schema.metadata or {}).items()]
        places[part.path] = {"first": groups, "groups": count, "metadata": metadata}
        groups += count
        tables.append(table.replace_schema_metadata(None))
    out = io.BytesIO()
    schema = tables[0].schema.with_metadata({KEY: json.dumps(places)})
    with pq.ParquetWriter(out, schema, compression="zstd", compression_level=3, version="2.6") as writer:
        for table in tables:
            if table.num_rows:
                writer.write_table(table.replace_schema_metadata(schema.metadata), row_group_size=ROW_GROUP_ROWS)
    data = out.getvalue()
    files.create(f"{folder(version)}/{hashlib.sha256(data).hexdigest()[:16]}.parquet", data)


def _remove(files: Files, version: Version, parts: list[Part]) -> None:
    """Remove parts whose very bytes their pack gives back."""
    packs = Packs(files, version, anew=True)
    for part in parts:
        if files.exists(part.path) and packs.part(part.path) == files.read(part.path):
            files.delete(part.path)


def unpack(files: Files, version: Version, shards: Iterable[str]) -> None:
    """Make the packs that hold parts of these shards files again, and leave the parts of these shards out."""
    from curate.store.parts import parse

    packs, gone = Packs(files, version, anew=True), set(shards)
    named = {path: part for path in packs.holds if (part := parse(path))}
    for pack in {packs.holds[path][0] for path, part in named.items() if part.shard in gone}:
        for path, part in named.items():
            if packs.holds[path][0] == pack and part.shard not in gone:
                files.create(path, packs.part(path))
        files.delete(pack)
