"""How fast the index takes in parts, and how fast a changed policy is judged: `python -m benchmarks.store`.

    --samples N          rows of the ingest (all operators, every row scored and captioned)
    --policy-samples N   rows of the policy (score columns only: no identity, no captions)

Parts are made up, but lie, are typed and are packed as `curate run` leaves them: unique hashes, captions of 20 to 80
words in both languages, boxes. The ingest, the change of the policy and the query are the real code, each in a process
of its own. Last line: `RESULT ` and the figures as JSON.
"""

from __future__ import annotations

import argparse
import json
import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from benchmarks.process import answer, step
from curate import pipeline
from curate.plan import Plan, make_plan
from curate.read import InputSpec, Shard
from curate.recipe import Recipe, from_tables
from curate.store import Store
from curate.store.files import open_files
from curate.store.index import index_path
from curate.store.parts import Part, encode
from schemas.columns import OPERATORS, part_schema

INGEST_ROWS_PER_S = 500_000
POLICY_S = 1.0
DRIVER_MB = 500
SCORES = ("input", "size", "sharpness", "photometry", "aesthetic", "faces", "ocr")
# The policy of deploy/recipes/embedded.toml, and the same with every threshold moved.
POLICIES = (
    {
        "resolution": "least(width, height) >= 256", "shape": "aspect BETWEEN 0.33 AND 3",
        "exposure": "underexposed < 0.8 AND overexposed < 0.8", "sharp": "sharpness_tile >= 60",
        "border": "border < 0.2", "aesthetic": "aesthetic >= 3.5", "crowd": "faces <= 5", "text": "ocr_area < 0.3",
    },
    {
        "resolution": "least(width, height) >= 512", "shape": "aspect BETWEEN 0.5 AND 2",
        "exposure": "underexposed < 0.7 AND overexposed < 0.7", "sharp": "sharpness_tile >= 90",
        "border": "border < 0.1", "aesthetic": "aesthetic >= 4.5", "crowd": "faces <= 3", "text": "ocr_area < 0.2",
    },
)  # fmt: skip
QUERY = "SELECT drop_reason, count(*) FROM samples GROUP BY 1 ORDER BY 2 DESC"

Random = np.random.Generator
Make = Callable[[Random, int], Any]

NOUNS = ["river", "mountain", "street", "child", "dog", "window", "bridge", "market", "flower", "harbour", "kitchen"]
LOOKS = ["bright", "quiet", "golden", "narrow", "old", "crowded", "misty", "colourful", "distant", "wooden", "shaded"]
HANZI = "山河街道孩子小狗窗户桥市场花火车港口厨房灯笼田野教堂明亮安静金色狭窄古老拥挤雾多彩远方"


def main() -> None:
    """Print a table and the RESULT line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--samples", type=int, default=1_000_000)
    parser.add_argument("--policy-samples", type=int, default=5_000_000)
    parser.add_argument("--shards", type=int, default=200)
    parser.add_argument("--folder", type=Path, default=Path("bench-data"), help="where the stores are made")
    parser.add_argument("--keep", action="store_true", help="leave the stores there, and use those that are there")
    parser.add_argument("--step", choices=sorted(STEPS), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.step:
        STEPS[options.step](options.folder)
        return
    figures: dict[str, Any] = {"benchmark": "store"}
    figures["ingest"] = ingest(
        options.folder / f"store-{options.samples}", options.samples, options.shards, options.keep
    )
    figures["policy"] = policy(
        options.folder / f"policy-{options.policy_samples}", options.policy_samples, options.shards, options.keep
    )
    print("RESULT " + json.dumps(figures))


def ingest(folder: Path, samples: int, shards: int, keep: bool) -> dict[str, Any]:
    """Rate, memory and size of an index made from the parts of all operators."""
    parts = prepare(folder, samples, shards, tuple(OPERATORS))
    done = step(__spec__.name, "--step", "ingest", "--folder", folder)
    again = step(__spec__.name, "--step", "ingest", "--folder", folder)
    operators = parts["operators"]
    rows = samples * operators
    figures = {
        "samples": samples, "operators": operators, "parts": parts["parts"], "part_rows": rows,
        "parts_mb": round(parts["mb"]),
        "seconds": done["seconds"], "rows_per_s": round(rows / done["seconds"]),
        "samples_per_s": round(samples / done["seconds"]), "target_rows_per_s": INGEST_ROWS_PER_S,
        "index_mb": round(done["index_mb"]), "peak_mb": done["peak_mb"], "target_peak_mb": DRIVER_MB,
        "nothing_new_s": again["seconds"],
    }  # fmt: skip
    print(f"ingest of {samples:,} samples, {operators} operators, {parts['parts']:,} parts, {parts['mb']:,.0f} MB")
    print(
        f"  {done['seconds']:8.2f} s: {figures['rows_per_s']:,} rows of parts/s, {figures['samples_per_s']:,} samples/s"
    )
    print(f"  {done['index_mb']:8.0f} MB index, {done['peak_mb']:.0f} MB peak memory")
    print(f"  {again['seconds']:8.2f} s for an ingest with nothing new", flush=True)
    if not keep:
        shutil.rmtree(folder)
    return figures


def policy(folder: Path, samples: int, shards: int, keep: bool) -> dict[str, Any]:
    """Seconds for a changed policy over an index of score columns: its views, and the first query."""
    prepare(folder, samples, shards, SCORES)
    made = step(__spec__.name, "--step", "ingest", "--folder", folder)
    best = min((step(__spec__.name, "--step", "judge", "--folder", folder) for _ in range(3)), key=lambda s: s["total"])
    figures = {
        "samples": samples, "index_mb": round(made["index_mb"]), "build_s": made["seconds"],
        "build_peak_mb": made["peak_mb"],
        "seconds": best["total"], "views_s": best["views"], "copy_s": best["copy"], "query_s": best["query"],
        "peak_mb": best["peak_mb"], "target_s": POLICY_S, "reasons": len(best["reasons"]),
    }  # fmt: skip
    print(
        f"a changed policy over {samples:,} samples, "
        f"index {made['index_mb']:,.0f} MB (built in {made['seconds']:.0f} s)"
    )
    print(f"  {best['views']:8.2f} s to make the views (a copy of the index file alone takes {best['copy']:.2f} s)")
    print(f"  {best['query']:8.2f} s for: {QUERY}")
    print(f"  {best['peak_mb']:8.0f} MB peak memory", flush=True)
    if not keep:
        shutil.rmtree(folder)
    return figures


def step_ingest(folder: Path) -> None:
    """Bring the index of the store up to date."""
    pa.set_memory_pool(pa.system_memory_pool())  # as a run's process for the index has it (curate/store/apart.py)
    store = Store(folder)
    clock = time.perf_counter()
    store.ingest()
    seconds = time.perf_counter() - clock
    answer(seconds=round(seconds, 3), index_mb=index_path(store.files).stat().st_size / 1e6)


def step_judge(folder: Path) -> None:
    """A run with the other policy of the two and nothing else new; then the question why rows were dropped."""
    store = Store(folder)
    runs = len({path.split("/")[1] for path in store.files.list("runs")})
    begin(folder, sorted({s for (s,) in store.rows("SELECT shard FROM shard_numbers")}), SCORES, POLICIES[runs % 2])
    copy = folder / "copy"
    clock = time.perf_counter()
    shutil.copyfile(store.path, copy)
    copied = time.perf_counter() - clock
    copy.unlink()
    store.close()
    clock = time.perf_counter()
    store.ingest()
    viewed = time.perf_counter() - clock
    clock = time.perf_counter()
    reasons = store.rows(QUERY)
    asked = time.perf_counter() - clock
    answer(
        views=round(viewed, 3), copy=round(copied, 3), query=round(asked, 3), total=round(viewed + asked, 3),
        reasons=reasons,
    )  # fmt: skip


STEPS: dict[str, Callable[[Path], None]] = {"ingest": step_ingest, "judge": step_judge}


def prepare(folder: Path, samples: int, shards: int, operators: Sequence[str]) -> dict[str, Any]:
    """Make the parts of `samples` rows in `shards` shards, unless they are there; their number and size."""
    stamp = folder / "made.json"
    if not stamp.exists():
        shutil.rmtree(folder, ignore_errors=True)
        names = [f"train-{i:05d}" for i in range(shards)]
        plan = begin(folder, names, operators, POLICIES[0])
        clock = time.perf_counter()
        sizes = [
            write(folder, plan, name, rows, i)
            for i, (name, rows) in enumerate(zip(names, cut(samples, shards), strict=True))
        ]
        print(f"made {samples:,} rows in {time.perf_counter() - clock:.0f} s", flush=True)
        count = len(plan.versions)
        stamp.write_text(json.dumps({"operators": count, "parts": shards * count, "mb": sum(sizes) / 1e6}))
    for index in folder.glob("captions.duckdb*"):
        index.unlink()
    return dict(json.loads(stamp.read_text()))


def cut(samples: int, shards: int) -> list[int]:
    """Rows of each shard."""
    return [samples * (i + 1) // shards - samples * i // shards for i in range(shards)]


def begin(folder: Path, shards: Sequence[str], operators: Sequence[str], policy: dict[str, str]) -> Plan:
    """Write the record of a run and of its operators, as a run does before its first row."""
    recipe = recipe_of(folder, policy)
    path = [operator for operator in pipeline.PATH if operator.name in operators]
    plan = make_plan(recipe, path, pa.schema([pa.field("caption_raw", pa.string())]), open_files(recipe.store.uri))
    pipeline._begin(plan, [Shard(name, f"{name}.parquet", "parquet", InputSpec("made-up")) for name in shards])
    return plan


def recipe_of(folder: Path, policy: dict[str, str]) -> Recipe:
    """A recipe of the store in `folder`."""
    return from_tables({"input": {"uri": "made-up"}, "store": {"uri": str(folder)}, "policy": policy})


def write(folder: Path, plan: Plan, shard: str, rows: int, seed: int) -> int:
    """Write the parts of one shard; their size in bytes. Without fsync: the disk is not what is measured."""
    random = np.random.default_rng(seed)
    size = 0
    for version in plan.versions:
        schema = part_schema(version.operator)
        fixed = {
            "shard": pa.array([shard]).take(pa.array(np.zeros(rows, np.int32))),
            "row": pa.array(np.arange(rows), pa.int64()),
            "error": pa.nulls(rows, pa.string()),
            "message": pa.nulls(rows, pa.string()),
        }
        columns = [fixed[f.name] if f.name in fixed else column(f, random, rows) for f in schema]
        data = encode(pa.table(columns, schema=schema))
        path = folder / Part(version, shard).path
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        size += len(data)
    return size


def column(field: pa.Field, random: Random, rows: int) -> pa.Array:
    """Plausible values of one column; one that nobody has described here is constant, a list null."""
    if field.name not in COLUMNS and pa.types.is_list(field.type):
        return pa.nulls(rows, field.type)
    constant = one_of("1") if pa.types.is_string(field.type) else whole(1, 2)
    values = COLUMNS.get(field.name, constant)(random, rows)
    return values if isinstance(values, pa.Array) else pa.array(values).cast(field.type)


def reals(mean: float, spread: float, low: float = 0.0, high: float = 1e9) -> Make:
    return lambda random, rows: np.clip(random.normal(mean, spread, rows), low, high).astype(np.float32)


def heavy(median: float, low: float = 0.0, high: float = 1e9) -> Make:
    return lambda random, rows: np.clip(median * np.exp(random.normal(0, 1, rows)), low, high).astype(np.float32)


def whole(low: int, high: int) -> Make:
    return lambda random, rows: random.integers(low, high, rows)


def one_of(*words: str) -> Make:
    """Mostly the first word."""
    return lambda random, rows: pa.array(words).take(pa.array(np.minimum(random.geometric(0.8, rows), len(words)) - 1))


def digest(random: Random, rows: int) -> pa.Array:
    """64 hex digits, every row its own."""
    text = random.bytes(32 * rows).hex().encode()
    offsets = np.arange(rows + 1, dtype=np.int32) * 64
    return pa.StringArray.from_buffers(rows, pa.py_buffer(offsets), pa.py_buffer(text))


def prose(parts: int, make: Callable[[Random], str], between: str) -> Make:
    """Texts of `parts` sentences, drawn from a few hundred."""

    def draw(random: Random, rows: int) -> pa.Array:
        known = pa.array([make(random) for _ in range(300)])
        chosen = [known.take(pa.array(random.integers(0, 300, rows))) for _ in range(parts)]
        return pc.binary_join_element_wise(*chosen, between)

    return draw


def sentence(random: Random) -> str:
    words = [str(random.choice(LOOKS if i % 2 else NOUNS)) for i in range(int(random.integers(6, 18)))]
    return f"A {' '.join(words)} with {int(random.integers(2, 90))} % of {random.choice(NOUNS)}."


def chinese(random: Random) -> str:
    return "".join(str(random.choice(list(HANZI))) for _ in range(int(random.integers(10, 26)))) + "。"


def lists(counts: Callable[[Random, int], npt.NDArray[Any]], inner: Callable[[Random, int], pa.Array]) -> Make:
    """A list in each row, `counts` long."""

    def make(random: Random, rows: int) -> pa.Array:
        offsets = np.concatenate([[0], np.cumsum(counts(random, rows))]).astype(np.int32)
        return pa.ListArray.from_arrays(pa.array(offsets), inner(random, int(offsets[-1])))

    return make


def numbers(width: int) -> Callable[[Random, int], pa.Array]:
    """Lists of `width` numbers, as boxes are."""

    def make(random: Random, count: int) -> pa.Array:
        values = pa.array((random.random(count * width) * 1000).astype(np.float32))
        return pa.ListArray.from_arrays(pa.array(np.arange(count + 1, dtype=np.int32) * width), values)

    return make


def sparse(share: float, most: int) -> Callable[[Random, int], npt.NDArray[Any]]:
    return lambda random, rows: np.where(random.random(rows) < share, random.integers(1, most + 1, rows), 0)


def ratios(random: Random, count: int) -> pa.Array:
    return pa.array(random.random(count).astype(np.float32))


def colors(random: Random, count: int) -> pa.Array:
    return pa.array(["gray", "brown", "blue", "green", "black", "white", "red"]).take(
        pa.array(random.integers(0, 7, count))
    )


def read_text(random: Random, rows: int) -> pa.Array:
    """Nothing in four of five pictures, else a line of print."""
    lines = pa.array(["", *(f"{random.choice(LOOKS)} {random.choice(NOUNS)} {i}" for i in range(300))])
    return lines.take(pa.array(np.where(random.random(rows) < 0.2, random.integers(1, 301, rows), 0)))


COLUMNS: dict[str, Make] = {
    "caption_raw": prose(1, sentence, " "),
    "bytes": whole(30_000, 900_000), "format": one_of("JPEG", "PNG", "WEBP"), "mode": one_of("RGB", "L", "CMYK"),
    "width": whole(256, 2049), "height": whole(256, 2049), "aspect": reals(1.2, 0.4, 0.2, 5.0),
    "bits_per_pixel": reals(2.0, 0.6, 0.1, 24.0), "frames": whole(1, 2), "exif_orientation": whole(1, 2),
    "sha256": digest, "pdq": digest, "pdq_quality": whole(20, 101),
    "pixels_hash": digest, "pdq_centred": digest, "look": digest,
    "sharpness": heavy(300), "sharpness_tile": heavy(800), "tenengrad": heavy(4000), "tenengrad_tile": heavy(9000),
    "luma": reals(115, 35, 0, 255), "contrast": reals(55, 15, 0, 127.5), "underexposed": heavy(0.05, 0, 1),
    "overexposed": heavy(0.04, 0, 1), "colorfulness": heavy(30), "saturation": reals(0.35, 0.15, 0, 1),
    "entropy": reals(7.2, 0.5, 0, 8), "border": lambda random, rows: (random.random(rows) ** 8).astype(np.float32),
    "colors": lists(lambda random, rows: random.integers(1, 5, rows), colors),
    "color_shares": lists(lambda random, rows: random.integers(1, 5, rows), ratios),
    "aesthetic": reals(5.0, 0.9, 1, 10), "aesthetic_engine": one_of("photometric"),
    "faces": lambda random, rows: np.where(random.random(rows) < 0.3, random.geometric(0.6, rows), 0),
    "face_area": reals(0.03, 0.05, 0, 1), "face_boxes": lists(sparse(0.3, 3), numbers(5)),
    "face_engine": one_of("haar"),
    "ocr_text": read_text, "ocr_lines": whole(0, 3), "ocr_characters": whole(0, 40),
    "ocr_confidence": reals(0.9, 0.08, 0, 1),
    "ocr_area": lambda random, rows: (random.random(rows) ** 6).astype(np.float32),
    "ocr_border": reals(0.1, 0.2, 0, 1), "ocr_language": one_of("none", "en", "zh", "mixed"),
    "ocr_boxes": lists(sparse(0.2, 4), numbers(8)), "ocr_scores": lists(sparse(0.2, 4), ratios),
    "ocr_engine": one_of("rapidocr PP-OCRv6-small"),
    "caption_en": prose(3, sentence, " "), "caption_engine": one_of("facts"), "caption_model": one_of("facts-en-zh"),
    "caption_revision": one_of("1"), "caption_zh": prose(3, chinese, ""), "translate_engine": one_of("facts"),
    "translate_model": one_of("facts-en-zh"), "translate_revision": one_of("1"),
}  # fmt: skip


if __name__ == "__main__":
    main()
