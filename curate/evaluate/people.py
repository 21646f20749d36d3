"""What people said of captions: the votes of campaigns whose rubric has a criterion (curate/rate)."""

from __future__ import annotations

import contextlib
import sqlite3
from collections import defaultdict

from curate.rate import rubric
from curate.rate.ledger import NAME
from curate.rate.mirror import reader
from curate.store.files import Files

Key = tuple[str, str, str]
"""row_id, Captioner.item, language."""


def votes(files: Files) -> dict[Key, dict[str, list[tuple[int, int]]]]:
    """(rater, score) pairs by caption and criterion; nothing without ratings. Hidden repeats do not count twice.

    Of several campaigns of one criterion all count, each rater once a caption: the last word.
    """
    path = files.local(NAME)
    if path is None or not path.exists():
        return {}
    found: dict[Key, dict[str, dict[int, int]]] = defaultdict(lambda: defaultdict(dict))
    with contextlib.closing(reader(path)) as ledger:
        if not ledger.execute("PRAGMA user_version").fetchone()[0]:
            return {}
        for campaign_id, criterion in _campaigns(ledger).items():
            rows = ledger.execute(
                "SELECT i.row_id, i.sha256, w.zh IS NOT NULL AS zh, v.user_id, v.tier FROM votes AS v "
                "JOIN items AS i ON i.id = v.item_id JOIN words AS w ON w.item_id = i.id "
                "WHERE v.campaign_id = ? AND v.part <> 'repeat' ORDER BY v.event_id",
                [campaign_id],
            )
            for row_id, name, chinese, rater, tier in rows:
                key = row_id, name.partition("/")[2], "zh" if chinese else "en"
                found[key][criterion][rater] = tier
    return {
        key: {criterion: sorted(said.items()) for criterion, said in by_criterion.items()}
        for key, by_criterion in found.items()
    }


def _campaigns(ledger: sqlite3.Connection) -> dict[int, str]:
    """Campaign -> criterion, of those that are about captions."""
    rows = ledger.execute(
        "SELECT campaign_id, body FROM rubrics AS r WHERE version = "
        "(SELECT max(version) FROM rubrics WHERE campaign_id = r.campaign_id)"
    ).fetchall()
    words = {row["campaign_id"]: rubric.from_json(row["body"]).criterion for row in rows}
    return {campaign_id: criterion for campaign_id, criterion in words.items() if criterion}
