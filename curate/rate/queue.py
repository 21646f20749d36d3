"""Who is asked about which image next: leases with an expiry and a fence.

A lease is the right of one person to answer for one image for LEASE_MS. Its number is the fence: it only grows, and a
vote names it. The low bits of the number are random: after a ledger was restored from a backup a lease is never issued
again under a number that some browser still holds for another image. These hold at any moment, under any number of
processes, because each is checked or constrained within the transaction that would break it:

    at most one open lease of a person on an image      unique index one_open_lease
    votes + open leases never exceed the votes wanted   `items.open`, kept by settle()
    never more votes than wanted                        CHECK (votes <= wanted)

A lease that ends unanswered gives its place to somebody else; when its holder answers after all, the vote still counts
if a place is free, and is kept as a surplus event when not. Nobody ever reads "locked by another user".

Images are asked for in the campaign's order, those that came back or need a deciding vote first. Each person has a
place in that order, so that no request walks over what the person has already rated: with a million images in the
campaign a request reads a few hundred index entries. That place only moves forward, since whatever opens behind it is
urgent; urgent images are gone through in rounds, and a round that gave nothing is not repeated until something has
come back. Gold images and hidden repeats come in between by a keyed hash, at
no rhythm that one could learn, and look like all others.
"""

from __future__ import annotations

import hashlib
import secrets
import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass

from curate.rate.consensus import Decision, VoteRule, decide

LEASE_MS = 10 * 60 * 1000
MOST_LEASES = 24  # open ones of a person in a campaign
WINDOW = 2048  # index entries that are looked through at a time
MOST_WINDOWS = 3  # of each list in a request; what is left the next one looks through
RANDOM_BITS = 20  # of the number of a lease; 33 bits count, so that JavaScript has all 53
MOST_PUT_OFF = 40  # near duplicates that a request passes over; then it takes them, there being little else
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
    risky: bool = False


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


def release(db: sqlite3.Connection, user_id: int, now: int, campaign_id: int | None = None) -> int:
    """Give back everything that a person holds, of one campaign or of all."""
    rows = db.execute(
        "SELECT id, item_id, user_id, kind FROM leases WHERE user_id = ?1 AND closed_ms IS NULL "
        "AND (?2 IS NULL OR campaign_id = ?2)",
        [user_id, campaign_id],
    ).fetchall()
    for row in rows:
        _close(db, row, "released", now)
    return len(rows)


def settle(db: sqlite3.Connection, item_id: int, *, urgent: bool = False) -> None:
    """Bring an image's tier, wanted votes and place in the queue up to date with its votes and leases."""
    item = db.execute(f"{_STATE} WHERE i.id = ?", [item_id]).fetchone()
    if item["gold_tier"] is None:
        _settle(db, item, VoteRule(item["rule_votes"], item["extra_votes"], item["keep_tier"]), urgent)


def settle_some(db: sqlite3.Connection, campaign_id: int, after: int, count: int) -> int | None:
    """Settle images of a campaign whose rule has changed, among the `count` ids after `after`; None: there are no more.

    An image that nobody has voted on may be asked for fewer votes than before.
    """
    rule, before = None, after + count
    for item in db.execute(
        f"{_STATE} WHERE i.id > ? AND i.id <= ? AND +i.campaign_id = ? AND i.gold_tier IS NULL",
        [after, before, campaign_id],
    ).fetchall():
        rule = rule or VoteRule(item["rule_votes"], item["extra_votes"], item["keep_tier"])
        _settle(db, item, rule, False, lower=True)
    last = db.execute("SELECT max(id) FROM items").fetchone()[0] or 0
    return before if before < last else None


_STATE = (
    "SELECT i.*, c.votes AS rule_votes, c.extra_votes, c.keep_tier, (SELECT group_concat(tier, '') FROM votes "
    "WHERE item_id = i.id AND part = 'work') AS tiers, (SELECT count(*) FROM leases WHERE item_id = i.id "
    "AND closed_ms IS NULL AND kind = 'work') AS leased FROM items AS i JOIN campaigns AS c ON c.id = i.campaign_id"
)


def _settle(db: sqlite3.Connection, item: sqlite3.Row, rule: VoteRule, urgent: bool, *, lower: bool = False) -> None:
    tiers = [int(tier) for tier in item["tiers"] or ""]
    decision = decide(tiers, rule)
    if item["rule"] == "adjudicated":  # the lead's word stands, whatever is voted after it
        decision = Decision(item["tier"], "adjudicated", decision.wanted)
    # What was once asked stays asked: somebody may be answering.
    asked = item["leased"] if lower and not tiers else item["wanted"]
    wanted = max(asked, decision.wanted)
    held = item["skips"] >= HELD_AFTER or item["exemplar_tier"] is not None
    needs = decision.tier is None and len(tiers) + item["leased"] < wanted and not held
    first = bool(urgent or item["urgent"] or wanted > rule.votes) and needs
    is_ = (len(tiers), wanted, int(needs), int(first), decision.tier, decision.rule, _disputed(item, tiers, decision))
    was = tuple(item[name] for name in ("votes", "wanted", "open", "urgent", "tier", "rule", "disputed"))
    if is_ == was:
        return
    db.execute(
        "UPDATE items SET votes = ?, wanted = ?, open = ?, urgent = ?, tier = ?, rule = ?, disputed = ? WHERE id = ?",
        [*is_, item["id"]],
    )
    if needs and (not item["open"] or (first and not item["urgent"])):
        db.execute("UPDATE campaigns SET reopened = reopened + 1 WHERE id = ?", [item["campaign_id"]])


def _disputed(item: sqlite3.Row, tiers: Sequence[int], decision: Decision) -> int:
    """How much an image wants the lead's word: 0 not at all, 9 when nobody else is asked about it any more."""
    if decision.rule == "adjudicated":
        return 0
    if decision.tier is None:
        return 9 if item["skips"] >= HELD_AFTER and item["exemplar_tier"] is None else 0
    spread = max(tiers) - min(tiers)
    return 1 + spread if spread >= 2 or decision.rule == "median" else 0


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
        number = _next_number(db)
        db.execute(
            "INSERT INTO leases (id, campaign_id, item_id, user_id, kind, issued_ms, expires_ms) "
            "VALUES (?, ?, ?, ?, ?, ?, ?)",
            [number, campaign["id"], item_id, user_id, kind, now, now + LEASE_MS],
        )
        given.append(number)
        served += 1
        if kind != "repeat":
            db.execute("INSERT OR IGNORE INTO seen VALUES (?, ?)", [user_id, item_id])
        if kind == "work":
            settle(db, item_id)
    db.execute("UPDATE desks SET served = ? WHERE campaign_id = ? AND user_id = ?", [served, campaign["id"], user_id])
    return given


def _next_number(db: sqlite3.Connection) -> int:
    last = int(db.execute("SELECT coalesce(max(id), 0) FROM leases").fetchone()[0])
    return ((last >> RANDOM_BITS) + 1) << RANDOM_BITS | secrets.randbits(RANDOM_BITS)


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
    if not count:
        return []
    here = desk(db, campaign["id"], user_id)
    recent = db.execute(
        "SELECT i.cluster FROM (SELECT item_id FROM leases WHERE user_id = ? AND campaign_id = ? "
        "ORDER BY id DESC LIMIT ?) JOIN items AS i ON i.id = item_id",
        [user_id, campaign["id"], APART],
    )
    look = _Look(db, campaign["id"], user_id, count, {row["cluster"] for row in recent if row["cluster"]})
    place, dry, round_ = here["urgent_place"], here["dry"], here["round"]
    if dry != campaign["reopened"]:
        for _ in range(2):  # to the end of the round under way, and one more
            if place < 0:
                round_ = campaign["reopened"]
            place, whole, held = look.over(1, place)
            if look.taken or held:
                round_ = -1
            if not whole:
                break
            dry, place = round_, -1
            if dry >= 0 or look.full:
                break
    ahead = here["place"]
    if not look.full:
        look.windows = MOST_WINDOWS
        ahead = look.over(0, ahead)[0]
    if (place, ahead, dry, round_) != (here["urgent_place"], here["place"], here["dry"], here["round"]):
        db.execute(
            "UPDATE desks SET urgent_place = ?, place = ?, dry = ?, round = ? WHERE campaign_id = ? AND user_id = ?",
            [place, ahead, dry, round_, campaign["id"], user_id],
        )
    return look.taken + look.close[: count - len(look.taken)]


class _Look:
    """One request's search for images that a person has not seen, near duplicates of each other kept apart."""

    def __init__(self, db: sqlite3.Connection, campaign_id: int, user_id: int, count: int, clusters: set[int]) -> None:
        self.db, self.campaign_id, self.user_id, self.count = db, campaign_id, user_id, count
        self.clusters = clusters
        self.taken: list[int] = []
        self.close: list[int] = []
        self.windows = MOST_WINDOWS

    @property
    def full(self) -> bool:
        return len(self.taken) >= self.count

    def over(self, urgent: int, place: int) -> tuple[int, bool, bool]:
        """Look from `place` on: (where to go on the next time, at the end, an image was put off for its neighbour)."""
        put_off: int | None = None
        end = False
        while not (end or self.full or len(self.close) >= MOST_PUT_OFF) and self.windows:
            self.windows -= 1
            edge = self.db.execute(
                "SELECT position FROM items INDEXED BY ready WHERE campaign_id = ? AND open = 1 AND urgent = ? "
                "AND position > ? ORDER BY position LIMIT 1 OFFSET ?",
                [self.campaign_id, urgent, place, WINDOW - 1],
            ).fetchone()
            last = edge["position"] if edge else 1 << 60
            rows = self.db.execute(
                "SELECT id, position, cluster FROM items INDEXED BY ready WHERE campaign_id = ? AND open = 1 "
                "AND urgent = ? AND position > ? AND position <= ? AND NOT EXISTS "
                "(SELECT 1 FROM seen WHERE user_id = ? AND item_id = items.id) ORDER BY position",
                [self.campaign_id, urgent, place, last, self.user_id],
            )
            for row in rows:
                place = row["position"]
                if row["id"] in self.taken or row["id"] in self.close:
                    continue
                if row["cluster"] and row["cluster"] in self.clusters:
                    self.close.append(row["id"])
                    put_off = row["position"] if put_off is None else put_off
                    if len(self.close) >= MOST_PUT_OFF:
                        break
                    continue
                if row["cluster"]:
                    self.clusters.add(row["cluster"])
                self.taken.append(row["id"])
                if self.full:
                    break
            else:
                # What comes behind the last entry is looked at when it is there; the place stays at what was seen.
                place, end = (last, False) if edge else (place, True)
        # An image that was put off for its near duplicate is looked at again by the next request.
        return (place if put_off is None else min(place, put_off - 1)), end, put_off is not None


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
        "SELECT l.id AS lease, i.width, i.height, i.risky, w.raw, w.en, w.zh FROM leases AS l "
        "JOIN items AS i ON i.id = l.item_id LEFT JOIN words AS w ON w.item_id = i.id WHERE l.id = ?",
        [lease_id],
    ).fetchone()
    captions = {code: row[code] for code in ("raw", "en", "zh") if row[code]}
    return Task(row["lease"], row["width"], row["height"], captions, bool(row["risky"]))


def _hash(seed: int, *what: object) -> int:
    return int.from_bytes(hashlib.blake2b(repr((seed, *what)).encode(), digest_size=8).digest(), "big")
