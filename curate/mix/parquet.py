"""Parquet shards whose picture column is copied from where the pictures lie.

pyarrow writes the file with empty pictures, in memory; the data pages of the pictures take the place of the empty ones
on the way to the disk, and the footer is told the new places and sizes. The column is uncompressed, plain and without
nulls: each value stands in one piece after its length (4 bytes, little end first). Encoding pictures with pyarrow took
0.6 to 0.9 s of a core per GB, as long as all else but the hash.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from curate.mix.stream import Stream
from curate.read import thrift
from curate.read.pages import DATA, PLAIN, Piece
from curate.read.thrift import I32, LIST, STRUCT, Struct

PAGE_BYTES = 1 << 20  # of pictures in a page, about
RLE = 3
# Of the footer's structs: RowGroup, ColumnMetaData.
COLUMNS, GROUP_WHOLE, GROUP_OFFSET, GROUP_STORED = 1, 2, 5, 6
META, WHOLE, STORED, OFFSET, DICTIONARY_OFFSET, STATISTICS, PAGES, SIZES = 3, 6, 7, 9, 11, 12, 13, 16
DICTIONARIES = ("caption_source", "language", "pool")


def write(
    stream: Stream, table: pa.Table, image: int, groups: Sequence[int], pictures: Iterator[Piece]
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Write a table with the column `image` of `pictures` at place `image`, in row groups of so many rows.

    Returns where each picture begins in the file, and its size.
    """
    empty = _with_empty(table, image, groups)
    meta = pq.read_metadata(io.BytesIO(empty))
    end = len(empty) - 8 - int.from_bytes(empty[-8:-4], "little")
    footer, _ = thrift.read(empty, end)
    spans: list[tuple[int, int]] = []
    done = grown = filled = 0
    for number, (group, rows) in enumerate(zip(footer[4][1][1], groups, strict=True)):
        chunk = meta.row_group(number).column(image)
        first, size = chunk.data_page_offset, chunk.total_compressed_size
        stream.put(memoryview(empty)[done:first])
        start, written = stream.size, 0
        filled += rows
        while len(spans) < filled:
            spans += _page(stream, pictures, filled - len(spans))
            written += 1
        done = first + size
        more = stream.size - start - size
        _tell(group, image, grown, more, written)
        grown += more
    stream.put(memoryview(empty)[done:end])
    tail = thrift.write(footer)
    stream.put(tail + len(tail).to_bytes(4, "little") + b"PAR1")
    offsets, sizes = np.array(spans, np.int64).reshape(-1, 2).T
    return offsets, sizes


def _with_empty(table: pa.Table, image: int, groups: Sequence[int]) -> bytes:
    nothing = pa.array([b""] * table.num_rows, pa.binary())
    table = table.add_column(image, pa.field("image", pa.binary(), nullable=False), nothing)
    out = io.BytesIO()
    schema = table.schema.remove_metadata()
    table = table.cast(schema)
    with pq.ParquetWriter(
        out, schema, compression="NONE", write_statistics=["row_id"], version="2.6", use_dictionary=list(DICTIONARIES),
        write_page_index=False,
    ) as writer:  # fmt: skip
        first = 0
        for rows in groups:
            writer.write_table(table.slice(first, rows), row_group_size=rows)
            first += rows
    return out.getvalue()


def _page(stream: Stream, pictures: Iterator[Piece], most: int) -> list[tuple[int, int]]:
    """Write a data page of `most` pictures at most; where each begins, and its size."""
    here: list[Piece] = []
    size = 0
    while len(here) < most and size < PAGE_BYTES:
        here.append(next(pictures))
        size += 4 + here[-1].size
    facts: Struct = {1: (I32, len(here)), 2: (I32, PLAIN), 3: (I32, RLE), 4: (I32, RLE)}
    stream.put(thrift.write({1: (I32, DATA), 2: (I32, size), 3: (I32, size), 5: (STRUCT, facts)}))
    spans = []
    for piece in here:
        stream.put(piece.size.to_bytes(4, "little"))
        spans.append((stream.size, piece.size))
        stream.copy(piece)
    return spans


def _tell(group: Struct, image: int, moved: int, more: int, pages: int) -> None:
    """Correct a row group of the footer: all of it has moved, and its pictures take `more` bytes in `pages` pages."""
    _add(group, moved, GROUP_OFFSET)
    _add(group, more, GROUP_WHOLE, GROUP_STORED)
    for at, column in enumerate(group[COLUMNS][1][1]):
        meta = column[META][1]
        _add(meta, moved + (more if at > image else 0), OFFSET, DICTIONARY_OFFSET)
        if at == image:
            _add(meta, more, WHOLE, STORED)
            meta.pop(STATISTICS, None)
            meta.pop(SIZES, None)
            meta[PAGES] = LIST, (STRUCT, [{1: (I32, DATA), 2: (I32, PLAIN), 3: (I32, pages)}])


def _add(fields: Struct, more: int, *numbers: int) -> None:
    for number in numbers:
        if number in fields:
            kind, value = fields[number]
            fields[number] = kind, value + more
