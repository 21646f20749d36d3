"""Captions and metadata that lie beside a picture, in .txt and .json files, as columns."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from curate.errors import nearest
from curate.read.shards import CAPTION_NAMES, TEXT_SUFFIXES, InputError, InputSpec, pick
from schemas.columns import TEXT

INT64 = range(-(1 << 63), 1 << 63)


def decode_text(data: bytes) -> str | None:
    """The text of a .txt file without white space around it; None when nothing is left. Wrong UTF-8 shows as U+FFFD."""
    return data.decode("utf-8-sig", "replace").strip() or None


def decode_json(data: bytes) -> dict[str, Any]:
    """The top-level keys of a .json file; anything but an object stands under the key `json`. Raises ValueError."""
    try:
        value = json.loads(data.decode("utf-8-sig"))
    except RecursionError as failure:
        raise ValueError("nested too deeply") from failure
    return value if isinstance(value, dict) else {"json": value}


def clean(text: str) -> str:
    """Text that Arrow can hold: half surrogate pairs (legal in JSON, no UTF-8) become question marks."""
    return text.encode("utf-8", "replace").decode("utf-8")


def column(values: Sequence[Any]) -> pa.Array:
    """Scalars as Arrow infers them when all are of one kind; anything else as JSON text."""
    kinds = {type(value) for value in values if value is not None}
    if kinds == {bool}:
        return pa.array(values, pa.bool_())
    if kinds == {int} and all(value is None or value in INT64 for value in values):
        return pa.array(values, pa.int64())
    if kinds and kinds <= {int, float}:
        return pa.array([None if value is None else float(value) for value in values], pa.float64())
    return pa.array([as_text(value) for value in values], TEXT)


def as_text(value: Any) -> str | None:
    """A string as it is, everything else as JSON."""
    if value is None:
        return None
    return clean(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))


def columns(name: str, first: pa.Array, metadata: Sequence[dict[str, Any]]) -> pa.Table:
    """The column `first`, then one for each key of any row, in the order of first appearance.

    img2dataset repeats the key of a sample in its metadata: a key that says the same as `first` is left out.
    """
    keys = dict.fromkeys(key for row in metadata for key in row)
    found = [(clean(key), column([row.get(key) for row in metadata])) for key in keys]
    found = [(name, first), *(pair for pair in found if pair[0] != name or not pair[1].equals(first))]
    return pa.Table.from_arrays([array for _, array in found], names=[key for key, _ in found])


def captions(
    texts: Sequence[str | None], metadata: Sequence[dict[str, Any]], spec: InputSpec, name: str
) -> tuple[pa.Array, str]:
    """Each row's caption and where it comes from: the .txt, or else the usual key of the .json, or the named key."""
    keys = list(dict.fromkeys(key for row in metadata for key in row))
    wanted = spec.caption_column
    if wanted in TEXT_SUFFIXES and wanted not in keys:
        wanted = "txt"
    if metadata and wanted not in ("", "txt", *keys):
        hint = nearest(wanted, [*keys, "txt"])
        raise InputError("shard_unreadable", f"{name}: no metadata key {wanted!r} (input.caption_column){hint}")
    key = wanted or pick(keys, CAPTION_NAMES)
    named = [row.get(key) for row in metadata]
    found = [value if isinstance(value, str) and value.strip() else None for value in named]
    if wanted == "txt" or not wanted:
        found = [text or value for text, value in zip(texts, found, strict=True)]
    source = "txt" if wanted in ("", "txt") and any(texts) else key
    return pa.array([value and clean(value) for value in found], TEXT), source
