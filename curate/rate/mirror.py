"""What people said, as tables of the DuckDB index: `rating_events`, `consensus_items`, and the views `ratings` and
`consensus` over them.

The ledger (ratings.sqlite) stays the truth. Events are copied from the last one that the index has (the watermark);
the images of a campaign are written anew when anything was said in it or its rule has changed. Raters appear under
pseudonyms (curate/rate/users.py).
"""

from __future__ import annotations

import contextlib
import sqlite3
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa

from curate.errors import StoreError
from curate.rate.consensus import fit_model
from curate.rate.ledger import NAME
from curate.rate.users import pseudonym
from curate.store.files import Files

CHUNK = 100_000  # events that are in memory at a time

TABLES = """
CREATE TABLE IF NOT EXISTS rating_events (   -- everything that anybody said, in order
    event_id BIGINT, rated_at TIMESTAMP, campaign VARCHAR, rubric_version INTEGER, sha256 VARCHAR, row_id VARCHAR,
    rater VARCHAR, kind VARCHAR, tier INTEGER, flags VARCHAR[], reason VARCHAR, part VARCHAR, counted BOOLEAN,
    undoes BIGINT, seconds FLOAT, key VARCHAR);
CREATE TABLE IF NOT EXISTS consensus_items ( -- an image of a campaign that has a vote
    campaign_id INTEGER, campaign VARCHAR, sha256 VARCHAR, row_id VARCHAR, tier INTEGER, rule VARCHAR, votes INTEGER,
    mean FLOAT, spread INTEGER, keep BOOLEAN, gold BOOLEAN, flags VARCHAR[], model_tier INTEGER, model_keep FLOAT,
    probabilities FLOAT[]);
CREATE TABLE IF NOT EXISTS rating_marks (campaign_id INTEGER, mark VARCHAR);
CREATE OR REPLACE VIEW ratings AS
SELECT event_id, rated_at, campaign, rubric_version, sha256, row_id, rater, tier, flags, part, seconds
FROM rating_events AS e
WHERE kind = 'vote' AND counted AND NOT EXISTS (FROM rating_events AS u WHERE u.undoes = e.event_id);
CREATE OR REPLACE VIEW consensus AS
SELECT sha256, tier, votes, campaign, rule, keep, gold, mean, spread, flags, model_tier, model_keep, probabilities,
row_id FROM consensus_items WHERE NOT contains(sha256, '/') -- captions that were rated are no images
QUALIFY row_number() OVER (PARTITION BY sha256 ORDER BY tier IS NULL, campaign_id DESC) = 1;
"""

EVENTS = pa.schema(
    [
        ("event_id", pa.int64()), ("at_ms", pa.int64()), ("campaign", pa.string()), ("rubric_version", pa.int32()),
        ("sha256", pa.string()), ("row_id", pa.string()), ("rater", pa.string()), ("kind", pa.string()),
        ("tier", pa.int32()), ("flags", pa.list_(pa.string())), ("reason", pa.string()), ("part", pa.string()),
        ("counted", pa.bool_()), ("undoes", pa.int64()), ("seconds", pa.float32()), ("key", pa.string()),
    ]
)  # fmt: skip
ITEMS = pa.schema(
    [
        ("campaign_id", pa.int32()), ("campaign", pa.string()), ("sha256", pa.string()), ("row_id", pa.string()),
        ("tier", pa.int32()), ("rule", pa.string()), ("votes", pa.int32()), ("mean", pa.float32()),
        ("spread", pa.int32()), ("keep", pa.bool_()), ("gold", pa.bool_()), ("flags", pa.list_(pa.string())),
        ("model_tier", pa.int32()), ("model_keep", pa.float32()), ("probabilities", pa.list_(pa.float32())),
    ]
)  # fmt: skip


def mirror(db: duckdb.DuckDBPyConnection, files: Files) -> int:
    """Bring the tables in `db`, a connection to the draft of an index, up to date; returns how many events were added.

    A store without ratings, or one that is not on a local disk, gets empty tables, so that the views are always there.
    """
    db.execute(TABLES)
    path = files.local(NAME)
    if path is None or not path.exists():
        return 0
    with contextlib.closing(reader(path)) as ledger:
        if not ledger.execute("PRAGMA user_version").fetchone()[0]:
            return 0
        ledger.execute("BEGIN")  # one state of the ledger for events and images
        secret = _secret(path)
        last = _watermark(db, ledger)
        added = _events(db, ledger, secret, last)
        marks = dict(db.execute("SELECT campaign_id, mark FROM rating_marks").fetchall())
        for campaign in ledger.execute("SELECT * FROM campaigns").fetchall():
            mark = _mark(ledger, campaign)
            if marks.get(campaign["id"]) != mark:
                _items(db, ledger, campaign)
                db.execute("DELETE FROM rating_marks WHERE campaign_id = ?", [campaign["id"]])
                db.execute("INSERT INTO rating_marks VALUES (?, ?)", [campaign["id"], mark])
    return added


def behind(db: duckdb.DuckDBPyConnection, files: Files) -> bool:
    """Whether the ledger has events that the index does not."""
    path = files.local(NAME)
    if path is None or not path.exists():
        return False
    try:
        row = db.execute("SELECT coalesce(max(event_id), 0) FROM rating_events").fetchone()
    except duckdb.CatalogException:
        return True
    with contextlib.closing(reader(path)) as ledger:
        if not ledger.execute("PRAGMA user_version").fetchone()[0]:
            return False
        newest = ledger.execute("SELECT coalesce(max(id), 0) FROM events").fetchone()[0]
    return bool(row is None or newest != row[0])


def reader(path: Path) -> sqlite3.Connection:
    """A read-only connection to a ledger; raises StoreError when the file is none."""
    try:
        db = sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, isolation_level=None, timeout=10)
        db.row_factory = sqlite3.Row
        db.execute("PRAGMA user_version")
    except sqlite3.Error as why:
        raise StoreError(f"{path}: {why}") from None
    return db


def _secret(path: Path) -> bytes:
    secret = path.with_name("ratings.secret")
    return secret.read_bytes() if secret.exists() else b""


def _watermark(db: duckdb.DuckDBPyConnection, ledger: sqlite3.Connection) -> int:
    """The last event that the index has; 0 after the ledger was replaced by another one (an old backup, say)."""
    row = db.execute("SELECT event_id, key FROM rating_events ORDER BY event_id DESC LIMIT 1").fetchone()
    if row is None:
        return 0
    same = ledger.execute("SELECT 1 FROM events WHERE id = ? AND key = ?", [row[0], row[1]]).fetchone()
    if same:
        return int(row[0])
    for table in ("rating_events", "consensus_items", "rating_marks"):
        db.execute(f"DELETE FROM {table}")
    return 0


def _events(db: duckdb.DuckDBPyConnection, ledger: sqlite3.Connection, secret: bytes, last: int) -> int:
    names: dict[int, str] = {}
    cursor = ledger.execute(
        "SELECT e.*, c.name AS campaign, i.sha256, i.row_id FROM events AS e JOIN campaigns AS "
        "c ON c.id = e.campaign_id "
        "JOIN items AS i ON i.id = e.item_id WHERE e.id > ? ORDER BY e.id",
        [last],
    )
    added = 0
    while rows := cursor.fetchmany(CHUNK):
        columns: dict[str, list[Any]] = {name: [] for name in EVENTS.names}
        for e in rows:
            rater = names.setdefault(e["user_id"], pseudonym(secret, e["user_id"]))
            values = (
                e["id"], e["at_ms"], e["campaign"], e["rubric_version"], e["sha256"], e["row_id"], rater, e["kind"],
                e["tier"], e["flags"].split(), e["reason"], e["part"], bool(e["counted"]), e["undoes"], e["seconds"],
                e["key"],
            )  # fmt: skip
            for name, value in zip(EVENTS.names, values, strict=True):
                columns[name].append(value)
        db.register("new_events", pa.table(columns, schema=EVENTS))
        db.execute(
            "INSERT INTO rating_events BY NAME SELECT * EXCLUDE (at_ms), make_timestamp(at_ms * "
            "1000) AS rated_at FROM new_events"
        )
        db.unregister("new_events")
        added += len(rows)
    return added


def _mark(ledger: sqlite3.Connection, campaign: sqlite3.Row) -> str:
    """Changes when anything that decides the campaign's images does."""
    last = ledger.execute("SELECT coalesce(max(id), 0) FROM events WHERE campaign_id = ?", [campaign["id"]]).fetchone()[
        0
    ]
    names = [
        "votes",
        "extra_votes",
        "keep_tier",
        "images",
        "done",
        "resettle_after",
        *(f"tier{n}" for n in range(1, 6)),
    ]
    rule = [campaign[name] for name in names if name in campaign.keys()]  # noqa: SIM118  a row is no dict
    gold = ledger.execute(
        "SELECT coalesce(sum(id * gold_tier), 0) FROM items WHERE campaign_id = ? AND gold_tier IS NOT NULL",
        [campaign["id"]],
    ).fetchone()[0]
    return repr((last, rule, gold))


def _items(db: duckdb.DuckDBPyConnection, ledger: sqlite3.Connection, campaign: sqlite3.Row) -> None:
    votes = ledger.execute(
        "SELECT item_id, user_id, tier, flags FROM votes WHERE campaign_id = ? AND part <> 'repeat'", [campaign["id"]]
    ).fetchall()
    items = ledger.execute(
        "SELECT id, sha256, row_id, coalesce(gold_tier, tier) AS tier, CASE WHEN gold_tier IS "
        "NULL THEN rule ELSE 'gold' END "
        "AS rule, gold_tier IS NOT NULL AS gold FROM items WHERE campaign_id = ? AND (votes > 0 OR tier IS NOT NULL OR "
        "gold_tier IS NOT NULL) ORDER BY id",
        [campaign["id"]],
    ).fetchall()
    db.execute("DELETE FROM consensus_items WHERE campaign_id = ?", [campaign["id"]])
    if not items:
        return
    place = {item["id"]: at for at, item in enumerate(items)}
    users = {user: at for at, user in enumerate(sorted({v["user_id"] for v in votes}))}
    votes = [v for v in votes if v["item_id"] in place]
    image = np.array([place[v["item_id"]] for v in votes], np.int64)
    tier = np.array([v["tier"] for v in votes], np.int64)
    model = fit_model(image, [users[v["user_id"]] for v in votes], tier)
    count = np.bincount(image, minlength=len(items))
    total = np.bincount(image, weights=tier, minlength=len(items))
    low, high = np.full(len(items), 9), np.zeros(len(items), np.int64)
    np.minimum.at(low, image, tier)
    np.maximum.at(high, image, tier)
    flags: list[set[str]] = [set() for _ in items]
    for at, vote in zip(image.tolist(), votes, strict=True):
        flags[at].update(vote["flags"].split())
    keep_tier = campaign["keep_tier"]
    tiers = [item["tier"] for item in items]
    voted = count > 0
    posterior = np.zeros((len(items), 5), np.float32)
    posterior[: len(model.posterior)] = model.posterior
    model_tier, model_keep = (
        1 + (np.cumsum(posterior, axis=1) < 0.5).sum(axis=1),
        posterior[:, keep_tier - 1 :].sum(axis=1),
    )
    table = pa.table(
        {
            "campaign_id": pa.array([campaign["id"]] * len(items), pa.int32()),
            "campaign": [campaign["name"]] * len(items),
            "sha256": [item["sha256"] for item in items],
            "row_id": [item["row_id"] for item in items],
            "tier": pa.array(tiers, pa.int32()),
            "rule": pa.array([item["rule"] for item in items], pa.string()),
            "votes": pa.array(count, pa.int32()),
            "mean": pa.array(np.divide(total, np.maximum(count, 1)), pa.float32(), mask=~voted),
            "spread": pa.array(np.where(voted, high - low, 0), pa.int32(), mask=~voted),
            "keep": pa.array([None if t is None else t >= keep_tier for t in tiers], pa.bool_()),
            "gold": pa.array([bool(item["gold"]) for item in items], pa.bool_()),
            "flags": pa.array([sorted(f) for f in flags], pa.list_(pa.string())),
            "model_tier": pa.array(np.minimum(model_tier, 5), pa.int32(), mask=~voted),
            "model_keep": pa.array(model_keep, pa.float32(), mask=~voted),
            "probabilities": pa.array(
                [p if v else None for p, v in zip(posterior.tolist(), voted, strict=True)], pa.list_(pa.float32())
            ),
        },
        schema=ITEMS,
    )  # fmt: skip
    db.register("new_items", table)
    db.execute("INSERT INTO consensus_items BY NAME SELECT * FROM new_items")
    db.unregister("new_items")
