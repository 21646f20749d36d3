"""What `curate plan` says beside what the run takes: `python -m benchmarks.plan`.

    --rows N      JPEGs of 512 to 1024 px in Parquet shards of 250 (default 1,000)
    --sample N    rows that the plan measures (default 200)
    --kind ray    the engine of the run (default inline: one worker)

The plan and the run are processes of their own, as for a user. Seconds from start to end without the index, which a
plan gives apart. Last line: `RESULT ` and the figures as JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from benchmarks.engine import pictures
from curate.recipe import from_tables, to_toml
from curate.store import Store

WITHIN = 0.20


def main() -> None:
    """Print plan against actual and the RESULT line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rows", type=int, default=1000)
    parser.add_argument("--sample", type=int, default=200)
    parser.add_argument("--kind", choices=("inline", "ray"), default="inline")
    parser.add_argument("--folder", type=Path, default=Path("bench-data"), help="where shards and stores are made")
    options = parser.parse_args()
    print("RESULT " + json.dumps({"benchmark": "plan"} | measure(options)))


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Plan, run, compare."""
    shards = pictures(options.folder / f"engine-{options.rows}", options.rows)
    store = options.folder / f"plan-{options.kind}"
    shutil.rmtree(store, ignore_errors=True)
    recipe = options.folder / "plan.toml"
    # A policy that some rows pass, so that the costly operators see a share of the rows that the plan has to find.
    keys = {
        "input": {"uri": str(shards.absolute())}, "store": {"uri": str(store.absolute())}, "ocr": {"engine": "none"},
        "engine": {"kind": options.kind}, "policy": {"sharp": "sharpness_tile >= 40", "upright": "height >= width"},
    }  # fmt: skip
    recipe.write_text(to_toml(from_tables(keys)), "utf-8")
    curate = [sys.executable, "-m", "curate.cli"]
    subprocess.run([*curate, "plan", str(recipe), "--sample", str(options.sample)], check=True)
    subprocess.run([*curate, "run", str(recipe)], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    ((text,),) = Store(store).rows("SELECT report FROM runs")
    planned = json.loads(text)["planned"]
    off = planned["seconds"] / planned["planned_seconds"] - 1
    print(f"planned {planned['planned_seconds']:.1f} s, took {planned['seconds']:.1f} s: {off:+.0%}")
    steps = {}
    for name, step in planned["steps"].items():
        steps[name] = [round(step[key], 2) for key in ("planned_ms", "actual_ms")]
        rows = f"{step['planned_rows']} rows planned, {step['rows']} came"
        print(f"  {name:12}{step['planned_ms']:8.2f} ms planned, {step['actual_ms']:8.2f} ms; {rows}")
    return {
        "rows": options.rows, "sample": options.sample, "kind": options.kind, "planned_s": planned["planned_seconds"],
        "took_s": planned["seconds"], "off": round(off, 3), "within": WITHIN, "steps_ms": steps,
        "load": round(os.getloadavg()[0], 1),
    }  # fmt: skip


if __name__ == "__main__":
    main()
