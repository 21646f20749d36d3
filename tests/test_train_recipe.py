from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from curate.cli import app
from curate.errors import UsageError
from curate.train.recipe import Phase, arms_in_order, differences, fingerprint, from_tables, load, to_toml

LEAST: dict[str, Any] = {"output": {"uri": "out"}, "data": {"mix": "mix"}}
TINY = Path(__file__).resolve().parent.parent / "deploy" / "recipes" / "train-tiny.toml"


def test_the_kolors_phases_bring_their_schedules_and_buckets() -> None:
    recipe = from_tables({**LEAST, "phase": [{"name": "concept", "steps": 7}, {"name": "quality", "mix": "best"}]})
    assert recipe.phases == (
        Phase("concept", 7, "sdxl", "square-512"),
        Phase("quality", 1000, "kolors_released", "novelai-1024", "best"),
    )
    assert recipe.steps == 1007


def test_a_resolved_recipe_reads_back_equal() -> None:
    recipe = load(TINY)
    assert from_tables(tomllib.loads(to_toml(recipe))) == recipe
    assert [arm.name for arm in recipe.arms][:2] == ["raw", "filtered"]


@pytest.mark.parametrize(
    ("tables", "says"),
    [
        ({"output": {}}, "output.uri is missing"),
        ({"data": {}}, "data.mix is missing"),
        ({"trian": {}}, "unknown section [trian]; did you mean 'train'?"),
        ({"train": {"learning_rate": 1}}, "unknown key train.learning_rate"),
        ({"train": {"batch": 0}}, "train.batch = 0 must be at least 1"),
        ({"train": {"caption_dropout": 1.5}}, "train.caption_dropout = 1.5 must be at most 1"),
        ({"phase": [{"schedule": "sdxxl"}]}, "did you mean 'sdxl'?"),
        ({"phase": {"steps": 3}}, "write each phase as [[phase]]"),
        ({"phase": [{"schedule": "zero_snr"}]}, "set model.prediction='v_prediction'"),
        ({"model": {"unet": "sdxl"}}, "needs model.base"),
        ({"arms": {"raw": {}}}, "data.store is missing"),
        ({"data": {"store": "s"}, "arms": {"a": {"size_of": "b"}, "c": {}}}, "arms.a.size_of = 'b'"),
        ({"data": {"store": "s"}, "arms": {"a": {"against": "bb"}, "b": {}}}, "did you mean 'b'?"),
        ({"data": {"store": "s"}, "arms": {"a": {"size_of": "b"}, "b": {"size_of": "a"}}}, "goes round in a circle"),
        ({"data": {"store": "s"}, "arms": {"a/b": {}}}, "the name 'a/b' becomes a folder"),
        ({"phase": [{"steps": 1}, {"steps": 2}]}, "two are named 'train'"),
        ({"measure": {"kid_samples": 14}}, "at least 100"),
    ],
)
def test_a_mistake_is_one_line_that_names_it(tables: dict[str, Any], says: str) -> None:
    with pytest.raises(UsageError) as caught:
        from_tables({**LEAST, **tables}, "r.toml")
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_fingerprint_covers_what_is_computed_and_nothing_else() -> None:
    first = fingerprint(from_tables(LEAST))
    for free in ({"output": {"uri": "other"}}, {"log": {"every": 3}}, {"train": {"micro_batch": 2}}):
        assert fingerprint(from_tables({**LEAST, **free})) == first
    for decides in ({"train": {"lr": 3e-4}}, {"train": {"seed": 1}}, {"phase": [{"schedule": "kolors_released"}]}):
        assert fingerprint(from_tables({**LEAST, **decides})) != first


def test_an_arm_comes_after_the_one_whose_size_it_takes() -> None:
    arms = {"a": {"size_of": "b"}, "b": {"size_of": "c"}, "c": {}}
    found = arms_in_order(from_tables({**LEAST, "data": {"store": "s"}, "arms": arms}).arms)
    assert [arm.name for arm in found or ()] == ["c", "b", "a"]


def test_what_differs_between_two_recipes_is_named() -> None:
    first, other = from_tables(LEAST), from_tables({**LEAST, "train": {"lr": 5e-4}, "phase": [{"buckets": "32x32"}]})
    assert differences(first, other) == {"phase[0].buckets": ("", "32x32"), "train.lr": (1e-4, 5e-4)}
    assert differences(first, other, {"train.lr"}).keys() == {"phase[0].buckets"}
    assert differences(first, from_tables({**LEAST, "log": {"every": 3}})) == {}


def test_a_longer_last_phase_is_the_same_run_unless_the_learning_rate_depends_on_its_length() -> None:
    def of(steps: int, decay: str) -> str:
        return fingerprint(from_tables({**LEAST, "train": {"decay": decay}, "phase": [{"steps": steps}]}))

    assert of(10, "constant") == of(20, "constant")
    assert of(10, "cosine") != of(20, "cosine")


def test_the_command_line_refuses_what_it_cannot_do() -> None:
    runner = CliRunner()
    for arguments, says in (
        (["train", "a.toml", "b.toml"], "one RECIPE, or several runs with --compare"),
        (["train", "no.toml"], "recipe no.toml: No such file"),
        (["train", "--compare", str(TINY.parent)], "name two runs or more"),
        (["train", "--compare", "--dry-run", "x"], "do not go together"),
    ):
        result = runner.invoke(app, arguments)
        assert isinstance(result.exception, UsageError)
        assert says in str(result.exception)
