"""manifest.json: what was asked of a release, what was achieved, and the hash of every file.

    files     path -> sha256, bytes, rows           of every shard and index
    tree      SHA-256 over the sorted lines `sha256  path` of `files`: one hash that stands for the whole release

Counts and ratios are sums over the entries of all shards; `curate mix verify` computes all of it again from the files.
"""

from __future__ import annotations

import hashlib
import json
import tomllib
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from typing import Any

from curate.errors import CurateError
from curate.mix.plan import Plan
from curate.mix.shards import Receipt
from curate.models import known
from curate.store.files import Files
from curate.synth.words import FLOOR

NAME = "manifest.json"
# What a loader needs to draw the specs of rendered text (--keep-specs), in a folder of the release.
SPECS = "specs"
WORLD = ("manifest.json", "synth.toml", "lexicon.tsv", "photographs.arrow")
# Licences of engines that need no weights, or bring them in their package.
EMBEDDED = {
    "facts": "Apache-2.0 (part of curate)",
    "photometric": "Apache-2.0 (part of curate)",
    "keywords": "Apache-2.0 (part of curate)",
    "haar": "Apache-2.0 (OpenCV)",
    "rapidocr": "Apache-2.0 (PP-OCRv6 weights in its wheel)",
}


def tree(files: Mapping[str, Mapping[str, Any]]) -> str:
    """The hash of the release."""
    lines = "".join(f"{files[path]['sha256']}  {path}\n" for path in sorted(files))
    return hashlib.sha256(lines.encode()).hexdigest()


def achieved(counts: Iterable[list[Any]]) -> dict[str, Any]:
    """Entries and shares of the rows [pool, bucket, concept, source, language, both kinds were there, entries].

    `raw_share` is over entries that had both kinds of captions, as it was asked for; `fallback` counts the others.
    """
    rows = list(counts)
    axes = {"pool": 0, "bucket": 1, "concept": 2}
    by = {name: _by([(row[axis], *row[3:]) for row in rows]) for name, axis in axes.items()}
    languages: Counter[str] = Counter()
    for row in rows:
        languages[f"{row[3]} {row[4]}"] += row[6]
    return {
        **_by([("all", *row[3:]) for row in rows]).get("all", _share(Counter())),
        "by_caption": dict(sorted(languages.items())),
        **{f"by_{name}": found for name, found in by.items()},
    }


def _by(rows: Iterable[tuple[str, str, str, bool, int]]) -> dict[str, Any]:
    sums: dict[str, Counter[str]] = defaultdict(Counter)
    for name, source, _, free, count in rows:
        sums[name][f"{source}{'' if free else ' only'}"] += count
    return {name: _share(found) for name, found in sorted(sums.items())}


def _share(found: Counter[str]) -> dict[str, Any]:
    free = found["raw"] + found["synthetic"]
    return {
        "entries": found.total(),
        "raw": found["raw"],
        "synthetic": found["synthetic"],
        "raw_share": round(found["raw"] / free, 6) if free else None,
        "fallback_raw": found["raw only"],
        "fallback_synthetic": found["synthetic only"],
    }


def build(plan: Plan, receipts: list[Receipt]) -> dict[str, Any]:
    """The manifest of a finished export, from the receipts in the order of split, epoch and number."""
    files = {path: facts for done in receipts for path, facts in sorted(done.files.items())}
    splits: dict[str, Any] = {}
    for split in plan.cells:
        here = [done for done in receipts if done.job.split == split]
        splits[split] = {
            "rows": sum(done.job.entries for done in here if done.job.epoch == 0),
            "shards": [{"name": d.job.name, "epoch": d.job.epoch, "entries": d.job.entries} for d in here],
            "achieved": {
                str(epoch): achieved(row for done in here if done.job.epoch == epoch for row in done.counts)
                for epoch in range(plan.settings.epochs)
            },
            "cells": [list(asdict(cell).values()) for cell in plan.cells[split]],
        }
    version = plan.version
    return {
        "curate": "mix/1",
        "fingerprint": plan.fingerprint,
        "settings": {key: v for key, v in plan.settings.to_json().items() if key not in ("store", "text")},
        "recipe": version["recipe"],
        "policy": version["policy"],
        "operators": version["operators"],
        "licences": licences(version["operators"], version["recipe"]),
        "store": {key: version[key] for key in ("parts", "tiers", "run", "text")},
        "buckets": [list(size) for size in plan.buckets],
        "concepts": list(plan.concepts),
        "left_out": plan.left_out,
        "splits": splits,
        "characters": len(shown := {c for done in receipts for c in done.characters}),
        "characters_of_gb2312": sum(c in shown for c in FLOOR),
        "files": files,
        "tree": tree(files),
    }


def licences(operators: Iterable[Mapping[str, Any]], recipe: str) -> list[dict[str, str]]:
    """The licence of every engine and every weights file that the store's columns come from.

    Weights are those that the recipe of the last run names; `unknown` is something to look up before a release.
    """
    found = [
        {"for": operator["operator"], "name": operator["engine"], "licence": EMBEDDED[operator["engine"]]}
        for operator in operators
        if operator["engine"] in EMBEDDED
    ]
    sections = tomllib.loads(recipe)
    named = {operator["operator"] for operator in operators if operator["engine"] in EMBEDDED}
    for section, keys in sections.items():
        for key, value in keys.items():
            if key in ("weights", "tokenizer") and value and section not in named:
                model = known().get(value)
                terms = "; ".join(filter(None, (model.licence, model.restriction))) if model else "unknown"
                found.append({"for": f"{section}.{key}", "name": value, "licence": terms})
    return found


def encode(manifest: Mapping[str, Any]) -> bytes:
    """The bytes of manifest.json."""
    return (json.dumps(manifest, indent=1, ensure_ascii=False, sort_keys=True) + "\n").encode()


def read(files: Files) -> dict[str, Any] | None:
    """The manifest in a folder, or None; CurateError when it is no manifest of a mix."""
    try:
        found = json.loads(files.read(NAME))
    except FileNotFoundError:
        return None
    except ValueError as why:
        raise CurateError(f"{files.uri}/{NAME} is no JSON: {why}") from None
    if not isinstance(found, dict) or found.get("curate") != "mix/1":
        raise CurateError(f"{files.uri}/{NAME} is not the manifest of a mix")
    return found
