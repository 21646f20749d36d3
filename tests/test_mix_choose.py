"""Rows are chosen in SQL, in memory that does not grow with them: curate/mix/choose.py."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pytest

from curate.mix import choose, keyed
from curate.mix.choose import SPLITS, Chosen
from curate.mix.decide import celled, ranked
from curate.mix.settings import Settings

ROWS, SHARD = 300_000, 1000


class Rows:
    """What a Source of a large store would say: every fourth row in a group, every tenth of the highest tier."""

    def together(self) -> Iterator[tuple[int, int]]:
        yield from ((first, first + 25) for first in range(0, ROWS // SHARD, 25))

    def light(self, first: int, stop: int) -> dict[str, Any]:
        noise = np.random.default_rng(first)
        place = np.arange(first * SHARD, stop * SHARD)
        count = len(place)
        key = keyed.mixed(place.astype(np.uint64), "row")
        return {
            "shard": (place // SHARD).astype(np.int32), "row": place % SHARD, "key": key,
            "group": np.where(place % 4 == 0, place // 40 + 1, 0).astype(np.uint64),
            "digest": keyed.mixed((place // 3).astype(np.uint64), "digest"),
            "unseen_dedup": np.zeros(count, np.bool_), "unseen_balance": np.zeros(count, np.bool_),
            "width": noise.integers(256, 2048, count), "height": noise.integers(256, 2048, count),
            "bytes": noise.integers(0, 300_000, count), "raw": noise.integers(0, 2, count).astype(np.uint8),
            "en": np.ones(count, np.uint8), "zh": noise.integers(0, 2, count).astype(np.uint8),
            "weight": noise.random(count) * 2,
            "concept": pa.chunked_array([pa.array(noise.choice(np.array(["sea", "city", "food"], object), count))]),
            "pool": pa.chunked_array([pa.array(np.where(place % 10 == 0, "top", "natural").astype(object))]),
        }  # fmt: skip


def entries(folder: Path, asked: Settings) -> dict[str, dict[str, Any]]:
    with Chosen([Rows()], asked, folder) as rows:  # type: ignore[list-item]
        return {
            split: {name: np.concatenate([batch[name] for batch in batches]) for name in batches[0]}
            for split in rows.cells()
            for batches in [list(rows.entries(split))]
        }


ASKED = Settings("store", validation=0.2, rows=200_000, top_weight=2, seed=7)


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    return entries(tmp_path_factory.mktemp("memory"), ASKED)


def test_draws_in_sql_are_those_of_python() -> None:
    keys = np.concatenate([np.array([0, 1, 2**63, 2**64 - 1], np.uint64), keyed.mixed(np.arange(999, dtype=np.uint64))])
    with duckdb.connect() as db:
        db.execute(choose.KEYED)
        db.register("keys", pa.table({"key": keys}))
        salt = keyed.salt(3, "purpose")
        found = db.execute(f"SELECT mixed(key, {salt}) AS mixed, uniform(key, {salt}) AS uniform FROM keys")
        table = found.to_arrow_table()
    assert np.array_equal(table["mixed"].to_numpy(), keyed.mixed(keys, 3, "purpose"))
    assert np.array_equal(table["uniform"].to_numpy(), keyed.uniform(keys, 3, "purpose"))


def test_cells_ranks_splits_and_copies_are_what_verify_computes(found: dict[str, dict[str, Any]]) -> None:
    assert set(found) == set(SPLITS)
    for split, of in found.items():
        cell, _ = celled(of["bucket"], of["concept"], of["options"], 3)
        assert np.array_equal(of["cell"], cell)
        assert np.array_equal(of["rank"], ranked(of["key"], cell, ASKED.seed))
        place = of["shard"].astype(np.int64) * SHARD + of["row"]
        assert (np.diff(place * 10 + of["copy"]) > 0).all()
        assert ((keyed.uniform(of["content"], ASKED.seed, "split") < ASKED.validation) == (split == "validation")).all()
    both = [set(of["content"].tolist()) for of in found.values()]
    assert not both[0] & both[1]
    assert found["validation"]["copy"].max() == 0 and found["train"]["copy"].max() == 3
    # Rows of one group or with the same bytes have one content, by any chain and through rows that are not in the mix.
    named: dict[int, set[int]] = {}
    for of in found.values():
        places = (of["shard"].astype(np.int64) * SHARD + of["row"]).tolist()
        for place, content in zip(places, of["content"].tolist(), strict=True):
            named.setdefault(content, set()).add(component(place))
    components = [one for of in named.values() for one in of]
    assert len(components) == len(named) == len(set(components))


def component(place: int) -> int:
    """A name for what a row is linked to: threes share bytes, and of each forty every fourth is of one group."""
    three = place // 3 * 3
    fourth = next((row for row in range(three, three + 3) if row % 4 == 0), None)  # one at most
    return three if fourth is None else -1 - fourth // 40


def test_what_memory_does_not_hold_goes_to_the_disk_and_changes_nothing(
    found: dict[str, dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(choose, "MEMORY", "52MB")
    with Chosen([Rows()], ASKED, tmp_path) as rows:  # type: ignore[list-item]
        assert rows.db.execute("SELECT count(*) FROM duckdb_temporary_files()").fetchone() != (0,)
    scarce = entries(tmp_path, ASKED)
    for split, of in found.items():
        assert all(np.array_equal(of[name], scarce[split][name]) for name in of)
