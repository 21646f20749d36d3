"""A ledger without a store, for tests of the queue: a campaign over made-up images, people, and a clock to turn."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence

from curate.rate import rubric
from curate.rate.ledger import Ledger


class Clock:
    """Milliseconds that pass when a test says so."""

    def __init__(self) -> None:
        self.now = 1_700_000_000_000

    def __call__(self) -> int:
        return self.now

    def minutes(self, count: float) -> None:
        self.now += int(count * 60_000)


def people(ledger: Ledger, count: int) -> list[int]:
    """Ids of `count` new raters."""

    def add(db: sqlite3.Connection) -> list[int]:
        known = db.execute("SELECT count(*) FROM users").fetchone()[0]
        return [
            int(
                db.execute(
                    "INSERT INTO users (name, role, created_ms) VALUES (?, 'rater', 0)", [f"rater {known + n}"]
                ).lastrowid
                or 0
            )
            for n in range(count)
        ]

    return ledger.write(add)


def image_campaign(
    ledger: Ledger, images: int, *, votes: int = 3, extra: int = 0, keep_tier: int = 5, gold: Sequence[int] = (),
    gold_every: int = 0, repeat_every: int = 0, clusters: Sequence[int] = (), name: str = "test",
) -> int:  # fmt: skip
    """A running campaign over `images` images; `gold` are tiers of gold images that come with them."""
    words = rubric.load("kolors")

    def add(db: sqlite3.Connection) -> int:
        made = db.execute(
            "INSERT INTO campaigns (name, state, votes, extra_votes, keep_tier, gold_every, repeat_every, captions, "
            "everyone, condition, sampling, seed, created_ms, images) "
            "VALUES (?, 'running', ?, ?, ?, ?, ?, 'shown', 1, 'TRUE', 'random', 7, 0, ?)",
            [name, votes, extra, keep_tier, gold_every, repeat_every, images],
        ).lastrowid
        db.execute("INSERT INTO rubrics VALUES (?, 1, ?, 0)", [made, words.json()])
        near = list(clusters) + [0] * (images - len(clusters))
        db.executemany(
            "INSERT INTO items (campaign_id, position, sha256, row_id, width, height, cluster, wanted, open) "
            "VALUES (?, ?, ?, ?, 100, 100, ?, ?, 1)",
            ([made, n, f"{n:064x}", f"train:{n}", near[n], votes] for n in range(images)),
        )
        db.executemany(
            "INSERT INTO items (campaign_id, position, sha256, row_id, width, height, gold_tier, wanted, open) "
            "VALUES (?, ?, ?, ?, 100, 100, ?, 1000, 0)",
            ([made, images + n, f"{images + n:064x}", f"train:{images + n}", tier] for n, tier in enumerate(gold)),
        )
        return int(made or 0)

    return ledger.write(add)
