"""README.md of a release: a dataset card that `datasets.load_dataset(DIR)` and people read."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

LOADERS = {"parquet": ("parquet", "*.parquet"), "webdataset": ("webdataset", "*.tar"), "folder": ("imagefolder", "**")}


def card(manifest: Mapping[str, Any]) -> str:
    """Which files are which split, what was achieved, and under which licences."""
    settings = manifest["settings"]
    lines = ["---", "configs:", "- config_name: default", "  data_files:"]
    for split in manifest["splits"]:
        lines += [f"  - split: {split}", f"    path: {split}/{LOADERS[settings['format']][1]}"]
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
