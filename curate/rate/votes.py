"""Rate, skip, undo, adjudicate. Each is an event that is kept for ever, and what follows from it at once.

Whoever sends an event names it by a key of its own. The same key again is the same event: a retry after a lost answer
changes nothing, and says so. A vote is never refused because something happened meanwhile; when there is no place for
it any more it is kept and does not count (`surplus`).
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from curate.rate import campaign, queue

UNDO_LAST = 10  # of one's own answers in a campaign; less than queue.REPEAT_AFTER, so that no repeat is open on them
SKIP_REASONS = ("unsure", "broken", "distressing", "not_for_me")


@dataclass(frozen=True)
class Action:
    """What a person did, as the page sends it; `lease` for a vote or a skip, `undoes` (a key) for an undo."""

    key: str
    kind: Literal["vote", "skip", "undo"]
    lease: int | None = None
    tier: int | None = None
    flags: Sequence[str] = ()
    reason: str | None = None
    undoes: str | None = None
    seconds: float | None = None
    rubric_version: int = 0
    context: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Outcome:
    """`stored`, `duplicate` (was here before), `surplus` (kept, does not count) or `refused` with the reason."""

    key: str
    status: Literal["stored", "duplicate", "surplus", "refused"]
    message: str = ""


def apply(db: sqlite3.Connection, campaign_id: int, user_id: int, action: Action, now: int) -> Outcome:
    """Do what the action says, for this person in this campaign and for nobody else."""
    known = db.execute("SELECT user_id, counted FROM events WHERE key = ?", [action.key]).fetchone()
    if known:
        if known["user_id"] != user_id:
            return Outcome(action.key, "refused", "this key is taken")
        return Outcome(action.key, "duplicate")
    if action.kind == "undo":
        return _undo(db, campaign_id, user_id, action, now)
    lease = db.execute(
        "SELECT * FROM leases WHERE id = ? AND user_id = ? AND campaign_id = ?", [action.lease, user_id, campaign_id]
    ).fetchone()
    if lease is None:
        return Outcome(action.key, "refused", "no such lease of yours in this campaign")
    if action.kind == "vote" and action.tier is None:
        return Outcome(action.key, "refused", "a vote needs a tier")
    if action.kind == "skip" and action.reason not in SKIP_REASONS:
        return Outcome(action.key, "refused", f"a skip needs a reason: {', '.join(SKIP_REASONS)}")
    action = _of_the_rubric(db, campaign_id, action)
    if action.kind == "skip":
        return _skip(db, lease, action, now)
    return _vote(db, lease, action, now)


def _of_the_rubric(db: sqlite3.Connection, campaign_id: int, action: Action) -> Action:
    """The action with flags and rubric version that the campaign has; what it does not have is noted beside them.

    A vote is not refused for them: its tier says what the person said.
    """
    flags, versions = campaign.vocabulary(db, campaign_id)
    unknown = sorted(set(action.flags) - flags)
    if not unknown and (action.rubric_version in versions or not action.rubric_version):
        return action
    context = dict(action.context)
    if unknown:
        context["unknown_flags"] = unknown
    version = action.rubric_version
    if version and version not in versions:
        context["unknown_rubric_version"], version = version, 0
    kept = [flag for flag in action.flags if flag in flags]
    return replace(action, flags=kept, rubric_version=version, context=context)


def adjudicate(db: sqlite3.Connection, item_id: int, user_id: int, tier: int, key: str, now: int) -> Outcome:
    """The lead's word on an image: it holds, whatever the votes say; the votes stay."""
    if db.execute("SELECT 1 FROM events WHERE key = ?", [key]).fetchone():
        return Outcome(key, "duplicate")
    item = db.execute("SELECT * FROM items WHERE id = ?", [item_id]).fetchone()
    if item is None or item["gold_tier"] is not None:
        return Outcome(key, "refused", "no such image to adjudicate")
    action = Action(key, "vote", tier=tier)
    _event(db, item["campaign_id"], item_id, user_id, "adjudicate", action, "work", True, now)
    db.execute("UPDATE items SET tier = ?, rule = 'adjudicated', open = 0, disputed = 0 WHERE id = ?", [tier, item_id])
    return Outcome(key, "stored")


def _vote(db: sqlite3.Connection, lease: sqlite3.Row, action: Action, now: int) -> Outcome:
    item_id, user_id, part = lease["item_id"], lease["user_id"], lease["kind"]
    counts = _has_place(db, lease)
    event = _event(db, lease["campaign_id"], item_id, user_id, "vote", action, part, counts, now, lease=lease["id"])
    if not counts:
        return Outcome(action.key, "surplus")
    # An expired lease may have been followed by another one of the same person on the same image.
    db.execute(
        "UPDATE leases SET closed_ms = ?, outcome = 'voted' WHERE user_id = ? AND item_id = ? AND kind = ? "
        "AND closed_ms IS NULL OR id = ?",
        [now, user_id, item_id, part, lease["id"]],
    )
    db.execute(
        "INSERT INTO votes (item_id, user_id, part, campaign_id, event_id, tier, flags, seconds, at_ms) "
        "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
        [item_id, user_id, part, lease["campaign_id"], event, action.tier, _flags(action), action.seconds, now],
    )
    db.execute("INSERT OR IGNORE INTO seen VALUES (?, ?)", [user_id, item_id])
    _count(db, lease, 1)
    if part == "work":
        queue.settle(db, item_id)
    return Outcome(action.key, "stored")


def _has_place(db: sqlite3.Connection, lease: sqlite3.Row) -> bool:
    """Whether a vote under this lease counts."""
    item_id, user_id, part = lease["item_id"], lease["user_id"], lease["kind"]
    if db.execute(
        "SELECT 1 FROM votes WHERE item_id = ? AND user_id = ? AND part = ?", [item_id, user_id, part]
    ).fetchone():
        return False
    if lease["closed_ms"] is None or part != "work":
        return True
    row = db.execute(
        "SELECT i.votes, i.wanted, i.tier, (SELECT count(*) FROM leases WHERE item_id = i.id AND closed_ms IS NULL "
        "AND kind = 'work' AND user_id <> ?) AS others FROM items AS i WHERE i.id = ?",
        [user_id, item_id],
    ).fetchone()
    return row["tier"] is None and row["votes"] + row["others"] < row["wanted"]


def _skip(db: sqlite3.Connection, lease: sqlite3.Row, action: Action, now: int) -> Outcome:
    open_ = lease["closed_ms"] is None
    _event(
        db, lease["campaign_id"], lease["item_id"], lease["user_id"], "skip", action, lease["kind"], open_, now,
        lease=lease["id"],
    )  # fmt: skip
    if not open_:
        return Outcome(action.key, "surplus")
    db.execute("UPDATE leases SET closed_ms = ?, outcome = 'skipped' WHERE id = ?", [now, lease["id"]])
    if lease["kind"] == "work":
        db.execute("UPDATE items SET skips = skips + 1 WHERE id = ?", [lease["item_id"]])
        queue.settle(db, lease["item_id"], urgent=True)
    return Outcome(action.key, "stored")


def _undo(db: sqlite3.Connection, campaign_id: int, user_id: int, action: Action, now: int) -> Outcome:
    """Take back one of one's own last answers; the image is leased to the person again."""
    last = db.execute(
        "SELECT e.* FROM events AS e WHERE e.campaign_id = ? AND e.user_id = ? AND e.kind IN ('vote', 'skip') "
        "AND NOT EXISTS (SELECT 1 FROM events AS u WHERE u.campaign_id = e.campaign_id AND u.user_id = e.user_id "
        "AND u.id > e.id AND u.undoes = e.id) ORDER BY e.id DESC LIMIT ?",
        [campaign_id, user_id, UNDO_LAST],
    ).fetchall()
    event = next((e for e in last if e["key"] == action.undoes), None)
    if event is None:
        return Outcome(action.key, "refused", f"not among your last {UNDO_LAST} answers here")
    item_id = event["item_id"]
    _event(
        db, campaign_id, item_id, user_id, "undo", action, event["part"], True, now,
        lease=event["lease_id"], undoes=event["id"],
    )  # fmt: skip
    if not event["counted"]:
        return Outcome(action.key, "stored")
    lease = db.execute("SELECT * FROM leases WHERE id = ?", [event["lease_id"]]).fetchone()
    other = db.execute(
        "SELECT 1 FROM leases WHERE user_id = ? AND item_id = ? AND closed_ms IS NULL", [user_id, item_id]
    ).fetchone()
    if not other:
        db.execute(
            "UPDATE leases SET closed_ms = NULL, outcome = NULL, expires_ms = ? WHERE id = ?",
            [now + queue.LEASE_MS, lease["id"]],
        )
    if event["kind"] == "vote":
        db.execute("DELETE FROM votes WHERE event_id = ? AND item_id = ? AND user_id = ? AND part = ?",
                   [event["id"], item_id, user_id, event["part"]])  # fmt: skip
        _count(db, lease, -1)
    elif event["part"] == "work":
        db.execute("UPDATE items SET skips = skips - 1 WHERE id = ?", [item_id])
        _make_room(db, item_id)
    if event["part"] == "work":
        queue.settle(db, item_id, urgent=True)
    return Outcome(action.key, "stored")


def _make_room(db: sqlite3.Connection, item_id: int) -> None:
    """A skipped place may have gone to somebody else: taking the skip back then asks for one vote more."""
    db.execute(
        "UPDATE items SET wanted = max(wanted, votes + (SELECT count(*) FROM leases WHERE item_id = items.id "
        "AND closed_ms IS NULL AND kind = 'work')) WHERE id = ?",
        [item_id],
    )


def _event(
    db: sqlite3.Connection, campaign_id: int, item_id: int, user_id: int, kind: str, action: Action, part: str,
    counted: bool, now: int, *, lease: int | None = None, undoes: int | None = None,
) -> int:  # fmt: skip
    cursor = db.execute(
        "INSERT INTO events (key, campaign_id, item_id, user_id, kind, tier, flags, reason, part, counted, undoes, "
        "lease_id, rubric_version, seconds, at_ms, context) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        [
            action.key, campaign_id, item_id, user_id, kind, action.tier if kind in ("vote", "adjudicate") else None,
            _flags(action), action.reason, part, counted, undoes, lease, action.rubric_version, action.seconds, now,
            json.dumps(action.context, ensure_ascii=False, sort_keys=True, allow_nan=False),
        ],
    )  # fmt: skip
    return int(cursor.lastrowid or 0)


def _flags(action: Action) -> str:
    return " ".join(sorted(set(action.flags)))


def _count(db: sqlite3.Connection, lease: sqlite3.Row, step: int) -> None:
    queue.desk(db, lease["campaign_id"], lease["user_id"])
    db.execute(
        "UPDATE desks SET rated = rated + ? WHERE campaign_id = ? AND user_id = ?",
        [step, lease["campaign_id"], lease["user_id"]],
    )
