"""A small real store: pictures drawn here, run through the main job by the inline engine in a second or two."""

from __future__ import annotations

import dataclasses
import io
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image
from rich.console import Console

from curate import pipeline
from curate.progress import Display
from curate.recipe import Aesthetic, Engine, Faces, Input, Ocr, Recipe, Run, StoreAt

SCRIPT = '<script>alert("1")</script>'
KEPT, BLURRED, SMALL, EMPTY, TRUNCATED, MARKUP, SVG, UNKNOWN = range(8)
TINY = 50  # more rows after these, so that the gallery has two pages
POLICY = (("resolution", "least(width, height) >= 256"), ("quality", "quality > -5"), ("sharp", "sharpness_tile >= 60"))


def picture(width: int, height: int, seed: int = 0, *, smooth: bool = False) -> bytes:
    """A PNG of noise, or of a smooth slope."""
    if smooth:
        pixels = np.broadcast_to(np.linspace(60, 180, width, dtype=np.uint8), (height, width))
    else:
        pixels = np.random.default_rng(seed).integers(40, 200, (height, width), dtype=np.uint8)
    out = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).convert("RGB").save(out, "PNG")
    return out.getvalue()


def recipe(folder: Path) -> Recipe:
    """The recipe of the store at folder/store over folder/shards."""
    return dataclasses.replace(
        Recipe(),
        input=Input(uri=str(folder / "shards")),
        store=StoreAt(uri=str(folder / "store")),
        engine=Engine(kind="inline"),
        run=Run(max_failed_share=1.0),
        aesthetic=Aesthetic(engine="photometric"),
        faces=Faces(engine="none"),
        ocr=Ocr(engine="none"),
        policy=POLICY,
    )


def make_store(folder: Path) -> Path:
    """Draw the pictures, run the main job, and return the path of the store; its shard is `demo-00000`."""
    rows: list[tuple[bytes | None, str | None, float | None]] = [
        (picture(320, 300, 1), "a field of noise", 1.0),
        (picture(320, 300, smooth=True), "一道斜坡", 1.0),
        (picture(200, 180, 2), None, 1.0),
        (None, "nothing", 1.0),
        (picture(320, 300, 3)[:5000], "half a picture", 1.0),
        (picture(300, 320, 4), SCRIPT, 2.5),
        (b'<svg xmlns="http://www.w3.org/2000/svg"><script>alert(1)</script></svg>', "a drawing", 1.0),
        (picture(300, 300, 5), "nobody knows how good", None),
        *((picture(16, 16, seed), None, float(seed)) for seed in range(TINY)),
    ]
    (folder / "shards").mkdir(parents=True)
    images, captions, quality = zip(*rows, strict=True)
    table = pa.table(
        {"image": pa.array(images, pa.binary()), "caption": captions, "quality": pa.array(quality, pa.float64())}
    )
    pq.write_table(table, folder / "shards" / "demo-00000.parquet")
    assert run(recipe(folder)) == 0
    return folder / "store"


def run(wanted: Recipe) -> int:
    """Run the main job in silence."""
    return pipeline.run(wanted, display=Display(Console(file=io.StringIO())))
