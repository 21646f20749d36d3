"""Ratings for others: streamed as CSV, JSON lines or Parquet, and sealed as releases.

    curate campaign export STORE NAME --what votes --out votes.parquet
    curate campaign release STORE NAME

Exports are streamed: a million votes take the memory of a chunk. Raters appear under pseudonyms, the same ones in every
export. A release is a folder that does not change any more, `releases/<campaign>-<hash>/` in the store: votes,
consensus and rubrics, with a manifest that holds the SHA-256 of each file, the rule of the vote and the agreement.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import sqlite3
from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from curate.errors import UsageError
from curate.rate import quality
from curate.rate.ledger import Ledger, audit
from curate.rate.users import pseudonym
from curate.store.files import Files

CHUNK = 5000
WHAT = ("votes", "consensus", "events")
FORMATS = {
    "csv": "text/csv; charset=utf-8",
    "jsonl": "application/x-ndjson",
    "parquet": "application/vnd.apache.parquet",
}

TEXT, INT, LONG, REAL, YES = pa.string(), pa.int32(), pa.int64(), pa.float32(), pa.bool_()
SCHEMAS = {
    "votes": pa.schema(
        [("sha256", TEXT), ("row_id", TEXT), ("rater", TEXT), ("tier", INT), ("flags", TEXT), ("part", TEXT),
         ("seconds", REAL), ("at_ms", LONG), ("rubric_version", INT)]
    ),
    "consensus": pa.schema(
        [("sha256", TEXT), ("row_id", TEXT), ("tier", INT), ("rule", TEXT), ("votes", INT), ("tiers", TEXT),
         ("gold_tier", INT), ("cluster", LONG)]
    ),
    "events": pa.schema(
        [("event_id", LONG), ("at_ms", LONG), ("sha256", TEXT), ("row_id", TEXT), ("rater", TEXT), ("kind", TEXT),
         ("tier", INT), ("flags", TEXT), ("reason", TEXT), ("part", TEXT), ("counted", YES), ("undoes", LONG),
         ("seconds", REAL), ("rubric_version", INT), ("context", TEXT)]
    ),
}  # fmt: skip
QUERIES = {
    "votes": "SELECT i.sha256, i.row_id, v.user_id AS rater, v.tier, v.flags, v.part, v.seconds, v.at_ms, "
    "e.rubric_version "
    "FROM votes AS v JOIN items AS i ON i.id = v.item_id JOIN events AS e ON e.id = v.event_id "
    "WHERE v.campaign_id = ? ORDER BY v.event_id",
    "consensus": "SELECT sha256, row_id, tier, rule, votes, (SELECT group_concat(tier, ' ') "
    "FROM (SELECT tier FROM votes "
    "WHERE item_id = items.id AND part = 'work' ORDER BY event_id)) AS tiers, gold_tier, cluster FROM items "
    "WHERE campaign_id = ? AND (votes > 0 OR tier IS NOT NULL OR gold_tier IS NOT NULL) ORDER BY id",
    "events": "SELECT e.id AS event_id, e.at_ms, i.sha256, i.row_id, e.user_id AS rater, e.kind, e.tier, "
    "e.flags, e.reason, "
    "e.part, e.counted, e.undoes, e.seconds, e.rubric_version, e.context FROM events AS e JOIN items AS i "
    "ON i.id = e.item_id WHERE e.campaign_id = ? ORDER BY e.id",
}


def stream(ledger: Ledger, campaign_id: int, what: str, kind: str) -> Iterator[bytes]:
    """The bytes of an export, a chunk at a time, from one state of the ledger."""
    if what not in WHAT or kind not in FORMATS:
        raise UsageError(f"export {what!r} as {kind!r}: use one of {', '.join(WHAT)} as {', '.join(FORMATS)}")
    return _streamed(ledger, campaign_id, what, kind)


def _streamed(ledger: Ledger, campaign_id: int, what: str, kind: str) -> Iterator[bytes]:
    with ledger.snapshot() as db:
        yield from _encoded(db, ledger.secret, campaign_id, what, kind)


def _encoded(db: sqlite3.Connection, secret: bytes, campaign_id: int, what: str, kind: str) -> Iterator[bytes]:
    return {"csv": _csv, "jsonl": _jsonl, "parquet": _parquet}[kind](_rows(db, secret, campaign_id, what), what)


def release(ledger: Ledger, files: Files, campaign_id: int, by: int | None) -> tuple[str, str]:
    """Seal a campaign's ratings as they are; returns (folder, hash). The same ratings give the same release."""
    with ledger.snapshot() as db:
        row = db.execute("SELECT * FROM campaigns WHERE id = ?", [campaign_id]).fetchone()
        data = {f"{what}.parquet": b"".join(_encoded(db, ledger.secret, campaign_id, what, "parquet")) for what in WHAT}
        rubrics = db.execute(
            "SELECT version, body FROM rubrics WHERE campaign_id = ? ORDER BY version", [campaign_id]
        ).fetchall()
        figures = quality.measure(db, campaign_id)
    for rubric in rubrics:
        data[f"rubric-{rubric['version']}.json"] = rubric["body"].encode()
    manifest = {
        "campaign": row["name"],
        "condition": row["condition"],
        "sampling": row["sampling"],
        "seed": row["seed"],
        "vote": {
            "votes": row["votes"],
            "extra_votes": row["extra_votes"],
            "keep_tier": row["keep_tier"],
            "rule": "most frequent tier; a tie, or a decision that one vote could turn, asks for one more; "
            "then the lower "
            "median; a lead's adjudication stands",
        },
        "images": row["images"],
        "decided": row["done"],
        "alpha": str(figures.alpha),
        "files": {name: hashlib.sha256(content).hexdigest() for name, content in sorted(data.items())},
    }
    text = json.dumps(manifest, ensure_ascii=False, indent=1, sort_keys=True).encode()
    digest = hashlib.sha256(text).hexdigest()
    safe = "".join(c if c.isalnum() and c.isascii() else "-" for c in row["name"])[:40]
    folder = f"releases/{safe}-{digest[:12]}"
    for name, content in data.items():
        files.create(f"{folder}/{name}", content)
    files.create(f"{folder}/manifest.json", text)

    def note(sql: sqlite3.Connection) -> None:
        now = ledger.clock()
        if not sql.execute("SELECT 1 FROM releases WHERE sha256 = ?", [digest]).fetchone():
            sql.execute(
                "INSERT INTO releases (campaign_id, at_ms, path, sha256, facts) VALUES (?, ?, ?, ?, ?)",
                [campaign_id, now, folder, digest, text.decode()],
            )
        audit(sql, now, by, "released", row["name"], digest)

    ledger.write(note)
    return folder, digest


def _rows(db: sqlite3.Connection, secret: bytes, campaign_id: int, what: str) -> Iterator[list[dict[str, Any]]]:
    names: dict[int, str] = {}
    cursor = db.execute(QUERIES[what], [campaign_id])
    while rows := cursor.fetchmany(CHUNK):
        made = [dict(row) for row in rows]
        for row in made:
            if "rater" in row:
                row["rater"] = names.setdefault(row["rater"], pseudonym(secret, row["rater"]))
            if "counted" in row:
                row["counted"] = bool(row["counted"])
        yield made


def _csv(chunks: Iterator[list[dict[str, Any]]], what: str) -> Iterator[bytes]:
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(SCHEMAS[what].names)
    for rows in chunks:
        for row in rows:
            writer.writerow([_inert(row[name]) for name in SCHEMAS[what].names])
        yield out.getvalue().encode()
        out.seek(0)
        out.truncate()
    yield out.getvalue().encode()


def _inert(value: Any) -> Any:
    """A text that a spreadsheet would take for a formula, with an apostrophe before it."""
    return f"'{value}" if isinstance(value, str) and value[:1] in ("=", "+", "-", "@", "\t", "\r") else value


def _jsonl(chunks: Iterator[list[dict[str, Any]]], what: str) -> Iterator[bytes]:
    for rows in chunks:
        yield "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def _parquet(chunks: Iterator[list[dict[str, Any]]], what: str) -> Iterator[bytes]:
    pipe = _Pipe()
    schema = SCHEMAS[what]
    with pq.ParquetWriter(pipe, schema, compression="zstd") as writer:
        for rows in chunks:
            writer.write_table(pa.Table.from_pylist(rows, schema=schema))
            yield pipe.taken()
    yield pipe.taken()


class _Pipe(io.RawIOBase):
    """A file to write to whose content is taken away as it comes; the writer of Parquet never looks back."""

    def __init__(self) -> None:
        self._held: list[bytes] = []
        self._at = 0

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        content = bytes(data)
        self._held.append(content)
        self._at += len(content)
        return len(content)

    def tell(self) -> int:
        return self._at

    def taken(self) -> bytes:
        """What was written since the last call."""
        content, self._held = b"".join(self._held), []
        return content
