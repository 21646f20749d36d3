"""Captions that say nearly the same of different pictures, in a real store."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from curate import pipeline
from curate.alike import Settings, alike
from curate.cli import app
from curate.errors import UsageError
from curate.mix.settings import Settings as MixSettings
from curate.mix.sources import Source
from curate.progress import Display
from curate.recipe import Recipe
from curate.store import Store
from schemas.columns import OPERATORS
from workers.sample import Sample

WHITE = "The picture shows a plain white page with nothing else to be seen on it."
NEARLY = "The picture shows a plain white page with nothing else to be seen on it!"
OTHERS = ("A red gate stands open between two stone lions.", "Two cats sleep on a green sofa beside a window.")


@pytest.fixture
def store(captioned: Callable[..., Recipe], quiet: Callable[[], Display]) -> Store:
    """Six pictures, of which the last is the first once more, and a captioner that writes their raw captions again."""
    recipe = captioned([WHITE, NEARLY, WHITE, *OTHERS, WHITE], caption={"engine": "facts"})
    path = Path(recipe.input.uri) / "a.parquet"
    table = pq.read_table(path)
    data = table["image"].to_pylist()
    pq.write_table(table.set_column(0, "image", pa.array([*data[:5], data[0]], pa.binary())), path)

    def echo(samples: Sequence[Sample]) -> list[dict[str, Any]]:
        blank = dict.fromkeys(column.name for column in OPERATORS["caption"])
        return [blank | {"caption_en": sample.values["caption_raw"]} for sample in samples]

    said = {"load": lambda recipe: echo, "facts": lambda recipe: {"version": 1}, "needs": ("caption_raw",)}
    operators = [replace(op, **said) if op.name == "caption" else op for op in pipeline.PATH]
    assert pipeline.run(recipe, path=operators, display=quiet()) == 0
    return Store(recipe.store.uri)


def test_a_caption_that_many_different_pictures_share_has_a_reason_and_copies_count_once(store: Store) -> None:
    found = alike(store, Settings(most=2))
    assert (found.captions, found.refused, found.common) == (6, 4, ((3, WHITE),))
    rows = store.rows(
        "SELECT caption_en_alike, caption_en_alike_first, caption_en_alike_reason FROM samples ORDER BY row"
    )
    first = store.rows("SELECT row_id FROM samples ORDER BY row LIMIT 1")[0][0]
    assert rows[:3] == [(2, first, "near_identical")] * 3
    assert [row[0] for row in rows[3:]] == [0, 0, 2]
    assert [row[2] for row in rows[3:]] == [None, None, "near_identical"]
    light = Source(str(store.uri), MixSettings(str(store.uri)), "natural").light(0, 1)
    assert light["en"].tolist() == [0, 0, 0, 1, 1, 0]
    assert alike(store, Settings(most=3)).refused == 0  # three pictures may say it, the copy is none of its own
    assert alike(store, Settings(most=1, least=1.0)).refused == 3  # to the letter


def test_the_command_names_the_common_captions_and_takes_its_columns_back(store: Store) -> None:
    done = CliRunner().invoke(app, ["alike", str(store.uri), "--most", "2"])
    assert done.output.splitlines() == [
        "4 of 6 captions are shared by more than 2 different pictures",
        f"      3 pictures  {WHITE[:59]}…",
    ]
    CliRunner().invoke(app, ["alike", str(store.uri), "--undo"])
    assert store.rows("SELECT count(caption_en_alike) FROM samples") == [(0,)]


def test_odd_settings_are_refused(store: Store) -> None:
    for keys in ({"least": 0.0}, {"most": 0}):
        with pytest.raises(UsageError):
            Settings(**keys)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="--where"):
        alike(store, Settings(where="nope = 1"))
    with pytest.raises(UsageError, match="no row has an English caption where FALSE"):
        alike(store, Settings(where="FALSE"))
