"""README.md of a release: a dataset card that `datasets.load_dataset(DIR)` and people read."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pyarrow as pa

from curate.store.files import Files
from curate.store.parts import read_table

NAME = "README.md"
LOADERS = {"parquet": ("parquet", "*.parquet"), "webdataset": ("webdataset", "*.tar"), "folder": ("imagefolder", "**")}


def card(manifest: Mapping[str, Any], schema: pa.Schema | None) -> str:
    """Which files are which split, what was achieved, and under which licences.

    With the `schema` of Parquet shards it also says that `image` holds pictures, which the plain binary column does
    not tell.
    """
    settings = manifest["settings"]
    lines = ["---", "configs:", "- config_name: default", "  data_files:"]
    for split in manifest["splits"]:
        lines += [f"  - split: {split}", f"    path: {split}/{LOADERS[settings['format']][1]}"]
    # Specs of rendered text are no pictures, which only MixDataset knows.
    features = [_feature(field) for field in schema] if schema and not settings.get("keep_specs") else []
    if features and all(features):
        lines += ["dataset_info:", "  features:", *(line for feature in features for line in feature)]
    lines += ["---", "", "# Training set", "", "Made by `curate mix`; `curate mix verify DIR` proves it.", ""]
    lines += ["| split | epoch | entries | raw share | raw only | synthetic only |", "|---|---|---|---|---|---|"]
    for split, found in manifest["splits"].items():
        for epoch, got in found["achieved"].items():
            share = "none" if got["raw_share"] is None else f"{got['raw_share']:.4f}"
            lines.append(
                f"| {split} | {epoch} | {got['entries']} | {share} | {got['fallback_raw']} "
                f"| {got['fallback_synthetic']} |"
            )
    lines += ["", f"Raw share is over entries with both kinds of captions; asked: {settings['ratio']:g}.", ""]
    if manifest["licences"]:
        lines += ["| for | what | licence |", "|---|---|---|"]
        lines += [f"| {m['for']} | {m['name']} | {m['licence']} |" for m in manifest["licences"]]
    lines += ["", f"Release {manifest['tree']}", ""]
    return "\n".join(lines)


def schema(files: Files, manifest: Mapping[str, Any]) -> pa.Schema | None:
    """The columns of the first Parquet shard; None for other layouts."""
    shard = min((p for p in manifest["files"] if p.startswith("train/") and p.endswith(".parquet")), default=None)
    return read_table(files, shard, []).schema if shard else None


def _feature(field: pa.Field) -> list[str]:
    """The lines of one column in the words of `datasets`; none for a type that it has no plain word for."""
    kind, word = field.type, "dtype"
    if pa.types.is_list(kind):
        kind, word = kind.value_type, "list"
    name = "image" if field.name == "image" else {"float": "float32", "double": "float64"}.get(str(kind), str(kind))
    plain = pa.types.is_primitive(kind) or pa.types.is_string(kind) or name == "image"
    return [f"  - name: {field.name}", f"    {word}: {name}"] if plain else []
