from __future__ import annotations

import dataclasses
import io
from pathlib import Path

import pytest
from rich.console import Console
from small_store import BLURRED, EMPTY, KEPT, MARKUP, TINY, TRUNCATED, UNKNOWN, make_store, recipe, run

from curate.errors import UsageError
from curate.explain import lineage, show
from curate.recipe import Photometry
from curate.store import Store


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return Store(make_store(tmp_path_factory.mktemp("explain")))


def row(number: int) -> str:
    return f"demo-00000:{number}"


def printed(store: Store, number: int) -> str:
    out = io.StringIO()
    show(store, row(number), Console(file=out, width=80))
    return out.getvalue()


def test_a_kept_row_passed_every_predicate_and_has_both_captions(store: Store) -> None:
    found = lineage(store, row(KEPT))
    assert found["outcome"] == "kept"
    assert [p["passed"] for p in found["predicates"]] == [True, True, True]
    assert [(c["kind"], c["language"]) for c in found["captions"]] == [
        ("raw", "en"),
        ("synthetic", "en"),
        ("synthetic", "zh"),
    ]
    assert all(c["engine"] == "facts" and c["revision"] for c in found["captions"][1:])
    assert [step["state"] for step in found["operators"]] == ["done"] * len(found["operators"])


def test_a_dropped_row_names_the_first_predicate_that_it_fails_and_what_that_read(store: Store) -> None:
    found = lineage(store, row(BLURRED))
    assert (found["outcome"], found["drop_reason"]) == ("dropped", "sharp")
    assert [(p["name"], p["passed"], p["stops"]) for p in found["predicates"]] == [
        ("resolution", True, False),
        ("quality", True, False),
        ("sharp", False, True),
    ]
    (sharp,) = [p for p in found["predicates"] if p["stops"]]
    assert sharp["reads"] == {"sharpness_tile": found["values"]["sharpness_tile"]}
    assert "Dropped by sharp: sharpness_tile >= 60" in found["because"]


def test_costly_operators_say_which_gate_kept_the_row_from_them(store: Store) -> None:
    steps = {step["operator"]: step for step in lineage(store, row(BLURRED))["operators"]}
    assert steps["caption"]["state"] == "not run"
    assert steps["caption"]["why"] == "the row does not pass sharp"


def test_null_is_its_own_reason(store: Store) -> None:
    found = lineage(store, row(UNKNOWN))
    assert (found["outcome"], found["drop_reason"]) == ("dropped", "quality_null")
    (quality,) = [p for p in found["predicates"] if p["stops"]]
    assert quality["passed"] is None
    assert quality["reads"] == {"quality": None}
    assert "a value is NULL" in found["because"]


@pytest.mark.parametrize(("number", "error"), [(EMPTY, "empty"), (TRUNCATED, "truncated")])
def test_a_failed_row_names_the_operator_and_the_error(store: Store, number: int, error: str) -> None:
    found = lineage(store, row(number))
    assert (found["outcome"], found["error"]) == ("failed", error)
    failed = [step for step in found["operators"] if step["state"] == "failed"]
    assert failed[0]["error"] == error
    assert failed[0]["operator"] in found["because"]
    assert not any(p["stops"] for p in found["predicates"])


def test_every_operator_names_its_version_and_the_values_that_it_wrote(store: Store) -> None:
    found = lineage(store, row(KEPT))
    size = found["operators"][1]
    assert size["operator"] == "size"
    assert len(size["fingerprint"]) == 16
    assert (size["values"]["width"], size["values"]["height"]) == (320, 300)
    assert found["operators"][0]["values"]["quality"] == 1.0


@pytest.mark.parametrize(
    ("row_id", "hint"),
    [
        ("demo-00000:999", f"the nearest is demo-00000:{TINY + 7}"),
        ("demo-0000:1", "did you mean 'demo-00000'?"),
        ("demo-00000", "write it as shard:row, e.g. demo-00000:0"),
        ("demo-00000:-1", "write it as shard:row"),
        ("demo-00000:99999999999999", "the nearest is"),
        ("'; DROP TABLE wide; --:1", "no shard"),
    ],
)
def test_a_row_that_is_not_there_is_one_line_with_the_nearest_one(store: Store, row_id: str, hint: str) -> None:
    with pytest.raises(UsageError) as caught:
        lineage(store, row_id)
    assert hint in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("number", [KEPT, BLURRED, EMPTY, TRUNCATED, MARKUP, UNKNOWN])
def test_the_printed_lineage_fits_eighty_columns(store: Store, number: int) -> None:
    from rich.cells import cell_len

    lines = printed(store, number).splitlines()
    assert [line for line in lines if cell_len(line) > 80 and "/" not in line] == []
    assert lines[0].startswith(row(number))


def test_the_printed_lineage_marks_the_predicate_that_decided(store: Store) -> None:
    text = printed(store, BLURRED)
    assert "→fail  sharp: sharpness_tile >= 60" in text
    assert "not run: the row does not pass sharp" in text


def test_cells_of_former_versions_and_all_runs_are_shown(tmp_path: Path) -> None:
    store = Store(make_store(tmp_path))
    first = lineage(store, row(KEPT))
    assert run(dataclasses.replace(recipe(tmp_path), photometry=Photometry(luma_px=512))) == 0
    found = lineage(store, row(KEPT))
    was = {step["operator"]: step["fingerprint"] for step in first["operators"]}
    assert ("photometry", was["photometry"]) in {(c["operator"], c["fingerprint"]) for c in found["former"]}
    assert was["size"] == {step["operator"]: step["fingerprint"] for step in found["operators"]}["size"]
    assert [r["run_id"] for r in found["runs"]] == sorted((r["run_id"] for r in found["runs"]), reverse=True)
    assert len(found["runs"]) == 2
