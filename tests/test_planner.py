"""What a run tells of itself and of runs to come: the plan, the metrics, the log, the status."""

from __future__ import annotations

import dataclasses
import io
import json
import logging
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import write_shards
from rich.console import Console

from curate import log, metrics, pipeline, planner, status
from curate.engine.driver import Progress
from curate.errors import UsageError
from curate.progress import Display
from curate.recipe import Recipe
from curate.report import render
from curate.store import Store

Quiet = Callable[[], Display]


def changed(recipe: Recipe, section: str, **keys: Any) -> Recipe:
    """The recipe with some keys of a section replaced."""
    return dataclasses.replace(recipe, **{section: dataclasses.replace(getattr(recipe, section), **keys)})


def test_a_plan_counts_rows_gates_and_bytes_as_the_run_does(recipe: Recipe, quiet: Quiet) -> None:
    prepared = pipeline.prepare(recipe)
    found = planner.predict(prepared, 1000, workers=4, known={"faces": 2.0})
    assert (found.sampled, found.rows, found.workers) == (47, 47, 4)
    assert list(Path(recipe.store.uri).glob("parts/*/*.parquet")) == []
    shares = {step.name: step.share for step in found.steps}
    assert next(step.seconds for step in found.steps if step.name == "faces") == 2.0
    planner.save(prepared.plan.files, found)
    assert pipeline.run(recipe, display=quiet()) == 0
    (report,) = Store(recipe.store.uri).rows("SELECT report FROM runs")[0]
    cells, planned = json.loads(report)["cells"], json.loads(report)["planned"]
    assert {name: round(share * 47) for name, share in shares.items()} == cells
    size = sum(path.stat().st_size for path in Path(recipe.store.uri).glob("parts/*/*.parquet"))
    assert found.part_bytes * 47 == pytest.approx(size, rel=0.2)
    assert planned["steps"]["faces"] == {
        "planned_ms": 2000.0, "planned_rows": cells["faces"], "rows": cells["faces"],
        "actual_ms": planned["steps"]["faces"]["actual_ms"],
    }  # fmt: skip
    assert planned["planned_seconds"] > cells["faces"] * 2.0 / 4
    page = render(Store(recipe.store.uri))
    assert "<code>curate plan</code> had said" in page
    assert ">Planned</th>" in page
    assert f'<th scope="row">faces</th><td class="n" data-label="Cells">{cells["faces"]}</td>' in page


def test_a_plan_from_a_sample_extrapolates_by_bytes(
    recipe: Recipe, pictures: Callable[[int, int], list[bytes]]
) -> None:
    folder = Path(recipe.input.uri).parent / "more"
    write_shards(folder, pictures)
    prepared = pipeline.prepare(changed(recipe, "input", uri=str(folder)))
    assert [shard.size for shard in prepared.shards] == [path.stat().st_size for path in sorted(folder.iterdir())]
    few = planner.predict(prepared, 18)
    assert few.sampled == 18
    assert few.rows == 47
    half = planner._spread(1000, 200, 64)
    assert len(half) == 201  # three runs of 67
    assert (min(half), max(half)) == (0, 999)
    console = Console(file=io.StringIO(), width=100)
    planner.show(few, console)
    said = console.file.getvalue()  # type: ignore[attr-defined]
    assert "measured on 18 of about 47 rows" in said
    assert "read, save" in said


def test_a_plan_for_a_step_that_is_not_there_says_which_there_are(recipe: Recipe) -> None:
    with pytest.raises(UsageError, match="--seconds ocr: no step of this recipe; it has aesthetic, caption"):
        planner.predict(pipeline.prepare(recipe), 10, known={"ocr": 1.0})


def test_metrics_say_what_the_run_did(recipe: Recipe, quiet: Quiet) -> None:
    prepared = pipeline.prepare(recipe)
    progress = Progress(3)
    with metrics.served("127.0.0.1:0", progress) as port:
        engine = pipeline._engine(prepared.plan)
        pipeline.drive(prepared.plan, engine, prepared.shards, progress, lambda p: None, lambda: False)
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics") as answer:
            lines = dict(
                line.rsplit(" ", 1) for line in answer.read().decode().splitlines() if not line.startswith("#")
            )
    assert lines['curate_images_total{outcome="done",step="size"}'] == "41.0"
    assert lines['curate_images_total{outcome="truncated",step="size"}'] == "3.0"
    assert lines['curate_step_seconds_count{step="size"}'] == "47.0"
    parts = list(Path(recipe.store.uri).glob("parts/*/*.parquet"))
    assert lines["curate_ingest_lag_parts"] == lines['curate_commit_seconds_count{kind="part"}'] == f"{len(parts)}.0"
    assert lines['curate_shards{state="done"}'] == "3.0"
    assert lines["curate_worker_crashes_total"] == "0.0"


def test_an_address_for_metrics_that_is_none_or_taken_is_a_usage_error(recipe: Recipe, quiet: Quiet) -> None:
    with pytest.raises(UsageError, match="must be host:port"):
        pipeline.run(changed(recipe, "run", metrics="9464"), display=quiet())
    with metrics.served("127.0.0.1:0", Progress(0)) as port, pytest.raises(UsageError, match="cannot be served"):
        pipeline.run(changed(recipe, "run", metrics=f"127.0.0.1:{port}"), display=quiet())
    assert not Path(recipe.store.uri, "runs").exists()


def test_a_json_log_has_run_shard_and_step(recipe: Recipe, quiet: Quiet, capfd: pytest.CaptureFixture[str]) -> None:
    (Path(recipe.input.uri) / "train-00001.parquet").write_bytes(b"PAR1 no")
    assert pipeline.run(changed(recipe, "run", log="json"), display=Display()) == 3
    lines = [json.loads(line) for line in capfd.readouterr().err.splitlines()]  # and nothing else is there
    assert {line["run"] for line in lines} == {Store(recipe.store.uri).rows("SELECT run_id FROM runs")[0][0]}
    events = [(line["event"].partition(":")[0], line.get("shard")) for line in lines]
    assert events[0] == ("run started", None)
    assert ("shard failed", "train-00001") in events
    (stage,) = [line for line in lines if line["event"] == "stage done" and line["shard"] == "train-00002"]
    assert stage["steps"][:2] == ["size", "identity"]
    assert (stage["cells"]["size"], stage["errors"]) == (7, {"truncated": 1, "empty": 1})
    assert {("shard done", "train-00000"), ("shard done", "train-00002")} < set(events)
    assert lines[-1]["event"] == "run ended"
    assert lines[-1]["exit_code"] == 3
    assert lines[-1]["counts"]["rows"] == 27
    assert not any(isinstance(handler.formatter, log.Json) for handler in logging.getLogger("curate").handlers)


def test_status_says_what_a_starting_run_waits_for(recipe: Recipe, quiet: Quiet) -> None:
    said: list[str] = []

    def make(plan: Any) -> Any:
        console = Console(file=io.StringIO(), width=100)
        status.show(recipe.store.uri, console)
        said.append(console.file.getvalue())  # type: ignore[attr-defined]
        return pipeline._engine(plan)

    display = quiet()
    assert pipeline.run(changed(recipe, "engine", kind="inline"), make_engine=make, display=display) == 0
    assert "running" in said[0]
