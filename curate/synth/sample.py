"""One sample: attempts until a spec is drawn that keeps every promise, or a reason why there is none.

row = sample(world, seed=1, index=17)
row = rendered_again(world, row["synth_spec"])      # a data loader's way from specs alone
"""

from __future__ import annotations

import hashlib
import json
from typing import Any

import numpy as np
import pyarrow as pa

from curate.synth.captions import captions, texts
from curate.synth.check import check
from curate.synth.render import Rendered, encode, render
from curate.synth.spec import ATTEMPTS, Spec, Unfit, World, draw_spec, to_json

QUADS = pa.list_(pa.list_(pa.float32()))
SCHEMA = pa.schema(
    [
        ("image", pa.binary()), ("caption", pa.string()), ("language", pa.string()), ("source", pa.string()),
        ("synth_caption_zh", pa.string()), ("synth_caption_en", pa.string()), ("synth_texts", pa.list_(pa.string())),
        ("synth_tier", pa.string()), ("synth_layout", pa.string()), ("synth_index", pa.int64()),
        ("synth_spec", pa.string()), ("synth_spec_sha", pa.string()), ("synth_lines", QUADS), ("synth_glyphs", QUADS),
        ("synth_contrast", pa.float32()), ("synth_attempts", pa.int32()), ("synth_refused", pa.int32()),
        ("synth_template_zh", pa.string()), ("synth_template_en", pa.string()), ("synth_reason", pa.string()),
    ]
)  # fmt: skip
SPEC_SCHEMA = pa.schema([field for field in SCHEMA if field.name != "image"])


def sample(world: World, seed: int, index: int, encoded: bool = True) -> dict[str, Any]:
    """One row of SCHEMA; without `encoded` it has no image, and is checked all the same."""
    reasons: list[str] = []
    refused = 0
    for attempt in range(ATTEMPTS):
        try:
            spec = draw_spec(world, seed, index, attempt)
        except Unfit as why:
            reasons.append(str(why))
            continue
        refused += spec["refused"]
        drawn = render(spec, world)
        reason, contrast = check(drawn)
        if reason:
            reasons.append(reason)
            continue
        row = row_of(world, spec, drawn, contrast)
        row |= {"synth_attempts": attempt + 1, "synth_refused": refused}
        if encoded:
            row["image"] = encode(drawn.rgb, spec["finish"][4])
        return row
    row = dict.fromkeys(SCHEMA.names)
    return row | {
        "source": "synth", "synth_index": index, "synth_attempts": ATTEMPTS, "synth_refused": refused,
        "synth_reason": " ".join(reasons),
    }  # fmt: skip


def rendered_again(world: World, spec: str) -> bytes:
    """The picture of a stored spec: the bytes that `sample` gave for it, with the same libraries."""
    parsed: Spec = json.loads(spec)
    return encode(render(parsed, world).rgb, parsed["finish"][4])


def row_of(world: World, spec: Spec, drawn: Rendered, contrast: float) -> dict[str, Any]:
    """The columns of a drawn spec, without the image."""
    told, text = captions(spec, world), to_json(spec)
    language = "en" if spec["say"]["coin"] else "zh"
    return {
        "caption": told[language],
        "language": language,
        "source": "synth",
        "synth_caption_zh": told["zh"],
        "synth_caption_en": told["en"],
        "synth_texts": texts(spec),
        "synth_tier": spec["tier"],
        "synth_layout": spec["layout"],
        "synth_index": spec["index"],
        "synth_spec": text,
        "synth_spec_sha": hashlib.sha256(text.encode()).hexdigest(),
        "synth_lines": np.stack(drawn.lines).reshape(-1, 8).round(1).tolist(),
        "synth_glyphs": drawn.quads.reshape(-1, 8).round(1).tolist(),
        "synth_contrast": contrast,
        "synth_template_zh": told["zh_template"],
        "synth_template_en": told["en_template"],
        "synth_reason": None,
    }
