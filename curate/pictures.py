"""The pictures of a store's rows: original bytes out of the source shards, and thumbnails of them.

    data = original(Store("demo/store"), "demo-00000:17")
    jpeg = thumbnail(data, 256)

The store holds references and no bytes: the table `shards` says where each shard lies, and the part of operator
`input` where in it a row's picture is. A shard that has moved is found again when the main job runs with the new
`input.uri`.
"""

from __future__ import annotations

import io
import tomllib
from collections.abc import Iterable
from dataclasses import fields

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from PIL import Image

from curate.errors import StoreError
from curate.read import InputError, InputSpec, Reader, Shard
from curate.store import Store
from curate.store.parts import Part, Version, parts_of, read_parts
from schemas.errors import RowError
from workers.picture import Limits, decode

JPEG_QUALITY = 78
PREVIEW_QUALITY = 90


def original(store: Store, row_id: str) -> bytes:
    """The original bytes of one row.

    Raises RowError when the row has none or its shard cannot be read any more, StoreError when there is no such row.
    """
    found = originals(store, [row_id])[row_id]
    if isinstance(found, RowError):
        raise found
    return found


def originals(store: Store, row_ids: Iterable[str]) -> dict[str, bytes | RowError]:
    """The original bytes of many rows, or why there are none; each shard is opened once and read in order.

    All of them are in memory at once: ask for as many as you can hold. Raises StoreError for an id that no row has.
    """
    wanted: dict[str, set[int]] = {}
    order = list(row_ids)
    for row_id in order:
        shard, row = _parsed(row_id)
        wanted.setdefault(shard, set()).add(row)
    if not wanted:
        return {}
    spec = _input_spec(store)
    shards = {
        name: Shard(name, uri, format, spec)
        for name, uri, format in store.rows(
            "SELECT shard, uri, format FROM shards WHERE shard IN (SELECT unnest($1))", [sorted(wanted)]
        )
    }
    marks = store.rows("SELECT fingerprint FROM operators WHERE operator = 'input' AND active")
    found: dict[str, bytes | RowError] = {}
    for name, rows in wanted.items():
        locators = _locators(store, marks[0][0], name, sorted(rows)) if marks else None
        missing = rows - set(locators["row"].to_pylist() if locators else ())
        if locators is None or missing:
            raise StoreError(f"{store.uri}: no row {name}:{min(missing)}; row_id of the view samples names them all")
        for row, data in zip(locators["row"].to_pylist(), _read(shards.get(name), name, locators), strict=True):
            found[f"{name}:{row}"] = data
    return {row_id: found["{}:{}".format(*_parsed(row_id))] for row_id in order}


def thumbnail(data: bytes, side_px: int, limits: Limits | None = None) -> bytes:
    """A small JPEG of the picture: upright, sRGB, on white, its longer side at most `side_px`; never enlarged.

    Raises RowError when `data` is no picture that decodes.
    """
    picture = decode(data, limits or Limits())
    pixels = picture.rgb_at(side_px) if max(picture.rgb.shape[:2]) > side_px else picture.rgb
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "JPEG", quality=JPEG_QUALITY, optimize=True, progressive=True)
    return out.getvalue()


def preview(data: bytes, side_px: int, limits: Limits | None = None) -> bytes:
    """As `thumbnail`, to be judged by: higher quality, and a baseline JPEG, which takes a tenth of the time to write."""
    picture = decode(data, limits or Limits())
    pixels = picture.rgb_at(side_px) if max(picture.rgb.shape[:2]) > side_px else picture.rgb
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "JPEG", quality=PREVIEW_QUALITY)
    return out.getvalue()


def _parsed(row_id: str) -> tuple[str, int]:
    shard, colon, row = row_id.rpartition(":")
    if not colon or not shard or not (row.isascii() and row.isdigit() and len(row) < 19):
        raise StoreError(f"{row_id!r} is no row_id; write it as shard:row, e.g. demo-00000:17")
    return shard, int(row)


def _input_spec(store: Store) -> InputSpec:
    """What the last run's recipe says under [input]."""
    runs = store.rows("SELECT recipe FROM runs ORDER BY run_id DESC LIMIT 1")
    keys = tomllib.loads(runs[0][0]).get("input", {}) if runs else {}
    names = {field.name for field in fields(InputSpec)}
    return InputSpec(**{"uri": "", **{key: value for key, value in keys.items() if key in names}})


def _locators(store: Store, mark: str, shard: str, rows: list[int]) -> pa.Table | None:
    """`row` and the `_` columns of the rows, sorted; None when the shard has no part."""
    version = Version("input", mark)
    try:
        parts = parts_of(store.files, version, shard)
        if not parts:
            return None
        names = [name for name in _names(store, parts[0]) if name.startswith("_")]
        table = read_parts(store.files, parts, ["row", *names])
    except (OSError, pa.ArrowException) as why:
        raise StoreError(f"{store.uri}: part of shard {shard}: {why}; see: curate store verify {store.uri}") from None
    return None if table is None else table.filter(pc.is_in(table["row"], pa.array(rows, pa.int64())))


def _names(store: Store, part: Part) -> list[str]:
    local = store.files.local(part.path)
    schema = pq.read_schema(str(local) if local else pa.BufferReader(store.files.read(part.path)))
    return list(schema.names)


def _read(shard: Shard | None, name: str, locators: pa.Table) -> list[bytes | RowError]:
    """Bytes of the rows, or for each why not; a shard that has gone is an error of all its rows."""
    if shard is None:
        gone = RowError("unreadable", f"shard {name} is not among the shards of the last run; its address is not known")
        return [gone] * locators.num_rows
    try:
        return Reader(shard).read(locators["row"].to_pylist(), locators)
    except InputError as why:
        return [RowError("unreadable", why.message)] * locators.num_rows
