"""The rows of a store as arrays: what dedup compares, and what decides which copy is kept."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import duckdb
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from curate.dedup.forest import Ints
from curate.dedup.near import Words
from curate.dedup.turns import Looks
from curate.errors import CurateError, UsageError
from curate.policy import repeatable
from curate.store import Store
from curate.store.query import first_line

BATCH = 20_000
# The copy to keep: the first of these on which two copies differ. Columns that the store lacks are passed over.
PREFER = ("keep", "tier", "predicted_tier", "aesthetic", "width::BIGINT * height", "bytes")
# name, SQL of the bytes, how many of them
BLOBS = (("sha256", "left(sha256, 32)", 16), ("pixels", "pixels_hash", 16), ("pdq", "pdq", 32),
         ("centred", "pdq_centred", 32), ("look", "look", 27))  # fmt: skip


@dataclass(frozen=True)
class Embeddings:
    """Unit vectors (m, d) in half precision on disk; `of[i]` is the vector of row i, -1 without one."""

    vectors: npt.NDArray[np.float16]
    of: Ints


@dataclass(frozen=True)
class Rows:
    """Rows in the order of shard and row; every array has one entry for each. Hashes that are missing are zeros."""

    shard: pa.ChunkedArray
    row: Ints
    sha256: npt.NDArray[np.uint64]
    """(n, 2): half of it, which is plenty against accidents."""
    pixels: npt.NDArray[np.uint64]
    pdq: Words
    centred: Words
    look: Looks
    hashed: npt.NDArray[np.bool_]
    """Whether there is a PDQ hash."""
    quality: npt.NDArray[np.int32]
    prefer: npt.NDArray[np.float64]
    """(keys, n), smaller is better, in order of weight."""
    captions: pa.ChunkedArray
    """The raw captions that no quality check is against; null where they were not asked for."""
    embeddings: Embeddings | None

    def __len__(self) -> int:
        return len(self.row)

    def ids(self, rows: Ints) -> pa.Array:
        """row_id of some rows."""
        taken = pa.array(rows)
        numbers = pa.array(self.row[rows]).cast(pa.string())
        return pc.binary_join_element_wise(self.shard.take(taken).cast(pa.string()), numbers, ":")

    def best(self, rows: Ints) -> Ints:
        """`rows` with the one to keep first."""
        order = np.lexsort((rows, *self.prefer[::-1, rows]))
        return rows[order]


def read(store: Store, where: str, prefer: Sequence[str], captions: bool, embeddings: bool) -> Rows:
    """The rows of `samples` that fit the SQL condition `where` and have bytes; raises UsageError for wrong SQL."""
    db = store.connection()
    if "pixels_hash" not in _columns(db):  # an index of an older layout; its parts may know more
        store.ingest()
        db = store.connection()
    known = _columns(db)
    source = "samples"
    if "tier" not in known and _has_consensus(db):
        source = "samples LEFT JOIN (SELECT sha256, max(tier) AS tier FROM consensus GROUP BY sha256) USING (sha256)"
        known["tier"] = "INTEGER"
    orders = [_direction(text) for text in prefer or _present(known)]
    for sql, _ in orders:
        repeatable(sql, f"--prefer {sql!r}")
    chosen = repeatable(where, f"--where {where!r}") if where else "TRUE"
    usable = "caption_raw"
    if "caption_raw_reason" in known:
        usable = "CASE WHEN caption_raw_reason IS NULL THEN caption_raw END"
    columns = [
        "shard", "row", "coalesce(pdq_quality, 0)::INTEGER AS quality", "pdq IS NOT NULL AS hashed",
        "pdq_centred IS NULL OR look IS NULL AS old",
        *(f"coalesce(unhex({sql}), unhex(repeat('00', {width}))) AS {name}" for name, sql, width in BLOBS),
        *(f"TRY_CAST(({sql}\n) AS DOUBLE) AS prefer_{i}" for i, (sql, _) in enumerate(orders)),
        f"{usable if captions else 'NULL::VARCHAR'} AS caption",
    ]  # fmt: skip
    text = f"SELECT {', '.join(columns)} FROM {source} WHERE sha256 IS NOT NULL AND {chosen}"
    try:
        table = db.execute(text).to_arrow_reader(BATCH).read_all()
    except duckdb.Error as why:
        raise UsageError(f"--where or --prefer: {first_line(why)}") from None
    if pc.any(pc.and_(table["hashed"], table["old"])).as_py():
        raise CurateError(f"{store.uri}: hashed by an older version; run its recipe again: only `identity` is computed")
    rows = _rows(table, orders)
    return replace(rows, embeddings=_embeddings(store, rows)) if embeddings else rows


def _columns(db: duckdb.DuckDBPyConnection) -> dict[str, str]:
    """Names and types of the columns of `samples`."""
    return {row[0]: row[1] for row in db.execute("DESCRIBE samples").fetchall()}


def _present(known: dict[str, str]) -> list[str]:
    return [text for text in PREFER if set(re.findall(r"[a-z_]+", text)) - {"bigint"} <= set(known)]


def _direction(text: str) -> tuple[str, float]:
    """The expression and the sign that makes small values the better ones: the larger wins unless it ends in asc."""
    found = re.match(r"(?is)^(.*\S)\s+(asc|desc)\s*$", text)
    expression, way = found.groups() if found else (text, "desc")
    return expression, 1.0 if way.lower() == "asc" else -1.0


def _has_consensus(db: duckdb.DuckDBPyConnection) -> bool:
    found = db.execute(
        "SELECT column_name FROM information_schema.columns WHERE table_name = 'consensus' "
        "AND column_name IN ('sha256', 'tier')"
    ).fetchall()
    return len(found) == 2


def _embeddings(store: Store, rows: Rows) -> Embeddings | None:
    """The embeddings of the active version of operator `embed`, from its parts, in half precision on disk."""
    names = rows.shard.cast(pa.string()).combine_chunks()
    stretches = _stretches(names)
    of = np.full(len(rows), -1)
    width = total = 0
    with tempfile.TemporaryFile() as file:  # the mapping outlives it
        for table in store.cells("embed", ["embedding"]):
            first, stop = stretches.get(table["shard"][0].as_py() if len(table) else "", (0, 0))
            table = table.filter(pc.is_valid(table["embedding"]))
            wanted = table["row"].to_numpy()
            at = first + np.searchsorted(rows.row[first:stop], wanted)
            here = at < stop
            here[here] = rows.row[at[here]] == wanted[here]
            if here.any():
                flat = table["embedding"].filter(pa.array(here)).combine_chunks().flatten()
                vectors = _unit(flat.to_numpy(zero_copy_only=False), int(here.sum()), width)
                width = vectors.shape[1]
                of[at[here]] = total + np.arange(len(vectors))
                total += len(vectors)
                file.write(vectors.astype(np.float16).data)
        file.flush()
        return Embeddings(np.memmap(file, np.float16, "r", shape=(total, width)), of) if total else None


def _stretches(shards: pa.Array) -> dict[str, tuple[int, int]]:
    """Where each shard's rows begin and end."""
    if not len(shards):
        return {}
    ends = pc.run_end_encode(shards)
    stops = ends.run_ends.to_numpy().tolist()
    return dict(zip(ends.values.to_pylist(), zip([0, *stops], stops, strict=False), strict=True))


def _unit(flat: npt.NDArray[Any], rows: int, width: int) -> npt.NDArray[np.float32]:
    """The vectors of one shard at unit length, (rows, d)."""
    if len(flat) % rows or (width and len(flat) != rows * width) or not len(flat):
        raise CurateError("the embeddings of the store have different lengths; make them with one model")
    matrix = np.nan_to_num(flat.reshape(rows, -1).astype(np.float32), nan=0.0, posinf=0.0, neginf=0.0)
    unit: npt.NDArray[np.float32] = matrix / np.maximum(np.linalg.norm(matrix, axis=1, keepdims=True), 1e-12)
    return unit


def _rows(table: pa.Table, orders: list[tuple[str, float]]) -> Rows:
    shard = table["shard"].combine_chunks().dictionary_encode()
    names = np.array(shard.dictionary.to_pylist(), dtype=object)
    places = np.empty(len(names), np.int64)
    places[np.argsort(names)] = np.arange(len(names))
    row = table["row"].to_numpy().astype(np.int64)
    codes = places[shard.indices.to_numpy()] if len(names) else np.zeros(0, np.int64)
    order = np.lexsort((row, codes))
    taken = pa.array(order)
    blobs = {name: _fixed(table[name], width)[order] for name, _, width in BLOBS}
    prefer = [sign * table[f"prefer_{i}"].to_numpy()[order] for i, (_, sign) in enumerate(orders)]
    return Rows(
        pa.chunked_array([shard]).take(taken),
        row[order],
        blobs["sha256"].view(np.uint64),
        blobs["pixels"].view(np.uint64),
        blobs["pdq"].view(np.uint32),
        blobs["centred"].view(np.uint32),
        blobs["look"].reshape(-1, 3, 3, 3),
        np.asarray(table["hashed"])[order].astype(np.bool_),
        table["quality"].to_numpy()[order].astype(np.int32),
        np.nan_to_num(np.array(prefer).reshape(len(orders), -1), nan=np.inf),
        table["caption"].take(taken),
        None,
    )


def _fixed(column: pa.ChunkedArray, width: int) -> npt.NDArray[np.uint8]:
    """The bytes of a column of blobs of one width, (n, width)."""
    if not len(column):
        return np.zeros((0, width), np.uint8)
    array = column.cast(pa.binary(width)).combine_chunks()
    if isinstance(array, pa.ChunkedArray):
        array = array.chunk(0)
    data = np.frombuffer(array.buffers()[1], np.uint8)
    return data[array.offset * width : (array.offset + len(array)) * width].reshape(-1, width)
