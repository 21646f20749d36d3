"""A real store in a blink: parts written as the main job writes them, with captions and groups that a test chooses."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from curate.read import InputSpec, discover, index
from curate.recipe import Input, Recipe, StoreAt, to_toml
from curate.store.files import LocalFiles
from curate.store.parts import Version, publish
from schemas.columns import part_schema

PATH = ("input", "size", "identity", "caption", "translate", "quality")
VERSIONS = {op: Version(op, f"{i:016x}") for i, op in enumerate((*PATH, "dedup", "balance"))}


@dataclass(frozen=True)
class Row:
    """One row: seed and size of its picture, its captions, and what derived operators say of it."""

    seed: int = 0
    size: tuple[int, int] = (64, 64)
    raw: str | None = "a raw caption"
    en: str | None = "a synthetic caption"
    zh: str | None = "合成的描述"
    concept: str = "other"
    group: int | None = None
    """Rows with the same number are copies of each other; all are kept."""
    weight: float | None = None
    """Of `balance`; 0: not kept."""
    bad: str = ""
    """Language of the synthetic caption, or `raw`, that a quality check gives a reason against."""
    seen: bool = True
    """Whether `dedup` has judged the row; one that came later has not."""
    pooled: tuple[str, ...] = ()
    """Raw captions that `dedup --pool-captions` gathered at the row."""


@lru_cache(maxsize=4096)
def picture(seed: int, size: tuple[int, int]) -> bytes:
    """A JPEG of one colour with a noisy edge, its own for every seed."""
    noise = np.random.default_rng(seed)
    pixels = np.full((size[1], size[0], 3), noise.integers(0, 256, 3), np.uint8)
    pixels[:8] = noise.integers(0, 256, (8, size[0], 3))
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "JPEG", quality=90)
    return out.getvalue()


def make(
    folder: Path, shards: Sequence[Sequence[Row]], drawn: Callable[[Row], bytes | None] = lambda row: None
) -> Path:
    """Write shards of these rows and the store of a run over them; returns the store's folder.

    `drawn` may give the bytes of a row's picture; None: `picture`.
    """

    def image(row: Row) -> bytes:
        return drawn(row) or picture(row.seed, row.size)

    (folder / "shards").mkdir(parents=True)
    for number, rows in enumerate(shards):
        table = pa.table(
            {
                "image": pa.array([image(row) for row in rows], pa.binary()),
                "caption": pa.array([row.raw for row in rows], pa.string()),
            }
        )
        pq.write_table(table, folder / "shards" / f"part-{number:03d}.parquet", row_group_size=7)
    files = LocalFiles(folder / "store")
    spec = InputSpec(str(folder / "shards"))
    found = discover(spec)
    for shard, rows in zip(found, shards, strict=True):
        indexed = index(shard)
        table = indexed.table.replace_schema_metadata({"shard_identity": indexed.identity})
        publish_rows(files, shard.id, rows, table, [image(row) for row in rows])
    for operator in ("dedup", "balance"):  # as curate.store.derived.publish, which would update the index each time
        files.replace(f"derived/{operator}.json", json.dumps({"fingerprint": VERSIONS[operator].fingerprint}).encode())
    record = {
        "run_id": "20260101T000000",
        "started": "2026-01-01T00:00:00+00:00",
        "state": "finished",
        "recipe": to_toml(dataclasses.replace(Recipe(), input=Input(spec.uri), store=StoreAt(files.uri))),
        "versions": [{"operator": op, "fingerprint": VERSIONS[op].fingerprint} for op in PATH],
        "shards": [{"shard": s.id, "uri": s.uri, "format": s.format} for s in found],
        "predicates": [],
    }
    files.replace(f"runs/{record['run_id']}/run.json", json.dumps(record).encode())
    return folder / "store"


def publish_rows(
    files: LocalFiles, shard: str, rows: Sequence[Row], indexed: pa.Table, images: Sequence[bytes] = ()
) -> None:
    """The parts of one shard."""
    count = len(rows)
    images = images or [picture(row.seed, row.size) for row in rows]
    columns = {
        "size": {
            "bytes": [len(data) for data in images],
            "width": [row.size[0] for row in rows],
            "height": [row.size[1] for row in rows],
        },
        "identity": {"sha256": [hashlib.sha256(data).hexdigest() for data in images]},
        "caption": {"caption_en": [row.en for row in rows]},
        "translate": {"caption_zh": [row.zh for row in rows]},
        "quality": {
            f"caption_{kind}_reason": ["repetition" if row.bad == kind else None for row in rows]
            for kind in ("raw", "en", "zh")
        },
        "dedup": {
            "dedup_group": [
                None if not r.seen else f"{shard}:{i}" if r.group is None else f"group {r.group}"
                for i, r in enumerate(rows)
            ],
            "dedup_keep": [True if row.seen else None for row in rows],
            "dedup_size": [1 if row.group is None else 2 for row in rows],
            "dedup_captions": [list(row.pooled) or None for row in rows],
        },
        "balance": {
            "concept": [row.concept for row in rows],
            "balance_weight": [row.weight for row in rows],
            "balance_keep": [None if row.weight is None else row.weight > 0 for row in rows],
        },
    }
    fixed = {"shard": pa.array([shard] * count), "row": pa.array(range(count), pa.int64())}
    for operator, version in VERSIONS.items():
        described = {"operator": operator, "fingerprint": version.fingerprint, "facts": {}}
        files.create(f"{version.folder}/operator.json", json.dumps(described).encode())
        if operator == "input":
            empty = {"error": pa.nulls(count, pa.string()), "message": pa.nulls(count, pa.string())}
            own = dict(zip(indexed.column_names, indexed.columns, strict=True))
            part = pa.table({**fixed, **own, **empty}).replace_schema_metadata(indexed.schema.metadata)
            publish(files, version, shard, part)
            continue
        schema = part_schema(operator)
        values = [
            fixed[f.name]
            if f.name in fixed
            else pa.array(columns[operator][f.name], f.type)
            if f.name in columns[operator]
            else pa.nulls(count, f.type)
            for f in schema
        ]
        publish(files, version, shard, pa.Table.from_arrays(values, schema=schema))
