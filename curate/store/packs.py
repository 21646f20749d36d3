"""`curate store compact`: many small parts as few large Parquet files, which hold the very same parts.

    parts/<operator>@<fingerprint>/packs/<first shard>~<last shard>~<digest>.parquet

A pack holds parts of one version and one schema, sorted, each in row groups of its own. Its footer says which row
groups are which part, so that a part that is no file any more is read from its pack, under its own name and with its
own bytes: nothing else in the store knows the difference. Tools that read Parquet see one large table with `shard` and
`row`. The name says which shards a pack may hold: who looks for one part reads the footers of one or two packs, once,
and then the part's own bytes, however large the pack is.

A pack is published before the first of its parts is removed, and a part is removed only when the pack gives back its
very bytes. A kill at any point leaves every part readable, and the next compaction goes on. A file that stands before
a packed part of the same name and differs from it (a writer of a store that takes no second look could leave one) is
settled: rows of its own are published under the next number, then it goes.
"""

from __future__ import annotations

import hashlib
import io
import json
import time
from collections import OrderedDict, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
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
NAME_CHARS = 80  # of a shard's id in the name of a pack: two of them and a digest must fit into a file name
FOOTERS = 32  # of packs held by a process; a worker reads each version's pack of the shard that it is on


def folder(version: Version) -> str:
    """Where the packs of a version lie."""
    return f"{version.folder}/packs"


@dataclass(frozen=True)
class _Footer:
    """What a pack says of itself: for the path of each part its row groups and its metadata."""

    file: pq.FileMetaData
    places: Mapping[str, dict[str, Any]]


class Packs:
    """The packs of one version. On an object store they are listed once a minute: a run asks for every new part."""

    def __init__(self, files: Files, version: Version, *, anew: bool = False) -> None:
        self.files = files
        self.sizes = _listed(files, folder(version), anew)

    def find(self, part: Part) -> str | None:
        """The pack that holds `part`, or None."""
        shard = part.shard[:NAME_CHARS]
        for pack in self.sizes:
            first, last = _shards(pack)
            if first <= shard <= last and part.path in self._footer(pack).places:
                return pack
        return None

    def held(self) -> dict[str, str]:
        """The path of every packed part, with its pack: reads the footers of all packs."""
        return {path: pack for pack in self.sizes for path in self._footer(pack).places}

    def table(self, part: Part, columns: Iterable[str] | None = None) -> pa.Table:
        """The table that was published as `part`, or some of its columns; raises FileNotFoundError."""
        pack = self.find(part)
        if pack is None:
            raise FileNotFoundError(part.path)
        with self._opened(pack) as file:
            return self._table(file, self._footer(pack).places[part.path], columns)

    def parts(self, pack: str, paths: Iterable[str]) -> Iterator[tuple[str, bytes]]:
        """The bytes of some parts of one pack, which is opened once."""
        from curate.store.parts import encode

        places = self._footer(pack).places
        with self._opened(pack) as file:
            for path in paths:
                yield path, encode(self._table(file, places[path]))

    def _table(self, file: pq.ParquetFile, where: dict[str, Any], columns: Iterable[str] | None = None) -> pa.Table:
        names = None if columns is None else list(columns)
        if where["groups"] and names != []:
            table = file.read_row_groups(list(range(where["first"], where["first"] + where["groups"])), columns=names)
        else:
            table = file.schema_arrow.empty_table()
            table = table.select(names) if names else table
        return table.replace_schema_metadata(dict(where["metadata"]) or None)

    def _opened(self, pack: str) -> pq.ParquetFile:
        return pq.ParquetFile(self._source(pack), metadata=self._footer(pack).file, pre_buffer=True)

    def _source(self, pack: str) -> Any:
        local = self.files.local(pack)
        return str(local) if local else pa.PythonFile(_Remote(self.files, pack, self.sizes[pack]), "r")

    def _footer(self, pack: str) -> _Footer:
        key = self.files.uri, pack
        footer = _footers.get(key)
        if footer is None:
            with pq.ParquetFile(self._source(pack)) as file:
                footer = _Footer(file.metadata, json.loads((file.metadata.metadata or {})[KEY]))
            _footers[key] = footer
            while len(_footers) > FOOTERS:
                _footers.popitem(last=False)
        return footer


def _shards(pack: str) -> tuple[str, str]:
    """The first and the last shard that a pack may hold, by its name; a pack that somebody renamed may hold any."""
    found = pack.rpartition("/")[2].split("~")
    return (found[0], found[1]) if len(found) == 3 else ("", chr(0x10FFFF))


class _Remote(io.RawIOBase):
    """A file of an object store, of which only what is asked for is fetched."""

    def __init__(self, files: Files, path: str, size: int) -> None:
        self.files, self.path, self.size, self.at = files, path, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self.at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self.at = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self.at, io.SEEK_END: self.size}[whence]
        return self.at

    def read(self, size: int | None = -1) -> bytes:
        left = max(self.size - self.at, 0)
        size = left if size is None or size < 0 else min(size, left)
        data = self.files.read_range(self.path, self.at, size) if size else b""
        self.at += len(data)
        return data


_listings: dict[tuple[str, str], tuple[float, dict[str, int]]] = {}
_footers: OrderedDict[tuple[str, str], _Footer] = OrderedDict()


def _listed(files: Files, where: str, anew: bool) -> dict[str, int]:
    if files.local(where):
        return files.sizes(where)
    key, now = (files.uri, where), time.monotonic()
    if anew or key not in _listings or _listings[key][0] < now - LIST_EVERY_S:
        _listings[key] = now, files.sizes(where)
    return _listings[key][1]


def compact(files: Files) -> tuple[int, int]:
    """Pack the small parts of every version; returns how many parts were packed and how many packs were made."""
    from curate.store.parts import parse

    by_version: dict[Version, list[tuple[Part, int]]] = defaultdict(list)
    for path, size in files.sizes("parts/").items():
        if part := parse(path):
            by_version[part.version].append((part, size))
    packed = packs = 0
    for version, parts in sorted(by_version.items()):
        held = Packs(files, version, anew=True).held()
        twice = [part for part, _ in parts if part.path in held]
        _settle(files, version, twice)  # an earlier compaction was killed before it came to these
        small = sorted(part for part, size in parts if part.path not in held and size <= SMALL_BYTES)
        for batch in _batches(files, small):
            _pack(files, version, batch)
            packed += len(batch.parts)
            packs += 1
            _settle(files, version, batch.parts, batch.digests)
    return packed, packs


@dataclass
class _Batch:
    """Parts of one schema that become one pack, as they were read."""

    parts: list[Part] = field(default_factory=list)
    data: list[bytes] = field(default_factory=list)
    size: int = 0

    @property
    def digests(self) -> dict[str, bytes]:
        return {part.path: _digest(data) for part, data in zip(self.parts, self.data, strict=True)}


def _batches(files: Files, parts: list[Part]) -> Iterator[_Batch]:
    """Parts that become one pack together, each read once; a part alone is none."""
    from curate.store.parts import DamagedError

    open_batches: dict[str, _Batch] = defaultdict(_Batch)
    for part in parts:
        try:
            data = files.read(part.path)
        except FileNotFoundError:  # forgotten meanwhile
            continue
        try:
            with pq.ParquetFile(pa.BufferReader(data)) as file:
                schema = str(file.schema_arrow.remove_metadata())
        except pa.ArrowInvalid as why:
            raise DamagedError(part.path, str(why).splitlines()[0]) from None
        batch = open_batches[schema]
        batch.parts.append(part)
        batch.data.append(data)
        batch.size += len(data)
        if batch.size >= PACK_BYTES:
            yield open_batches.pop(schema)
    yield from (batch for batch in open_batches.values() if len(batch.parts) > 1)


def _pack(files: Files, version: Version, batch: _Batch) -> None:
    """Publish one pack of these parts."""
    from curate.store.parts import ROW_GROUP_ROWS

    places: dict[str, dict[str, Any]] = {}
    groups = 0
    for part, data in zip(batch.parts, batch.data, strict=True):
        with pq.ParquetFile(pa.BufferReader(data)) as file:
            metadata = [(k.decode(), v.decode()) for k, v in (file.schema_arrow.metadata or {}).items()]
            count = -(-file.metadata.num_rows // ROW_GROUP_ROWS)
            schema = file.schema_arrow
        places[part.path] = {"first": groups, "groups": count, "metadata": metadata}
        groups += count
    out = io.BytesIO()
    schema = schema.with_metadata({KEY: json.dumps(places)})
    with pq.ParquetWriter(out, schema, compression="zstd", compression_level=3, version="2.6") as writer:
        for data in batch.data:
            table = pq.read_table(pa.BufferReader(data))
            if table.num_rows:
                writer.write_table(table.replace_schema_metadata(schema.metadata), row_group_size=ROW_GROUP_ROWS)
    made = out.getvalue()
    first, last = batch.parts[0].shard[:NAME_CHARS], batch.parts[-1].shard[:NAME_CHARS]
    files.create(f"{folder(version)}/{first}~{last}~{hashlib.sha256(made).hexdigest()[:16]}.parquet", made)


def _settle(files: Files, version: Version, parts: list[Part], digests: Mapping[str, bytes] | None = None) -> None:
    """Remove the files of packed parts. `digests` of their bytes, where they were just read."""
    from curate.store.parts import publish_beside

    packs = Packs(files, version, anew=True)
    known, held = dict(digests or {}), packs.held()
    by_pack: dict[str, dict[str, Part]] = defaultdict(dict)
    for part in parts:
        by_pack[held[part.path]][part.path] = part
    for pack, named in by_pack.items():
        for path, data in packs.parts(pack, named):
            try:
                there = known.get(path) or _digest(files.read(path))
            except FileNotFoundError:
                continue
            if there != _digest(data):
                publish_beside(files, named[path], packs.table(named[path]))
            files.delete(path)


def _digest(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()


def unpack(files: Files, version: Version, shards: Iterable[str]) -> None:
    """Make the packs that hold parts of these shards files again, and leave the parts of these shards out."""
    from curate.store.parts import parse

    packs, gone = Packs(files, version, anew=True), set(shards)
    by_pack: dict[str, list[Part]] = defaultdict(list)
    for path, pack in packs.held().items():
        if part := parse(path):
            by_pack[pack].append(part)
    for pack, parts in by_pack.items():
        if any(part.shard in gone for part in parts):
            for path, data in packs.parts(pack, [part.path for part in parts if part.shard not in gone]):
                files.create(path, data)
            files.delete(pack)
