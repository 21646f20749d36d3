"""The loader is strict: what it does not know it names, with the nearest thing that it does."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from conftest import ROOT

from curate.demo import POLICY
from curate.errors import UsageError
from curate.recipe import SECTIONS, Recipe, from_tables, load, to_toml

GOOD = {"input": {"uri": "in"}, "store": {"uri": "out"}}


@pytest.mark.parametrize(
    ("tables", "complaint"),
    [
        ({**GOOD, "polcy": {}}, "unknown section [polcy]; did you mean 'policy'?"),
        ({**GOOD, "ocr": {"engin": "rapidocr"}}, "unknown key ocr.engin; did you mean 'engine'?"),
        ({**GOOD, "ocr": {"engine": "rapid"}}, "ocr.engine = 'rapid' is not known; did you mean 'rapidocr'?"),
        ({**GOOD, "engine": {"workers": "two"}}, "engine.workers = 'two' must be a whole number, not str"),
        ({**GOOD, "engine": {"workers": True}}, "engine.workers = True must be a whole number, not bool"),
        ({**GOOD, "engine": {"range_rows": 0}}, "engine.range_rows = 0 must be at least 1"),
        ({**GOOD, "engine": {"batch_timeout_s": float("nan")}}, "must be at least"),
        ({**GOOD, "engine": "ray"}, "engine = 'ray' must be a section"),
        ({**GOOD, "policy": {"sharp": 3}}, "policy.sharp = 3 must be a SQL predicate"),
        ({**GOOD, "policy": {"a'b": "width > 3"}}, "may have letters, digits"),
        ({"store": {"uri": "out"}}, "input.uri is missing"),
        ({"input": {"uri": "in"}}, "store.uri is missing"),
    ],
)
def test_a_mistake_names_the_key_the_value_and_the_fix(tables: dict[str, object], complaint: str) -> None:
    with pytest.raises(UsageError) as refusal:
        from_tables(tables)
    assert complaint in str(refusal.value)
    assert refusal.value.exit_code == 2


def test_overrides_take_toml_values_and_bare_words(tmp_path: Path) -> None:
    file = tmp_path / "r.toml"
    file.write_text('[input]\nuri = "in"\n[store]\nuri = "out"\n')
    recipe = load(file, ["engine.kind=inline", "engine.workers=3", "policy.sharp=sharpness > 4", "run.exhaustive=true"])
    assert recipe.engine.kind == "inline"
    assert recipe.engine.workers == 3
    assert recipe.run.exhaustive
    assert recipe.policy == (("sharp", "sharpness > 4"),)


@pytest.mark.parametrize("override", ["engine", "engine=ray", "=3", "engine.=3", ".kind=ray"])
def test_a_malformed_override_shows_the_form(tmp_path: Path, override: str) -> None:
    file = tmp_path / "r.toml"
    file.write_text('[input]\nuri = "in"\n[store]\nuri = "out"\n')
    with pytest.raises(UsageError, match=r"write it as section\.key=value"):
        load(file, [override])


@pytest.mark.parametrize("text", [b"[input", b"\xff\xfe[input]", None])
def test_a_file_that_is_no_toml_is_one_line(tmp_path: Path, text: bytes | None) -> None:
    file = tmp_path / "r.toml"
    if text is not None:
        file.write_bytes(text)
    with pytest.raises(UsageError) as refusal:
        load(file)
    assert str(file) in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_the_resolved_recipe_reads_back_as_itself(tmp_path: Path) -> None:
    recipe = from_tables(
        {
            "input": {"uri": 's3://bucket/a "quoted" 名字'},
            "store": {"uri": "out\\back"},
            "caption": {"prompt": "two\nlines"},
            "policy": {"a": "width > 3 -- x", "b-2": "caption_raw LIKE '%''s'"},
        }
    )
    file = tmp_path / "r.toml"
    file.write_text(to_toml(recipe), "utf-8")
    assert load(file) == recipe


def test_the_embedded_recipe_is_what_the_demo_runs() -> None:
    recipe = load(ROOT / "deploy/recipes/embedded.toml")
    assert recipe.policy == POLICY
    assert recipe.input.uri == "demo/shards"


def test_every_knob_says_what_it_is() -> None:
    for name, section in SECTIONS.items():
        for field in dataclasses.fields(section):
            assert len(field.metadata["about"]) > 10, f"{name}.{field.name}"
    assert Recipe().engine.kind == "ray"
