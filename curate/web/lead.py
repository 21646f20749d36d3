"""Pages of the lead: campaigns, live progress, yield, agreement, raters, disagreements, images by tier, exports."""

from __future__ import annotations

import asyncio
import sqlite3
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict, replace
from typing import Annotated, Any, Literal

from fastapi import FastAPI, HTTPException, Path, Query, Request
from fastapi.responses import RedirectResponse, Response, StreamingResponse
from pydantic import BaseModel

from curate.errors import UsageError
from curate.rate import agreement, export, fit, quality, rubric, users, votes
from curate.rate import campaign as campaigns
from curate.rate.ledger import audit
from curate.rate.quality import Quality
from curate.web.access import Desk, access, form, person
from curate.web.pages import Pages
from curate.web.pictures import THUMB_PX, Thumbnails
from curate.web.reader import Reader
from curate.web.sync import Sync

PAGE = 48
FRESH_S = 5.0  # figures of a campaign are measured at most this often,
REST = 20.0  # and rest so many times as long as they took: at a million votes they cost seconds

Id = Annotated[int, Path(ge=1, le=2**53)]
PageNumber = Annotated[int, Query(ge=1, le=10**6)]


class Estimate(BaseModel):
    """A share with its 95 % interval; null while nothing is decided."""

    value: float | None
    low: float | None
    high: float | None


class Standing(BaseModel):
    """A campaign as it stands."""

    state: Literal["running", "paused", "closed"]
    images: int
    done: int
    votes: int
    last_hour: int
    hours_left: float | None
    raters_now: int
    tiers: list[int]
    disputed: int
    kept: int
    keep: Estimate
    people: int
    votes_needed: int
    """People that the rule asks for; with fewer, images stay undecided and there is no `hours_left`."""


def add_lead(app: FastAPI, page: Pages, desk: Desk, reader: Reader, thumbnails: Thumbnails, sync: Sync) -> None:
    """Add the routes."""
    measured = _Measured(desk)

    def found(campaign_id: int) -> sqlite3.Row:
        row: sqlite3.Row | None = (
            desk.writer().read().execute("SELECT * FROM campaigns WHERE id = ?", [campaign_id]).fetchone()
        )
        if row is None:
            raise HTTPException(404, "There is no such campaign.")
        return row

    @app.get("/lead", include_in_schema=False)
    @access("lead")
    def overview() -> Response:
        db = desk.writer().read()
        rows = db.execute("SELECT * FROM campaigns WHERE images > 0 ORDER BY state = 'closed', id DESC").fetchall()
        return page(
            "lead.html",
            campaigns=[{**dict(row), **standing(db, row, desk.writer().clock()).model_dump()} for row in rows],
            fitted=fit.last(reader.store.files),
        )

    @app.get("/lead/new", include_in_schema=False)
    @access("lead")
    def new() -> Response:
        return new_page(campaigns.Plan(""), {})

    def new_page(plan: campaigns.Plan, typed: dict[str, str], problem: str = "") -> Response:
        marked = {name: typed.get(name, "") for name in ("gold", "exemplars")}
        return page(
            "lead_new.html", status=400 if problem else 200, plan=plan, problem=problem, rubrics=rubric.BUILT_IN,
            raters=_raters(desk), typed=marked,
        )  # fmt: skip

    @app.post("/lead/new", include_in_schema=False)
    @access("lead")
    async def create(request: Request) -> Response:
        fields = await form(request)
        ledger, who = desk.writer(), person()
        plan = campaigns.Plan("")
        try:
            plan = _plan(fields)
            plan = replace(plan, gold=_marked(fields, "gold"), exemplars=_marked(fields, "exemplars"))

            def make() -> int:
                with reader.open() as store:
                    return campaigns.create(ledger, store, plan, who.id)

            made = await asyncio.to_thread(make)
        except UsageError as why:
            return new_page(plan, fields, str(why))
        return RedirectResponse(f"/lead/{made}", 303)

    @app.get("/lead/fit", include_in_schema=False)
    @access("lead")
    def fitted() -> Response:
        report = fit.last(reader.store.files)
        return page("fit.html", report=report)

    @app.get("/lead/{campaign_id}", include_in_schema=False)
    @access("lead")
    def dashboard(campaign_id: Id) -> Response:
        return campaign_page(campaign_id)

    def campaign_page(campaign_id: int, problem: str = "", typed: dict[str, str] | None = None) -> Response:
        row = found(campaign_id)
        ledger = desk.writer()
        db = ledger.read()
        figures = measured.of(campaign_id)
        stand = standing(db, row, ledger.clock())
        words = campaigns.current_rubric(db, campaign_id)
        releases = db.execute(
            "SELECT * FROM releases WHERE campaign_id = ? ORDER BY id DESC LIMIT 5", [campaign_id]
        ).fetchall()
        assigned = db.execute(
            "SELECT name FROM assigned JOIN users ON users.id = user_id WHERE campaign_id = ? ORDER BY name",
            [campaign_id],
        ).fetchall()
        return page(
            "lead_campaign.html", status=400 if problem else 200, campaign=dict(row) | (typed or {}), stand=stand,
            figures=figures, rubric=words, flags=list(figures.flags.items()),
            releases=[dict(r) for r in releases], synced=sync.state(), names={f.flag: f.name for f in words.flags},
            problem=problem, raters=_raters(desk), assigned=[r["name"] for r in assigned], rubrics=rubric.BUILT_IN,
        )  # fmt: skip

    @app.get("/api/campaigns/{campaign_id}/standing", tags=["lead"])
    @access("lead")
    def live(campaign_id: Id) -> Standing:
        """How a campaign stands, for the numbers of its page."""
        return standing(desk.writer().read(), found(campaign_id), desk.writer().clock())

    @app.post("/lead/{campaign_id}", include_in_schema=False)
    @access("lead")
    async def act(campaign_id: Id, request: Request) -> Response:
        found(campaign_id)
        fields = await form(request)
        ledger, who = desk.writer(), person()
        now, what = ledger.clock(), fields.get("act", "")
        if what in ("running", "paused", "closed"):
            await _done(ledger.submit(lambda db: campaigns.set_state(db, campaign_id, what, who.id, now)))
        elif what == "change":
            typed = {name: fields[name] for name in campaigns.CHANGES if fields.get(name)}
            try:
                changes = {name: text if name == "captions" else _number(fields, name) for name, text in typed.items()}
                await asyncio.to_thread(campaigns.change, ledger, campaign_id, who.id, changes)
            except UsageError as why:
                return await asyncio.to_thread(campaign_page, campaign_id, str(why), typed)
        elif what == "raters":
            names = [name.removeprefix("rater.") for name in fields if name.startswith("rater.")]
            await _done(ledger.submit(lambda db: campaigns.assign(db, campaign_id, names, who.id, now)))
        elif what == "rubric":
            try:
                if fields.get("rubric") not in rubric.BUILT_IN:
                    raise UsageError("rubric: use one of those in the list; your own with `curate campaign change`")
                words = rubric.load(fields["rubric"])
                await _done(ledger.submit(lambda db: campaigns.change_rubric(db, campaign_id, words, who.id, now)))
            except UsageError as why:
                return await asyncio.to_thread(campaign_page, campaign_id, str(why))
        elif what == "release":
            await asyncio.to_thread(export.release, ledger, reader.store.files, campaign_id, who.id)
        elif what == "sync":
            await asyncio.to_thread(sync.now)
        else:
            raise HTTPException(400, "There is nothing of this kind to do.")
        return RedirectResponse(f"/lead/{campaign_id}", 303)

    @app.get("/lead/{campaign_id}/disagreements", include_in_schema=False)
    @access("lead")
    def disagreements(campaign_id: Id, page_number: PageNumber = 1) -> Response:
        row = found(campaign_id)
        db = desk.writer().read()
        rows = db.execute(
            "SELECT i.*, (SELECT group_concat(v.tier || ':' || u.name, char(31)) FROM votes AS v JOIN users AS u "
            "ON u.id = v.user_id WHERE v.item_id = i.id AND v.part = 'work') AS votes_by FROM items AS i "
            "INDEXED BY disputes WHERE i.campaign_id = ? AND i.disputed > 0 ORDER BY i.disputed DESC, i.id "
            "LIMIT ? OFFSET ?",
            [campaign_id, PAGE + 1, (page_number - 1) * PAGE],
        ).fetchall()
        items = rows[:PAGE]
        thumbnails.prefetch([item["row_id"] for item in items], THUMB_PX)
        shown = [
            {**dict(item), "votes_by": [v.split(":", 1) for v in (item["votes_by"] or "").split("\x1f") if v]}
            for item in items
        ]
        for item in shown:
            item["tiers"] = {item["tier"] or 0, *(int(tier) for tier, _ in item["votes_by"])}
        return page(
            "disagreements.html", campaign=dict(row), items=shown, rubric=campaigns.current_rubric(db, campaign_id),
            number=page_number, more=len(rows) > PAGE,
        )  # fmt: skip

    @app.post("/lead/{campaign_id}/disagreements", include_in_schema=False)
    @access("lead")
    async def adjudicate(campaign_id: Id, request: Request) -> Response:
        found(campaign_id)
        fields = await form(request)
        ledger, who = desk.writer(), person()
        item, tier = _number(fields, "item"), _number(fields, "tier")
        if tier not in rubric.TIERS:
            raise HTTPException(400, "A tier is 1 to 5.")
        _item(desk, campaign_id, item)
        now = ledger.clock()
        key = f"adjudicate-{item}-{who.id}-{now}"
        await _done(ledger.submit(lambda db: votes.adjudicate(db, item, who.id, tier, key, now)))
        return RedirectResponse(f"/lead/{campaign_id}/disagreements", 303)

    @app.get("/lead/{campaign_id}/images", include_in_schema=False)
    @access("lead")
    def images(campaign_id: Id, show: str = "5", page_number: PageNumber = 1) -> Response:
        row = found(campaign_id)
        db = desk.writer().read()
        conditions = {str(tier): f"tier = {tier}" for tier in rubric.TIERS} | {
            "gold": "gold_tier IS NOT NULL",
            "exemplars": "exemplar_tier IS NOT NULL",
            "open": "tier IS NULL AND votes > 0 AND gold_tier IS NULL",
        }
        if show not in conditions:
            raise HTTPException(404, "There is no such list.")
        items = db.execute(
            f"SELECT * FROM items WHERE campaign_id = ? AND {conditions[show]} ORDER BY id LIMIT ? OFFSET ?",
            [campaign_id, PAGE + 1, (page_number - 1) * PAGE],
        ).fetchall()
        thumbnails.prefetch([item["row_id"] for item in items[:PAGE]], THUMB_PX)
        stand = standing(db, row, desk.writer().clock())
        return page(
            "lead_images.html", campaign=dict(row), items=[dict(item) for item in items[:PAGE]], show=show,
            number=page_number, more=len(items) > PAGE, rubric=campaigns.current_rubric(db, campaign_id), stand=stand,
        )  # fmt: skip

    @app.post("/lead/{campaign_id}/images", include_in_schema=False)
    @access("lead")
    async def mark(campaign_id: Id, request: Request) -> Response:
        found(campaign_id)
        fields = await form(request)
        ledger, who = desk.writer(), person()
        item, what = _number(fields, "item"), fields.get("act", "")
        known = _item(desk, campaign_id, item)
        tier = known["tier"] or known["gold_tier"] or known["exemplar_tier"]
        if what not in ("gold", "exemplar", "plain") or (what != "plain" and tier is None):
            raise HTTPException(400, "Only an image with a tier can be gold or an exemplar.")
        now = ledger.clock()
        gold, exemplar = (tier if what == "gold" else None), (tier if what == "exemplar" else None)
        await _done(
            ledger.submit(lambda db: campaigns.mark(db, item, gold=gold, exemplar=exemplar, by=who.id, now=now))
        )
        return RedirectResponse(f"/lead/{campaign_id}/images?show={_shown(fields.get('show', '5'))}", 303)

    @app.get("/api/campaigns/{campaign_id}/export/{what}.{kind}", tags=["lead"], response_class=Response)
    @access("lead")
    def download(
        campaign_id: Id, what: Literal["votes", "consensus", "events"], kind: Literal["csv", "jsonl", "parquet"]
    ) -> Response:
        """Votes, consensus or all events of a campaign as a file, streamed; raters under pseudonyms."""
        row = found(campaign_id)
        ledger = desk.writer()
        by, now = person().id, ledger.clock()
        ledger.write(lambda db: audit(db, now, by, "exported", row["name"], f"{what}.{kind}"))
        chunks: Iterator[bytes] = export.stream(ledger, campaign_id, what, kind)
        headers = {"Content-Disposition": f'attachment; filename="campaign-{campaign_id}-{what}.{kind}"'}
        return StreamingResponse(chunks, media_type=export.FORMATS[kind], headers=headers)

    @app.get("/api/campaigns/{campaign_id}/quality", tags=["lead"])
    @access("lead")
    def figures(campaign_id: Id) -> dict[str, Any]:
        """Agreement and the raters' figures; what is undefined is null with the reason in `why`."""
        found(campaign_id)
        known = measured.of(campaign_id)
        return {
            "alpha": asdict(known.alpha),
            "within_one": asdict(known.within_one),
            "unanimous": asdict(known.unanimous),
            "confusion": known.confusion,
            "trend": [{"at_ms": at, **asdict(figure)} for at, figure in known.trend],
            "raters": [asdict(rater) for rater in known.raters],
        }


def standing(db: sqlite3.Connection, campaign: sqlite3.Row, now: int) -> Standing:
    """A campaign as it stands, out of counters: a million images cost what ten do."""
    campaign_id = campaign["id"]
    minute = now // 60_000
    paces = db.execute(
        "SELECT minute, votes FROM pace WHERE campaign_id = ? AND minute > ?", [campaign_id, minute - 60]
    ).fetchall()
    last_hour = sum(row["votes"] for row in paces)
    since = min((row["minute"] for row in paces), default=minute)
    left = max(
        campaign["images"] * campaign["votes"] - campaign["cast_votes"], campaign["images"] - campaign["done"], 0
    )
    pace = 60 * last_hour / max(minute - since, 1)  # votes an hour
    now_rating = db.execute(
        "SELECT count(DISTINCT user_id) FROM leases WHERE closed_ms IS NULL AND campaign_id = ? AND expires_ms > ?",
        [campaign_id, now],
    ).fetchone()[0]
    people = campaigns.available(db, campaign_id)
    enough = people >= campaign["votes"]
    tiers = [campaign[f"tier{tier}"] for tier in rubric.TIERS]
    kept = sum(tiers[campaign["keep_tier"] - 1 :])
    keep = agreement.share(kept, campaign["done"], "nothing is decided yet")
    return Standing(
        state=campaign["state"], images=campaign["images"], done=campaign["done"], votes=campaign["cast_votes"],
        last_hour=last_hour, hours_left=left / pace if pace > 0 and left and enough else None, raters_now=now_rating,
        tiers=tiers, disputed=campaign["disputed"], kept=kept,
        keep=Estimate(value=keep.value, low=keep.low, high=keep.high), people=people,
        votes_needed=campaign["votes"],
    )  # fmt: skip


class _Measured:
    """The figures of campaigns, measured again only when something was said and FRESH_S have passed."""

    def __init__(self, desk: Desk) -> None:
        self.desk = desk
        self._lock = threading.Lock()
        self._kept: dict[int, tuple[float, int, Quality]] = {}  # (when it is to be measured again, last event, figures)

    def of(self, campaign_id: int) -> Quality:
        ledger = self.desk.writer()
        newest = ledger.read().execute("SELECT coalesce(max(id), 0) FROM events").fetchone()[0]
        with self._lock:
            again, event, known = self._kept.get(campaign_id, (0.0, -1, None))
            began = time.monotonic()
            if known is not None and (event == newest or began < again):
                return known
            with ledger.snapshot() as db:
                known = quality.measure(db, campaign_id)
            took = time.monotonic() - began
            self._kept[campaign_id] = (began + max(FRESH_S, REST * took), newest, known)
            return known


async def _done(future: Any) -> Any:
    return await asyncio.wrap_future(future)


def _item(desk: Desk, campaign_id: int, item: int) -> sqlite3.Row:
    row: sqlite3.Row | None = (
        desk.writer()
        .read()
        .execute("SELECT * FROM items WHERE id = ? AND campaign_id = ?", [item, campaign_id])
        .fetchone()
    )
    if row is None:
        raise HTTPException(404, "There is no such image in this campaign.")
    return row


def _shown(text: str) -> str:
    return text if text.isalnum() else "5"


def _number(fields: dict[str, str], name: str) -> int:
    text = fields.get(name, "").strip()
    if not (text.isascii() and text.isdigit() and len(text) < 16):
        raise UsageError(f"{name} = {text!r}: must be a whole number")
    return int(text)


def _plan(fields: dict[str, str]) -> campaigns.Plan:
    def number(name: str, default: int) -> int:
        return _number(fields, name) if fields.get(name, "").strip() else default

    sample = fields.get("sample", "random")
    if sample in ("stratified", "near") and fields.get("column", "").strip():
        sample = f"{sample}:{fields['column'].strip()}"
    if fields.get("rubric", "kolors") not in rubric.BUILT_IN:
        raise UsageError("rubric: use one of those in the list; your own with `curate campaign create --rubric FILE`")
    return campaigns.Plan(
        name=fields.get("name", "").strip(), where=fields.get("where", "").strip() or "keep", size=number("size", 0),
        sample=sample, votes=number("votes", 3), rubric=fields.get("rubric", "kolors"), seed=number("seed", 0),
        extra_votes=number("extra_votes", 0) if fields.get("extra_votes", "").strip() else None,
        keep_tier=number("keep_tier", 0) or None,
        gold_every=number("gold_every", 20), repeat_every=number("repeat_every", 25),
        captions=fields.get("captions", "shown"),
        raters=tuple(name.removeprefix("rater.") for name in fields if name.startswith("rater.")),
    )  # fmt: skip


def _marked(fields: dict[str, str], name: str) -> tuple[tuple[str, int], ...]:
    """Lines `image,tier` of a field, with or without the head of a CSV file."""
    text = fields.get(name, "").strip()
    return campaigns.tiers_from_lines(text.splitlines(), name) if text else ()


def _raters(desk: Desk) -> list[str]:
    rows = desk.writer().read().execute("SELECT name FROM users WHERE disabled_ms IS NULL ORDER BY name").fetchall()
    return [row["name"] for row in rows if row["name"] != users.LOCAL]
