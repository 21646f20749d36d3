"""manifest.json: what was asked of a release, what was achieved, and the hash of every file.

    files     path -> blake3, bytes, rows           of every shard and index
    tree      BLAKE3 of the rest of the manifest, `files` included: one hash that stands for the whole release

Counts and ratios are sums over the entries of all shards; `curate mix verify` computes all of it again from the files.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from typing import Any

from blake3 import blake3

from curate.errors import CurateError
from curate.mix.plan import Plan
from curate.mix.shards import Receipt
from curate.models import known
from curate.store.files import Files
from curate.synth.words import FLOOR
from schemas.columns import DERIVED

NAME = "manifest.json"
FORMAT = "mix/4"
# What a loader needs to draw the specs of rendered text (--keep-specs), in a folder of the release.
SPECS = "specs"
WORLD = ("manifest.json", "synth.toml", "lexicon.tsv", "photographs.arrow")
OWN = "Apache-2.0 (part of curate)"
# Licences of engines that need no weights, or bring them in their package.
EMBEDDED = {
    "facts": OWN,
    "photometric": OWN,
    "rules": OWN,
    "haar": "Apache-2.0 (OpenCV)",
    "rapidocr": "Apache-2.0 (PP-OCRv6 weights in its wheel)",
}


# Sections of the recipe that name the weights of operators with other names.
SECTIONS = {"concepts": "embed", "similarity": "embed", "poster": "caption"}
WEIGHTS = ("weights", "tokenizer", "backbone")


def tree(manifest: Mapping[str, Any]) -> str:
    """The hash of the release: of all that its manifest says, and by the hashes in it of every file."""
    return blake3(encode({key: value for key, value in manifest.items() if key != "tree"})).hexdigest()


def achieved(counts: Iterable[list[Any]]) -> dict[str, Any]:
    """Entries and shares of the rows [pool, bucket, concept, source, language, both kinds were there, both synthetic
    languages were there, entries].

    `raw_share` is over entries that had both kinds of captions, as it was asked for; `fallback` counts the others.
    `english_share` is over synthetic captions of entries that had them in both languages.
    """
    rows = list(counts)
    axes = {"pool": 0, "bucket": 1, "concept": 2}
    by = {name: _by([(row[axis], *row[3:]) for row in rows]) for name, axis in axes.items()}
    languages: Counter[str] = Counter()
    for row in rows:
        languages[f"{row[3]} {row[4]}"] += row[7]
    return {
        **_by([("all", *row[3:]) for row in rows]).get("all", _share(Counter())),
        "by_caption": dict(sorted(languages.items())),
        **{f"by_{name}": found for name, found in by.items()},
    }


def _by(rows: Iterable[tuple[str, str, str, bool, bool, int]]) -> dict[str, Any]:
    sums: dict[str, Counter[str]] = defaultdict(Counter)
    for name, source, language, free, several, count in rows:
        sums[name][f"{source}{'' if free else ' only'}"] += count
        if several and source == "synthetic":
            sums[name][language] += count
    return {name: _share(found) for name, found in sorted(sums.items())}


def _share(found: Counter[str]) -> dict[str, Any]:
    free = found["raw"] + found["synthetic"]
    spoken = found["en"] + found["zh"]
    return {
        "entries": free + found["raw only"] + found["synthetic only"],
        "raw": found["raw"],
        "synthetic": found["synthetic"],
        "raw_share": round(found["raw"] / free, 6) if free else None,
        "english": found["en"],
        "chinese": found["zh"],
        "english_share": round(found["en"] / spoken, 6) if spoken else None,
        "fallback_raw": found["raw only"],
        "fallback_synthetic": found["synthetic only"],
    }


def build(plan: Plan, receipts: list[Receipt]) -> dict[str, Any]:
    """The manifest of a finished export, but for its `tree`; receipts in the order of split, epoch and number."""
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
        "curate": FORMAT,
        "fingerprint": plan.fingerprint,
        "settings": {key: v for key, v in plan.settings.to_json().items() if key not in ("store", "text")},
        "recipe": version["recipe"],
        "policy": version["policy"],
        "operators": version["operators"],
        "licences": licences(version["operators"], version["recipe"]),
        "store": {key: version[key] for key in ("parts", "tiers", "text")},
        "buckets": [list(size) for size in plan.buckets],
        "concepts": list(plan.concepts),
        "left_out": plan.left_out,
        "unseen": plan.unseen,
        "splits": splits,
        "characters": len(shown := {c for done in receipts for c in done.characters}),
        "characters_of_gb2312": sum(c in shown for c in FLOOR),
        "files": files,
    }


def licences(operators: Iterable[Mapping[str, Any]], recipe: Mapping[str, Mapping[str, Any]]) -> list[dict[str, str]]:
    """The licence of every engine and of all weights that wrote columns of the store: one line or more for each active
    operator that has an engine.

    Weights are those that the recipe of the last run names for the operator, as long as it names the engine that wrote;
    otherwise what the operator says of its model. `unknown` is something to look up before a release.
    """
    found = []
    for operator in operators:
        name, engine = operator["operator"], operator["engine"]
        if not engine:
            continue
        if engine in EMBEDDED or name in DERIVED:
            found.append({"for": name, "name": engine, "licence": EMBEDDED.get(engine, OWN)})
            continue
        section = SECTIONS.get(name, name)
        keys = recipe.get(section, {})
        named = {f"{name}.{key}": keys[key] for key in WEIGHTS if keys.get(key)}
        if not named or (section == name and keys.get("engine") != engine):
            named = {name: operator["model"] or engine}
        for what, value in named.items():
            model = known().get(value)
            terms = "; ".join(filter(None, (model.licence, model.restriction))) if model else "unknown"
            found.append({"for": what, "name": value, "licence": terms})
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
    if not isinstance(found, dict) or not str(found.get("curate")).startswith("mix/"):
        raise CurateError(f"{files.uri}/{NAME} is not the manifest of a mix")
    if found["curate"] != FORMAT:
        raise CurateError(f"{files.uri}: a mix of another version of curate ({found['curate']}); make it anew")
    return found
