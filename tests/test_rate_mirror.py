"""Ratings in DuckDB, exports and releases: what people said, under pseudonyms, and nothing twice."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from pathlib import Path

import duckdb
import pyarrow.parquet as pq
import pytest
from small_ledger import Clock, image_campaign, people

from curate.errors import UsageError
from curate.rate import campaign, export, queue, users, votes
from curate.rate.ledger import Ledger
from curate.rate.mirror import behind, mirror
from curate.rate.votes import Action
from curate.store.files import LocalFiles


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    made = Ledger(tmp_path / "ratings.sqlite", Clock())
    yield made
    made.close()


@pytest.fixture
def db() -> Iterator[duckdb.DuckDBPyConnection]:
    with duckdb.connect() as opened:
        yield opened


def rate(ledger: Ledger, campaign_id: int, user: int, *tiers: int, flags: tuple[str, ...] = ()) -> list[str]:
    """The person gives these tiers to the next images."""
    keys = []
    for tier in tiers:
        (task,) = ledger.write(lambda db: queue.lease(db, campaign_id, user, 1, [], ledger.clock()))
        key = f"{user}-{task.lease}"
        action = Action(key, "vote", lease=task.lease, tier=tier, flags=flags, seconds=1.5)
        assert ledger.write(lambda db, a=action: votes.apply(db, campaign_id, user, a, 5)).status == "stored"  # type: ignore[misc]
        keys.append(key)
    return keys


def test_a_store_without_ratings_has_empty_views(tmp_path: Path, db: duckdb.DuckDBPyConnection) -> None:
    assert mirror(db, LocalFiles(tmp_path)) == 0
    assert db.sql("SELECT * FROM consensus").fetchall() == []
    assert db.sql("SELECT * FROM ratings").fetchall() == []


def test_the_consensus_is_what_was_pressed(ledger: Ledger, tmp_path: Path, db: duckdb.DuckDBPyConnection) -> None:
    made = image_campaign(ledger, 3, votes=1)
    (user,) = people(ledger, 1)
    rate(ledger, made, user, 5, 2, flags=("blur",))
    files = LocalFiles(tmp_path)
    assert behind(db, files)
    assert mirror(db, files) == 2
    assert not behind(db, files)
    rows = db.sql("SELECT sha256, tier, votes, keep, flags, model_tier FROM consensus ORDER BY sha256").fetchall()
    assert rows == [(f"{0:064x}", 5, 1, True, ["blur"], 5), (f"{1:064x}", 2, 1, False, ["blur"], 2)]


def test_only_new_events_are_copied_and_what_they_change_is_changed(
    ledger: Ledger, tmp_path: Path, db: duckdb.DuckDBPyConnection
) -> None:
    made = image_campaign(ledger, 3, votes=1)
    (user,) = people(ledger, 1)
    files = LocalFiles(tmp_path)
    first, _ = rate(ledger, made, user, 5, 2)
    assert mirror(db, files) == 2
    assert mirror(db, files) == 0
    ledger.write(lambda sql: votes.apply(sql, made, user, Action("undo-it", "undo", undoes=first), 6))
    rate(ledger, made, user, 3)
    assert mirror(db, files) == 2
    assert db.sql("SELECT tier FROM ratings ORDER BY event_id").fetchall() == [(2,), (3,)]
    assert dict(db.sql("SELECT row_id, tier FROM consensus").fetchall()) == {"train:0": 3, "train:1": 2}
    assert db.sql("SELECT kind FROM rating_events ORDER BY event_id").fetchall() == [
        ("vote",), ("vote",), ("undo",), ("vote",)
    ]  # fmt: skip


def test_an_image_of_two_campaigns_is_one_row_of_the_newer_decision(
    ledger: Ledger, tmp_path: Path, db: duckdb.DuckDBPyConnection
) -> None:
    (user,) = people(ledger, 1)
    rate(ledger, image_campaign(ledger, 1, votes=1, name="one"), user, 2)
    second = image_campaign(ledger, 1, votes=2, name="two")
    rate(ledger, second, user, 5)
    mirror(db, LocalFiles(tmp_path))
    assert db.sql("SELECT tier, campaign FROM consensus").fetchall() == [(2, "one")], "the second is not decided yet"
    (other,) = people(ledger, 1)
    rate(ledger, second, other, 5)
    mirror(db, LocalFiles(tmp_path))
    assert db.sql("SELECT tier, campaign FROM consensus").fetchall() == [(5, "two")]


def test_a_change_of_the_rule_reaches_the_index_without_an_event(
    ledger: Ledger, tmp_path: Path, db: duckdb.DuckDBPyConnection
) -> None:
    made = image_campaign(ledger, 1, votes=1, keep_tier=5)
    (user,) = people(ledger, 1)
    rate(ledger, made, user, 4)
    mirror(db, LocalFiles(tmp_path))
    assert db.sql("SELECT keep FROM consensus").fetchall() == [(False,)]
    campaign.change(ledger, made, None, {"keep_tier": 4})
    assert mirror(db, LocalFiles(tmp_path)) == 0
    assert db.sql("SELECT keep FROM consensus").fetchall() == [(True,)]


def test_an_older_ledger_in_its_place_is_read_anew(
    ledger: Ledger, tmp_path: Path, db: duckdb.DuckDBPyConnection
) -> None:
    made = image_campaign(ledger, 3, votes=1)
    (user,) = people(ledger, 1)
    rate(ledger, made, user, 1, 1, 1)
    mirror(db, LocalFiles(tmp_path))
    other = tmp_path / "other"
    other.mkdir()
    replaced = Ledger(other / "ratings.sqlite", Clock())
    made = image_campaign(replaced, 3, votes=1)
    (user,) = people(replaced, 1)
    rate(replaced, made, user, 4)
    assert mirror(db, LocalFiles(other)) == 1
    assert db.sql("SELECT tier FROM consensus").fetchall() == [(4,)]
    replaced.close()


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_exports_hold_the_votes_and_no_names(ledger: Ledger, kind: str) -> None:
    made = image_campaign(ledger, 2, votes=1)
    (user,) = people(ledger, 1)
    rate(ledger, made, user, 5, 1)
    data = b"".join(export.stream(ledger, made, "votes", kind))
    if kind == "csv":
        rows = list(csv.DictReader(io.StringIO(data.decode())))
    elif kind == "jsonl":
        rows = [json.loads(line) for line in data.splitlines()]
    else:
        rows = pq.read_table(io.BytesIO(data)).to_pylist()
    assert [int(row["tier"]) for row in rows] == [5, 1]
    assert {row["rater"] for row in rows} == {users.pseudonym(ledger.secret, user)}
    assert b"rater 0" not in data


def test_an_export_of_many_votes_is_streamed(ledger: Ledger) -> None:
    made = image_campaign(ledger, 12_000, votes=1)
    (user,) = people(ledger, 1)

    def fill(db: object) -> None:
        db.execute(  # type: ignore[attr-defined]
            "INSERT INTO events (key, campaign_id, item_id, user_id, kind, tier, part, counted, rubric_version, at_ms) "
            "SELECT 'key-' || id, campaign_id, id, ?, 'vote', 3, 'work', 1, 1, 0 FROM items",
            [user],
        )

    ledger.write(fill)
    for kind in export.FORMATS:
        chunks = list(export.stream(ledger, made, "events", kind))
        assert len(chunks) > 2
        assert max(len(chunk) for chunk in chunks) < sum(len(chunk) for chunk in chunks)
    assert pq.read_table(io.BytesIO(b"".join(chunks))).num_rows == 12_000


def test_a_spreadsheet_is_given_no_formula(ledger: Ledger) -> None:
    made = image_campaign(ledger, 1)
    (user,) = people(ledger, 1)
    ledger.write(lambda db: db.execute("UPDATE items SET row_id = '=HYPERLINK(1):0'"))
    rate(ledger, made, user, 3)
    assert b"'=HYPERLINK" in b"".join(export.stream(ledger, made, "votes", "csv"))


def test_the_same_ratings_are_the_same_release(ledger: Ledger, tmp_path: Path) -> None:
    made = image_campaign(ledger, 3, votes=1)
    (user,) = people(ledger, 1)
    rate(ledger, made, user, 5, 1)
    files = LocalFiles(tmp_path)
    folder, digest = export.release(ledger, files, made, None)
    assert export.release(ledger, files, made, None) == (folder, digest)
    manifest = json.loads(files.read(f"{folder}/manifest.json"))
    assert set(manifest["files"]) == {"votes.parquet", "consensus.parquet", "events.parquet", "rubric-1.json"}
    rate(ledger, made, user, 2)
    assert export.release(ledger, files, made, None)[1] != digest


def test_an_unknown_export_is_a_usage_error(ledger: Ledger) -> None:
    with pytest.raises(UsageError, match="votes, consensus, events"):
        export.stream(ledger, 1, "everything", "csv")
