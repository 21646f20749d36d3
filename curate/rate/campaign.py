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
import re
import sqlite3
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import numpy.typing as npt

from curate.errors import UsageError
from curate.rate import queue, rubric
from curate.rate.ledger import Ledger, audit
from curate.store import Store
from curate.store.captioners import captioners
from curate.store.query import condition as checked

SAMPLINGS = ("random", "stratified:COLUMN", "near:COLUMN", "near:COLUMN:VALUE", "predicted", "uncertain", "disagreeing")
CHUNK = 5000  # images that one transaction brings in: raters of other campaigns wait for it
NEAR_BITS = 31  # of 256 that differ between PDQ hashes of near duplicates
LEAST_PDQ_QUALITY = 50
STRATA = 10


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
    users = ledger.read().execute("SELECT id, name FROM users WHERE disabled_ms IS NULL").fetchall()
    ids = {row["name"].lower(): row["id"] for row in users}
    unknown = [name for name in plan.raters if name.lower() not in ids]
    if unknown:
        raise UsageError(f"no account named {unknown[0]!r}; add it with: curate users add {store.uri} {unknown[0]}")
    marked: dict[str, tuple[int | None, int | None]] = {key: (tier, None) for key, tier in plan.gold}
    marked |= {key: (None, tier) for key, tier in plan.exemplars}
    chosen = _chosen(db, ledger, plan, condition, list(marked))
    if not chosen:
        raise UsageError(f"no image with {plan.where!r} can be shown (rows that failed or have no size are left out)")
    if words.criterion:
        chosen = _captions(store, plan, chosen)

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
        for name in plan.raters:
            sql.execute("INSERT OR IGNORE INTO assigned VALUES (?, ?)", [made, ids[name.lower()]])
        return made

    campaign_id = ledger.write(begin)
    for start in range(0, len(chosen), CHUNK):
        part = chosen[start : start + CHUNK]
        ledger.write(lambda sql, part=part: _insert(sql, campaign_id, part, plan, marked))  # type: ignore[misc]

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


def change(db: sqlite3.Connection, campaign_id: int, by: int | None, now: int, changes: dict[str, Any]) -> None:
    """Change votes, extra_votes, keep_tier, gold_every, repeat_every or captions of a campaign that runs.

    Images that were decided are decided again under the new rule. An image is never asked for fewer votes than it was
    asked for already.
    """
    allowed = {"votes", "extra_votes", "keep_tier", "gold_every", "repeat_every", "captions"}
    unknown = set(changes) - allowed
    if unknown:
        raise UsageError(f"{sorted(unknown)[0]!r} of a campaign cannot be changed; only: {', '.join(sorted(allowed))}")
    try:
        for name, value in changes.items():
            db.execute(f"UPDATE campaigns SET {name} = ? WHERE id = ?", [value, campaign_id])
    except sqlite3.IntegrityError:
        raise UsageError(f"{changes}: out of range") from None
    row = db.execute("SELECT name, votes FROM campaigns WHERE id = ?", [campaign_id]).fetchone()
    if changes.keys() & {"votes", "extra_votes", "keep_tier"}:
        db.execute(
            "UPDATE items SET wanted = max(?1, (SELECT count(*) FROM leases WHERE item_id = "
            "items.id AND closed_ms IS NULL "
            "AND kind = 'work')), open = exemplar_tier IS NULL AND skips < ?3 WHERE campaign_id = ?2 AND votes = 0 "
            "AND gold_tier IS NULL AND tier IS NULL",
            [row["votes"], campaign_id, queue.HELD_AFTER],
        )
        touched = db.execute(
            "SELECT id FROM items WHERE campaign_id = ? AND (votes > 0 OR id IN (SELECT item_id FROM leases "
            "WHERE closed_ms IS NULL AND campaign_id = ?))",
            [campaign_id, campaign_id],
        ).fetchall()
        for item in touched:
            queue.settle(db, item["id"])
        db.execute("UPDATE campaigns SET reopened = reopened + 1 WHERE id = ?", [campaign_id])
    audit(db, now, by, "campaign changed", row["name"], str(changes))


def change_rubric(db: sqlite3.Connection, campaign_id: int, new: rubric.Rubric, by: int | None, now: int) -> None:
    """Give a campaign another version of its rubric; votes keep the version that they were made under."""
    last = db.execute("SELECT max(version) AS v FROM rubrics WHERE campaign_id = ?", [campaign_id]).fetchone()["v"]
    if new.version <= last:
        raise UsageError(f"the rubric has version {new.version}; the campaign has {last}: raise the version")
    db.execute("INSERT INTO rubrics VALUES (?, ?, ?, ?)", [campaign_id, new.version, new.json(), now])
    audit(db, now, by, "rubric changed", str(campaign_id), f"{new.name} {new.version}")


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
            "UPDATE campaigns SET images = images + ?, done = done - ? WHERE id = ?",
            [-1 if now_special else 1, int(now_special and item["tier"] is not None), item["campaign_id"]],
        )
    if now_special:
        db.execute("UPDATE items SET tier = NULL, rule = NULL, open = 0 WHERE id = ?", [item_id])
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
            rows = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError) as why:
        raise UsageError(f"{path}: {getattr(why, 'strerror', None) or why}") from None
    found = []
    for number, row in enumerate(rows, 2):
        image, tier = (row.get("image") or "").strip(), (row.get("tier") or "").strip()
        if not image or tier not in ("1", "2", "3", "4", "5"):
            raise UsageError(f"{path} line {number}: needs columns image (row_id or sha256) and tier (1 to 5)")
        found.append((image, int(tier)))
    return tuple(found)


def _check(plan: Plan) -> None:
    if not (plan.name.strip() and len(plan.name) <= 80 and plan.name.isprintable()):
        raise UsageError(f"name {plan.name!r}: 1 to 80 printable characters")
    ranges = {
        "votes": (plan.votes, 1, 15), "extra_votes": (plan.extra_votes or 0, 0, 12), "size": (plan.size, 0, 10**9),
        "gold_every": (plan.gold_every, 0, 10**6), "repeat_every": (plan.repeat_every, 0, 10**6),
        "keep_tier": (plan.keep_tier or 1, 1, 5),
    }  # fmt: skip
    for name, (value, low, high) in ranges.items():
        if not low <= value <= high:
            raise UsageError(f"{name} = {value}: must be {low} to {high}")
    if plan.captions not in ("shown", "after", "hidden"):
        raise UsageError(f"captions {plan.captions!r}: use shown, after (the rating) or hidden")


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
        "SELECT row_id, fingerprint, language, text FROM captions WHERE row_id IN (SELECT unnest($1::VARCHAR[])) "
        "AND trim(text) <> '' ORDER BY row_id, fingerprint, language",
        [[image["row_id"] for image in images]],
    )
    for row_id, mark, language, text in rows:
        if (mark, language) in wanted:
            texts.setdefault(row_id, []).append((mark, language, text))
    if not texts:
        raise UsageError("none of these images has a caption to rate; see: curate sql STORE 'from captions'")
    found, last = [], max((image["cluster"] for image in images), default=0)
    for turn in range(max(map(len, texts.values()))):
        for place, image in enumerate(images):
            own = texts.get(image["row_id"], [])
            if turn < len(own):
                mark, language, text = own[(int(image["sha256"][:8], 16) + turn) % len(own)]
                shown = {"caption_raw": None, "caption_en": None, "caption_zh": None, f"caption_{language}": text}
                cluster = image["cluster"] or last + 1 + place  # captions of one picture come well apart
                found.append({**image, **shown, "sha256": f"{image['sha256']}/{mark}", "cluster": cluster})
    return found


def _chosen(
    db: duckdb.DuckDBPyConnection, ledger: Ledger, plan: Plan, condition: str, marked: Sequence[str]
) -> list[dict[str, Any]]:
    """The images in the order in which they are asked for; marked ones come with them, wherever they are."""
    columns = {row[0]: row[1] for row in db.execute("DESCRIBE samples").fetchall()}
    order, parameters = _order(db, ledger, plan, columns)
    limit = f"LIMIT {plan.size}" if plan.size else ""
    group = "CASE WHEN dedup_size > 1 THEN dedup_group END" if "dedup_group" in columns else "NULL"
    rows = db.execute(
        f"""
        WITH images AS (
            SELECT * FROM samples WHERE error IS NULL AND sha256 IS NOT NULL AND width > 0 AND height > 0
            QUALIFY row_number() OVER (PARTITION BY sha256 ORDER BY shard, row) = 1),
        ranked AS (SELECT sha256, {order} AS rank FROM images WHERE {condition}),
        asked AS (
            SELECT sha256, row_number() OVER (ORDER BY rank NULLS LAST, md5(sha256 || '{plan.seed}')) AS place
            FROM ranked ORDER BY place {limit})
        SELECT i.row_id, i.sha256, i.width, i.height, i.caption_raw, i.caption_en, i.caption_zh, i.pdq, i.pdq_quality,
            {group} AS near
        FROM images AS i LEFT JOIN asked AS a ON a.sha256 = i.sha256
        WHERE a.place IS NOT NULL OR i.row_id IN (SELECT unnest($marked::VARCHAR[]))
            OR i.sha256 IN (SELECT unnest($marked::VARCHAR[]))
        ORDER BY a.place NULLS LAST, i.sha256""",
        {"marked": list(marked), **parameters},
    )
    names = [column[0] for column in rows.description]
    found = [dict(zip(names, row, strict=True)) for row in rows.fetchall()]
    missing = set(marked) - {row["row_id"] for row in found} - {row["sha256"] for row in found}
    if missing:
        raise UsageError(f"{sorted(missing)[0]!r} is no row_id and no sha256 of an image of this store")
    for row, cluster in zip(found, _clusters(found), strict=True):
        row["cluster"] = cluster
    return found


def _order(
    db: duckdb.DuckDBPyConnection, ledger: Ledger, plan: Plan, columns: dict[str, str]
) -> tuple[str, dict[str, Any]]:
    """SQL that orders the images so that the first `size` of them are the sample."""
    kind, _, rest = plan.sample.partition(":")
    column, _, value = rest.partition(":")
    if kind in ("stratified", "near") and column not in columns:
        raise UsageError(f"sample {plan.sample!r}: no column {column!r}; `describe samples` lists them")
    learned = db.execute("SELECT 1 FROM samples WHERE predicted_tier IS NOT NULL LIMIT 1").fetchone()
    if kind in ("predicted", "uncertain") and not learned:
        raise UsageError(f"sample {plan.sample!r}: no predicted tiers yet; make them with: curate fit STORE")
    key = f"md5(sha256 || '{plan.seed}')"
    quoted = '"' + column.replace('"', '""') + '"'
    if kind == "random":
        return key, {}
    if kind == "predicted":
        return f"row_number() OVER (PARTITION BY predicted_tier ORDER BY {key})", {}
    if kind == "uncertain":
        return "abs(coalesce(predicted_keep, 0.5) - 0.5)", {}
    if kind == "stratified":
        parameters: dict[str, Any] = {}
        stratum = quoted
        if columns[column] in ("INTEGER", "BIGINT", "FLOAT", "DOUBLE"):
            # Equal steps of the value and not of its rank: the tails are where a threshold is learned.
            ends = db.execute(f"SELECT quantile_cont({quoted}::DOUBLE, [0.01, 0.99]) FROM samples").fetchone()
            low, high = ends[0] if ends and ends[0] else (0.0, 1.0)
            stratum = f"least(greatest(floor({STRATA} * ({quoted} - $low) / ($high - $low)), 0), {STRATA - 1})"
            parameters = {"low": low, "high": max(high, low + 1e-9)}
        return f"row_number() OVER (PARTITION BY {stratum} ORDER BY {key})", parameters
    if kind == "near":
        cut = float(value) if re.fullmatch(r"-?\d+(\.\d+)?", value) else None
        if value and cut is None:
            raise UsageError(f"sample {plan.sample!r}: {value!r} is no number")
        return f"abs({quoted} - {cut if cut is not None else _policy_cut(db, column)})", {}
    if kind == "disagreeing":
        rows = ledger.read().execute(
            "SELECT i.sha256, max(v.tier) - min(v.tier) AS spread FROM votes AS v JOIN items AS i ON i.id = v.item_id "
            "WHERE v.part = 'work' GROUP BY i.sha256 HAVING spread > 0"
        )
        spread = {row["sha256"]: float(row["spread"]) for row in rows}
        if not spread:
            raise UsageError("sample 'disagreeing': nobody has disagreed on any image yet")
        shas, widths = list(spread), list(spread.values())
        return (
            "coalesce(-($widths::DOUBLE[])[list_position($shas::VARCHAR[], sha256)], 0)",
            {"shas": shas, "widths": widths},
        )
    raise UsageError(f"sample {plan.sample!r} is not known; use one of: {', '.join(SAMPLINGS)}")


def _policy_cut(db: duckdb.DuckDBPyConnection, column: str) -> float:
    """The number that the active policy compares a column with."""
    for (text,) in db.execute("SELECT predicate FROM policy ORDER BY position").fetchall():
        found = re.search(rf"\b{re.escape(column)}\b\s*(?:>=|<=|>|<)\s*(-?\d+(?:\.\d+)?)", text)
        if found:
            return float(found[1])
    raise UsageError(f"the policy does not compare {column} with a number; give one: near:{column}:VALUE")


def _insert(
    db: sqlite3.Connection, campaign_id: int, rows: Sequence[dict[str, Any]], plan: Plan,
    marked: dict[str, tuple[int | None, int | None]],
) -> None:  # fmt: skip
    last = db.execute("SELECT coalesce(max(position), -1) AS p FROM items WHERE campaign_id = ?", [campaign_id])
    first = last.fetchone()["p"] + 1
    for position, row in enumerate(rows, first):
        gold, exemplar = marked.get(row["row_id"], marked.get(row["sha256"], (None, None)))
        cursor = db.execute(
            "INSERT INTO items (campaign_id, position, sha256, row_id, width, height, cluster, "
            "gold_tier, exemplar_tier, "
            "wanted, open) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            [
                campaign_id, position, row["sha256"], row["row_id"], row["width"], row["height"], row["cluster"], gold,
                exemplar, 1000 if gold is not None else plan.votes, gold is None and exemplar is None,
            ],
        )  # fmt: skip
        texts = [row["caption_raw"], row["caption_en"], row["caption_zh"]]
        if any(texts):
            db.execute("INSERT INTO words VALUES (?, ?, ?, ?)", [cursor.lastrowid, *texts])


def _clusters(rows: Sequence[dict[str, Any]]) -> list[int]:
    """A number from 1 for each group of near duplicates among the rows, 0 for an image without any.

    Groups of `curate dedup` are taken when they are there; else PDQ hashes that differ in at most NEAR_BITS of 256.
    """
    if any(row["near"] is not None for row in rows):
        names: dict[Any, list[int]] = {}
        for at, row in enumerate(rows):
            if row["near"] is not None:
                names.setdefault(row["near"], []).append(at)
        groups = [group for group in names.values() if len(group) > 1]
    else:
        sound = [at for at, row in enumerate(rows) if row["pdq"] and (row["pdq_quality"] or 0) >= LEAST_PDQ_QUALITY]
        hashes = np.array([list(bytes.fromhex(rows[at]["pdq"])) for at in sound], np.uint8).reshape(-1, 32)
        groups = [[sound[at] for at in group] for group in near_groups(hashes)]
    found = [0] * len(rows)
    for number, group in enumerate(groups, 1):
        for at in group:
            found[at] = number
    return found


def near_groups(hashes: npt.NDArray[np.uint8]) -> list[list[int]]:
    """Groups of two or more rows of (N, 32) PDQ hashes that are linked by at most NEAR_BITS differing bits.

    Two hashes that differ in at most 31 bits agree in one of 32 bytes; candidates are found by agreement of two
    neighbouring bytes (16 bands). That misses pairs whose differences touch every band, one in eight of those at 31
    bits and none below 16, and keeps a million images to seconds.
    """
    if not len(hashes):
        return []
    parent = list(range(len(hashes)))

    def root(at: int) -> int:
        while parent[at] != at:
            parent[at] = parent[parent[at]]
            at = parent[at]
        return at

    hashes = np.ascontiguousarray(hashes)
    bands, words = hashes.view(np.uint16).astype(np.int64), hashes.view(np.uint64)
    for band in range(bands.shape[1]):
        order = np.argsort(bands[:, band], kind="stable")
        for a, b in _pairs(bands[order, band]):
            left, right = order[a], order[b]
            near = np.bitwise_count(words[left] ^ words[right]).sum(axis=1) <= NEAR_BITS
            for one, other in zip(left[near].tolist(), right[near].tolist(), strict=True):
                parent[root(one)] = root(other)
    groups: dict[int, list[int]] = {}
    for at in range(len(hashes)):
        groups.setdefault(root(at), []).append(at)
    return [group for group in groups.values() if len(group) > 1]


def _pairs(keys: npt.NDArray[np.int64]) -> Iterator[tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]]:
    """Index pairs of equal neighbours in sorted keys: with the next, the one after it, ... as long as any are equal."""
    for step in range(1, len(keys)):
        first = np.nonzero(keys[step:] == keys[:-step])[0]
        if not len(first):
            return
        yield first, first + step
