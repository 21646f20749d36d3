"""Signing in and out, invitations, language, own settings, and the admin's page of accounts."""

from __future__ import annotations

import asyncio
import json
import re
import sqlite3
from typing import Any, Literal

from fastapi import FastAPI, HTTPException, Request
from fastapi.responses import JSONResponse, RedirectResponse, Response
from pydantic import BaseModel, ConfigDict, Field, field_validator

from curate.errors import UsageError
from curate.rate import users
from curate.web.access import LANGUAGE_COOKIE, LANGUAGES, Desk, access, form, local_path, person, visit
from curate.web.pages import Pages

AT_ONCE = 2  # passwords that are checked at a time: each takes a core for some 40 ms

# What a key can be bound to (curate/web/static/rate/keys.js). The names are an enumeration and the keys single
# characters, checked here, so that nothing that somebody stores can become markup on somebody's page.
ACTIONS = (
    "tier1", "tier2", "tier3", "tier4", "tier5", "undo", "skip", "zoom", "fit", "captions", "ground", "show", "help",
)  # fmt: skip
FLAG = re.compile(r"flag:[A-Za-z0-9_]{1,32}")
KEY = re.compile(r"[a-z0-9,./;'\[\]\\`?]")  # + = - zoom


class Settings(BaseModel):
    """What a person chose for the rating page."""

    model_config = ConfigDict(extra="forbid")

    language: Literal["en", "zh"] | None = None
    ground: Literal["grey", "dark", "light"] | None = None
    captions: Literal["both", "en", "zh", "none"] | None = None
    keys_on: bool | None = None
    veil: bool | None = None
    keys: dict[str, str] | None = Field(None, max_length=100)

    @field_validator("keys")
    @classmethod
    def _known(cls, value: dict[str, str] | None) -> dict[str, str] | None:
        if value is None:
            return None
        for action, key in value.items():
            if action not in ACTIONS and not FLAG.fullmatch(action):
                raise ValueError(f"unknown action; use flag:NAME or one of: {', '.join(ACTIONS)}")
            if not KEY.fullmatch(key):
                raise ValueError("a key is one of a-z, 0-9 or a punctuation mark of the main keyboard")
        if len(set(value.values())) != len(value):
            raise ValueError("a key can do one thing only")
        return value


def add_account(app: FastAPI, page: Pages, desk: Desk) -> None:
    """Add the routes."""
    busy = asyncio.Semaphore(AT_ONCE)

    def address(request: Request) -> str:
        return request.client.host if request.client else ""

    @app.get("/login", include_in_schema=False)
    @access("public")
    def show_login(next: str = "/") -> Response:
        return page("login.html", next=local_path(next), problem="", name="", open_here=visit.get().open_here)

    @app.post("/login", include_in_schema=False)
    @access("public")
    async def do_login(request: Request) -> Response:
        ledger = desk.writer()
        fields = await form(request)
        name, target = fields.get("name", "")[:80], local_path(fields.get("next", "/"))
        try:
            async with busy:
                user_id = await asyncio.to_thread(
                    users.login, ledger, name, fields.get("password", "")[: users.PASSWORD[1]], address(request)
                )
        except users.LoginError as why:
            words = "login.wait" if why.wait else "login.wrong"
            return page(
                "login.html", status=429 if why.wait else 401, next=target, problem=words, name=name, open_here=False
            )
        return await _signed_in(desk, request, user_id, target)

    @app.post("/logout", include_in_schema=False)
    @access("person")
    async def logout() -> Response:
        session = person().session
        await asyncio.wrap_future(desk.writer().submit(lambda db: users.close_session(db, session)))
        response = RedirectResponse("/login", 303)
        desk.sign_out(response)
        return response

    @app.get("/invitation/{key}", include_in_schema=False)
    @access("public")
    def show_invitation(key: str) -> Response:
        ledger = desk.writer()
        found = users.invitation(ledger.read(), key, ledger.clock())
        return page(
            "invitation.html", status=200 if found else 410, found=dict(found) if found else None, key=key, problem=""
        )

    @app.post("/invitation/{key}", include_in_schema=False)
    @access("public")
    async def take_invitation(request: Request, key: str) -> Response:
        ledger = desk.writer()
        found = users.invitation(ledger.read(), key, ledger.clock())
        if found is None:
            return page("invitation.html", status=410, found=None, key=key, problem="")
        password_hash = None
        if found["kind"] == "password":
            fields = await form(request)
            password, again = fields.get("password", ""), fields.get("again", "")
            try:
                users.check_password(password, found["name"])
                if password != again:
                    raise UsageError("the two passwords differ")
            except UsageError as why:
                return page("invitation.html", status=400, found=dict(found), key=key, problem=str(why))
            async with busy:
                password_hash = await asyncio.to_thread(users.hashed, password)
        now = ledger.clock()
        user_id = await asyncio.wrap_future(ledger.submit(lambda db: users.redeem(db, key, password_hash, now)))
        if user_id is None:
            return page("invitation.html", status=410, found=None, key=key, problem="")
        return await _signed_in(desk, request, user_id, "/rate")

    @app.post("/language", include_in_schema=False)
    @access("public")
    async def language(request: Request) -> Response:
        fields = await form(request)
        chosen = fields.get("language", "en")
        if chosen not in LANGUAGES:
            raise HTTPException(400, "No such language.")
        who = visit.get().person
        if who:
            await _store(desk, who.id, {"language": chosen})
        response = RedirectResponse(local_path(fields.get("next", "/")), 303)
        response.set_cookie(LANGUAGE_COOKIE, chosen, max_age=365 * 86400, samesite="lax", secure=desk.secure)
        return response

    @app.put("/api/me/settings", tags=["me"])
    @access("person")
    async def change_settings(settings: Settings) -> dict[str, Any]:
        """Change one's own settings; keys that are left out stay."""
        return await _store(desk, person().id, settings.model_dump(exclude_none=True))

    @app.get("/api/me", tags=["me"])
    @access("person")
    async def me() -> dict[str, Any]:
        """Who is signed in, with the token that requests which change something carry as `X-CSRF-Token`."""
        who = person()
        return {"id": who.id, "name": who.name, "role": who.role, "settings": who.settings, "csrf": visit.get().csrf}

    _add_admin(app, page, desk)


def _add_admin(app: FastAPI, page: Pages, desk: Desk) -> None:
    def listed(link: str = "", problem: str = "", status: int = 200) -> Response:
        db = desk.writer().read()
        people = db.execute(
            "SELECT u.*, (SELECT max(seen_ms) FROM sessions WHERE user_id = u.id) AS seen_ms, "
            "(SELECT coalesce(sum(rated), 0) FROM desks WHERE user_id = u.id) AS rated FROM users AS u ORDER BY u.name"
        ).fetchall()
        log = db.execute(
            "SELECT a.*, u.name FROM audit AS a LEFT JOIN users AS u ON u.id = a.user_id ORDER BY a.id DESC LIMIT 60"
        ).fetchall()
        return page(
            "accounts.html", status=status, people=[dict(row) for row in people], log=[dict(row) for row in log],
            link=link, problem=problem, roles=users.ROLES, local=users.LOCAL,
        )  # fmt: skip

    @app.get("/accounts", include_in_schema=False)
    @access("admin")
    def accounts() -> Response:
        return listed()

    @app.post("/accounts", include_in_schema=False)
    @access("admin")
    async def change_accounts(request: Request) -> Response:
        ledger, by = desk.writer(), person()
        fields = await form(request)
        now, act = ledger.clock(), fields.get("act", "")
        base = desk.base(request.headers.get("host", ""))

        def change(db: sqlite3.Connection) -> str:
            if act == "add":
                user_id = users.add(db, fields.get("name", ""), fields.get("role", "rater"), by.id, now)
                return users.invite(db, user_id, by.id, now)
            row = users.named(db, fields.get("name", ""))
            if act == "link":
                return users.invite(db, row["id"], by.id, now)
            if act in ("disable", "enable"):
                users.set_disabled(db, row["id"], act == "disable", by.id, now)
            elif act == "role":
                users.set_role(db, row["id"], fields.get("role", ""), by.id, now)
            else:
                raise UsageError(f"nothing to do: {act!r}")
            return ""

        try:
            key = await asyncio.wrap_future(ledger.submit(change))
        except UsageError as why:
            return listed(problem=str(why), status=400)
        return listed(link=f"{base}/invitation/{key}" if key else "")


async def _signed_in(desk: Desk, request: Request, user_id: int, target: str) -> Response:
    ledger = desk.writer()
    now, old = ledger.clock(), request.cookies.get(desk.cookie, "")
    key = await asyncio.wrap_future(ledger.submit(lambda db: users.open_session(db, user_id, now, old)))
    row = ledger.read().execute("SELECT role FROM users WHERE id = ?", [user_id]).fetchone()
    if target == "/":
        target = "/rate" if row["role"] == "rater" else "/lead"
    response = RedirectResponse(target, 303)
    desk.sign_in(response, key)
    return response


async def _store(desk: Desk, user_id: int, changes: dict[str, Any]) -> dict[str, Any]:
    def store(db: sqlite3.Connection) -> dict[str, Any]:
        row = db.execute("SELECT settings FROM users WHERE id = ?", [user_id]).fetchone()
        settings: dict[str, Any] = json.loads(row["settings"]) | changes
        db.execute("UPDATE users SET settings = ? WHERE id = ?", [json.dumps(settings, sort_keys=True), user_id])
        return settings

    return await asyncio.wrap_future(desk.writer().submit(store))


def unauthorised() -> Response:
    """What an API request without a session is told."""
    return JSONResponse({"detail": "Sign in first."}, 401)
