"""Pictures where they lie in Parquet files, and Parquet files made of them, as other readers see both."""

from __future__ import annotations

import itertools
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from blake3 import blake3

from curate.errors import CurateError
from curate.mix import parquet
from curate.mix.stream import BLOCK_BYTES, Stream
from curate.read import pages, thrift

NOISE = np.random.default_rng(0)
VALUES = [NOISE.bytes(int(NOISE.integers(1, 3000))) for _ in range(60)]
VALUES += [VALUES[i % 7] for i in range(40)]  # what a dictionary is for
HOLES = [None if i % 5 == 0 else value for i, value in enumerate(VALUES)]


def column(path: Path, leaf: str = "image") -> list[bytes | None]:
    """All values of a column where they lie; None for null and where this way does not know."""
    found = pages.Column(str(path), pq.ParquetFile(path), leaf)
    return [None if piece is None else piece.read() for piece in map(found.at, range(found.starts[-1]))]


@pytest.mark.parametrize("codec", ["NONE", "SNAPPY", "ZSTD", "GZIP", "BROTLI"])
def test_values_are_found_whatever_wrote_the_column(tmp_path: Path, codec: str) -> None:
    path = tmp_path / "x.parquet"
    for dictionary, version, values, page, leaf in itertools.product(
        [True, False], ["1.0", "2.0"], [VALUES, HOLES], [2000, 1 << 20], ["image", "image.bytes"]
    ):
        image = pa.array(values, pa.binary())
        if leaf != "image":
            image = pa.StructArray.from_arrays([image, pa.array(["p"] * len(image))], ["bytes", "path"])
        pq.write_table(
            pa.table({"n": range(len(image)), "image": image}), path, compression=codec, use_dictionary=dictionary,
            data_page_version=version, data_page_size=page, row_group_size=70, write_batch_size=8,
        )  # fmt: skip
        assert column(path, leaf) == values, (dictionary, version, page, leaf)


def test_what_is_not_covered_or_damaged_is_left_to_pyarrow(tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    table = pa.table({"image": pa.array(VALUES, pa.binary())})
    pq.write_table(table, path, write_page_checksum=True)
    assert column(path) == [None] * len(VALUES)
    pq.write_table(table, path, use_dictionary=False, column_encoding={"image": "DELTA_LENGTH_BYTE_ARRAY"})
    assert column(path) == [None] * len(VALUES)
    pq.write_table(table, path, use_dictionary=False, compression="NONE", row_group_size=50)
    data = bytearray(path.read_bytes())
    good = pq.ParquetFile(path)
    at = good.metadata.row_group(1).column(0).data_page_offset
    for place in range(at, at + 30):  # page header and first length
        broken = bytearray(data)
        broken[place] = 0xFF
        path.write_bytes(broken)
        found = pages.Column(str(path), good, "image")
        assert [piece and piece.read() for piece in map(found.at, range(50))] == VALUES[:50]
        for row in range(50, 100):
            found.at(row)  # nothing is raised


def test_rows_may_be_asked_for_in_any_order(tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    pq.write_table(pa.table({"image": VALUES}), path, use_dictionary=False, row_group_size=30, data_page_size=2000)
    found = pages.Column(str(path), pq.ParquetFile(path), "image")
    rows = NOISE.permutation(len(VALUES)).tolist()
    pieces = [found.at(row) for row in rows]
    assert [piece and piece.read() for piece in pieces] == [VALUES[row] for row in rows]
    assert all(piece and piece.head(3) == VALUES[row][:3] for piece, row in zip(pieces, rows, strict=True))


def test_a_file_that_becomes_shorter_is_told(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(bytes(100))
    piece = pages.LocalFile(str(path)).piece(50, 50)
    assert piece is not None
    path.write_bytes(bytes(60))
    with pytest.raises(CurateError, match="has become shorter"):
        piece.read()
    assert pages.LocalFile(str(path)).piece(50, 50) is None


def test_footers_are_written_as_they_were_read() -> None:
    out = pa.BufferOutputStream()
    table = pa.table({"a": [1.5, 2, None], "b": ["x", "y", "z"], "c": [["q"], [], None], "d": [True, None, False]})
    pq.write_table(table, out, write_page_index=True)
    data = out.getvalue().to_pybytes()
    footer = data[-8 - int.from_bytes(data[-8:-4], "little") : -8]
    fields, end = thrift.read(footer)
    assert end == len(footer) and thrift.write(fields) == footer
    odd: thrift.Struct = {1: (thrift.I64, -(1 << 40)), 3: (thrift.TRUE, False), 40: (thrift.I32, 3)}
    odd |= {41: (thrift.LIST, (thrift.I32, list(range(-9, 9)))), 42: (thrift.DOUBLE, -0.5)}
    read, _ = thrift.read(thrift.write(odd))
    assert {number: value for number, (_, value) in read.items()} == {n: value for n, (_, value) in odd.items()}


def test_a_written_file_is_what_every_reader_reads(tmp_path: Path) -> None:
    """Row groups and pages of several sizes, an empty picture, one larger than a block, columns on both sides."""
    path, source = tmp_path / "out.parquet", tmp_path / "source"
    images = [*VALUES, b"", NOISE.bytes(BLOCK_BYTES * 2 + 7), b"x"]
    source.write_bytes(b"".join(images))
    file, at, pieces = pages.LocalFile(str(source)), 0, []
    for number, image in enumerate(images):
        lying = file.piece(at, len(image))
        assert lying is not None
        pieces.append(lying if number % 2 else pages.in_memory(image))
        at += len(image)
    count = len(images)
    table = pa.table(
        {
            "row_id": [f"part:{i}" for i in range(count)], "language": ["en"] * count,
            "captions": [[f"caption {i}"] * (i % 3) for i in range(count)],
            "score": pa.array([None if i % 4 else i / 7 for i in range(count)], pa.float64()),
        }
    )  # fmt: skip
    with Stream(path) as stream:
        offsets, sizes = parquet.write(stream, table, 1, [1, 60, count - 61], iter(pieces))
        digest, size = stream.close()
    data = path.read_bytes()
    assert blake3(data).hexdigest() == digest and len(data) == size
    assert [data[a : a + n] for a, n in zip(offsets.tolist(), sizes.tolist(), strict=True)] == images
    whole = table.add_column(1, pa.field("image", pa.binary(), nullable=False), pa.array(images, pa.binary()))
    assert pq.read_table(path).equals(whole)
    opened = pq.ParquetFile(path, page_checksum_verification=True)
    assert opened.schema_arrow.equals(whole.schema)
    assert [opened.metadata.row_group(i).num_rows for i in range(3)] == [1, 60, count - 61]
    assert opened.read_row_group(1, columns=["image"])["image"].to_pylist() == images[1:61]
    ends = [opened.metadata.row_group(i).column(j) for i in range(3) for j in range(5)]
    assert sum(chunk.total_compressed_size for chunk in ends) + 12 + opened.metadata.serialized_size == len(data)
    assert column(path) == [image or b"" for image in images]
    read = duckdb.sql(f"SELECT row_id, image, captions, score FROM '{path}' ORDER BY file_row_number").fetchall()
    assert [row[1] for row in read] == images and [row[3] for row in read] == table["score"].to_pylist()
    assert duckdb.sql(f"SELECT image FROM '{path}' WHERE row_id = 'part:70'").fetchall() == [(images[70],)]
    import datasets

    found = datasets.load_dataset("parquet", data_files=str(path), cache_dir=str(tmp_path / "cache"))["train"]
    assert found["image"] == images and found["captions"] == table["captions"].to_pylist()
