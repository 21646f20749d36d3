"""The types of the input: what the recipe asks for, one shard, and what indexing a shard finds."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from schemas.columns import RESERVED, TEXT
from schemas.errors import SHARD_ERRORS

# What counts as a picture by its name. The last line are formats that curate refuses: as rows with an error they can
# be counted, as files passed over in silence they could not.
PICTURE_SUFFIXES = (
    "jpg", "jpeg", "jpe", "jfif", "png", "webp", "gif", "tif", "tiff", "bmp", "avif",
    "heic", "heif", "jxl", "jp2", "psd", "ico",
)  # fmt: skip
TEXT_SUFFIXES = ("txt", "caption", "text")

# Usual names of columns, the likeliest first. A column of strings is taken for paths only under PATH_NAMES:
# a string column `content` is prose more often than not.
IMAGE_NAMES = (
    "image", "jpg", "jpeg", "png", "webp", "img", "picture", "photo", "image_bytes", "img_bytes", "image_data", "bytes",
    "content", "data",
)  # fmt: skip
PATH_NAMES = (
    "image", "img", "jpg", "jpeg", "png", "webp", "image_path", "img_path", "image_file", "image_uri", "path",
    "file_path", "filepath", "file_name", "filename", "file", "uri",
)  # fmt: skip
URL_NAMES = ("url", "image_url", "img_url", "image_link", "link")
CAPTION_NAMES = ("caption", "text", "txt", "captions", "alt", "alt_text", "description", "prompt", "title")


class InputError(Exception):
    """A shard, or the input as a whole, cannot be read. `code` is one of schemas.errors.SHARD_ERRORS."""

    def __init__(self, code: str, message: str) -> None:
        if code not in SHARD_ERRORS:
            raise ValueError(f"{code!r} is not a shard error; add it to schemas/errors.py")
        super().__init__(message)
        self.code = code
        self.message = message

    def __reduce__(self) -> tuple[Any, ...]:
        return InputError, (self.code, self.message)


@dataclass(frozen=True)
class InputSpec:
    """What the recipe says under [input]; empty columns are found among the usual names."""

    uri: str
    format: str = "auto"
    image_column: str = ""
    caption_column: str = ""
    root: str = ""


@dataclass(frozen=True)
class Shard:
    """One input file, or one folder of pictures. `id` comes from the path relative to the input alone."""

    id: str
    uri: str
    format: str
    spec: InputSpec
    size: int = field(default=0, compare=False)
    """Bytes, as they were listed; 0 where nobody listed them. For plans only: it is no part of what the shard is."""


@dataclass(frozen=True)
class ShardIndex:
    """Everything of a shard but its pictures.

    `table` has one row per input row, in order: `caption_raw`, then private locators (names begin with `_`), then the
    input's own columns. `identity` changes when the shard's content does. `groups` are the first rows of the stretches
    that are best read as a whole (Parquet row groups; [0] elsewhere).
    """

    table: pa.Table
    identity: str
    image_column: str
    caption_column: str
    groups: tuple[int, ...] = (0,)


def pick(names: list[str], wanted: tuple[str, ...]) -> str:
    """The first of `wanted` among `names`, exactly or else without regard to case; empty when there is none."""
    for word in wanted:
        if word in names:
            return word
    folded = {name.casefold(): name for name in reversed(names)}
    return next((folded[word] for word in wanted if word in folded), "")


def queryable(kind: pa.DataType) -> pa.DataType:
    """The type that DuckDB reads in place of `kind`: float32 for half floats, text for decimals of over 38 digits."""
    if pa.types.is_float16(kind):
        return pa.float32()
    if pa.types.is_decimal256(kind):
        return TEXT
    if pa.types.is_fixed_size_list(kind):
        return pa.list_(queryable(kind.value_type), kind.list_size)
    if pa.types.is_large_list(kind):
        return pa.large_list(queryable(kind.value_type))
    if pa.types.is_list(kind):
        return pa.list_(queryable(kind.value_type))
    if pa.types.is_struct(kind):
        return pa.struct([field.with_type(queryable(field.type)) for field in kind])
    return kind


def assemble(captions: pa.Array | pa.ChunkedArray, locators: dict[str, pa.Array], own: pa.Table) -> pa.Table:
    """The index table. The input's own names give way, by the prefix `input_`, to ours, to `_` and to one another.

    DuckDB does not tell upper from lower case in names, so `Width` gives way as `width` does.
    """
    columns: dict[str, Any] = {"caption_raw": captions.cast(TEXT), **locators}
    taken = {name.casefold() for name in RESERVED} | set(columns)
    for name, column in zip(own.column_names, own.columns, strict=True):
        if (kind := queryable(column.type)) != column.type:
            column = column.cast(kind)
        while not name or name.startswith("_") or name.casefold() in taken:
            name = f"input_{name}"
        taken.add(name.casefold())
        columns[name] = column
    return pa.table(columns)
