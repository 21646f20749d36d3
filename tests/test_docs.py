"""Docs are a contract: generated pages are current, and every command, view and file that exists is described."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from conftest import ROOT

from curate import docs
from curate.cli import app, store_app
from curate.store import Store
from schemas.columns import OPERATORS, SAMPLES_FIRST, indexed


@pytest.mark.parametrize("name", docs.PAGES)
def test_a_generated_page_is_what_its_source_says(name: str) -> None:
    written = (ROOT / "docs" / name).read_text("utf-8")
    assert written == docs.PAGES[name](), "run: make docs"


def test_the_readme_shows_every_source_file() -> None:
    readme = (ROOT / "README.md").read_text("utf-8")
    tree = readme[readme.index("```\nschemas/") :]
    missing = [
        path.relative_to(ROOT).as_posix()
        for package in ("curate", "workers", "schemas")
        for path in sorted((ROOT / package).glob("*.py"))
        if path.name != "__init__.py" and path.name not in tree
    ]
    missing += [
        path.relative_to(ROOT).as_posix()
        for package in ("curate", "workers")
        for path in sorted((ROOT / package).iterdir())
        if path.is_dir() and (path / "__init__.py").exists() and f"{path.name}/" not in tree
    ]
    assert not missing


def test_every_command_is_in_the_readme() -> None:
    readme = (ROOT / "README.md").read_text("utf-8")
    names = [c.name or c.callback.__name__ for c in app.registered_commands if c.callback]
    names += [f"store {c.name or c.callback.__name__}" for c in store_app.registered_commands if c.callback]
    assert [name for name in names if f"curate {name}" not in readme] == []


def test_links_between_pages_lead_somewhere() -> None:
    broken = []
    for page in [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")]:
        for target in re.findall(r"\]\(([^)#]+)\)", page.read_text("utf-8")):
            if not target.startswith("http") and not (page.parent / target).exists():
                broken.append(f"{page.name}: {target}")
    assert not broken


def test_samples_has_the_columns_that_others_rely_on_first(finished_store: Path) -> None:
    names = [row[0] for row in Store(finished_store).rows("DESCRIBE samples")]
    assert tuple(names[: len(SAMPLES_FIRST)]) == SAMPLES_FIRST
    operators = [
        c.name for columns in OPERATORS.values() for c in columns if c.name not in SAMPLES_FIRST and indexed(c.type)
    ]
    assert names[len(SAMPLES_FIRST) :] == [*operators, "license"]


def test_every_view_and_table_is_described(finished_store: Path) -> None:
    page = (ROOT / "docs" / "columns.md").read_text("utf-8")
    found = Store(finished_store).rows("SELECT table_name FROM information_schema.tables")
    names = {"former_<operator>" if name.startswith("former_") else name for (name,) in found}
    assert {name for name in names if f"`{name}`" not in page} == set()
