"""Read: shards of image-text pairs, their captions and columns, and the original bytes of their pictures.

    shards = discover(InputSpec("s3://bucket/laion"))
    found = index(shards[0])                               # everything but the pictures
    data = Reader(shards[0]).read([0, 1], found.table.slice(0, 2))

docs/input.md describes the formats. Nothing here decodes a picture.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import pyarrow as pa

from curate.read import folder, parquet, webdataset
from curate.read.discover import discover
from curate.read.files import locate
from curate.read.shards import InputError, InputSpec, Shard, ShardIndex
from schemas.errors import RowError

__all__ = ["InputError", "InputSpec", "Reader", "Shard", "ShardIndex", "discover", "identity", "index"]

INDEX = {"parquet": parquet.index, "webdataset": webdataset.index, "folder": folder.index}


class Source(Protocol):
    """What reads the pictures of one format."""

    def read(self, rows: Sequence[int], locators: pa.Table) -> list[bytes | RowError]:
        """Bytes of the rows, or why there are none."""


def source(shard: Shard) -> Source:
    """The reader of the shard's format."""
    if shard.format == "parquet":
        return parquet.ParquetReader(shard)
    return webdataset.TarReader(shard) if shard.format == "webdataset" else folder.FolderReader(shard)


def index(shard: Shard) -> ShardIndex:
    """Read everything of a shard but its pictures; InputError when that cannot be done."""
    return INDEX[shard.format](shard)


def identity(shard: Shard) -> str:
    """What `index` says as `identity`, with less to read for Parquet; empty for a folder, whose pictures are files."""
    if shard.format == "parquet":
        return parquet.footer_hash(locate(shard.uri))
    return index(shard).identity if shard.format == "webdataset" else ""


class Reader:
    """Original bytes of a shard's pictures. Keep one per shard: ascending calls continue where the last one ended."""

    def __init__(self, shard: Shard) -> None:
        self.source = source(shard)

    def read(self, rows: Sequence[int], locators: pa.Table) -> list[bytes | RowError]:
        """Bytes of the rows (ascending), or the RowError that says why there are none.

        `locators` are these rows of the index table; only its columns that begin with `_` are used.
        """
        rows = list(rows)
        if "_error" not in locators.column_names:
            return self.source.read(rows, locators)
        errors = locators.column("_error").to_pylist()
        messages = locators.column("_message").to_pylist()
        good = [at for at, error in enumerate(errors) if not error]
        data = iter(self.source.read([rows[at] for at in good], locators.take(good)) if good else [])
        return [RowError(e, m) if e else next(data) for e, m in zip(errors, messages, strict=True)]
