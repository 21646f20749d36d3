"""All benchmarks, one after the other, as `make bench` runs them: `python -m benchmarks.run [--all]`.

Prints a table of every figure that has a target, with its verdict, and appends it with the date and the machine to
docs/benchmarks.md. `--all` adds Data-Juicer, which installs about 1 GB into .cache. `--only NAME` runs some and `--dry`
appends nothing. The exit code is 1 when a benchmark does not finish; a missed target is a row of the table.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

PAGE = Path(__file__).resolve().parent.parent / "docs" / "benchmarks.md"
BENCHMARKS: dict[str, list[str]] = {
    "scorers": ["benchmarks.scorers"],
    "faces": ["benchmarks.detectors", "faces"],
    "ocr": ["benchmarks.detectors", "ocr"],
    "engine": ["benchmarks.engine"],
    "store": ["benchmarks.store"],
    "synth": ["benchmarks.synth"],
    "mix": ["benchmarks.mix"],
    "marian": ["benchmarks.models", "marian", "--rows", "32"],
    "endpoint": ["benchmarks.models", "endpoint"],
    "endpoint64": ["benchmarks.models", "endpoint", "--requests", "64"],
    "rating": ["benchmarks.rating"],
    "datajuicer": ["benchmarks.datajuicer"],
}
EXTRA = ("datajuicer",)
LIBRARIES = ("duckdb", "numpy", "onnxruntime", "opencv-python-headless", "pillow", "pyarrow", "rapidocr", "ray")


@dataclass(frozen=True)
class Figure:
    """One measured figure; `target` is a lower bound, or an upper one when `at_most`; None is for information."""

    about: str
    value: float
    unit: str = ""
    target: float | None = None
    at_most: bool = False

    @property
    def verdict(self) -> str:
        if self.target is None:
            return ""
        return "met" if (self.value <= self.target if self.at_most else self.value >= self.target) else "missed"

    @property
    def cells(self) -> tuple[str, str, str, str]:
        """About, value, target and verdict as text."""
        bound = (
            "" if self.target is None else f"{'at most' if self.at_most else 'at least'} {show(self.target, self.unit)}"
        )
        return self.about, show(self.value, self.unit), bound, self.verdict


def main() -> None:
    """Run, print, append."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--all", action="store_true", help="also the comparison with Data-Juicer")
    parser.add_argument("--only", action="append", choices=sorted(BENCHMARKS), help="this one; may be given again")
    parser.add_argument("--dry", action="store_true", help="do not append to docs/benchmarks.md")
    options = parser.parse_args()
    names = options.only or [name for name in BENCHMARKS if options.all or name not in EXTRA]
    before = load()
    found: dict[str, dict[str, Any]] = {}
    for name in names:
        print(f"\n== {name}", flush=True)
        if result := measured(BENCHMARKS[name]):
            found[name] = result
    figures = [figure for name, result in found.items() for figure in FIGURES[name](result)]
    rows = [("", "measured", "target", ""), *(figure.cells for figure in figures)]
    widths = [max(len(row[i]) for row in rows) for i in range(4)]
    print()
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    if found and not options.dry:
        with PAGE.open("a", encoding="utf-8") as page:
            page.write(section(figures, before, load()))
        print(f"\nappended to {PAGE.relative_to(Path.cwd()) if PAGE.is_relative_to(Path.cwd()) else PAGE}")
    if missing := [name for name in names if name not in found]:
        sys.exit(f"did not finish: {', '.join(missing)}")


def measured(command: list[str]) -> dict[str, Any] | None:
    """Run one benchmark, its output passed on; its figures, or None when it fails."""
    process = subprocess.Popen([sys.executable, "-m", *command], stdout=subprocess.PIPE, text=True)
    result = None
    for line in process.stdout or ():
        if line.startswith("RESULT "):
            result = dict(json.loads(line.removeprefix("RESULT ")))
        else:
            print(line, end="", flush=True)
    return result if process.wait() == 0 else None


def scorers(found: dict[str, Any]) -> Iterator[Figure]:
    yield Figure(
        "size + identity + sharpness + photometry, of the rate of Pillow's decoding",
        found["ratio_to_pillow"],
        "%",
        found["target"],
    )
    yield Figure("the same", found["images_per_s"], "images/s per core")


def faces(found: dict[str, Any]) -> Iterator[Figure]:
    for engine in ("haar", "yunet"):
        if engine in found:
            yield Figure(f"faces by {engine}, 1 MP", found[engine]["ms"], "ms")


def ocr(found: dict[str, Any]) -> Iterator[Figure]:
    row = next(row for row in found["rows"] if row["pixels"] == found["default_pixels"])
    yield Figure("text, text-free 1 MP photograph, one core, median", row["ms_median"], "ms", 120, at_most=True)
    yield Figure(f"known texts of {row['truth_texts']} found", row["truth_found"])


def engine(found: dict[str, Any]) -> Iterator[Figure]:
    yield Figure(
        f"job through Ray / plain pool, {found['rows']:,} rows, all included", found["ratio"], "%", found["target"]
    )
    yield Figure("the same, start-up, index and end left out", found["ratio_without_start"], "%")
    yield Figure("job through Ray, all included", found["ray_rows_per_s"], "rows/s")
    yield Figure("plain pool, all included", found["pool_rows_per_s"], "rows/s")
    if driver := found.get("driver"):
        about = f"driver's peak memory, {driver['rows']:,} rows"
        yield Figure(f"{about}, index included", driver["peak_mb"], "MB", driver["target_peak_mb"], at_most=True)
        yield Figure(f"{about}, until the index", driver["peak_run_mb"], "MB")


def store(found: dict[str, Any]) -> Iterator[Figure]:
    one, other = found["ingest"], found["policy"]
    about = f"ingest of {one['samples']:,} samples of all operators"
    yield Figure(about, one["rows_per_s"], "rows of parts/s", one["target_rows_per_s"])
    yield Figure("the same", one["samples_per_s"], "samples/s")
    yield Figure(f"{about}, peak memory", one["peak_mb"], "MB", one["target_peak_mb"], at_most=True)
    yield Figure(
        f"changed policy over {other['samples']:,} rows, the query",
        other["query_s"],
        "s",
        other["target_s"],
        at_most=True,
    )
    yield Figure("the same, views made and index file copied before it", other["views_s"], "s")
    yield Figure(f"the copy alone, {other['index_mb']:,} MB", other["copy_s"], "s")


def synth(found: dict[str, Any]) -> Iterator[Figure]:
    yield Figure("rendered text, photographs in memory", found["rows_per_s_core"], "rows/s per core", found["target"])
    decoded, target = found["rows_per_s_core_with_decode"], found["target_with_decode"]
    yield Figure("the same, photographs decoded", decoded, "rows/s per core", target)
    yield Figure("the same, in units of encoding its JPEG", found["times_jpeg"], "times")
    characters, target = found["characters"], found["target_per_million"]
    yield Figure("rarest GB2312 character per million rows", characters["least_per_million"], "times", target)


def mix(found: dict[str, Any]) -> Iterator[Figure]:
    decide, export, load = found["decide"], found["export"], found["load"]
    yield Figure("captions of an epoch, one core", decide["quota_epoch_mrows_s"], "million rows/s", 2.0)
    yield Figure("the same, cells and ranks included", decide["quota_with_ranks_mrows_s"], "million rows/s", 2.0)
    yield Figure("export to Parquet against a copy, 2 processes", export["parquet_2_ratio"], "", 0.8)
    yield Figure("export to WebDataset against a copy, 2 processes", export["webdataset_2_ratio"], "", 0.8)
    yield Figure("MixDataset at 512 px, one core", load["resized_img_per_cpu_s"], "pictures/s", 200.0)
    yield Figure("the same from originals of 640 to 2048 px", load["originals_img_per_cpu_s"], "pictures/s")
    yield Figure("state of MixDataset", load["state_bytes"], "bytes", 1024.0, at_most=True)


def marian(found: dict[str, Any]) -> Iterator[Figure]:
    yield Figure(f"Marian in batches of {found['rows']} against one sentence at a time", found["times"], "times", 5.0)


def endpoint(found: dict[str, Any]) -> Iterator[Figure]:
    about = f"{found['requests']} requests of a run by an endpoint"
    yield Figure(
        f"{about}, not in flight until the last one was sent", found["idle_until_last"], "%", 0.05, at_most=True
    )
    yield Figure(f"the same until the last answer, {found['rows']:,} rows", found["idle"], "%", 0.05, at_most=True)


def rating(found: dict[str, Any]) -> Iterator[Figure]:
    about = f"{found['raters']} raters"
    yield Figure(f"{about}: lost, duplicated and excess votes", _wrong(found), "", 0, at_most=True)
    yield Figure(f"{about}: server time of an answer, p99", found["answer_p99_ms"], "ms", 30, at_most=True)
    yield Figure(f"{about}: server time of a preview, p99", found["preview_p99_ms"], "ms", 80, at_most=True)
    yield Figure(f"{about}: memory of the server", found["memory_mb"], "MB", 400, at_most=True)
    yield Figure("key press to next picture painted, p95", found["paint_p95_ms"], "ms", 60, at_most=True)
    large = f"campaign of {found['queue_images']:,} images"
    yield Figure(f"{large}: the queue's answer, slowest of p99s", found["queue_ms"], "ms", 20, at_most=True)
    yield Figure(f"{large}: numbers of the lead's page", found["standing_p50_ms"], "ms")
    yield Figure(f"{large}: change of the rule", found["change_s"], "s")
    yield Figure(f"{large}: longest wait of a rater meanwhile", found["change_wait_max_ms"], "ms", 1000, at_most=True)


def _wrong(found: dict[str, Any]) -> int:
    return int(sum(found[name] for name in ("lost", "duplicated", "twice_by_one_person", "in_excess")))


def datajuicer(found: dict[str, Any]) -> Iterator[Figure]:
    yield Figure("Data-Juicer, 2 processes", found["data_juicer"]["images_per_s"], "images/s")
    for engine in ("haar", "yunet"):
        for job in ("lean", "full"):
            if ours := found.get(f"{engine}_{job}"):
                target = ours["target"] if job == "lean" else None
                yield Figure(
                    f"curate / Data-Juicer, {engine}, {job} job, without start-up", ours["ratio"], "times", target
                )
                yield Figure("the same with start-up", ours["whole_ratio"], "times")


FIGURES: dict[str, Callable[[dict[str, Any]], Iterator[Figure]]] = {
    "scorers": scorers, "faces": faces, "ocr": ocr, "engine": engine, "store": store, "synth": synth,
    "mix": mix, "marian": marian, "endpoint": endpoint, "endpoint64": endpoint, "rating": rating,
    "datajuicer": datajuicer,
}  # fmt: skip


def show(value: float, unit: str) -> str:
    """The value with its unit, three figures at least."""
    if unit == "%":
        return f"{100 * value:.1f} %"
    text = f"{value:,.0f}" if abs(value) >= 100 or float(value).is_integer() else f"{value:.3g}"
    return f"{text} {unit}".strip()


def section(figures: list[Figure], before: float, after: float) -> str:
    """The dated section of docs/benchmarks.md."""
    lines = [f"| {' | '.join(figure.cells)} |" for figure in figures]
    return (
        f"\n### {datetime.now(UTC):%Y-%m-%d %H:%M} UTC\n\n{machine()}. Load average {before:.1f} at the start, "
        f"{after:.1f} at the end.\n\n| figure | measured | target | verdict |\n|---|---:|---:|---|\n"
        + "\n".join(lines)
        + "\n"
    )


def load() -> float:
    return os.getloadavg()[0]


def machine() -> str:
    """The machine in a line: processor, cores, Python and libraries."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text("utf-8").splitlines() if info.exists() else []
    model = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())
    libraries = ", ".join(f"{name} {installed(name)}" for name in LIBRARIES)
    return f"{model}, {os.cpu_count()} cores; Python {platform.python_version()}, {libraries}"


def installed(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "absent"


if __name__ == "__main__":
    main()
