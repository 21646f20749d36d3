"""The pictures of a store's rows: original bytes out of the source shards, and thumbnails of them.

    data = original(Store("demo/store"), "demo-00000:17")
    jpeg = thumbnail(data, 256)

The store holds references and no bytes: the table `shards` says where each shard lies, and the part of operator
`input` where in it a row's picture is. A shard that has moved is found again when the main job runs with the new
`input.uri`.
"""

from __future__ import annotations

import functools
import io
import threading
import tomllib
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import fields

import pyarrow as pa
import pyarrow.compute as pc
from PIL import Image

from curate.errors import StoreError
from curate.read import InputError, InputSpec, Reader, Shard
from curate.store import Store
from curate.store.parts import Part, Version, parts_of, read_parts, read_table
from schemas.errors import RowError
from workers.picture import DECODERS, ORIENTATION, Limits, decode, sniff

JPEG_QUALITY = 78
PREVIEW_QUALITY = 90
PREVIEW_SLACK = 1.1  # larger by less than this is not worth a resampling
PREVIEW_BYTES = 1 << 20
KEPT_SHARDS = 16  # whose locators are remembered: some 20 bytes a row


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


def preview(data: bytes, side_px: int, limits: Limits | None = None) -> tuple[bytes, str]:
    """A picture to be judged by, with its media type: the file itself when a browser shows it as it is.

    That is a JPEG or WebP of about `side_px` that is upright, has no colour profile and is no animation. Anything else
    becomes a JPEG as in `thumbnail`, of higher quality, and baseline, which takes a tenth of the time to write.
    """
    kind = sniff(data)
    if kind in ("JPEG", "WEBP") and len(data) <= PREVIEW_BYTES and _as_it_is(data, kind, side_px):
        return data, f"image/{kind.lower()}"
    picture = decode(data, limits or Limits())
    pixels = picture.rgb_at(side_px) if max(picture.rgb.shape[:2]) > side_px * PREVIEW_SLACK else picture.rgb
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "JPEG", quality=PREVIEW_QUALITY)
    return out.getvalue(), "image/jpeg"


def _as_it_is(data: bytes, kind: str, side_px: int) -> bool:
    try:
        with DECODERS[kind](io.BytesIO(data)) as image:
            return (
                max(image.size) <= side_px * PREVIEW_SLACK
                and image.mode in ("RGB", "L")
                and "icc_profile" not in image.info
                and getattr(image, "n_frames", 1) == 1
                and image.getexif().get(ORIENTATION, 1) == 1
            )
    except (OSError, ValueError, SyntaxError, KeyError):
        return False


def _parsed(row_id: str) -> tuple[str, int]:
    shard, colon, row = row_id.rpartition(":")
    if not colon or not shard or not (row.isascii() and row.isdigit() and len(row) < 19):
        raise StoreError(f"{row_id!r} is no row_id; write it as shard:row, e.g. demo-00000:17")
    return shard, int(row)


def _input_spec(store: Store) -> InputSpec:
    """What the last run's recipe says under [input]."""
    runs = store.rows("SELECT recipe FROM runs ORDER BY run_id DESC LIMIT 1")
    return _input_of(runs[0][0]) if runs else InputSpec(uri="")


@functools.lru_cache(maxsize=8)
def _input_of(recipe: str) -> InputSpec:
    keys = tomllib.loads(recipe).get("input", {})
    names = {field.name for field in fields(InputSpec)}
    return InputSpec(**{"uri": "", **{key: value for key, value in keys.items() if key in names}})


def _locators(store: Store, mark: str, shard: str, rows: list[int]) -> pa.Table | None:
    """`row` and the `_` columns of the rows, sorted; None when the shard has no part."""
    try:
        parts = parts_of(store.files, Version("input", mark), shard)
        table = _all_locators(store, tuple(parts)) if parts else None
    except (OSError, pa.ArrowException) as why:
        raise StoreError(f"{store.uri}: part of shard {shard}: {why}; see: curate store verify {store.uri}") from None
    return None if table is None else table.filter(pc.is_in(table["row"], pa.array(rows, pa.int64())))


_kept: OrderedDict[tuple[str, tuple[Part, ...], int], pa.Table] = OrderedDict()
_lock = threading.Lock()


def _all_locators(store: Store, parts: tuple[Part, ...]) -> pa.Table | None:
    """`row` and the `_` columns of a shard; remembered: parts do not change (but a forgotten shard has new ones)."""
    local = store.files.local(parts[0].path)
    key = store.uri, parts, local.stat().st_mtime_ns if local and local.exists() else 0
    with _lock:
        if key in _kept:
            _kept.move_to_end(key)
            return _kept[key]
    names = [name for name in _names(store, parts[0]) if name.startswith("_")]
    table = read_parts(store.files, list(parts), ["row", *names])
    with _lock:
        if table is not None:
            _kept[key] = table
        while len(_kept) > KEPT_SHARDS:
            _kept.popitem(last=False)
    return table


def _names(store: Store, part: Part) -> list[str]:
    return list(read_table(store.files, part.path, []).schema.names)


def _read(shard: Shard | None, name: str, locators: pa.Table) -> list[bytes | RowError]:
    """Bytes of the rows, or for each why not; a shard that has gone is an error of all its rows."""
    if shard is None:
        gone = RowError("unreadable", f"shard {name} is not among the shards of the last run; its address is not known")
        return [gone] * locators.num_rows
    try:
        return Reader(shard).read(locators["row"].to_pylist(), locators)
    except InputError as why:
        return [RowError("unreadable", why.message)] * locators.num_rows
