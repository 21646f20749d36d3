from __future__ import annotations

import dataclasses
import io
import json
import re
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
import torch
from rich.console import Console
from train_tiny import BUCKETS

from curate.errors import UsageError
from curate.store import Store
from curate.train import compare, evaluate, grid, run, scores
from curate.train.compare import COLUMNS, bootstrap, contrast
from curate.train.comparison_page import ticks
from curate.train.recipe import Recipe, from_tables

STEPS = evaluate.timesteps("sdxl")


def losses(shift: float, seed: int, rows: int = 40, spread: float = 0.001) -> pa.Table:
    """Losses of pictures that differ much among each other, each off by `shift` and a little noise of its own."""
    level = np.random.default_rng(7).uniform(0.1, 0.9, (rows, len(STEPS)))
    noise = np.random.default_rng(seed).normal(0, spread, level.shape)
    lines = [
        (
            f"s:{row}", "validation", kind, t, float(level[row, i] + noise[row, i] + shift), None, None,
            f"picture-{row}", f"{kind}-{row}",
        )
        for row in range(rows)
        for i, t in enumerate(STEPS)
        for kind in ("raw", "en", "zh")
    ]  # fmt: skip
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


def test_pairs_have_one_picture_and_one_caption_whatever_their_rows_are_called() -> None:
    both = losses(0, 1)
    english = both.filter(pc.equal(both["caption"], "en"))
    harder = both.set_column(4, "loss", pc.add(both["loss"], pc.if_else(pc.equal(both["caption"], "zh"), 0.05, 0.0)))
    kinds = contrast("b", [english], "a", [harder], "synthetic", ("en", "zh"))
    assert kinds is not None
    assert (kinds.difference, kinds.verdict) == (0.0, "not shown")  # Chinese captions that only one has do not count
    names = pa.array([f"other:{name}" for name in both["row_id"].to_pylist()])
    moved = contrast("b", [both.set_column(0, "row_id", names)], "a", [both], "raw", ("raw",))
    assert moved is not None
    assert (moved.rows, moved.difference) == (40, 0.0)
    for column in ("sha256", "said"):  # another store whose shards have the same names
        at = both.schema.get_field_index(column)
        foreign = both.set_column(at, column, pa.array([f"x{value}" for value in both[column].to_pylist()]))
        assert contrast("b", [foreign], "a", [both], "raw", ("raw",)) is None


def test_the_bootstrap_takes_little_memory_and_has_the_spread_of_a_mean() -> None:
    steps = np.random.default_rng(0).normal(0, 1, (4000, 8))
    tracemalloc.start()
    found = bootstrap(steps, 1000, np.random.default_rng(1))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 20e6  # resamples x pictures x timesteps would be 256 MB
    np.testing.assert_allclose(found.mean(0), steps.mean(0), atol=0.003)
    np.testing.assert_allclose(found.std(0), 1 / 4000**0.5, rtol=0.1)


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
            "measure": {"rows": 1, "every": 0, "grid_seeds": 0, "write_back_rows": 3},
            "compare": {"validation": 0.3, "rows": 5},
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
    planned = io.StringIO()
    run.show_plan(arms, Console(file=planned, width=200))
    out = io.StringIO()
    run.run(arms, Console(file=out, width=80))
    folder = arms.folder
    manifests = {
        path.parent.name: json.loads(path.read_text()) for path in sorted((folder / "mixes").glob("*/manifest.json"))
    }
    rows = {name: {split: s["rows"] for split, s in made["splits"].items()} for name, made in manifests.items()}
    assert rows["random"]["train"] == rows["filtered"]["train"] < rows["raw"]["train"]
    for name in ("raw", "filtered", "recaption", "random"):
        assert f"arm {name}: {rows[name]['train']} rows to train on (" in planned.getvalue()
    assert f"measured on 5 of the {rows['neutral']['validation']} rows" in planned.getvalue()
    facts = [json.loads(path.read_text()) for path in (folder / "arms").glob("*/seed-0/finished.json")]
    assert len({fact["base"] for fact in facts}) == 1
    assert [fact["steps"] for fact in facts] == [2] * 4
    tables = {arm.name: compare._tables(folder / "arms" / arm.name)[0] for arm in arms.arms}
    measured = [sorted(set(table["row_id"].to_pylist())) for table in tables.values()]
    assert all(found == measured[0] for found in measured)
    assert len(measured[0]) == 5
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
    shown = out.getvalue()
    assert all(f"{line['arm']} - {line['against']} {line['column']}" in " ".join(shown.split()) for line in found)
    assert all(f"{line['low']:+.5f} {line['high']:+.5f}" in shown for line in found)  # on one line, of 80 columns

    assert Store(str(finished_store)).rows("SELECT count(train_loss) FROM samples") == [(6,)]
    run.run(arms, Console(file=out, width=200))
    assert out.getvalue().count("finished already") == 4
    other = dataclasses.replace(arms, train=dataclasses.replace(arms.train, lr=1e-4))
    with pytest.raises(UsageError, match=r"train.lr was 0.001 and is 0.0001"):
        run.run(other, Console(file=out, width=200))
    other = dataclasses.replace(
        arms, arms=(dataclasses.replace(arms.arms[0], where="row_id IS NOT NULL"), *arms.arms[1:])
    )
    with pytest.raises(UsageError, match=r"arms.raw: .*choose another output.uri"):
        run.run(other, Console(file=out, width=200))
    assert "row_id IS NOT NULL" not in (folder / "recipe.toml").read_text()

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

    sections: dict[str, dict[str, Any]] = {
        "a": {}, "b": {"model": {"prediction": "v_prediction"}}, "c": {"phase": [{"buckets": "96x96"}]},
        "d": {"train": {"lr": 3e-4}}, "e": {"measure": {"noises": 2}}, "f": {"train": {"seed": 7}},
    }  # fmt: skip
    for name, section in sections.items():
        one: dict[str, Any] = {"output": {"uri": str(tmp_path / name)}, "data": {"mix": "m"}, **section}
        (tmp_path / name / "validation" / "train").mkdir(parents=True)
        (tmp_path / name / "recipe.toml").write_text(to_toml(from_tables(one)))
        (tmp_path / name / "finished.json").write_text('{"steps": 1, "base": "x"}')
        pa.parquet.write_table(losses(0, 1), tmp_path / name / "validation" / "train" / "step-00000001-ema.parquet")
    folders = [tmp_path / "a", tmp_path / "b"]
    with pytest.raises(UsageError, match=r"model.prediction is epsilon in one and v_prediction in the other"):
        compare.compare_folders(folders, Console(file=io.StringIO()))
    for name, key in (("c", r"phase\[0\].buckets"), ("d", "train.lr"), ("e", "measure.noises")):
        with pytest.raises(UsageError, match=f"{key} is .* in one and .* in the other"):
            compare.compare_folders([tmp_path / "a", tmp_path / name], Console(file=io.StringIO()))
    assert compare.compare_folders([tmp_path / "a", tmp_path / "f"], Console(file=io.StringIO()))
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


def test_the_error_of_kid_is_its_spread_over_pictures() -> None:
    draw = np.random.default_rng(0)
    for apart, low, high in ((0.0, 1.0, 1.7), (0.3, 0.8, 1.3)):
        pairs = [draw.normal(size=(2, 60, 16)) for _ in range(100)]
        found = np.array([scores.kid(a, b + apart) for a, b in pairs])
        spread = found[:, 0].std()
        assert low < found[:, 1].mean() / spread < high
        if not apart:
            assert abs(found[:, 0].mean()) < 4 * spread / 100**0.5  # unbiased: nothing for one distribution
    far, error = scores.kid(pairs[0][0], pairs[0][1] + 1)
    assert far > 4 * error


def test_the_axis_of_differences_has_round_numbers() -> None:
    assert ticks(-0.013, 0.004) == [-0.01, -0.005, 0.0]
    assert ticks(0.0, 0.0) == [0.0]
    assert 3 <= len(ticks(-0.0261, 0.0)) <= 7
