"""Campaigns: which images of a store people rate, in which order, how often, and under which rubric.

    campaign_id = create(ledger, store, Plan("first", where="aesthetic > 5 AND faces <= 3", size=5000))

An image is its SHA-256: of identical files in several rows one is asked about. Under a rubric with a `criterion` the
captions are rated and not the images: then an item is one caption of an image, `sha256/fingerprint` by name, and those
who rate are not told who wrote it. What a rater is shown (captions, size) is copied into the campaign, so that a later
run changes nothing under somebody's eyes. Votes, gold images, exemplars,
rubric and raters may all change while a campaign runs.
"""

from __future__ import annotations

import csv
import functools
import re
import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import numpy.typing as npt
import pyarrow as pa

from curate.dedup.forest import Forest, first_equal
from curate.dedup.near import MOST_BITS, near
from curate.errors import UsageError, nearest
from curate.rate import queue, rubric
from curate.rate.ledger import Ledger, audit
from curate.store import Store
from curate.store.captioners import captioners
from curate.store.query import condition as checked
from curate.store.query import first_line

SAMPLINGS = ("random", "stratified:COLUMN", "near:COLUMN", "near:COLUMN:VALUE", "predicted", "uncertain", "disagreeing")
CHUNK = 1000  # images that one transaction brings in or settles: raters wait for it
CHANGES = ("votes", "extra_votes", "keep_tier", "gold_every", "repeat_every", "captions")
LEAST_PDQ_QUALITY = 50
STRATA = 10
NUMERIC = ("TINYINT", "SMALLINT", "INTEGER", "BIGINT", "HUGEINT", "UTINYINT", "USMALLINT", "UINTEGER", "UBIGINT",
           "FLOAT", "DOUBLE", "DECIMAL")  # fmt: skip


@dataclass(frozen=True)
class Plan:
    """How a campaign is to be made. `size` 0: all images that meet the condition."""

    name: str
    where: str = "keep"
    size: int = 0
    sample: str = "random"
    votes: int = 3
    extra_votes: int | None = None  # None: one when votes is at least 3, else none
    rubric: str = "kolors"
    keep_tier: int | None = None  # None: the rubric's
    gold_every: int = 20
    repeat_every: int = 25
    captions: str = "shown"
    raters: tuple[str, ...] = ()  # none: everybody
    gold: tuple[tuple[str, int], ...] = ()  # (row_id or sha256, tier)
    exemplars: tuple[tuple[str, int], ...] = ()
    captioners: tuple[str, ...] = ()  # whose captions are rated (curate/store/captioners.py); none: everybody's
    seed: int = 0


def create(ledger: Ledger, store: Store, plan: Plan, by: int | None = None) -> int:
    """Make a campaign and let it run; returns its id. Raises UsageError that names what is wrong with the plan."""
    _check(plan)
    words = rubric.load(plan.rubric)
    _check_subject(plan, words)
    db = store.connection()
    condition = checked(db, plan.where)
    now = ledger.clock()
    ids = _accounts(ledger.read(), plan.raters)
    marked: dict[str, tuple[int | None, int | None]] = {key: (tier, None) for key, tier in plan.gold}
    marked |= {key: (None, tier) for key, tier in plan.exemplars}
    chosen = _chosen(db, ledger, plan, condition, list(marked), words.unsafe_tier)
    if not len(chosen):
        raise UsageError(f"no image with {plan.where!r} can be shown (rows that failed or have no size are left out)")
    clusters = _clusters(chosen)
    if words.criterion:
        images = [row | {"cluster": cluster} for row, cluster in zip(chosen.to_pylist(), clusters, strict=True)]
        captions = _captions(store, plan, images)
        chosen, clusters = pa.Table.from_pylist(captions, chosen.schema), [row["cluster"] for row in captions]

    def begin(sql: sqlite3.Connection) -> int:
        row = sql.execute("SELECT id, state, images FROM campaigns WHERE name = ?", [plan.name]).fetchone()
        if row and not (row["state"] == "paused" and row["images"] == 0):
            raise UsageError(f"a campaign named {plan.name!r} is there already; choose another name")
        if row:  # a process died while it made this campaign
            for table in ("words", "items"):
                key = "item_id" if table == "words" else "id"
                sql.execute(
                    f"DELETE FROM {table} WHERE {key} IN (SELECT id FROM items WHERE campaign_id = ?)", [row[0]]
                )
            for table in ("rubrics", "assigned"):
                sql.execute(f"DELETE FROM {table} WHERE campaign_id = ?", [row["id"]])
            sql.execute("DELETE FROM campaigns WHERE id = ?", [row["id"]])
        extra = plan.extra_votes if plan.extra_votes is not None else int(plan.votes >= 3)
        cursor = sql.execute(
            "INSERT INTO campaigns (name, state, votes, extra_votes, keep_tier, gold_every, repeat_every, captions, "
            "everyone, condition, sampling, seed, created_ms, created_by) "
            "VALUES (?, 'paused', ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            [
                plan.name, plan.votes, extra, plan.keep_tier or words.keep_tier, plan.gold_every, plan.repeat_every,
                plan.captions, not plan.raters, plan.where, plan.sample, plan.seed, now, by,
            ],
        )  # fmt: skip
        made = int(cursor.lastrowid or 0)
        sql.execute("INSERT INTO rubrics VALUES (?, ?, ?, ?)", [made, words.version, words.json(), now])
        sql.executemany("INSERT INTO assigned VALUES (?, ?)", [[made, id] for id in sorted(ids)])
        return made

    campaign_id = ledger.write(begin)
    for start in range(0, len(chosen), CHUNK):
        part = chosen.slice(start, CHUNK).to_pylist()
        near_of = clusters[start : start + CHUNK]
        ledger.write(
            lambda sql, at=start, part=part, near=near_of: _insert(sql, campaign_id, at, part, near, plan, marked)  # type: ignore[misc]
        )

    def start_it(sql: sqlite3.Connection) -> None:
        sql.execute(
            "UPDATE campaigns SET state = 'running', images = (SELECT count(*) FROM items WHERE campaign_id = ?1 "
            "AND gold_tier IS NULL AND exemplar_tier IS NULL) WHERE id = ?1",
            [campaign_id],
        )
        audit(sql, now, by, "campaign created", plan.name, f"{len(chosen)} items, {plan.votes} votes, {plan.where}")

    ledger.write(start_it)
    return campaign_id


def set_state(db: sqlite3.Connection, campaign_id: int, state: str, by: int | None, now: int) -> None:
    """Run, pause or close a campaign. What is under a lease may still be answered."""
    if state not in ("running", "paused", "closed"):
        raise UsageError(f"state {state!r}: use running, paused or closed")
    db.execute("UPDATE campaigns SET state = ?, reopened = reopened + 1 WHERE id = ?", [state, campaign_id])
    name = db.execute("SELECT name FROM campaigns WHERE id = ?", [campaign_id]).fetchone()["name"]
    audit(db, now, by, f"campaign {state}", name)


def change(ledger: Ledger, campaign_id: int, by: int | None, changes: dict[str, Any]) -> None:
    """Change votes, extra_votes, keep_tier, gold_every, repeat_every or captions of a campaign that runs.

    Images that were decided are decided again under the new rule, some at a time, so that nobody who rates waits for
    it. An image is never asked for fewer votes than it was asked for already. Raises UsageError for what cannot be.
    """
    unknown = sorted(set(changes) - set(CHANGES))
    if unknown:
        raise UsageError(f"{unknown[0]!r} of a campaign cannot be changed; only: {', '.join(CHANGES)}")
    _check_rule(changes)

    def begin(db: sqlite3.Connection) -> bool:
        before = db.execute("SELECT * FROM campaigns WHERE id = ?", [campaign_id]).fetchone()
        new = {name: value for name, value in changes.items() if before[name] != value}
        for name, value in new.items():
            db.execute(f"UPDATE campaigns SET {name} = ? WHERE id = ?", [value, campaign_id])
        decides = bool(new.keys() & {"votes", "extra_votes", "keep_tier"})
        if decides:
            db.execute("UPDATE campaigns SET resettle_after = 0 WHERE id = ?", [campaign_id])
        said = ", ".join(f"{name} {before[name]} -> {value}" for name, value in new.items())
        if new:
            audit(db, ledger.clock(), by, "campaign changed", before["name"], said)
        return decides

    if ledger.write(begin):
        settle(ledger, campaign_id)


def settle(ledger: Ledger, campaign_id: int) -> None:
    """Decide the images of a campaign under its present rule; goes on where a process that died had stopped."""

    def some(db: sqlite3.Connection) -> bool:
        after = db.execute("SELECT resettle_after FROM campaigns WHERE id = ?", [campaign_id]).fetchone()[0]
        if after is None:
            return False
        rest = queue.settle_some(db, campaign_id, after, CHUNK)
        db.execute("UPDATE campaigns SET resettle_after = ? WHERE id = ?", [rest, campaign_id])
        if rest is None:  # images behind everybody's place may be open again
            db.execute("UPDATE desks SET place = -1, dry = -1 WHERE campaign_id = ?", [campaign_id])
        return rest is not None

    while ledger.write(some):
        pass


def unsettled(db: sqlite3.Connection) -> list[int]:
    """Campaigns some of whose images were not decided yet under a changed rule when a process died."""
    return [row["id"] for row in db.execute("SELECT id FROM campaigns WHERE resettle_after IS NOT NULL")]


def assign(db: sqlite3.Connection, campaign_id: int, names: Sequence[str], by: int | None, now: int) -> None:
    """Let the people named, and nobody else, rate in a campaign; no names: everybody.

    Who is no longer among them gives back what they hold; their votes stay.
    """
    ids = _accounts(db, names)
    name = db.execute("SELECT name FROM campaigns WHERE id = ?", [campaign_id]).fetchone()["name"]
    db.execute("UPDATE campaigns SET everyone = ? WHERE id = ?", [not ids, campaign_id])
    db.execute("DELETE FROM assigned WHERE campaign_id = ?", [campaign_id])
    db.executemany("INSERT INTO assigned VALUES (?, ?)", [[campaign_id, id] for id in sorted(ids)])
    if ids:
        for row in db.execute(
            "SELECT DISTINCT user_id FROM leases WHERE campaign_id = ? AND closed_ms IS NULL", [campaign_id]
        ).fetchall():
            if row["user_id"] not in ids:
                queue.release(db, row["user_id"], now, campaign_id)
    audit(db, now, by, "raters changed", name, ", ".join(names) or "everybody")


def available(db: sqlite3.Connection, campaign_id: int) -> int:
    """How many people may rate in a campaign: an image cannot have more votes than that."""
    return int(
        db.execute(
            "SELECT count(*) FROM users AS u, campaigns AS c WHERE c.id = ? AND u.disabled_ms IS NULL AND (c.everyone "
            "OR EXISTS (SELECT 1 FROM assigned WHERE campaign_id = c.id AND user_id = u.id))",
            [campaign_id],
        ).fetchone()[0]
    )


def vocabulary(db: sqlite3.Connection, campaign_id: int) -> tuple[frozenset[str], frozenset[int]]:
    """Flags and versions of all rubrics that the campaign has had."""
    rows = db.execute("SELECT version, body FROM rubrics WHERE campaign_id = ? ORDER BY version", [campaign_id])
    return _vocabulary(tuple((row["version"], row["body"]) for row in rows))


@functools.lru_cache(maxsize=64)
def _vocabulary(versions: tuple[tuple[int, str], ...]) -> tuple[frozenset[str], frozenset[int]]:
    flags = frozenset(flag.flag for _, body in versions for flag in rubric.from_json(body).flags)
    return flags, frozenset(version for version, _ in versions)


def change_rubric(db: sqlite3.Connection, campaign_id: int, new: rubric.Rubric, by: int | None, now: int) -> None:
    """Give a campaign another version of its rubric; votes keep the version that they were made under."""
    last = db.execute(
        "SELECT r.version, c.name FROM rubrics AS r JOIN campaigns AS c ON c.id = campaign_id "
        "WHERE campaign_id = ? ORDER BY version DESC LIMIT 1",
        [campaign_id],
    ).fetchone()
    if new.version <= last["version"]:
        raise UsageError(
            f"rubric {new.name!r} has version {new.version}; the campaign has {last['version']}: raise `version`"
        )
    db.execute("INSERT INTO rubrics VALUES (?, ?, ?, ?)", [campaign_id, new.version, new.json(), now])
    audit(db, now, by, "rubric changed", last["name"], f"{new.name} {new.version}")


def mark(
    db: sqlite3.Connection, item_id: int, *, gold: int | None, exemplar: int | None, by: int | None, now: int
) -> None:
    """Make an image gold (its tier is known; people are measured by it) or an exemplar (shown as help), or neither."""
    item = db.execute("SELECT * FROM items WHERE id = ?", [item_id]).fetchone()
    if item is None:
        raise UsageError(f"no image {item_id}")
    was, now_special = (
        item["gold_tier"] is not None or item["exemplar_tier"] is not None,
        gold is not None or exemplar is not None,
    )
    work = db.execute(
        "SELECT count(*) FROM leases WHERE item_id = ? AND closed_ms IS NULL AND kind = 'work'", [item_id]
    ).fetchone()[0]
    db.execute(
        "UPDATE items SET gold_tier = ?, exemplar_tier = ?, open = 0, wanted = max(wanted, votes + ?) WHERE id = ?",
        [gold, exemplar, work, item_id],
    )
    if was != now_special:
        db.execute(
            "UPDATE campaigns SET images = images + ? WHERE id = ?", [-1 if now_special else 1, item["campaign_id"]]
        )
    if now_special:
        db.execute("UPDATE items SET tier = NULL, rule = NULL, open = 0, disputed = 0 WHERE id = ?", [item_id])
    else:
        queue.settle(db, item_id, urgent=True)
    audit(db, now, by, "image marked", str(item_id), f"gold {gold}, exemplar {exemplar}")


def current_rubric(db: sqlite3.Connection, campaign_id: int) -> rubric.Rubric:
    """The newest version of the campaign's rubric."""
    row = db.execute(
        "SELECT body FROM rubrics WHERE campaign_id = ? ORDER BY version DESC LIMIT 1", [campaign_id]
    ).fetchone()
    return rubric.from_json(row["body"])


def by_name(db: sqlite3.Connection, name: str) -> sqlite3.Row:
    """The campaign of that name; raises UsageError that names those that are there."""
    row: sqlite3.Row | None = db.execute("SELECT * FROM campaigns WHERE name = ?", [name]).fetchone()
    if row is None:
        names = [r["name"] for r in db.execute("SELECT name FROM campaigns ORDER BY id")]
        raise UsageError(f"no campaign named {name!r}" + (f"; there are: {', '.join(names)}" if names else ""))
    return row


def for_person(db: sqlite3.Connection, campaign_id: int, user_id: int, role: str) -> sqlite3.Row | None:
    """The campaign when the person may take part in it; leads and admins may in all."""
    row: sqlite3.Row | None = db.execute(
        "SELECT * FROM campaigns WHERE id = ?1 AND (everyone OR ?3 <> 'rater' OR EXISTS "
        "(SELECT 1 FROM assigned WHERE campaign_id = ?1 AND user_id = ?2))",
        [campaign_id, user_id, role],
    ).fetchone()
    return row


def tiers_from_csv(path: Path) -> tuple[tuple[str, int], ...]:
    """(row_id or sha256, tier) of each line of a CSV file with columns `image` and `tier`."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            return tiers_from_lines(file.read().splitlines(), str(path))
    except (OSError, UnicodeDecodeError) as why:
        raise UsageError(f"{path}: {getattr(why, 'strerror', None) or why}") from None


def tiers_from_lines(lines: Sequence[str], where: str) -> tuple[tuple[str, int], ...]:
    """(row_id or sha256, tier) of each line; a first line that names the columns `image` and `tier` says their order.

    `where` names the file or field in errors.
    """
    head = [name.strip() for name in next(csv.reader(lines[:1]), [])]
    named = "image" in head and "tier" in head
    columns = (head.index("image"), head.index("tier")) if named else (0, 1)
    found = []
    for number, row in enumerate(csv.reader(lines), 1):
        if (number == 1 and named) or not row:
            continue
        image, tier = (row[at].strip() if at < len(row) else "" for at in columns)
        if not image or tier not in ("1", "2", "3", "4", "5"):
            raise UsageError(f"{where} line {number}: needs columns image (row_id or sha256) and tier (1 to 5)")
        found.append((image, int(tier)))
    return tuple(found)


_RANGES = {
    "votes": (1, 15), "extra_votes": (0, 12), "size": (0, 10**9), "gold_every": (0, 10**6), "repeat_every": (0, 10**6),
    "keep_tier": (1, 5),
}  # fmt: skip


def _check(plan: Plan) -> None:
    if not (plan.name.strip() and len(plan.name) <= 80 and plan.name.isprintable()):
        raise UsageError(f"name {plan.name!r}: 1 to 80 printable characters")
    _check_rule({name: getattr(plan, name) for name in (*_RANGES, "captions") if getattr(plan, name) is not None})


def _check_rule(values: dict[str, Any]) -> None:
    """Refuse numbers of a campaign's rule that are out of range, with create and with change."""
    for name, value in values.items():
        low, high = _RANGES.get(name, (0, 0))
        if name in _RANGES and not low <= value <= high:
            raise UsageError(f"{name} = {value}: must be {low} to {high:,}")
        if name == "captions" and value not in ("shown", "after", "hidden"):
            raise UsageError(f"captions {value!r}: use shown, after (the rating) or hidden")


def _accounts(db: sqlite3.Connection, names: Sequence[str]) -> set[int]:
    rows = db.execute("SELECT id, name FROM users WHERE disabled_ms IS NULL").fetchall()
    known = {row["name"].casefold(): row["id"] for row in rows}
    unknown = [name for name in names if name.casefold() not in known]
    if unknown:
        raise UsageError(
            f"no account named {unknown[0]!r}{nearest(unknown[0], [row['name'] for row in rows])}; "
            f"add it with: curate users add STORE {unknown[0]}"
        )
    return {known[name.casefold()] for name in names}


def _check_subject(plan: Plan, words: rubric.Rubric) -> None:
    """Refuse what has no meaning for the rubric's subject, the picture or its caption."""
    if not words.criterion and plan.captioners:
        raise UsageError(
            f"captioners: the rubric {plan.rubric!r} rates pictures; for captions take caption-completeness, ..."
        )
    if words.criterion and plan.captions != "shown":
        raise UsageError(f"captions {plan.captions!r}: a caption must be shown to be rated")
    if words.criterion and (plan.gold or plan.exemplars):
        raise UsageError("gold and exemplars of a caption campaign are marked on the lead's page, *Pictures*")


def _captions(store: Store, plan: Plan, images: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """One item for each caption of the images. Neighbours are of different images, and no captioner has a place."""
    wanted = {captioner.key: captioner for captioner in captioners(store, plan.captioners)}
    texts: dict[str, list[tuple[str, str, str]]] = {}
    rows = store.rows(
        "SELECT row_id, fingerprint, kind, language, text FROM captions WHERE row_id IN (SELECT unnest($1::VARCHAR[])) "
        "AND trim(text) <> '' ORDER BY row_id, fingerprint, kind, language",
        [[image["row_id"] for image in images]],
    )
    for row_id, mark, kind, language, text in rows:
        if (mark, kind, language) in wanted:
            texts.setdefault(row_id, []).append((wanted[mark, kind, language].item, language, text))
    if not texts:
        raise UsageError("none of these images has a caption to rate; see: curate sql STORE 'from captions'")
    found, last = [], max((image["cluster"] for image in images), default=0)
    for turn in range(max(map(len, texts.values()))):
        for place, image in enumerate(images):
            own = texts.get(image["row_id"], [])
            if turn < len(own):
                item, language, text = own[(int(image["sha256"][:8], 16) + turn) % len(own)]
                shown = {"caption_raw": None, "caption_en": None, "caption_zh": None, f"caption_{language}": text}
                cluster = image["cluster"] or last + 1 + place  # captions of one picture come well apart
                found.append({**image, **shown, "sha256": f"{image['sha256']}/{item}", "cluster": cluster})
    return found


def _chosen(
    db: duckdb.DuckDBPyConnection, ledger: Ledger, plan: Plan, condition: str, marked: Sequence[str],
    unsafe_tier: int | None,
) -> pa.Table:  # fmt: skip
    """The images in the order in which they are asked for; marked ones come with them, wherever they are."""
    columns = {row[0]: row[1] for row in db.execute("DESCRIBE samples").fetchall()}
    order, source, parameters = _order(db, ledger, plan, columns)
    limit = f"LIMIT {plan.size}" if plan.size else ""
    group = "CASE WHEN dedup_size > 1 THEN dedup_group END" if "dedup_group" in columns else "NULL"
    try:
        found = db.execute(
            f"""
            WITH images AS (
                SELECT * FROM samples WHERE error IS NULL AND sha256 IS NOT NULL AND width > 0 AND height > 0
                QUALIFY row_number() OVER (PARTITION BY sha256 ORDER BY shard, row) = 1),
            ranked AS (SELECT sha256, {order} AS rank FROM images {source} WHERE {condition}),
            asked AS (
                SELECT sha256, row_number() OVER (ORDER BY rank NULLS LAST, md5(sha256 || '{plan.seed}')) AS place
                FROM ranked ORDER BY place {limit})
            SELECT i.row_id, i.sha256, i.width, i.height, i.caption_raw, i.caption_en, i.caption_zh, i.pdq,
                i.pdq_quality, {group} AS near, coalesce(i.predicted_tier = $unsafe, FALSE) AS risky
            FROM images AS i LEFT JOIN asked AS a ON a.sha256 = i.sha256
            WHERE a.place IS NOT NULL OR i.row_id IN (SELECT unnest($marked::VARCHAR[]))
                OR i.sha256 IN (SELECT unnest($marked::VARCHAR[]))
            ORDER BY a.place NULLS LAST, i.sha256""",
            {"marked": list(marked), "unsafe": unsafe_tier, **parameters},
        ).to_arrow_table()
    except duckdb.Error as why:  # a condition that is sound in itself may still fail on some row
        raise UsageError(f"--where {plan.where!r}, --sample {plan.sample!r}: {first_line(why)}") from None
    missing = set(marked) - set(found["row_id"].to_pylist()) - set(found["sha256"].to_pylist()) if marked else ()
    if missing:
        raise UsageError(f"{sorted(missing)[0]!r} is no row_id and no sha256 of an image of this store")
    return found


def _order(
    db: duckdb.DuckDBPyConnection, ledger: Ledger, plan: Plan, columns: dict[str, str]
) -> tuple[str, str, dict[str, Any]]:
    """SQL that orders the images so that the first `size` of them are the sample, and what it joins to them."""
    kind, colon, rest = plan.sample.partition(":")
    column, _, value = rest.partition(":")
    if kind not in {name.partition(":")[0] for name in SAMPLINGS}:
        raise UsageError(f"sample {plan.sample!r}{nearest(kind, SAMPLINGS)}")
    if colon and kind not in ("stratified", "near"):
        raise UsageError(f"sample {plan.sample!r}: {kind} takes nothing after it; write {kind!r}")
    if kind in ("stratified", "near") and column not in columns:
        raise UsageError(f"sample {plan.sample!r}: no column {column!r}{nearest(column, columns)}")
    numeric = columns.get(column, "").partition("(")[0] in NUMERIC
    key = f"md5(sha256 || '{plan.seed}')"
    quoted = '"' + column.replace('"', '""') + '"'
    if kind in ("predicted", "uncertain"):
        if not db.execute("SELECT 1 FROM samples WHERE predicted_tier IS NOT NULL LIMIT 1").fetchone():
            raise UsageError(f"sample {plan.sample!r}: no predicted tiers yet; make them with: curate fit STORE")
        if kind == "uncertain":
            return "abs(coalesce(predicted_keep, 0.5) - 0.5)", "", {}
        return f"row_number() OVER (PARTITION BY predicted_tier ORDER BY {key})", "", {}
    if kind == "stratified":
        parameters: dict[str, Any] = {}
        stratum = quoted
        if numeric:
            # Equal steps of the value and not of its rank: the tails are where a threshold is learned.
            ends = db.execute(f"SELECT quantile_cont({quoted}::DOUBLE, [0.01, 0.99]) FROM samples").fetchone()
            low, high = ends[0] if ends and ends[0] else (0.0, 1.0)
            stratum = f"least(greatest(floor({STRATA} * ({quoted} - $low) / ($high - $low)), 0), {STRATA - 1})"
            parameters = {"low": low, "high": max(high, low + 1e-9)}
        return f"row_number() OVER (PARTITION BY {stratum} ORDER BY {key})", "", parameters
    if kind == "near":
        if not numeric:
            raise UsageError(f"sample {plan.sample!r}: {column} is {columns[column]} and no number")
        cut = float(value) if re.fullmatch(r"-?\d+(\.\d+)?", value) else None
        if value and cut is None:
            raise UsageError(f"sample {plan.sample!r}: {value!r} is no number")
        return f"abs({quoted} - {cut if cut is not None else _policy_cut(db, column)})", "", {}
    if kind == "disagreeing":
        rows = ledger.read().execute(
            "SELECT i.sha256, max(v.tier) - min(v.tier) AS spread FROM votes AS v JOIN items AS i ON i.id = v.item_id "
            "WHERE v.part = 'work' GROUP BY i.sha256 HAVING spread > 0"
        )
        spread = {row["sha256"]: row["spread"] for row in rows}
        if not spread:
            raise UsageError("sample 'disagreeing': nobody has disagreed on any image yet")
        apart = "(SELECT unnest($apart::VARCHAR[]) AS sha256, unnest($spread::INTEGER[]) AS votes_apart)"
        return (
            "coalesce(-votes_apart, 0)",
            f"LEFT JOIN {apart} AS apart USING (sha256)",
            {"apart": list(spread), "spread": list(spread.values())},
        )
    return key, "", {}


def _policy_cut(db: duckdb.DuckDBPyConnection, column: str) -> float:
    """The number that the active policy compares a column with."""
    for (text,) in db.execute("SELECT predicate FROM policy ORDER BY position").fetchall():
        found = re.search(rf"\b{re.escape(column)}\b\s*(?:>=|<=|>|<)\s*(-?\d+(?:\.\d+)?)", text)
        if found:
            return float(found[1])
    raise UsageError(f"the policy does not compare {column} with a number; give one: near:{column}:VALUE")


def _insert(
    db: sqlite3.Connection, campaign_id: int, position: int, rows: Sequence[dict[str, Any]], clusters: Sequence[int],
    plan: Plan, marked: dict[str, tuple[int | None, int | None]],
) -> None:  # fmt: skip
    first = db.execute("SELECT coalesce(max(id), 0) + 1 FROM items").fetchone()[0]
    items, words = [], []
    for at, (row, cluster) in enumerate(zip(rows, clusters, strict=True)):
        gold, exemplar = marked.get(row["row_id"], marked.get(row["sha256"], (None, None)))
        items.append(
            [
                first + at, campaign_id, position + at, row["sha256"], row["row_id"], row["width"], row["height"],
                cluster, gold, exemplar, 1000 if gold is not None else plan.votes, gold is None and exemplar is None,
                row["risky"],
            ]
        )  # fmt: skip
        texts = [row["caption_raw"], row["caption_en"], row["caption_zh"]]
        if any(texts):
            words.append([first + at, *texts])
    db.executemany(
        "INSERT INTO items (id, campaign_id, position, sha256, row_id, width, height, cluster, gold_tier, "
        "exemplar_tier, wanted, open, risky) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        items,
    )
    db.executemany("INSERT INTO words VALUES (?, ?, ?, ?)", words)


def _clusters(images: pa.Table) -> list[int]:
    """A number from 1 for each group of near duplicates among the images, 0 for one without any.

    Groups of `curate dedup` are taken when they are there; else PDQ hashes that differ in at most 31 bits of 256.
    """
    names = images["near"].to_pylist()
    if any(name is not None for name in names):
        members: dict[Any, list[int]] = {}
        for at, name in enumerate(names):
            if name is not None:
                members.setdefault(name, []).append(at)
        groups = [group for group in members.values() if len(group) > 1]
    else:
        hashes, qualities = images["pdq"].to_pylist(), images["pdq_quality"].to_pylist()
        sound = [at for at, pdq in enumerate(hashes) if pdq and (qualities[at] or 0) >= LEAST_PDQ_QUALITY]
        bits = np.frombuffer(bytes.fromhex("".join(hashes[at] for at in sound)), np.uint8).reshape(-1, 32)
        groups = [[sound[at] for at in group] for group in near_groups(bits)]
    found = [0] * len(names)
    for number, group in enumerate(groups, 1):
        for at in group:
            found[at] = number
    return found


def near_groups(hashes: npt.NDArray[np.uint8]) -> list[list[int]]:
    """Groups of two or more rows of (N, 32) PDQ hashes that are linked by at most 31 differing bits.

    All of them, by the search of `curate dedup` (curate/dedup/near.py): a second for 10,000 images, a minute for a
    million. Equal hashes are linked first, so that a million copies of one placeholder cost no more than one.
    """
    heads = first_equal(np.ascontiguousarray(hashes).view(np.uint64))
    one_each = np.flatnonzero(heads == np.arange(len(heads)))
    forest = Forest(len(one_each))
    if len(one_each) > 1:
        words = np.ascontiguousarray(hashes[one_each]).view(np.uint32)
        near(words, (), MOST_BITS, forest, lambda a, b, turn: np.ones(len(a), np.bool_), threads=2)
    root = one_each[forest.root][np.searchsorted(one_each, heads)]
    order = np.argsort(root, kind="stable")
    cuts = np.flatnonzero(np.diff(root[order])) + 1
    return [group.tolist() for group in np.split(order, cuts) if len(group) > 1]
