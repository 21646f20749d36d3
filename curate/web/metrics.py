"""Health, readiness, and metrics for Prometheus.

    GET /healthz     the process answers
    GET /readyz      the ledger can be written and the index read
    GET /metrics     with `Authorization: Bearer TOKEN`; the token: curate users STORE metrics-token

Counts come out of the ledger, so they are the same in every worker process; times are those of the process asked.
Nothing is labelled by a person.
"""

from __future__ import annotations

import asyncio
import hmac
import sqlite3

import duckdb
from fastapi import FastAPI, HTTPException, Request
from fastapi.responses import PlainTextResponse, Response
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from curate.errors import CurateError
from curate.rate import users
from curate.web.access import Desk, access
from curate.web.reader import Reader

SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.03, 0.05, 0.08, 0.15, 0.3, 1.0, 3.0)


class Metrics:
    """What one process counts."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._seconds = Histogram(
            "curate_seconds", "Seconds in the server by kind of request", ["what"], registry=self.registry,
            buckets=SECONDS,
        )  # fmt: skip
        self._answers = Counter(
            "curate_answers", "Answers by kind and outcome", ["kind", "status"], registry=self.registry
        )
        self._campaign = Gauge(
            "curate_campaign", "Images, decided images, votes and open leases of a campaign", ["campaign", "what"],
            registry=self.registry,
        )  # fmt: skip

    def seconds(self, what: str, value: float) -> None:
        """Note how long a request took."""
        self._seconds.labels(what).observe(value)

    def answered(self, kind: str, status: str) -> None:
        """Note an answer."""
        self._answers.labels(kind, status).inc()

    def text(self, db: sqlite3.Connection) -> bytes:
        """The exposition, with the campaigns as they stand."""
        rows = db.execute(
            "SELECT name, images, done, cast_votes, (SELECT count(*) FROM leases WHERE campaign_id = campaigns.id "
            "AND closed_ms IS NULL) AS leases FROM campaigns"
        ).fetchall()
        for row in rows:
            for what in ("images", "done", "cast_votes", "leases"):
                self._campaign.labels(row["name"], what).set(row[what])
        return generate_latest(self.registry)


def add_metrics(app: FastAPI, desk: Desk, reader: Reader, metrics: Metrics) -> None:
    """Add the routes."""

    @app.get("/healthz", tags=["operations"], response_class=PlainTextResponse)
    @access("public")
    async def healthz() -> str:
        """The process answers."""
        return "ok\n"

    @app.get("/readyz", tags=["operations"], response_class=PlainTextResponse)
    @access("public")
    async def readyz() -> Response:
        """The ledger takes a write and the index answers a query."""
        try:
            if desk.ledger is not None:
                await asyncio.wait_for(
                    asyncio.wrap_future(desk.ledger.submit(lambda db: db.execute("SELECT 1").fetchone()[0])), 5
                )
            await asyncio.to_thread(_index_answers, reader)
        except (CurateError, sqlite3.Error, duckdb.Error, OSError, TimeoutError) as why:
            return PlainTextResponse(f"not ready: {type(why).__name__}\n", 503)
        return PlainTextResponse("ready\n")

    @app.get("/metrics", tags=["operations"], response_class=PlainTextResponse)
    @access("public")
    async def show(request: Request) -> Response:
        """Prometheus metrics; needs the bearer token of the store."""
        ledger = desk.writer()
        given = request.headers.get("authorization", "")
        if not hmac.compare_digest(given.encode(), f"Bearer {users.metrics_token(desk.secret)}".encode()):
            raise HTTPException(401, "This needs the bearer token that `curate users STORE metrics-token` prints.")
        return Response(metrics.text(ledger.read()), media_type=CONTENT_TYPE_LATEST)


def _index_answers(reader: Reader) -> None:
    with reader.open() as store:
        store.rows("SELECT 1")
