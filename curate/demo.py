"""`curate demo`: sample shards, the main job, the report; a second call finds everything done."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

from curate import pipeline
from curate.errors import DONE
from curate.recipe import from_tables
from curate.report import write_report
from curate.store import Store

POLICY = (
    ("resolution", "least(width, height) >= 256"),
    ("shape", "aspect BETWEEN 0.33 AND 3"),
    ("exposure", "underexposed < 0.8 AND overexposed < 0.8"),
    ("sharp", "sharpness_tile >= 60"),
    ("border", "border < 0.2"),
    ("aesthetic", "aesthetic >= 3.5"),
    ("crowd", "faces <= 5"),
    ("text", "ocr_area < 0.3"),
)


def demo(folder: Path, engine: str) -> int:
    """Run the demo in `folder`; returns the exit code of its run."""
    from curate.demo_data import make_samples

    console = Console(stderr=True)
    shards = folder / "shards"
    if not (shards / "demo-00002.parquet").exists():  # the last one to be put in place
        with console.status("drawing sample shards") if console.is_terminal else console:
            made = make_samples(shards)
        console.print(f"made {len(made)} sample shards in {shards}", highlight=False)
    recipe = from_tables(
        {
            "input": {"uri": str(shards)},
            "store": {"uri": str(folder / "store")},
            "engine": {"kind": engine},
            "run": {"max_failed_share": 0.15},  # some rows are broken on purpose
            "policy": dict(POLICY),
        },
        where="demo",
    )
    code = pipeline.run(recipe)
    if code != DONE:
        return code
    report = write_report(Store(folder / "store"), None)
    store = folder / "store"
    console.print(f"\nreport: {report}\n\nTry next:", highlight=False)
    console.print(
        f'  curate sql {store} "select keep, drop_reason, error, count(*) from samples group by all"',
        highlight=False,
        soft_wrap=True,
    )
    console.print(f"  curate report {store}", highlight=False)
    console.print(f"  curate serve {store}", highlight=False)
    return code
