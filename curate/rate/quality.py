"""The quality of one campaign: agreement, raters, confusion, drift, pace, and what the votes yield."""

from __future__ import annotations

import json
import sqlite3
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from curate.rate import agreement
from curate.rate.agreement import Figure
from curate.rate.consensus import Model, fit_model

HASTY_S = 0.7  # an answer after less is a reflex
LONG_RUN = 15  # the same tier so many times in a row
DRIFT_PARTS = 6
LEAST_COMPARED = 10  # images that others have rated too, before a rater has a severity and a noise


@dataclass
class Rater:
    """What is known of one person's work in the campaign."""

    user_id: int
    name: str
    votes: int = 0
    gold: Figure = field(default_factory=lambda: Figure(None, why="no gold image rated"))
    gold_exact: Figure = field(default_factory=lambda: Figure(None, why="no gold image rated"))
    others: Figure = field(default_factory=lambda: Figure(None, why="no image in common"))
    exact: Figure = field(default_factory=lambda: Figure(None, why="no image in common"))
    within_one: Figure = field(default_factory=lambda: Figure(None, why="no image in common"))
    bias: Figure = field(default_factory=lambda: Figure(None, why="no image in common"))
    repeats: Figure = field(default_factory=lambda: Figure(None, why="nothing repeated yet"))
    confusion: list[list[int]] = field(default_factory=lambda: [[0] * 5 for _ in range(5)])
    drift: list[float | None] = field(default_factory=list)
    seconds: float | None = None
    hasty: float | None = None
    longest_run: int = 0
    skips: int = 0
    paint_ms: tuple[float, float] | None = None
    severity: float | None = None
    noise: float | None = None

    @property
    def warnings(self) -> list[str]:
        """What a lead should look at (names in the catalog of words)."""
        found = []
        if self.hasty is not None and self.hasty > 0.2 and self.votes >= 20:
            found.append("hasty")
        if self.longest_run >= LONG_RUN:
            found.append("run")
        if self.gold.value is not None and self.gold.count >= 5 and self.gold.value < 0.4:
            found.append("gold")
        if self.bias.low is not None and self.bias.high is not None and (self.bias.low > 0.3 or self.bias.high < -0.3):
            found.append("bias")
        return found


@dataclass
class Quality:
    """All figures of a campaign."""

    alpha: Figure
    within_one: Figure
    unanimous: Figure
    raters: list[Rater]
    trend: list[tuple[int, Figure]]
    confusion: list[list[int]]
    model: Model | None
    model_items: list[int]
    flags: dict[str, int]
    """How many votes marked each defect, the most frequent first."""


def measure(db: sqlite3.Connection, campaign_id: int) -> Quality:
    """The figures as of now; some 5 s for a million votes."""
    votes = db.execute(
        "SELECT v.item_id, v.user_id, v.tier, v.seconds, v.at_ms, v.flags FROM votes AS v JOIN items AS i "
        "ON i.id = v.item_id "
        "WHERE v.campaign_id = ? AND v.part = 'work' AND i.gold_tier IS NULL ORDER BY v.event_id",
        [campaign_id],
    ).fetchall()
    image = np.array([v[0] for v in votes], np.int64)
    user = np.array([v[1] for v in votes], np.int64)
    tier = np.array([v[2] for v in votes], np.int64)
    pairs = agreement.leave_one_out(image, user, tier)
    table = agreement.unit_table(image, tier)
    several = table[table.sum(axis=1) >= 2]
    raters = _raters(db, campaign_id, votes, pairs)
    model, items = None, []
    if len(votes):
        items_known, item_at = np.unique(image, return_inverse=True)
        users_known, user_at = np.unique(user, return_inverse=True)
        model, items = fit_model(item_at, user_at, tier), items_known.tolist()
        by_id = {rater.user_id: rater for rater in raters}
        for at, user_id in enumerate(users_known.tolist()):
            rater = by_id[user_id]
            if rater.bias.count >= LEAST_COMPARED:  # with fewer they are the prior of the model and no measurement
                rater.severity, rater.noise = float(model.severity[at]), float(model.noise[at])
    return Quality(
        agreement.alpha(image, tier),
        agreement.share(sum(abs(a - b) <= 1 for _, a, b, _ in pairs), len(pairs), "no image has two ratings"),
        agreement.share(
            int((several.max(axis=1) == several.sum(axis=1)).sum()), len(several), "no image has two ratings"
        ),
        raters,
        agreement.trend([v[4] for v in votes], image.tolist(), tier.tolist()) if len(several) else [],
        agreement.confusion([a for _, a, _, _ in pairs], [b for _, _, b, _ in pairs]).tolist(),
        model,
        items,
        dict(Counter(flag for v in votes if v["flags"] for flag in v["flags"].split()).most_common()),
    )


def _raters(
    db: sqlite3.Connection, campaign_id: int, votes: list[Any], pairs: list[tuple[int, int, int, float]]
) -> list[Rater]:
    names = dict(db.execute("SELECT id, name FROM users").fetchall())
    found: dict[int, Rater] = {}

    def of(user_id: int) -> Rater:
        return found.setdefault(user_id, Rater(user_id, names.get(user_id, str(user_id))))

    own: dict[int, list[Any]] = defaultdict(list)
    for vote in votes:
        own[vote["user_id"]].append(vote)
    for user_id, mine in own.items():
        rater = of(user_id)
        rater.votes = len(mine)
        seconds = [v["seconds"] for v in mine if v["seconds"] is not None]
        if seconds:
            rater.seconds = float(np.median(seconds))
            rater.hasty = sum(s < HASTY_S for s in seconds) / len(seconds)
        rater.longest_run = _longest_run([v["tier"] for v in mine])
    by_rater: dict[int, list[tuple[int, int, float]]] = defaultdict(list)
    for user_id, tier, median, mean in pairs:
        by_rater[user_id].append((tier, median, mean))
    for user_id, compared in by_rater.items():
        rater, a, b = of(user_id), [x for x, _, _ in compared], [y for _, y, _ in compared]
        rater.others, rater.bias = agreement.kappa(a, b), agreement.bias(a, [z for _, _, z in compared])
        rater.exact = agreement.share(sum(x == y for x, y, _ in compared), len(compared))
        rater.within_one = agreement.share(sum(abs(x - y) <= 1 for x, y, _ in compared), len(compared))
        rater.confusion = agreement.confusion(a, b).tolist()
        size = -(-len(compared) // DRIFT_PARTS)
        if len(compared) >= 5 * DRIFT_PARTS:
            parts = [compared[n : n + size] for n in range(0, len(compared), size)]
            rater.drift = [float(np.mean([x - z for x, _, z in part])) for part in parts]
    gold: dict[int, list[tuple[int, int]]] = defaultdict(list)
    for user_id, tier, known in db.execute(
        "SELECT v.user_id, v.tier, i.gold_tier FROM votes AS v JOIN items AS i ON i.id = v.item_id "
        "WHERE v.campaign_id = ? AND v.part = 'gold' AND i.gold_tier IS NOT NULL",
        [campaign_id],
    ):
        gold[user_id].append((tier, known))
    for user_id, both in gold.items():
        of(user_id).gold = agreement.kappa([a for a, _ in both], [b for _, b in both])
        of(user_id).gold_exact = agreement.share(sum(a == b for a, b in both), len(both))
    again: dict[int, list[bool]] = defaultdict(list)
    for user_id, same in db.execute(
        "SELECT r.user_id, r.tier = w.tier FROM votes AS r JOIN votes AS w ON w.item_id = r.item_id "
        "AND w.user_id = r.user_id AND w.part = 'work' WHERE r.campaign_id = ? AND r.part = 'repeat'",
        [campaign_id],
    ):
        again[user_id].append(bool(same))
    for user_id, hits in again.items():
        of(user_id).repeats = agreement.share(sum(hits), len(hits))
    for user_id, skips in db.execute(
        "SELECT user_id, count(*) FROM events WHERE campaign_id = ? AND kind = 'skip' GROUP BY user_id", [campaign_id]
    ):
        of(user_id).skips = skips
    _paint_times(db, campaign_id, found)
    return sorted(found.values(), key=lambda r: -r.votes)


def _paint_times(db: sqlite3.Connection, campaign_id: int, found: dict[int, Rater]) -> None:
    """Key press to next picture, median and p95 of the last 2000 answers, as the browsers measured it."""
    times: dict[int, list[float]] = defaultdict(list)
    for user_id, context in db.execute(
        "SELECT user_id, context FROM events WHERE campaign_id = ? AND kind = 'vote' ORDER BY id DESC LIMIT 20000",
        [campaign_id],
    ):
        value = json.loads(context).get("paint_ms")
        if value is not None and len(times[user_id]) < 2000:
            times[user_id].append(value)
    for user_id, values in times.items():
        if values and user_id in found:
            found[user_id].paint_ms = (float(np.median(values)), float(np.quantile(values, 0.95)))


def _longest_run(tiers: list[int]) -> int:
    longest = run = 0
    for at, tier in enumerate(tiers):
        run = run + 1 if at and tier == tiers[at - 1] else 1
        longest = max(longest, run)
    return longest
