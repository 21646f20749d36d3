"""The rating page and its API: tasks, answers, pictures by lease.

The page asks for tasks ahead, answers in batches out of its outbox, and fetches pictures by the number of a lease of
its own, which is all that a rater can name: neither rows nor paths nor other people's images have an address here.
"""

from __future__ import annotations

import asyncio
import json
import sqlite3
import time
from concurrent.futures import Future
from dataclasses import asdict
from typing import Annotated, Any, Literal

from fastapi import FastAPI, HTTPException, Path, Query
from fastapi.responses import Response
from pydantic import BaseModel, ConfigDict, Field

from curate.pictures import original
from curate.rate import campaign as campaigns
from curate.rate import queue, votes
from curate.rate.users import Person
from curate.web.access import Desk, access, person, visit
from curate.web.account import ACTIONS
from curate.web.metrics import Metrics
from curate.web.pages import Pages
from curate.web.pictures import PREVIEW_PX, Thumbnails, content_type
from curate.web.reader import Reader
from curate.web.words import catalog

MOST_SECONDS = 3600.0
MOST_STREAK = 400  # days that are looked back
DAY_MS = 86_400_000
LOOK_AHEAD = 32  # previews that are made before anybody is asked about their images

Id = Annotated[int, Path(ge=1, le=2**53)]
Number = Annotated[int, Field(ge=1, le=2**53)]
Size = Annotated[float, Field(ge=0, le=1e6)]
Key = Annotated[str, Field(min_length=8, max_length=64, pattern=r"^[A-Za-z0-9_-]+$")]


class Wish(BaseModel):
    """How many tasks the page wants to hold, and the leases that it holds."""

    model_config = ConfigDict(extra="forbid")

    want: int = Field(ge=0, le=queue.MOST_LEASES)
    have: list[Number] = Field(default_factory=list, max_length=64)


class Seen(BaseModel):
    """The conditions under which an image was judged."""

    model_config = ConfigDict(extra="forbid")

    dpr: Annotated[float | None, Field(ge=0, le=16)] = None
    shown: tuple[Size, Size] | None = None
    zoomed: bool | None = None
    ground: Literal["grey", "dark", "light"] | None = None
    captions: Literal["both", "en", "zh", "none"] | None = None
    language: Literal["en", "zh"] | None = None
    by: Literal["key", "pointer"] | None = None
    hidden_s: Annotated[float | None, Field(ge=0, le=1e7)] = None
    paint_ms: Annotated[float | None, Field(ge=0, le=1e7)] = None
    decode_ms: Annotated[float | None, Field(ge=0, le=1e7)] = None
    client_ms: Annotated[int | None, Field(ge=0, le=2**53)] = None


class Answer(BaseModel):
    """A vote, a skip or an undo, named by a key of the page's making."""

    model_config = ConfigDict(extra="forbid")

    key: Key
    kind: Literal["vote", "skip", "undo"]
    lease: Number | None = None
    tier: int | None = Field(None, ge=1, le=5)
    flags: list[Annotated[str, Field(max_length=32, pattern=r"^[A-Za-z0-9_]+$")]] = Field(
        default_factory=list, max_length=32
    )
    reason: Literal["unsure", "broken", "distressing", "not_for_me"] | None = None
    undoes: Key | None = None
    seconds: Annotated[float | None, Field(ge=0, le=MOST_SECONDS)] = None
    rubric_version: int = Field(0, ge=0, le=2**31)
    seen: Seen = Seen()


class Answers(BaseModel):
    """Answers in the order in which they were given."""

    model_config = ConfigDict(extra="forbid")

    answers: list[Answer] = Field(min_length=1, max_length=50)


class Result(BaseModel):
    """What became of one answer (curate/rate/votes.py)."""

    key: str
    status: Literal["stored", "duplicate", "surplus", "refused"]
    message: str = ""


class Progress(BaseModel):
    """How far the campaign and the person are."""

    state: Literal["running", "paused", "closed"]
    images: int
    done: int
    mine: int


class Habit(BaseModel):
    """Answers of a person that were not taken back."""

    today: int
    streak: int


class TaskOut(BaseModel):
    """One image to rate. Its pictures: /api/leases/{lease}/preview and /original."""

    lease: int
    width: int
    height: int
    captions: dict[str, str]
    risky: bool


class Given(BaseModel):
    """New tasks, and where things stand."""

    tasks: list[TaskOut]
    progress: Progress


class Stored(BaseModel):
    """What became of the answers, in their order."""

    results: list[Result]
    progress: Progress


def add_rating(app: FastAPI, page: Pages, desk: Desk, reader: Reader, thumbnails: Thumbnails, metrics: Metrics) -> None:
    """Add the routes."""

    def mine(campaign_id: int) -> tuple[sqlite3.Row, Person]:
        who = person()
        found = campaigns.for_person(desk.writer().read(), campaign_id, who.id, who.role)
        if found is None:
            raise HTTPException(404, "There is no such campaign for you.")
        return found, who

    def progress(campaign_id: int, who: Person) -> Progress:
        row = (
            desk.writer()
            .read()
            .execute(
                "SELECT c.state, c.images, c.done, coalesce(d.rated, 0) AS mine FROM campaigns "
                "AS c LEFT JOIN desks AS d "
                "ON d.campaign_id = c.id AND d.user_id = ? WHERE c.id = ?",
                [who.id, campaign_id],
            )
            .fetchone()
        )
        return Progress(**dict(row))

    def leased(lease_id: int) -> str:
        """The row that a lease of the person is about."""
        who = person()
        row = (
            desk.writer()
            .read()
            .execute(
                "SELECT i.row_id FROM leases AS l JOIN items AS i ON i.id = l.item_id JOIN campaigns AS c "
                "ON c.id = l.campaign_id WHERE l.id = ?1 AND l.user_id = ?2 AND (c.everyone OR ?3 <> 'rater' OR EXISTS "
                "(SELECT 1 FROM assigned WHERE campaign_id = c.id AND user_id = ?2))",
                [lease_id, who.id, who.role],
            )
            .fetchone()
        )
        if row is None:
            raise HTTPException(404, "There is no such lease of yours.")
        return str(row["row_id"])

    @app.get("/rate", include_in_schema=False)
    @access("rater")
    def list_campaigns() -> Response:
        who = person()
        rows = (
            desk.writer()
            .read()
            .execute(
                "SELECT c.*, coalesce(d.rated, 0) AS mine FROM campaigns AS c LEFT JOIN desks "
                "AS d ON d.campaign_id = c.id "
                "AND d.user_id = ?1 WHERE c.images > 0 AND (c.everyone OR ?2 <> 'rater' OR "
                "EXISTS (SELECT 1 FROM assigned "
                "WHERE campaign_id = c.id AND user_id = ?1)) ORDER BY c.state = 'running' DESC, c.id DESC",
                [who.id, who.role],
            )
            .fetchall()
        )
        db = desk.writer().read()
        found = [dict(row) | {"rubric": campaigns.current_rubric(db, row["id"])} for row in rows]
        return page("campaigns.html", campaigns=found)

    @app.get("/rate/{campaign_id}", include_in_schema=False)
    @access("rater")
    def rating_page(campaign_id: Id) -> Response:
        found, who = mine(campaign_id)
        db = desk.writer().read()
        words = campaigns.current_rubric(db, campaign_id)
        examples = db.execute(
            "SELECT id, exemplar_tier AS tier FROM items WHERE campaign_id = ? AND exemplar_tier IS NOT NULL "
            "ORDER BY exemplar_tier, id LIMIT 60",
            [campaign_id],
        ).fetchall()
        config = {
            "campaign": {"id": found["id"], "name": found["name"], "captions": found["captions"]},
            "rubric": asdict(words),
            "exemplars": [dict(row) for row in examples],
            "person": {"id": who.id, "name": who.name, "settings": who.settings},
            "actions": ACTIONS,
            "csrf": visit.get().csrf,
            "language": visit.get().language,
            "progress": progress(campaign_id, who).model_dump(),
            "history": _history(db, campaign_id, who.id),
            "words": {
                code: {key: text for key, text in catalog(code).items() if key.startswith(("rate.", "common."))}
                for code in ("en", "zh")
            },
        }
        return page("rating.html", config=config, campaign=dict(found), rubric=words)

    @app.post("/api/campaigns/{campaign_id}/tasks", tags=["rating"])
    @access("rater")
    async def tasks(campaign_id: Id, wish: Wish) -> Given:
        """Lease images to the person, `want` in all; those that it holds (`have`) are renewed and not sent again."""
        started = time.perf_counter()
        _, who = mine(campaign_id)
        ledger = desk.writer()
        now = ledger.clock()
        given = await asyncio.wrap_future(
            ledger.submit(lambda db: queue.lease(db, campaign_id, who.id, wish.want, wish.have, now))
        )
        if given:
            marks = ", ".join("?" * len(given))
            rows = ledger.read().execute(
                f"SELECT i.row_id FROM leases AS l JOIN items AS i ON i.id = l.item_id WHERE l.id IN ({marks})",
                [task.lease for task in given],
            )
            thumbnails.prefetch([row["row_id"] for row in rows], PREVIEW_PX)
            coming = ledger.read().execute(queue.COMING, [campaign_id, campaign_id, LOOK_AHEAD])
            thumbnails.prefetch([row["row_id"] for row in coming], PREVIEW_PX, later=True)
        metrics.seconds("tasks", time.perf_counter() - started)
        return Given(tasks=[TaskOut(**asdict(task)) for task in given], progress=progress(campaign_id, who))

    @app.post("/api/campaigns/{campaign_id}/answers", tags=["rating"])
    @access("rater")
    async def answers(campaign_id: Id, said: Answers) -> Stored:
        """Store answers. Each is on the disk when this returns; sending one again changes nothing."""
        started = time.perf_counter()
        _, who = mine(campaign_id)
        ledger = desk.writer()
        now = ledger.clock()
        waiting: list[Future[votes.Outcome]] = []
        for answer in said.answers:
            action = votes.Action(
                answer.key, answer.kind, answer.lease, answer.tier, tuple(answer.flags), answer.reason, answer.undoes,
                answer.seconds, answer.rubric_version, answer.seen.model_dump(exclude_none=True),
            )  # fmt: skip
            waiting.append(
                ledger.submit(lambda db, action=action: votes.apply(db, campaign_id, who.id, action, now))  # type: ignore[misc]
            )
        results: list[Result] = []
        for answer, future in zip(said.answers, waiting, strict=True):
            outcome = await asyncio.wrap_future(future)
            results.append(Result(**asdict(outcome)))
            metrics.answered(answer.kind, outcome.status)
        metrics.seconds("answers", time.perf_counter() - started)
        return Stored(results=results, progress=progress(campaign_id, who))

    @app.get("/api/me/habit", tags=["me"])
    @access("rater")
    def habit(utc_offset_min: Annotated[int, Query(ge=-840, le=840)] = 0) -> Habit:
        """How many answers the person gave today, in the time of their place, and on how many days in a row."""
        ledger = desk.writer()
        return _habit(ledger.read(), person().id, ledger.clock() + 60_000 * utc_offset_min, 60_000 * utc_offset_min)

    @app.get("/api/leases/{lease_id}/preview", tags=["rating"], response_class=Response)
    @access("rater")
    async def preview(lease_id: Id) -> Response:
        """The image of a lease, upright, of about 1600 px at most: the file itself, or a JPEG made from it."""
        started = time.perf_counter()
        data = await asyncio.wrap_future(thumbnails.ask(leased(lease_id), PREVIEW_PX))
        metrics.seconds("preview", time.perf_counter() - started)
        return Response(data, media_type=content_type(data), headers=page.file_headers)

    @app.get("/api/leases/{lease_id}/original", tags=["rating"], response_class=Response)
    @access("rater")
    def original_bytes(lease_id: Id) -> Response:
        """The original bytes of the image of a lease, under the type that its first bytes show."""
        row_id = leased(lease_id)
        with reader.open() as store:
            data = original(store, row_id)
        return Response(data, media_type=content_type(data), headers=page.file_headers)

    @app.get("/api/campaigns/{campaign_id}/exemplars/{item_id}", tags=["rating"], response_class=Response)
    @access("rater")
    async def exemplar(campaign_id: Id, item_id: Id) -> Response:
        """An exemplar of the campaign's rubric as a JPEG."""
        mine(campaign_id)
        row = (
            desk.writer()
            .read()
            .execute(
                "SELECT row_id FROM items WHERE id = ? AND campaign_id = ? AND exemplar_tier IS NOT NULL",
                [item_id, campaign_id],
            )
            .fetchone()
        )
        if row is None:
            raise HTTPException(404, "There is no such exemplar.")
        data = await asyncio.wrap_future(thumbnails.ask(row["row_id"], 360))
        return Response(data, media_type="image/jpeg", headers=page.file_headers)


def _history(db: sqlite3.Connection, campaign_id: int, user_id: int) -> list[dict[str, Any]]:
    """The person's last answers that an undo reaches, oldest first, so that it reaches them after a reload too."""
    rows = db.execute(
        "SELECT e.key, e.kind, e.tier, e.flags, e.lease_id AS lease, i.width, i.height, w.raw, w.en, w.zh "
        "FROM events AS e JOIN items AS i ON i.id = e.item_id LEFT JOIN words AS w ON w.item_id = e.item_id "
        "WHERE e.campaign_id = ? AND e.user_id = ? AND e.kind IN ('vote', 'skip') AND NOT EXISTS (SELECT 1 FROM events "
        "AS u WHERE u.campaign_id = e.campaign_id AND u.user_id = e.user_id AND u.id > e.id AND u.undoes = e.id) "
        "ORDER BY e.id DESC LIMIT ?",
        [campaign_id, user_id, votes.UNDO_LAST],
    ).fetchall()
    return [
        {
            "key": row["key"], "kind": row["kind"], "tier": row["tier"], "flags": row["flags"].split(),
            "task": {
                "lease": row["lease"], "width": row["width"], "height": row["height"],
                "captions": {code: row[code] for code in ("raw", "en", "zh") if row[code]},
            },
        }
        for row in reversed(rows)
    ]  # fmt: skip


def _habit(db: sqlite3.Connection, user_id: int, now: int, offset: int) -> Habit:
    """`now` and `offset` in ms: local time, and how far it is ahead of UTC. Gold and repeats count as all others do: a
    number that left them out would tell them apart.
    """

    def rated(day: int) -> int:
        start = day * DAY_MS - offset
        return int(
            db.execute(
                "SELECT count(*) FROM events AS e JOIN votes AS v ON v.item_id = e.item_id AND v.user_id = e.user_id "
                "AND v.part = e.part AND v.event_id = e.id WHERE e.user_id = ? AND e.at_ms >= ? AND e.at_ms < ?",
                [user_id, start, start + DAY_MS],
            ).fetchone()[0]
        )

    today = now // DAY_MS
    count = rated(today)
    streak = int(count > 0)
    while streak < MOST_STREAK and rated(today - (streak or 1)):
        streak += 1
        if not count and streak == 1:
            today -= 1
    return Habit(today=count, streak=streak)


def page_json(value: Any) -> str:
    """JSON for a <script type="application/json">: nothing in it can end the element or the line."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False)
    for mark in ("<", ">", "&", "\u2028", "\u2029"):
        text = text.replace(mark, f"\\u{ord(mark):04x}")
    return text
