"""The log of a run: nothing at all for people, who have the display, or one JSON object a line (`run.log = "json"`).

    {"time": "2026-11-23T04:45:01.220+00:00", "level": "info", "run": "20261123-...", "event": "shard done",
     "shard": "train-00007", "rows": 10000}

Every line has time, level, run and event; lines about a task have shard, task, steps and rows too.
"""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime

log = logging.getLogger("curate.run")


class Json(logging.Formatter):
    """Log records of one run as JSON lines."""

    def __init__(self, run: str) -> None:
        super().__init__()
        self.run = run

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "run": self.run,
            "event": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False, default=str)


@contextmanager
def written(kind: str, run: str) -> Iterator[None]:
    """Write what `curate` logs to standard error as JSON while the block lasts; `text` leaves logging as it is."""
    if kind != "json":
        yield
        return
    logger = logging.getLogger("curate")
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(Json(run))
    before = logger.level, logger.propagate
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.level, logger.propagate = before
