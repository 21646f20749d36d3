"""Rate of rendered text, and how often each character comes.

    python -m benchmarks.synth                                          # rates, and characters of specs as sampled
    curate synth -o SPECS -n 100000 --specs-only --verify 0             # draws and checks every picture
    python -m benchmarks.synth --of SPECS --traced 2000                 # characters, contrast, ink of such a run

Specs, drawing, the check of every glyph and the JPEG, one process, CPU seconds. The same pictures are encoded as JPEG
alone in between, so that the ratio does not depend on the machine's mood. Then specs alone, by which the appearances of
the 6,763 characters of GB2312 are counted. Last line: `RESULT ` and the figures as JSON.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq
from rich.console import Console

from curate.synth import check
from curate.synth.colors import AFTER
from curate.synth.lines import glyph
from curate.synth.render import encode, render
from curate.synth.sample import sample
from curate.synth.shards import prepare
from curate.synth.spec import REUSE, Synth, Unfit, World, draw_spec
from curate.synth.words import FLOOR, coverage

IN_MEMORY, WITH_DECODE, CHARACTERS = 150.0, 100.0, 100.0  # targets: images/s/core twice, appearances per million rows
COLD = 500  # rows of a process that has drawn nothing yet
WARM_UP = 12_000  # rows whose characters are drawn before the clock runs: from there on a long run draws as few anew
MILLION = 1_000_000


def rates(world: World, rows: int) -> dict[str, Any]:
    """CPU seconds for each of `rows` rows: photographs in memory, decoded once for REUSE rows, and JPEG alone."""
    spent = {"memory": 0.0, "decode": 0.0, "jpeg": 0.0, "specs": 0.0}
    sizes: list[int] = []
    spec_sizes: list[int] = []
    by_tier: dict[str, list[float]] = {}
    for item in world.photographs.items:
        world.photographs.pixels(item.id)
    for index in range(rows):
        clock = time.process_time()
        row = sample(world, 1, index)
        took = time.process_time() - clock
        spent["memory"] += took
        by_tier.setdefault(row["synth_tier"], []).append(took)
        sizes.append(len(row["image"]))
        spec_sizes.append(len(row["synth_spec"].encode()))
        pixels = cv2.imdecode(np.frombuffer(row["image"], np.uint8), cv2.IMREAD_COLOR_RGB)
        clock = time.process_time()
        encode(np.asarray(pixels, np.uint8), 92)
        spent["jpeg"] += time.process_time() - clock
        if index % REUSE == 0:
            world.photographs.pixels.cache_clear()
        clock = time.process_time()
        sample(world, 5, index)  # of another seed: its glyphs have not been drawn before
        spent["decode"] += time.process_time() - clock
        for item in world.photographs.items[:8]:
            world.photographs.pixels(item.id)
        clock = time.process_time()
        draw_spec(world, 2, index) if _fits(world, index) else None
        spent["specs"] += time.process_time() - clock
    return {
        "ms": {name: seconds / rows * 1e3 for name, seconds in spent.items()},
        "ms_by_tier": {tier: float(np.mean(times)) * 1e3 for tier, times in sorted(by_tier.items())},
        "kb_jpeg": float(np.mean(sizes)) / 1e3,
        "kb_spec": float(np.mean(spec_sizes)) / 1e3,
        "most_kb_spec": max(spec_sizes) / 1e3,
    }


def warm_up(world: World) -> None:
    """Draw the characters of WARM_UP rows, and none of their pictures."""
    for index in range(COLD, WARM_UP):
        if _fits(world, index, 9):
            for line in draw_spec(world, 9, index)["lines"]:
                face = world.by_id[line["f"]]
                for character in line["t"]:
                    glyph(face.path, face.index, line["s"], character)


def _fits(world: World, index: int, seed: int = 2) -> bool:
    try:
        draw_spec(world, seed, index)
    except Unfit:
        return False
    return True


def appearances(world: World, specs: int) -> dict[str, Any]:
    """Appearances of each character of GB2312 in `specs` specs, first attempts that fit, and the turns of each."""
    counts: Counter[str] = Counter()
    turns = drawn = 0
    for index in range(specs):
        for attempt in range(3):
            try:
                spec = draw_spec(world, 1, index, attempt)
            except Unfit:
                continue
            counts.update("".join(line["t"] for line in spec["lines"]))
            turns += spec["rare"]
            drawn += 1
            break
    shown = sorted(coverage(["".join(counts.elements())]).values())
    return {
        "specs": drawn,
        "least": shown[0],
        "median": shown[len(shown) // 2],
        "most": shown[-1],
        "least_per_million": shown[0] / drawn * MILLION,
        "turns_per_million": turns / drawn * MILLION / len(FLOOR),
        "absent": sum(count == 0 for count in shown),
    }


def of_run(folder: Path, traced: int) -> dict[str, Any]:
    """What a run drew and checked, from its shards: characters, contrast, attempts; for `traced` rows, drawn once more
    with every pixel of ink labelled, also glyphs with ink outside their quad, and the contrast of each glyph."""
    from curate.synth.again import shard_paths
    from curate.synth.shards import open_world
    from curate.synth.verify import rows_at, sampled

    counts: Counter[str] = Counter()
    attempts: Counter[int] = Counter()
    least, rows, infeasible = 21.0, 0, 0
    for path in shard_paths(folder):
        table = pq.read_table(path, columns=["synth_texts", "synth_contrast", "synth_attempts", "synth_reason"])
        for texts in table["synth_texts"].to_pylist():
            counts.update("".join(texts or ()))
        rows += table.num_rows
        infeasible += table.num_rows - table["synth_reason"].null_count
        least = min(least, pc.min(table["synth_contrast"]).as_py() or least)
        attempts.update(table.filter(pc.is_null(table["synth_reason"]))["synth_attempts"].to_pylist())
    shown = sorted(coverage(["".join(counts.elements())]).values())
    world = open_world(folder)
    glyphs = faint = stray = 0
    for part in sampled(folder, traced):
        for row in rows_at(part):
            drawn = render(json.loads(row["spec"]), world, trace=True)
            glyphs += len(drawn.glyphs)
            faint += sum(value < AFTER for value in check.contrasts(drawn))
            stray += sum(share > 0.005 for share in check.strays(drawn))
    return {
        "rows": rows, "infeasible": infeasible, "at_the_first_attempt": attempts[1], "least_contrast": round(least, 2),
        "least": shown[0], "median": shown[len(shown) // 2], "most": shown[-1],
        "least_per_million": round(shown[0] / rows * MILLION, 1),
        "traced_glyphs": glyphs, "faint": faint, "stray": stray,
    }  # fmt: skip


def main() -> None:
    """Print a table and the RESULT line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=400, help="pictures to draw")
    parser.add_argument("--fonts", default="", help="folder of font files beside the system's")
    parser.add_argument("--specs", type=int, default=100_000, help="specs by which characters are counted")
    parser.add_argument("--of", default="", help="folder of a run: what it drew and checked, and no rates")
    parser.add_argument("--traced", type=int, default=1000, help="rows of it that are drawn once more, traced")
    wanted = parser.parse_args()
    cv2.setNumThreads(1)
    if wanted.of:
        found = of_run(Path(wanted.of), wanted.traced)
        print("\n".join(f"  {key:24s}{value:>12,}" for key, value in found.items()))
        print("RESULT " + json.dumps({"benchmark": "synth", **found}))
        return
    with tempfile.TemporaryDirectory() as folder:
        world = prepare(Path(folder), 1, Synth(fonts=wanted.fonts), Console(stderr=True))
        clock = time.process_time()
        for index in range(COLD):
            sample(world, 9, index)
        cold = (time.process_time() - clock) / COLD * 1e3
        warm_up(world)
        found = rates(world, wanted.rows)
        characters = appearances(world, wanted.specs)
    ms = found["ms"]
    print(
        f"{wanted.rows} pictures of 512 x 512 px, {len(world.faces)} faces, {len(world.photographs.items)} photographs"
    )
    for name, said in (
        ("memory", "photographs in memory"),
        ("decode", f"a photograph decoded for {REUSE} rows"),
        ("specs", "specs alone"),
        ("jpeg", "JPEG of the same pictures alone"),
    ):
        print(
            f"  {said:38s}{ms[name]:8.2f} ms/row {1e3 / ms[name]:8.0f} rows/s/core {ms[name] / ms['jpeg']:6.1f} x JPEG"
        )
    print(f"  {f'the first {COLD} rows of a process':38s}{cold:8.2f} ms/row {1e3 / cold:8.0f} rows/s/core")
    for tier, value in found["ms_by_tier"].items():
        print(f"  {tier:38s}{value:8.2f} ms/row")
    kb, least, most = found["kb_jpeg"], found["kb_spec"], found["most_kb_spec"]
    print(f"  a JPEG has {kb:.1f} kB, a spec {least:.2f} kB (at most {most:.2f})")
    print(
        f"{characters['specs']:,} specs: each GB2312 character {characters['least']} times or more (median "
        f"{characters['median']}), its turn {characters['turns_per_million']:.0f} times per million"
    )
    figures = {
        "benchmark": "synth",
        "rows": wanted.rows,
        "rows_per_s_core": round(1e3 / ms["memory"], 1),
        "target": IN_MEMORY,
        "rows_per_s_core_with_decode": round(1e3 / ms["decode"], 1),
        "target_with_decode": WITH_DECODE,
        "rows_per_s_core_cold": round(1e3 / cold, 1),
        "times_jpeg": round(ms["memory"] / ms["jpeg"], 2),
        "ms_per_row": {name: round(value, 3) for name, value in ms.items()},
        "kb_jpeg": round(found["kb_jpeg"], 1),
        "kb_spec": round(found["kb_spec"], 3),
        "characters": {key: round(value, 1) for key, value in characters.items()},
        "target_per_million": CHARACTERS,
    }
    print("RESULT " + json.dumps(figures))


if __name__ == "__main__":
    main()
