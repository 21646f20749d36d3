"""Parquet shards: pictures in a binary column, in Hugging Face's struct {bytes, path}, or named by paths."""

from __future__ import annotations

import hashlib
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

import pyarrow as pa
import pyarrow.parquet as pq

from curate.errors import nearest
from curate.read.files import Place, RemoteFile, each, locate, picture, read, reason, reference
from curate.read.shards import (
    CAPTION_NAMES,
    IMAGE_NAMES,
    PATH_NAMES,
    URL_NAMES,
    InputError,
    InputSpec,
    Shard,
    ShardIndex,
    assemble,
    pick,
)
from schemas.columns import TEXT
from schemas.errors import RowError

# Rows that are in memory at once. Batches are counted from the start of their row group, so that which rows a damaged
# page costs does not depend on how the shard was cut into ranges.
BATCH_ROWS = 32
# Column chunks are read through a window of this size and not as a whole.
WINDOW_BYTES = 4 << 20


@dataclass(frozen=True)
class Columns:
    """Which columns hold what. `kind` of the image column: binary, struct or path."""

    image: str
    kind: str
    caption: str


def choose(schema: pa.Schema, spec: InputSpec, name: str) -> Columns:
    """The image and caption columns of a schema; InputError when there is none or the named one does not exist."""
    kinds = {field.name: image_kind(field.type) for field in schema}
    if spec.image_column:
        image = known(spec.image_column, "image", schema, name)
        if not kinds[image]:
            raise InputError(
                "no_image_column",
                f"{name}: input.image_column {image!r} is {schema.field(image).type}; it must be binary, "
                "struct<bytes, path> or a string with paths",
            )
    else:
        image = pick([n for n, kind in kinds.items() if kind in ("binary", "struct")], IMAGE_NAMES)
        image = image or pick([n for n, kind in kinds.items() if kind == "path"], PATH_NAMES)
        pictures = [n for n, kind in kinds.items() if kind in ("binary", "struct")]
        image = image or (pictures[0] if len(pictures) == 1 else "")
    if not image:
        hint = "; name it with input.image_column"
        if url := pick([n for n, kind in kinds.items() if kind == "path"], URL_NAMES):
            hint = f"; column {url!r} holds web addresses: download the pictures first, for instance with img2dataset"
        raise InputError("no_image_column", f"{name}: no column holds pictures ({', '.join(schema.names)}){hint}")
    if spec.caption_column:
        caption = known(spec.caption_column, "caption", schema, name)
        if not (is_text(schema.field(caption).type) or is_texts(schema.field(caption).type)):
            raise InputError(
                "shard_unreadable",
                f"{name}: input.caption_column {caption!r} is {schema.field(caption).type}; it must hold strings",
            )
    else:
        caption = pick([f.name for f in schema if is_text(f.type) and f.name != image], CAPTION_NAMES)
        caption = caption or pick([f.name for f in schema if is_texts(f.type)], CAPTION_NAMES)
    return Columns(image, kinds[image], caption)


def known(column: str, what: str, schema: pa.Schema, name: str) -> str:
    """The column, when the schema has it once."""
    if schema.get_field_index(column) < 0:
        code = "no_image_column" if what == "image" else "shard_unreadable"
        raise InputError(code, f"{name}: no column {column!r} (input.{what}_column){nearest(column, schema.names)}")
    return column


def image_kind(type: pa.DataType) -> str:
    """How a column of this type could hold pictures: binary, struct, path, or not at all."""
    if isinstance(type, pa.BaseExtensionType):
        type = type.storage_type
    if pa.types.is_dictionary(type):
        type = type.value_type
    if pa.types.is_binary(type) or pa.types.is_large_binary(type) or pa.types.is_binary_view(type):
        return "binary"
    if pa.types.is_struct(type) and (at := type.get_field_index("bytes")) >= 0:
        return "struct" if image_kind(type.field(at).type) == "binary" else ""
    return "path" if is_text(type) else ""


def is_text(type: pa.DataType) -> bool:
    """Whether a column of this type holds one string a row."""
    if pa.types.is_dictionary(type):
        type = type.value_type
    return bool(pa.types.is_string(type) or pa.types.is_large_string(type) or pa.types.is_string_view(type))


def is_texts(type: pa.DataType) -> bool:
    """Whether a column of this type holds a list of strings a row (COCO and Flickr30k have five captions)."""
    return bool((pa.types.is_list(type) or pa.types.is_large_list(type)) and is_text(type.value_type))


def open_file(place: Place) -> pq.ParquetFile:
    """The opened file, read through a window: a row group is never in memory as a whole, its largest page is.

    Not memory-mapped: over a row group of 10,000 pictures (1 GB) that peaked at 1.4 GB resident instead of 0.45 GB
    (snappy; 1.3 instead of 0.6 GB uncompressed), for 1.5 instead of 1.3 GB/s, and a file that becomes shorter would
    kill the worker.
    """
    source = place.path if place.local else RemoteFile(place)
    return pq.ParquetFile(source, buffer_size=WINDOW_BYTES, pre_buffer=False, page_checksum_verification=True)


def opened(shard: Shard) -> tuple[Place, pq.ParquetFile, Columns]:
    """Place, file and columns of a shard; InputError with the file's name and the reason when it is not readable."""
    place = locate(shard.uri)
    try:
        file = open_file(place)
        schema = file.schema_arrow
    except (OSError, pa.ArrowException) as failure:
        raise InputError("shard_unreadable", f"{place.uri}: no readable Parquet file: {reason(failure)}") from failure
    return place, file, choose(schema, shard.spec, place.uri)


def starts(file: pq.ParquetFile) -> list[int]:
    """First row of each row group, then the number of rows."""
    meta = file.metadata
    return list(accumulate((meta.row_group(g).num_rows for g in range(meta.num_row_groups)), initial=0))


def index(shard: Shard) -> ShardIndex:
    """Captions, paths and the other columns of a Parquet shard, and a hash of its size and footer."""
    place, file, columns = opened(shard)
    first = starts(file)
    table, damage = other_columns(file, columns)
    table = valid(table, place.uri)
    captions: pa.Array | pa.ChunkedArray = pa.nulls(table.num_rows, TEXT)
    if columns.caption:
        captions = table.column(columns.caption)
        if is_texts(captions.type):
            captions = pa.array([next((t for t in texts or () if t), None) for texts in captions.to_pylist()], TEXT)
        else:
            table = table.drop_columns([columns.caption])
    locators: dict[str, pa.Array] = {}
    if columns.kind == "path":
        locators["_path"] = table.column(columns.image).cast(TEXT)
    if damage:
        messages = [damage.get(g) for g in range(len(first) - 1) for _ in range(first[g + 1] - first[g])]
        locators["_error"] = pa.array([m and "unreadable" for m in messages], TEXT)
        locators["_message"] = pa.array(messages, TEXT)
    groups = tuple(a for a, b in pairwise(first) if a < b)
    return ShardIndex(
        assemble(captions, locators, table), footer_hash(place), columns.image, columns.caption, groups or (0,)
    )


def other_columns(file: pq.ParquetFile, columns: Columns) -> tuple[pa.Table, dict[int, str]]:
    """Every column but the picture bytes, and for each damaged row group what is damaged (its cells are null).

    Of Hugging Face's struct the other fields stay, mostly `path`.
    """
    schema = file.schema_arrow
    leaves = {name: [name] for name in schema.names}
    if columns.kind == "binary":
        leaves[columns.image] = []
    elif columns.kind == "struct":
        fields = schema.field(columns.image).type
        leaves[columns.image] = [f"{columns.image}.{f.name}" for f in fields if f.name != "bytes"]
    names = [leaf for column in leaves.values() for leaf in column]
    try:
        return file.read(columns=names, use_threads=False), {}
    except (OSError, pa.ArrowException):
        parts, damage = [], {}
    wanted = file.read_row_groups([], columns=names).schema
    nullable = pa.schema([field.with_nullable(True) for field in wanted])
    for group in range(file.metadata.num_row_groups):
        rows = file.metadata.row_group(group).num_rows
        cells = []
        for field in wanted:
            try:
                cells.append(file.read_row_group(group, columns=leaves[field.name], use_threads=False).column(0))
            except (OSError, pa.ArrowException) as failure:
                cells.append(pa.chunked_array([pa.nulls(rows, field.type)]))
                damage[group] = f"row group {group}, column {field.name!r}: {reason(failure)}"
        parts.append(pa.table(cells, schema=nullable))
    return pa.concat_tables(parts), damage


def valid(table: pa.Table, name: str) -> pa.Table:
    """The table with wrong UTF-8 in its text columns shown as U+FFFD: Parquet does not check, DuckDB refuses it."""
    for at, (field, column) in enumerate(zip(table.schema, table.columns, strict=True)):
        try:
            column.validate(full=True)
        except pa.ArrowInvalid as failure:
            if not is_text(field.type) or pa.types.is_dictionary(field.type):
                raise InputError("shard_unreadable", f"{name}: column {field.name!r}: {reason(failure)}") from failure
            raw = column.cast(pa.large_binary()).to_pylist()
            text = pa.array([value and value.decode("utf-8", "replace") for value in raw], field.type)
            table = table.set_column(at, field, text)
    return table


def footer_hash(place: Place) -> str:
    """A short hash of the file's size and footer: row groups, statistics and the length of every column chunk."""
    size = place.fs.get_file_info(place.path).size
    tail = read(place, size - 8, 8)
    footer = read(place, size - 8 - int.from_bytes(tail[:4], "little"))
    return hashlib.sha256(str(size).encode() + footer).hexdigest()[:16]


class ParquetReader:
    """Pictures of one Parquet shard. Ascending rows continue one pass over each row group."""

    def __init__(self, shard: Shard) -> None:
        self.place, self.file, self.columns = opened(shard)
        self.root = locate(shard.spec.root) if shard.spec.root else self.place.parent
        self.starts = starts(self.file)
        self.group = -1
        self.stream: Iterator[pa.RecordBatch] = iter(())
        self.first = 0  # row of the shard at which `batch` begins
        self.batch: pa.Array = pa.array([])
        self.failure = ""

    def read(self, rows: Sequence[int], locators: pa.Table) -> list[bytes | RowError]:
        """Bytes of the rows (ascending), or why there are none."""
        if self.columns.kind == "path":
            return each(self.root, self.follow, locators.column("_path").to_pylist())
        return [self.cell(row) for row in rows]

    def follow(self, path: str | None) -> bytes | RowError:
        """Bytes of the file that a path names."""
        if not path:
            return RowError("empty", f"column {self.columns.image!r} is null")
        try:
            return picture(reference(self.root, path))
        except RowError as failure:
            return failure

    def cell(self, row: int) -> bytes | RowError:
        """Bytes of one cell of the image column."""
        group = bisect_right(self.starts, row) - 1
        if group != self.group or row < self.first:
            self.enter(group)
        while row >= self.first + len(self.batch):
            if self.failure or not self.advance():
                return RowError("unreadable", f"row group {group}: {self.failure}")
        value = self.batch[row - self.first].as_py()
        if self.columns.kind == "struct" and value is not None:
            value, path = value["bytes"], value.get("path")
            if value is None and path:
                return self.follow(path)
        return value or RowError("empty", f"column {self.columns.image!r} is {'null' if value is None else 'empty'}")

    def enter(self, group: int) -> None:
        """Begin a row group at its first row."""
        self.group, self.first, self.batch, self.failure = group, self.starts[group], pa.array([]), ""
        names = [self.columns.image]
        if self.columns.kind == "struct":
            kept = {f.name for f in self.file.schema_arrow.field(self.columns.image).type} & {"bytes", "path"}
            names = [f"{self.columns.image}.{name}" for name in sorted(kept)]
        self.stream = self.file.iter_batches(BATCH_ROWS, row_groups=[group], columns=names, use_threads=False)

    def advance(self) -> bool:
        """Read the next batch of the row group; False, with `failure` set, when the group's data is damaged."""
        try:
            batch = next(self.stream).column(self.columns.image)
        except StopIteration:
            self.failure = "ends before its last row"
        except (OSError, pa.ArrowException) as failure:
            self.failure = reason(failure)
        else:
            self.first += len(self.batch)
            self.batch = batch
            return True
        return False
