"""Captions of earlier captioners and translators, for `--synthetic all`, held to the checks by rule of today.

A quality check of the store judges the captions that `samples` shows; what was replaced, often because it was bad, has
no verdict that anyone keeps. So its text is checked again here, by the rules that need nothing but text
(workers/quality.py), when the store checks captions at all.
"""

from __future__ import annotations

import tomllib
from collections import defaultdict

import pyarrow as pa

from curate.recipe import Quality
from curate.store import Store


def captions(store: Store, shard: str) -> pa.Table:
    """`row, others_en, others_zh`: usable captions of inactive versions, in the order of their fingerprints."""
    from workers.quality import chinese_reason, english_reason

    checked = store.rows("SELECT 1 FROM operators WHERE operator = 'quality' AND active")
    recipe = store.rows("SELECT recipe FROM runs ORDER BY run_id DESC LIMIT 1")
    asked = tomllib.loads(recipe[0][0]).get("quality", {}) if recipe else {}
    most = {key: int(asked.get(key, getattr(Quality(), key))) for key in ("min_words", "max_words")}
    found: dict[int, dict[str, list[str]]] = defaultdict(lambda: {"en": [], "zh": []})
    rows = store.rows(
        "SELECT row, language, text FROM captions WHERE shard = $1 AND kind = 'synthetic' AND NOT active "
        "ORDER BY row, language, fingerprint", [shard]
    )  # fmt: skip
    for row, language, text in rows:
        reason = None
        if checked:
            reason = english_reason(text, None, **most) if language == "en" else chinese_reason(text, "", ())
        if reason is None:
            found[row][language].append(text)
    texts = pa.list_(pa.string())
    return pa.table(
        {
            "row": pa.array(list(found), pa.int64()),
            "others_en": pa.array([of["en"] for of in found.values()], texts),
            "others_zh": pa.array([of["zh"] for of in found.values()], texts),
        }
    )
