"""Where the values of a binary Parquet column lie, so that pictures are copied from there without Arrow in between.

Covers what writers make of pictures: data pages of both versions, plain or by dictionary, nulls, the usual codecs. What
is not covered raises ValueError, and so does what is damaged: then pyarrow reads it, and says what is wrong. Source:
the Parquet format, Encodings.md and parquet.thrift.
"""

from __future__ import annotations

import os
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import accumulate
from typing import Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from curate.errors import CurateError
from curate.read import thrift

DATA, DICTIONARY, DATA_V2 = 0, 2, 3  # PageType
PLAIN, PLAIN_DICTIONARY, RLE, RLE_DICTIONARY = 0, 2, 3, 8  # Encoding
HEAD_BYTES, LONGEST_HEAD_BYTES = 256, 1 << 16  # of a page; statistics in it may be long
# What reading a damaged column may raise.
DAMAGED = (ValueError, KeyError, IndexError, TypeError, OverflowError, RecursionError, OSError, pa.ArrowException)
CODECS = {"SNAPPY": "snappy", "ZSTD": "zstd", "GZIP": "gzip", "BROTLI": "brotli"}


class Source(Protocol):
    """Bytes by their place."""

    def read(self, at: int, size: int) -> bytes | memoryview:
        """As many bytes as there are, `size` at most."""


class LocalFile:
    """A file of this machine, open until it is forgotten; not mapped, since one that becomes shorter would kill us."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.handle = os.open(path, os.O_RDONLY)
        self.size = os.fstat(self.handle).st_size

    def read(self, at: int, size: int) -> bytes:
        return os.pread(self.handle, size, at)

    def piece(self, at: int, size: int) -> Piece | None:
        """So many bytes at `at`; None when the file does not have them."""
        return Piece(self, at, size) if at + size <= self.size else None

    def into(self, view: memoryview, at: int) -> None:
        """Fill `view` with the bytes at `at`; CurateError when the file has become shorter."""
        while view:
            if not (read := os.preadv(self.handle, [view], at)):
                raise CurateError(f"{self.path} has become shorter while it was read")
            view, at = view[read:], at + read

    def __del__(self) -> None:
        os.close(self.handle)


class Memory:
    """Bytes in memory."""

    def __init__(self, data: bytes | memoryview | pa.Buffer) -> None:
        self.view = memoryview(data).cast("B")  # Arrow's are of signed bytes

    def read(self, at: int, size: int) -> memoryview:
        return self.view[at : at + size]


@dataclass(frozen=True, slots=True)
class Piece:
    """A value where it lies."""

    source: Source
    at: int
    size: int

    def into(self, view: memoryview, first: int = 0) -> None:
        """Fill `view` with the bytes of the value from its byte `first` on."""
        if isinstance(self.source, LocalFile):
            self.source.into(view, self.at + first)
        else:
            view[:] = self.source.read(self.at + first, len(view))

    def read(self) -> bytes:
        """The value."""
        data = bytearray(self.size)
        self.into(memoryview(data))
        return bytes(data)

    def head(self, most: int) -> bytes:
        """Its first bytes."""
        return bytes(self.source.read(self.at, min(most, self.size)))


def in_memory(data: bytes) -> Piece:
    """A value that is in memory."""
    return Piece(Memory(data), 0, len(data))


class Column:
    """The values of a binary column of a local file by row. Ascending rows go through each row group once."""

    def __init__(self, path: str, parquet: pq.ParquetFile, leaf: str) -> None:
        self.file, self.parquet, self.leaf = LocalFile(path), parquet, leaf
        groups = range(parquet.metadata.num_row_groups)
        self.starts = [0, *accumulate(parquet.metadata.row_group(group).num_rows for group in groups)]
        self.group = -1
        self.first = 0  # row at which `page` begins
        self.page: list[Piece | None] = []
        self.pages: Iterator[list[Piece | None]] = iter(())

    def at(self, row: int) -> Piece | None:
        """Where the value of a row lies; None when it is null, or when only pyarrow can tell."""
        group = bisect_right(self.starts, row) - 1
        if group != self.group or row < self.first:
            self.group, self.first, self.page = group, self.starts[group], []
            self.pages = pages(self.file, self.parquet, self.leaf, group)
        try:
            while row >= self.first + len(self.page):
                self.first, self.page = self.first + len(self.page), next(self.pages)
        except (*DAMAGED, StopIteration):
            self.first, self.page = self.starts[group], [None] * (self.starts[group + 1] - self.starts[group])
        return self.page[row - self.first]


def pages(file: Source, parquet: pq.ParquetFile, leaf: str, group: int) -> Iterator[list[Piece | None]]:
    """The values of a row group's column page by page, None for null; one of DAMAGED where this module cannot tell.

    `leaf` is the column's path, `image` or `image.bytes`; `file` reads what `parquet` was opened from.
    """
    number = next(i for i in range(len(parquet.schema)) if parquet.schema.column(i).path == leaf)
    column, chunk = parquet.schema.column(number), parquet.metadata.row_group(group).column(number)
    if column.physical_type != "BYTE_ARRAY" or column.max_repetition_level:
        raise ValueError("no binary column with one value a row")
    codec = None if chunk.compression == "UNCOMPRESSED" else pa.Codec(CODECS.get(chunk.compression, "unknown"))
    at = chunk.data_page_offset
    if chunk.has_dictionary_page and chunk.dictionary_page_offset:
        at = min(at, chunk.dictionary_page_offset)
    dictionary: list[Piece] = []
    left = chunk.num_values
    while left:
        head, size = _head(file, at)
        at += size
        kind, stored = _int(head, 1), _int(head, 3)
        if 4 in head:
            raise ValueError("a page has a checksum, which pyarrow checks")
        if kind == DICTIONARY:
            facts = head[7][1]
            _known(_int(facts, 2), PLAIN, PLAIN_DICTIONARY)
            dictionary = _plain(*_body(file, at, stored, _int(head, 2), codec), _int(facts, 1))
        elif kind in (DATA, DATA_V2):
            facts = head[5 if kind == DATA else 8][1]
            count = _int(facts, 1)
            if not 0 < count <= left:
                raise ValueError("a page with more values than its column")
            left -= count
            yield _page(file, at, head, kind, codec, column.max_definition_level, dictionary)
        at += stored


def _page(
    file: Source, at: int, head: thrift.Struct, kind: int, codec: pa.Codec | None, most: int, dictionary: list[Piece]
) -> list[Piece | None]:
    """The values of one data page whose body begins at `at`; `most` is the definition level of a value."""
    stored, whole = _int(head, 3), _int(head, 2)
    facts = head[5 if kind == DATA else 8][1]
    count, encoding = _int(facts, 1), _int(facts, 2 if kind == DATA else 4)
    levels: bytes | memoryview
    if kind == DATA:
        body, first, stop = _body(file, at, stored, whole, codec)
        size = 0
        if most:
            _known(_int(facts, 3), RLE)
            size = int.from_bytes(body.read(first, 4), "little")
            levels = body.read(first + 4, size)
            first += 4 + size
    else:
        size = _int(facts, 5)
        levels = file.read(at, size)
        packed = facts[7][1] if 7 in facts else True
        body, first, stop = _body(file, at + size, stored - size, whole - size, codec if packed else None)
    present = np.ones(count, np.bool_)
    if most:
        present = _hybrid(levels, most.bit_length(), count) == most
    values = int(present.sum())
    if encoding == PLAIN:
        found = _plain(body, first, stop, values)
    else:
        _known(encoding, PLAIN_DICTIONARY, RLE_DICTIONARY)
        packed_numbers = body.read(first, stop - first)
        numbers = _hybrid(packed_numbers[1:], packed_numbers[0], values) if values else np.zeros(0, np.int64)
        found = [dictionary[number] for number in numbers]
    if values == count:
        return list(found)
    left = iter(found)
    return [next(left) if there else None for there in present.tolist()]


def _body(file: Source, at: int, stored: int, whole: int, codec: pa.Codec | None) -> tuple[Source, int, int]:
    """Where the body of a page can be read, from where to where: in the file as it lies there, or unpacked."""
    if codec is None and isinstance(file, LocalFile) and at + stored <= file.size:
        return file, at, at + stored
    data = file.read(at, stored)
    if len(data) != stored:
        raise ValueError("the file ends within a page")
    if codec is not None:
        return Memory(codec.decompress(data, whole)), 0, whole
    return Memory(data), 0, len(data)


def _plain(source: Source, at: int, stop: int, count: int) -> list[Piece]:
    """`count` values, each after its length (4 bytes, little end first)."""
    found = []
    for _ in range(count):
        size = int.from_bytes(source.read(at, 4), "little")
        found.append(Piece(source, at + 4, size))
        at += 4 + size
        if at > stop:
            raise ValueError("a value ends beyond its page")
    return found


def _hybrid(data: bytes | memoryview, width: int, count: int) -> npt.NDArray[np.int64]:
    """`count` numbers of `width` bits, in runs of one number or packed by eights."""
    if not 0 <= width <= 32:
        raise ValueError(f"numbers of {width} bits")
    parts: list[npt.NDArray[np.int64]] = []
    at = have = 0
    while have < count:
        head, at = thrift.varint(data, at)
        if head & 1:
            size = (head >> 1) * width
            bits = np.unpackbits(np.frombuffer(data[at : at + size], np.uint8), bitorder="little")
            part = bits.reshape(-1, max(width, 1)).astype(np.int64) @ (1 << np.arange(max(width, 1), dtype=np.int64))
        else:
            size = (width + 7) // 8
            part = np.full(min(head >> 1, count), int.from_bytes(data[at : at + size], "little"), np.int64)
        at += size
        have += len(part)
        parts.append(part)
        if not len(part):
            raise ValueError("an empty run")
    return np.concatenate(parts)[:count] if parts else np.zeros(0, np.int64)


def _head(file: Source, at: int) -> tuple[thrift.Struct, int]:
    """The header of the page at `at`, and its size."""
    for size in (HEAD_BYTES, LONGEST_HEAD_BYTES):
        try:
            return thrift.read(file.read(at, size))
        except IndexError:
            continue
    raise ValueError("a page without a header")


def _int(fields: thrift.Struct, number: int) -> int:
    kind, value = fields[number]
    if kind != thrift.I32 or value < 0:
        raise ValueError(f"field {number} of a page's header is no size")
    return int(value)


def _known(encoding: int, *known: int) -> None:
    if encoding not in known:
        raise ValueError(f"encoding {encoding}")
