from __future__ import annotations

import json
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from curate.store import Store
from curate.web import make_app

LOSS = {"by": {"timestep": {"50": 0.9, "950": 0.1}, "caption": {}, "category": {}, "tier": {}}}


@pytest.fixture
def run_folder(finished_store: Path, tmp_path: Path) -> Path:
    """A run of two log lines that the store was told of."""
    folder = tmp_path / "run"
    folder.mkdir()
    lines = [
        {"kind": "validation", "step": 0, "weights": "raw", "split": "validation", "loss": 1.1, **LOSS},
        *(
            {
                "kind": "train", "step": step, "loss": 1 / step, "images_per_s": 20.0, "data_wait": 0.01,
                "gradient_norm": 0.5, "raw_share": 0.5, "peak_memory_gb": 1.0,
            }
            for step in (1, 2)
        ),
        {"kind": "validation", "step": 2, "weights": "ema", "split": "validation", "loss": 0.7, **LOSS},
        {"kind": "nonfinite", "step": 2, "samples": [{"row_id": "train-00000:7"}]},
        {"kind": "validation", "step": 2, "weights": "raw", "split": "validation", "loss": 0.6125, **LOSS},
    ]  # fmt: skip
    text = "\n".join(json.dumps(line) for line in lines)
    (folder / "metrics.jsonl").write_text(text + '\n{"kind": "tr')
    (finished_store / "training").mkdir()
    (finished_store / "training" / "arms-raw.json").write_text(json.dumps({"folder": str(folder), "steps": 9}))
    return folder


def test_a_run_under_way_is_shown_and_drawn_anew(finished_store: Path, run_folder: Path) -> None:
    with TestClient(make_app(Store(str(finished_store)), None)) as browser:
        overview = browser.get("/training").text
        assert "2 / 9" in overview
        assert "0.6125" in overview
        page = browser.get("/training/arms-raw").text
        assert '<meta http-equiv="refresh" content="5">' in page
        assert page.count("<polyline") == 7  # of six charts; averaged weights begin where the raw ones do
        assert "validation, ema 0.7" in page
        assert 'href="/row/train-00000%3A7"' in page
        assert browser.get("/training/arms-raw/samples.png").status_code == 404
        assert browser.get("/training/other").status_code == 404
        (run_folder / "finished.json").write_text("{}")
        (run_folder / "grids").mkdir()
        for sheet in ("step-00000001-raw", "step-00000002-ema", "step-00000002-raw"):
            (run_folder / "grids" / f"{sheet}.png").write_bytes(sheet.encode())
        assert "refresh" not in browser.get("/training/arms-raw").text
        samples = browser.get("/training/arms-raw/samples.png")
        assert (samples.headers["content-type"], samples.content) == ("image/png", b"step-00000002-ema")


def test_a_store_without_runs_has_no_link_to_them(finished_store: Path) -> None:
    with TestClient(make_app(Store(str(finished_store)), None)) as browser:
        assert 'href="/training"' not in browser.get("/").text
        assert "curate train RECIPE" in browser.get("/training").text
