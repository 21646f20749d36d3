"""The benchmarks of the main job run from end to end on a few rows: what they measure is there."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from benchmarks import engine, scorers, store
from benchmarks.process import MARK
from curate.store import Store
from curate.store.verify import verify
from schemas.columns import OPERATORS


@pytest.fixture
def told(capsys: pytest.CaptureFixture[str]) -> Callable[[], dict[str, Any]]:
    """The figures of the last step."""

    def read() -> dict[str, Any]:
        return dict(json.loads(capsys.readouterr().out.strip().splitlines()[-1].removeprefix(MARK)))

    return read


def test_made_up_parts_become_a_sound_index_and_two_policies_judge_it(
    tmp_path: Path, told: Callable[[], dict[str, Any]]
) -> None:
    made = store.prepare(tmp_path, 400, 2, tuple(OPERATORS))
    assert (made["operators"], made["parts"]) == (10, 20)
    store.step_ingest(tmp_path)
    assert told()["index_mb"] > 0
    one = Store(tmp_path)
    assert verify(one) == []
    assert one.counts()["rows"] == one.rows("SELECT count(caption_zh) FROM samples")[0][0] == 400
    before = one.rows(store.QUERY)
    store.step_judge(tmp_path)
    after = [tuple(row) for row in told()["reasons"]]
    assert sum(rows for _, rows in after) == 400
    assert after != before


def test_the_job_and_the_pool_of_the_engine_benchmark_see_every_row(
    tmp_path: Path, told: Callable[[], dict[str, Any]]
) -> None:
    shards = engine.pictures(tmp_path / "shards", 3)
    engine.run_job(shards, 1, False, "inline")
    figures = told()
    assert 0 < figures["working"] < figures["seconds"]
    recipe = engine.recipe_of(shards, shards, 1, False, "pool")
    engine.CALLABLES[:] = [op.load(recipe) for op in engine.pipeline.PATH[1:] if op.wanted(recipe)]
    (file,) = shards.glob("*.parquet")
    columns = [row for group in range(pq.ParquetFile(file).num_row_groups) for row in engine.score((str(file), group))]
    assert [bool(row["sha256"] and row["caption_en"]) for row in columns] == [True] * 3


def test_the_scorers_benchmark_times_every_step() -> None:
    assert all(seconds > 0 for seconds in scorers.measure(scorers.jpegs(2)).values())
