from __future__ import annotations

import io
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from rich.console import Console
from train_tiny import BUCKETS

from curate.errors import UsageError
from curate.store import Store
from curate.train import compare, evaluate, grid, run, scores
from curate.train.compare import COLUMNS, contrast
from curate.train.recipe import Recipe, from_tables

STEPS = evaluate.timesteps("sdxl")


def losses(shift: float, seed: int, rows: int = 40, spread: float = 0.001) -> pa.Table:
    """Losses of pictures that differ much among each other, each off by `shift` and a little noise of its own."""
    level = np.random.default_rng(7).uniform(0.1, 0.9, (rows, len(STEPS)))
    noise = np.random.default_rng(seed).normal(0, spread, level.shape)
    lines = [
        (f"s:{row}", "validation", kind, t, float(level[row, i] + noise[row, i] + shift), None, None)
        for row in range(rows)
        for i, t in enumerate(STEPS)
        for kind in ("raw", "en", "zh")
    ]
    return pa.Table.from_pylist(
        [dict(zip(evaluate.SCHEMA.names, line, strict=True)) for line in lines], evaluate.SCHEMA
    )


def test_a_difference_that_is_there_is_claimed_and_one_that_is_not_is_not() -> None:
    base = [losses(0, 1), losses(0, 2)]
    better = contrast("b", [losses(-0.002, 3), losses(-0.002, 4)], "a", base, "raw", ("raw",))
    assert better is not None
    assert (better.verdict, better.steps_agreeing, better.rows) == ("better", 8, 40)
    assert -0.0025 < better.low < better.high < -0.0015
    claims = 0
    for seed in range(20):
        none = contrast(f"c{seed}", [losses(0, 100 + seed)], "a", [losses(0, 200 + seed)], "raw", ("raw",), 500)
        assert none is not None
        claims += none.claim
    assert claims == 0


def test_seeds_that_disagree_make_no_claim() -> None:
    found = contrast("b", [losses(-0.004, 3), losses(0.001, 4)], "a", [losses(0, 1), losses(0, 2)], "raw", ("raw",))
    assert found is not None
    assert not found.seeds_agreeing
    assert found.verdict == "not shown"


def test_rows_are_paired_by_name_and_kinds_that_only_one_has_are_left_out() -> None:
    few = losses(0, 1).filter(pa.compute.starts_with(losses(0, 1)["row_id"], "s:1"))
    found = contrast("b", [few], "a", [losses(0, 1)], "synthetic", ("en", "zh"))
    assert found is not None
    assert (found.rows, found.difference) == (11, 0.0)
    english = few.filter(pa.compute.equal(few["caption"], "raw"))
    assert contrast("b", [english], "a", [losses(0, 1)], "synthetic", ("en", "zh")) is None


@pytest.fixture
def arms(finished_store: Path, tmp_path: Path) -> Recipe:
    torch.set_num_threads(1)
    return from_tables(
        {
            "output": {"uri": str(tmp_path / "out")},
            "data": {"store": str(finished_store)},
            "train": {"batch": 4, "ema": 0.5, "lr": 1e-3},
            "checkpoint": {"every": 2, "export": False},
            "measure": {"rows": 1, "every": 0, "grid_seeds": 0},
            "compare": {"validation": 0.3},
            "phase": [{"steps": 2, "buckets": BUCKETS}],
            "arms": {
                "raw": {"ignore_policy": True},
                "filtered": {"against": "raw"},
                "recaption": {"ratio": 0.5, "against": "filtered"},
                "random": {"ignore_policy": True, "size_of": "filtered"},
            },
        }
    )


def test_arms_differ_in_their_data_alone_and_are_measured_on_the_same_rows(arms: Recipe, finished_store: Path) -> None:
    out = io.StringIO()
    run.run(arms, Console(file=out, width=200))
    folder = arms.folder
    manifests = {
        path.parent.name: json.loads(path.read_text()) for path in sorted((folder / "mixes").glob("*/manifest.json"))
    }
    rows = {name: {split: s["rows"] for split, s in made["splits"].items()} for name, made in manifests.items()}
    assert sum(rows["random"].values()) == sum(rows["filtered"].values()) < sum(rows["raw"].values())
    facts = [json.loads(path.read_text()) for path in (folder / "arms").glob("*/seed-0/finished.json")]
    assert len({fact["base"] for fact in facts}) == 1
    assert [fact["steps"] for fact in facts] == [2] * 4
    tables = {arm.name: compare._tables(folder / "arms" / arm.name)[0] for arm in arms.arms}
    measured = [sorted(set(table["row_id"].to_pylist())) for table in tables.values()]
    assert all(found == measured[0] for found in measured)
    trained_on = (
        _rows(folder / "mixes" / "raw") | _rows(folder / "mixes" / "filtered") | _rows(folder / "mixes" / "random")
    )
    assert not trained_on & set(measured[0])

    found = json.loads((folder / "comparison.json").read_text())
    pairs = {(line["arm"], line["against"]) for line in found}
    assert pairs == {("filtered", "raw"), ("recaption", "filtered")}
    for line in found:
        assert line["low"] <= line["difference"] <= line["high"]
    page = (folder / "comparison.html").read_text()
    assert "Training captions by validation captions" in page
    assert page.count("<circle") == len(found)
    assert not re.search(r"(src|href)=", page)
    assert "recaption" in out.getvalue()

    scored = Store(str(finished_store)).rows("SELECT count(train_loss), count(*) FILTER (error IS NULL) FROM samples")
    assert scored[0][0] == scored[0][1] > 0

    again = compare.compare_folders(
        [folder / "arms" / "raw", folder / "arms" / "recaption"], Console(file=out, width=200)
    )
    assert {(c.arm, c.column) for c in again} == {("recaption", name) for name, _ in COLUMNS} or again == []


def _rows(mix: Path) -> set[str]:
    from curate.mix import MixDataset

    data = MixDataset(mix, decode=False)
    return {data.batch(0, n)["row_id"] for n in range(data.steps(0))}


def test_runs_that_no_loss_can_compare_are_refused(tmp_path: Path) -> None:
    from curate.train.recipe import to_toml

    for name, section in (("a", {}), ("b", {"model": {"prediction": "v_prediction"}})):
        one: dict[str, Any] = {"output": {"uri": str(tmp_path / name)}, "data": {"mix": "m"}, **section}
        (tmp_path / name / "validation").mkdir(parents=True)
        (tmp_path / name / "recipe.toml").write_text(to_toml(from_tables(one)))
        (tmp_path / name / "finished.json").write_text('{"steps": 1, "base": "x"}')
        pa.parquet.write_table(losses(0, 1), tmp_path / name / "validation" / "step-00000001-ema.parquet")
    folders = [tmp_path / "a", tmp_path / "b"]
    with pytest.raises(UsageError, match=r"model.prediction is epsilon in one and v_prediction in the other"):
        compare.compare_folders(folders, Console(file=io.StringIO()))
    (tmp_path / "b" / "finished.json").unlink()
    with pytest.raises(UsageError, match="not a finished run"):
        compare.compare_folders(folders, Console(file=io.StringIO()))


def test_text_in_samples_is_read_back() -> None:
    from PIL import Image, ImageDraw, ImageFont

    def drawn(text: str) -> grid.Sampled:
        sheet = Image.new("RGB", (400, 160), "white")
        ImageDraw.Draw(sheet).text((60, 50), text, "black", ImageFont.load_default(60))
        return grid.Sampled('a sign that says "Hello"', 0, np.asarray(sheet))

    assert grid.read_back(drawn("Hello")).match == 1.0
    assert (grid.read_back(drawn("Bye")).match or 0) < 0.5
    assert grid.read_back(grid.Sampled("a red bus", 0, drawn("Hello").pixels)).match is None
    assert grid.text_match("横渠 书院", "横渠书院") == 1.0
    assert [grid.QUOTED.search(p) is not None for p in grid.prompts("")] == [False, False, True, True, True, True, True]


def test_kid_is_nothing_for_one_distribution_and_grows_with_the_distance() -> None:
    draw = np.random.default_rng(0)
    a, b = draw.normal(size=(2, 400, 16))
    same, error = scores.kid(a, b, subsets=20, size=200)
    assert abs(same) < 5 * error + 0.02
    assert scores.kid(a, b + 0.5, subsets=20, size=200)[0] > 0.1 > abs(same)
