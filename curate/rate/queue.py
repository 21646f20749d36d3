"""Who is asked about which image next: leases with an expiry and a fence.

A lease is the right of one person to answer for one image for LEASE_MS. Its number is the fence: it only grows, and a
vote names it. These hold at any moment, under any number of processes, because each is checked or constrained within
the transaction that would break it:

    at most one open lease of a person on an image      unique index one_open_lease
    votes + open leases never exceed the votes wanted   `items.open`, kept by settle()
    never more votes than wanted                        CHECK (votes <= wanted)

A lease that ends unanswered gives its place to somebody else; when its holder answers after all, the vote still counts
if a place is free, and is kept as a surplus event when not. Nobody ever reads "locked by another user".

Images are asked for in the campaign's order, those that came back or need a deciding vote first. Each person has a
place in that order, so that no request walks over what the person has already rated: with a million images in the
campaign a request reads a few hundred index entries. Gold images and hidden repeats come in between by a keyed hash, at
no rhythm that one could learn, and look like all others.
"""

from __future__ import annotations

import hashlib
import sqlite3
from dataclasses import dataclass

from curate.rate.consensus import Decision, VoteRule, decide

LEASE_MS = 10 * 60 * 1000
MOST_LEASES = 24  # open ones of a person in a campaign
PAGE = 256  # index entries that are read at a time
MOST_PAGES = 8
APART = 20  # images between two that are near duplicates of each other
REPEAT_AFTER = 20  # votes between an image and its hidden repeat
HELD_AFTER = 3  # skips after which an image waits for the lead
# Images that nobody has been asked about yet, those that come next first.
COMING = (
    "SELECT row_id FROM items INDEXED BY ready WHERE campaign_id = ? AND open = 1 AND urgent = 0 AND position > "
    "(SELECT coalesce(max(place), -1) FROM desks WHERE campaign_id = ?) ORDER BY position LIMIT ?"
)


@dataclass(frozen=True)
class Task:
    """One image that a person may answer for. It is addressed by the lease, so that a hidden repeat looks like new."""

    lease: int
    width: int
    height: int
    captions: dict[str, str]


def lease(db: sqlite3.Connection, campaign_id: int, user_id: int, want: int, have: list[int], now: int) -> list[Task]:
    """Give the person up to `want` open leases in all and return those that are not in `have`.

    Leases in `have` are renewed: asking for more is the sign of life. Leases that the person holds without knowing
    (after a reload) are handed out again before new ones are made.
    """
    end(db, now)
    campaign = db.execute("SELECT * FROM campaigns WHERE id = ?", [campaign_id]).fetchone()
    if have:
        marks = ", ".join("?" * len(have))
        db.execute(
            f"UPDATE leases SET expires_ms = ? WHERE user_id = ? AND closed_ms IS NULL AND id IN ({marks})",
            [now + LEASE_MS, user_id, *have],
        )
    held = db.execute(
        "SELECT id FROM leases WHERE user_id = ? AND campaign_id = ? AND closed_ms IS NULL ORDER BY id",
        [user_id, campaign_id],
    ).fetchall()
    given = [row["id"] for row in held if row["id"] not in set(have)]
    for lease_id in given:
        db.execute("UPDATE leases SET expires_ms = ? WHERE id = ?", [now + LEASE_MS, lease_id])
    missing = min(want, MOST_LEASES) - len(held)
    if campaign["state"] == "running" and missing > 0:
        given += _more(db, campaign, user_id, missing, now)
    return [_task(db, lease_id) for lease_id in given[: max(want, 0)]]


def end(db: sqlite3.Connection, now: int) -> int:
    """Close the leases whose time is over; their images go to the head of the queue."""
    over = db.execute(
        "SELECT id, item_id, user_id, kind FROM leases WHERE closed_ms IS NULL AND expires_ms <= ?", [now]
    )
    rows = over.fetchall()
    for row in rows:
        _close(db, row, "expired", now)
    return len(rows)


def release(db: sqlite3.Connection, user_id: int, now: int) -> int:
    """Give back everything that a person holds."""
    rows = db.execute(
        "SELECT id, item_id, user_id, kind FROM leases WHERE user_id = ? AND closed_ms IS NULL", [user_id]
    ).fetchall()
    for row in rows:
        _close(db, row, "released", now)
    return len(rows)


def settle(db: sqlite3.Connection, item_id: int, *, urgent: bool = False) -> None:
    """Bring an image's tier, wanted votes and place in the queue up to date with its votes and leases."""
    item = db.execute(
        "SELECT i.*, c.votes AS rule_votes, c.extra_votes, c.keep_tier FROM items AS i "
        "JOIN campaigns AS c ON c.id = i.campaign_id WHERE i.id = ?",
        [item_id],
    ).fetchone()
    if item["gold_tier"] is not None:
        return
    tiers = [r["tier"] for r in db.execute("SELECT tier FROM votes WHERE item_id = ? AND part = 'work'", [item_id])]
    decision = decide(tiers, VoteRule(item["rule_votes"], item["extra_votes"], item["keep_tier"]))
    if item["rule"] == "adjudicated":  # the lead's word stands, whatever is voted after it
        decision = Decision(item["tier"], "adjudicated", decision.wanted)
    # What was once asked stays asked: somebody may be answering.
    wanted = max(item["wanted"], decision.wanted)
    leased = db.execute(
        "SELECT count(*) FROM leases WHERE item_id = ? AND closed_ms IS NULL AND kind = 'work'", [item_id]
    ).fetchone()[0]
    held = item["skips"] >= HELD_AFTER or item["exemplar_tier"] is not None
    needs = decision.tier is None and len(tiers) + leased < wanted and not held
    first = bool(urgent or item["urgent"] or wanted > item["rule_votes"])
    db.execute(
        "UPDATE items SET votes = ?, wanted = ?, open = ?, urgent = ?, tier = ?, rule = ? WHERE id = ?",
        [len(tiers), wanted, needs, first and needs, decision.tier, decision.rule, item_id],
    )
    done = (decision.tier is not None) - (item["tier"] is not None)
    opened = needs and (not item["open"] or (first and not item["urgent"]))
    cast = len(tiers) - item["votes"]
    if done or opened or cast:
        db.execute(
            "UPDATE campaigns SET done = done + ?, reopened = reopened + ?, cast_votes = cast_votes + ? WHERE id = ?",
            [done, opened, cast, item["campaign_id"]],
        )


def desk(db: sqlite3.Connection, campaign_id: int, user_id: int) -> sqlite3.Row:
    """Where the person stands in the campaign; made at the first visit."""
    db.execute("INSERT OR IGNORE INTO desks (campaign_id, user_id) VALUES (?, ?)", [campaign_id, user_id])
    row: sqlite3.Row = db.execute(
        "SELECT * FROM desks WHERE campaign_id = ? AND user_id = ?", [campaign_id, user_id]
    ).fetchone()
    return row


def _more(db: sqlite3.Connection, campaign: sqlite3.Row, user_id: int, count: int, now: int) -> list[int]:
    here = desk(db, campaign["id"], user_id)
    served, given = here["served"], []
    found: list[tuple[str, int]] = []
    for n in range(served, served + count):
        kind, item = _kind(campaign, user_id, n), None
        if kind == "gold":
            item = _gold(db, campaign, user_id, n)
        elif kind == "repeat":
            item = _repeat(db, campaign, user_id, n)
        if item is not None and item not in [i for _, i in found]:
            found.append((kind, item))
        else:
            found.append(("work", 0))
    fresh = iter(_work(db, campaign, user_id, sum(kind == "work" for kind, _ in found)))
    for kind, chosen in found:
        item_id = chosen if kind != "work" else next(fresh, 0)
        if not item_id:
            continue
        cursor = db.execute(
            "INSERT INTO leases (campaign_id, item_id, user_id, kind, issued_ms, expires_ms) VALUES (?, ?, ?, ?, ?, ?)",
            [campaign["id"], item_id, user_id, kind, now, now + LEASE_MS],
        )
        given.append(int(cursor.lastrowid or 0))
        served += 1
        if kind != "repeat":
            db.execute("INSERT OR IGNORE INTO seen VALUES (?, ?)", [user_id, item_id])
        if kind == "work":
            settle(db, item_id)
    db.execute("UPDATE desks SET served = ? WHERE campaign_id = ? AND user_id = ?", [served, campaign["id"], user_id])
    return given


def _kind(campaign: sqlite3.Row, user_id: int, n: int) -> str:
    if campaign["gold_every"] and _hash(campaign["seed"], "gold", user_id, n) % campaign["gold_every"] == 0:
        return "gold"
    if campaign["repeat_every"] and _hash(campaign["seed"], "repeat", user_id, n) % campaign["repeat_every"] == 0:
        return "repeat"
    return "work"


def _gold(db: sqlite3.Connection, campaign: sqlite3.Row, user_id: int, n: int) -> int | None:
    rows = db.execute(
        "SELECT id FROM items WHERE campaign_id = ? AND gold_tier IS NOT NULL AND exemplar_tier IS NULL AND NOT EXISTS "
        "(SELECT 1 FROM seen WHERE user_id = ? AND item_id = items.id) LIMIT 1000",
        [campaign["id"], user_id],
    ).fetchall()
    return int(rows[_hash(campaign["seed"], "which gold", user_id, n) % len(rows)]["id"]) if rows else None


def _repeat(db: sqlite3.Connection, campaign: sqlite3.Row, user_id: int, n: int) -> int | None:
    """An image that the person rated a while ago; each is repeated once at most."""
    rows = db.execute(
        "SELECT v.item_id FROM votes AS v WHERE v.campaign_id = ? AND v.user_id = ? AND v.part "
        "= 'work' AND NOT EXISTS ("
        "SELECT 1 FROM votes AS r WHERE r.item_id = v.item_id AND r.user_id = v.user_id AND r.part = 'repeat') "
        "AND NOT EXISTS (SELECT 1 FROM leases AS l WHERE l.user_id = v.user_id AND l.item_id = v.item_id "
        "AND (l.closed_ms IS NULL OR l.kind = 'repeat')) ORDER BY v.event_id DESC LIMIT 60 OFFSET ?",
        [campaign["id"], user_id, REPEAT_AFTER],
    ).fetchall()
    return int(rows[_hash(campaign["seed"], "which repeat", user_id, n) % len(rows)]["item_id"]) if rows else None


def _work(db: sqlite3.Connection, campaign: sqlite3.Row, user_id: int, count: int) -> list[int]:
    """Up to `count` open images that the person has not seen, near duplicates of recent ones only when nothing else
    is.
    """
    here = desk(db, campaign["id"], user_id)
    if not count or here["dry"] == campaign["reopened"]:
        return []
    recent = [
        row["cluster"]
        for row in db.execute(
            "SELECT i.cluster FROM (SELECT item_id FROM leases WHERE user_id = ? AND campaign_id = ? "
            "ORDER BY id DESC LIMIT ?) JOIN items AS i ON i.id = item_id",
            [user_id, campaign["id"], APART],
        )
    ]
    clusters = {cluster for cluster in recent if cluster}
    taken: list[int] = []
    close: list[int] = []
    places = {}
    whole = True  # every open image of the campaign was looked at
    for urgent, start in ((1, here["urgent_place"]), (0, here["place"])):
        place, wrapped, first_close = start, start < 0, None
        for _ in range(MOST_PAGES):
            if len(taken) >= count:
                break
            page = db.execute(
                "SELECT i.id, i.position, i.cluster, "
                "EXISTS (SELECT 1 FROM seen WHERE user_id = ? AND item_id = i.id) AS seen "
                "FROM items AS i INDEXED BY ready WHERE i.campaign_id = ? AND i.open = 1 AND i.urgent = ? "
                "AND i.position > ? ORDER BY i.position LIMIT ?",
                [user_id, campaign["id"], urgent, place, PAGE],
            ).fetchall()
            for row in page:
                if len(taken) >= count:
                    break
                place = row["position"]
                if row["seen"] or row["id"] in taken or row["id"] in close:
                    continue
                if row["cluster"] and row["cluster"] in clusters:
                    close.append(row["id"])
                    first_close = row["position"] if first_close is None else first_close
                    continue
                if row["cluster"]:
                    clusters.add(row["cluster"])
                taken.append(row["id"])
            else:
                if len(page) < PAGE:  # the end of the order
                    if wrapped:
                        break
                    place, wrapped = -1, True
        else:
            whole = whole and len(taken) >= count
        # An image that was put off for its near duplicate is looked at again by the next request.
        places[urgent] = place if first_close is None else min(place, first_close - 1)
        whole = whole and wrapped
    if len(taken) < count:
        taken += close[: count - len(taken)]
    dry = campaign["reopened"] if whole and not taken else -1
    db.execute(
        "UPDATE desks SET urgent_place = ?, place = ?, dry = ? WHERE campaign_id = ? AND user_id = ?",
        [places[1], places[0], dry, campaign["id"], user_id],
    )
    return taken


def _close(db: sqlite3.Connection, row: sqlite3.Row, outcome: str, now: int) -> None:
    db.execute("UPDATE leases SET closed_ms = ?, outcome = ? WHERE id = ?", [now, outcome, row["id"]])
    if row["kind"] != "repeat":
        db.execute("DELETE FROM seen WHERE user_id = ? AND item_id = ?", [row["user_id"], row["item_id"]])
        db.execute(
            "UPDATE desks SET dry = -1 WHERE user_id = ? AND campaign_id = (SELECT campaign_id "
            "FROM items WHERE id = ?)",
            [row["user_id"], row["item_id"]],
        )
    if row["kind"] == "work":
        settle(db, row["item_id"], urgent=True)


def _task(db: sqlite3.Connection, lease_id: int) -> Task:
    row = db.execute(
        "SELECT l.id AS lease, i.width, i.height, w.raw, w.en, w.zh FROM leases AS l "
        "JOIN items AS i ON i.id = l.item_id LEFT JOIN words AS w ON w.item_id = i.id WHERE l.id = ?",
        [lease_id],
    ).fetchone()
    captions = {code: row[code] for code in ("raw", "en", "zh") if row[code]}
    return Task(row["lease"], row["width"], row["height"], captions)


def _hash(seed: int, *what: object) -> int:
    return int.from_bytes(hashlib.blake2b(repr((seed, *what)).encode(), digest_size=8).digest(), "big")
