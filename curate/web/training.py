"""Training runs of the store as they go: losses, speed and samples, drawn anew every few seconds.

A run tells the store where it is (`training/NAME.json`); what it says is in its metrics.jsonl. Charts are SVG.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fastapi import FastAPI, HTTPException
from fastapi.responses import HTMLResponse, Response

from curate.store.files import Files
from curate.train.log import read_metrics
from curate.web.access import access
from curate.web.pages import Pages
from curate.web.reader import Reader

FOLDER = "training"
REFRESH_S = 5
POINTS = 400  # of a curve
WIDTH, HEIGHT, LEFT, BOTTOM = 640, 200, 64, 24


def add_training(app: FastAPI, page: Pages, reader: Reader) -> None:
    """The routes /training and /training/{name}."""
    page.templates.globals["has_training"] = lambda: bool(runs(reader.store.files))

    @app.get("/training", response_class=HTMLResponse, include_in_schema=False)
    @access("explore")
    def show_runs() -> Response:
        found = [summary(name, folder, steps) for name, folder, steps in runs(reader.store.files)]
        return page("training.html", runs=found, one=None, charts=[], refresh=0)

    @app.get("/training/{name}", response_class=HTMLResponse, include_in_schema=False)
    @access("explore")
    def show_run(name: str) -> Response:
        for known, folder, steps in runs(reader.store.files):
            if known == name:
                one = summary(known, folder, steps)
                lines = read_metrics(folder / "metrics.jsonl")
                refresh = 0 if one["finished"] else REFRESH_S
                return page("training.html", runs=[], one=one, charts=charts(lines), refresh=refresh)
        raise HTTPException(404, f"No training run {name!r} is known here.")

    @app.get("/training/{name}/samples.png", include_in_schema=False)
    @access("explore")
    def show_samples(name: str) -> Response:
        for known, folder, _ in runs(reader.store.files):
            grids = sorted((folder / "grids").glob("step-*.png"), key=_age) if known == name else []
            if grids:
                return Response(grids[-1].read_bytes(), media_type="image/png", headers=page.file_headers)
        raise HTTPException(404, "This run has drawn no samples yet.")


def _age(path: Path) -> tuple[str, bool]:
    """Sheets in the order of their steps, the averaged weights after the raw ones."""
    return path.name[: len("step-00000000")], "-ema" in path.name


def runs(files: Files) -> list[tuple[str, Path, int]]:
    """Name, folder and planned steps of every run that the store was told of and whose folder is still there."""
    found = []
    for path in sorted(files.list(FOLDER)):
        if path.endswith(".json"):
            told = json.loads(files.read(path))
            folder = Path(told["folder"])
            if (folder / "metrics.jsonl").is_file():
                found.append((Path(path).stem, folder, int(told["steps"])))
    return found


def summary(name: str, folder: Path, steps: int) -> dict[str, Any]:
    """What the page says of a run in a line."""
    lines = read_metrics(folder / "metrics.jsonl")
    train = [line for line in lines if line["kind"] == "train"]
    held_out = [line for line in lines if line["kind"] == "validation" and line["split"] == "validation"]
    bad = [line for line in lines if line["kind"] == "nonfinite"]
    return {
        "name": name,
        "folder": str(folder),
        "steps": steps,
        "step": train[-1]["step"] if train else 0,
        "last": train[-1] if train else None,
        "held_out": held_out[-1] if held_out else None,
        "skipped": [row["row_id"] for line in bad for row in line["samples"]][:20],
        "samples": any((folder / "grids").glob("step-*.png")),
        "finished": (folder / "finished.json").is_file(),
    }


def charts(lines: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The curves of a run: name of the chart, and its SVG."""
    train = [line for line in lines if line["kind"] == "train"]
    checks = [line for line in lines if line["kind"] == "validation" and line["loss"] is not None]
    phases = list(dict.fromkeys(line.get("phase", "") for line in checks))
    validation = {  # each phase has its own schedule: a line from one to the next would say nothing
        ", ".join([phase, split, weights] if len(phases) > 1 else [split, weights]): _curve(
            [line for line in checks if line["split"] == split and line.get("phase", "") == phase], weights
        )
        for phase in phases
        for split in ("validation", "train")
        for weights in ("raw", "ema")
    }
    last = [line for line in checks if line["split"] == "validation"][-1:]
    by_step = {"by timestep": [(float(t), v) for t, v in last[0]["by"]["timestep"].items()]} if last else {}
    wanted = {
        "training loss": {"loss": [(line["step"], line["loss"]) for line in train]},
        "validation loss": validation,
        "validation loss by timestep, newest": by_step,
        "gradient norm": {"norm": [(line["step"], line["gradient_norm"]) for line in train]},
        "images per second": {"rate": [(line["step"], line["images_per_s"]) for line in train]},
        "share of time waiting for data": {"wait": [(line["step"], line["data_wait"]) for line in train]},
    }
    return [
        {"name": name, "lines": draw(curves)}
        for name, curves in wanted.items()
        if any(len(c) > 1 for c in curves.values())
    ]


def _curve(checks: Sequence[dict[str, Any]], weights: str) -> list[tuple[float, float]]:
    """Losses over steps; averaged weights begin as the raw ones are."""
    found = [(line["step"], line["loss"]) for line in checks if line["weights"] == weights]
    begin = [(line["step"], line["loss"]) for line in checks[:1]]
    return begin + found if found and begin[0][0] < found[0][0] else found


def draw(curves: dict[str, list[tuple[float, float]]]) -> dict[str, Any]:
    """Coordinates of curves in one frame, for the template: polylines with their names, and the ends of the axes."""
    shown = {name: points[:: max(len(points) // POINTS, 1)] for name, points in curves.items() if len(points) > 1}
    xs = [x for points in shown.values() for x, _ in points]
    ys = [y for points in shown.values() for _, y in points]
    wide, tall = (max(xs) - min(xs)) or 1.0, (max(ys) - min(ys)) or 1.0

    def at(x: float, y: float) -> str:
        across = LEFT + (WIDTH - LEFT - 8) * (x - min(xs)) / wide
        return f"{across:.1f},{8 + (HEIGHT - BOTTOM - 8) * (max(ys) - y) / tall:.1f}"

    return {
        "curves": [
            {"name": name, "points": " ".join(at(x, y) for x, y in points), "last": points[-1][1]}
            for name, points in shown.items()
        ],
        "x": (min(xs), max(xs)),
        "y": (min(ys), max(ys)),
        "size": (WIDTH, HEIGHT, LEFT, BOTTOM),
    }
