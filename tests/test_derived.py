"""Operators that see the whole store: published like parts, shown by one file, withdrawn without loss."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest
from conftest import part_hashes

from curate.errors import StoreError
from curate.store import Store
from curate.store.derived import publish, withdraw
from curate.store.parts import list_parts


def groups(store: Store, name: str) -> pa.Table:
    rows = store.rows("SELECT shard, row FROM samples ORDER BY row, shard")  # shards in turn: publish sorts them
    shards, numbers = zip(*rows, strict=True)
    return pa.table({"shard": list(shards), "row": list(numbers), "dedup_group": [name] * len(rows)})


def shown(store: Store) -> list[tuple[object, ...]]:
    return store.rows("SELECT dedup_group, count(*) FROM samples GROUP BY ALL ORDER BY ALL")


def test_derived_rows_show_in_samples_until_they_are_withdrawn(finished_store: Path) -> None:
    store = Store(finished_store)
    count = store.counts()["rows"]
    before = part_hashes(finished_store)
    version = publish(store.files, "dedup", {"bits": 31}, groups(store, "a"))
    assert shown(store) == [("a", count)]
    assert len([p for p in list_parts(store.files) if p.version == version]) == 3
    assert withdraw(store.files, "dedup")
    assert shown(store) == [(None, count)]
    assert not withdraw(store.files, "dedup")
    assert before.items() <= part_hashes(finished_store).items()


def test_the_same_rows_are_the_same_version_and_others_take_their_place(finished_store: Path) -> None:
    store = Store(finished_store)
    first = publish(store.files, "dedup", {"bits": 31}, groups(store, "a"))
    assert publish(store.files, "dedup", {"bits": 31}, groups(store, "a")) == first
    second = publish(store.files, "dedup", {"bits": 31}, groups(store, "b"))
    assert second != first
    assert [name for name, _ in shown(store)] == ["b"]
    store.rebuild()
    assert [name for name, _ in shown(store)] == ["b"]
    assert publish(store.files, "dedup", {"bits": 31}, groups(store, "a")) == first
    assert [name for name, _ in shown(store)] == ["a"]


def test_rows_that_are_left_out_are_null(finished_store: Path) -> None:
    store = Store(finished_store)
    publish(store.files, "dedup", {}, groups(store, "a").slice(0, 5))
    assert shown(store) == [("a", 5), (None, store.counts()["rows"] - 5)]


def test_what_is_not_declared_is_refused(finished_store: Path) -> None:
    store = Store(finished_store)
    with pytest.raises(StoreError, match="'size' is not a derived operator"):
        publish(store.files, "size", {}, groups(store, "a"))
    with pytest.raises(StoreError, match=r"columns \['colour'\] are not declared"):
        publish(store.files, "dedup", {}, groups(store, "a").append_column("colour", [["x"] * store.counts()["rows"]]))
