"""Losses of rows back into the store: operator `loss`, so that SQL can ask which filter let the hard rows in.

    curate sql STORE "select drop_reason, avg(train_loss), avg(train_caption_gain) from samples group by all"

A picture that is hard under its caption and as easy without it has a caption that says nothing of it; the difference of
the two errors is a pointwise estimate of what caption and picture share (Kong et al. 2023, "Information-theoretic
diffusion").
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from curate.store.derived import publish as publish_derived
from curate.store.files import open_files
from curate.train.evaluate import KINDS, SCHEMA
from curate.train.recipe import Recipe, fingerprint


def columns(losses: pa.Table, run: str) -> pa.Table:
    """Rows of operator `loss` from the losses of evaluate.measure; a row that appears twice counts once."""
    kept = losses.group_by(["row_id", "split", "caption"]).aggregate([("loss", "mean")])
    found: dict[str, dict[str, Any]] = {}
    for row_id, split, caption, loss in zip(*(kept[name].to_pylist() for name in kept.column_names), strict=True):
        shard, _, row = row_id.rpartition(":")
        line = found.setdefault(row_id, {"shard": shard, "row": int(row), "train_split": split, "train_run": run})
        line[f"train_loss_{caption}"] = loss
    for line in found.values():
        captioned = [line[f"train_loss_{kind}"] for kind in KINDS[:3] if f"train_loss_{kind}" in line]
        line["train_loss"] = captioned[0] if captioned else line.get("train_loss_none")
        if captioned and line.get("train_loss_none"):
            line["train_caption_gain"] = 1 - captioned[0] / line["train_loss_none"]
    reals = ["train_loss", *(f"train_loss_{kind}" for kind in KINDS), "train_caption_gain"]
    schema = pa.schema(
        [("shard", pa.string()), ("row", pa.int64())]
        + [(name, pa.float32()) for name in reals]
        + [("train_split", pa.string()), ("train_run", pa.string())]
    )
    return pa.Table.from_pylist([found[row_id] for row_id in sorted(found)], schema=schema)


def publish(wanted: Recipe, folder: Path, step: int) -> str:
    """Write the losses in the files of `folder` to data.store; the fingerprint of what was written."""
    name = f"{wanted.folder.name}@{step}"
    parts = [columns(pq.read_table(path, schema=SCHEMA), name) for path in sorted(folder.glob("*.parquet"))]
    table = pa.concat_tables(parts)  # a row has its place in one split; copies of it lie in several files
    first = (
        table.append_column("at", pa.array(range(table.num_rows))).group_by(["shard", "row"]).aggregate([("at", "min")])
    )
    table = table.take(first["at_min"].combine_chunks().sort()).sort_by([("shard", "ascending"), ("row", "ascending")])
    facts = {"run": wanted.folder.name, "step": step, "recipe": fingerprint(wanted), "phase": wanted.phases[-1].name}
    return publish_derived(open_files(wanted.data.store), "loss", facts, table).fingerprint
