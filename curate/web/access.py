"""Who may see what: sessions, roles, cross-site protection. Everything that is not allowed here is refused.

Each route says whom it is for:

    @app.get("/lead")
    @access("lead")
    async def ...

`admit`, a dependency of the whole application, refuses a route that says nothing, a person whose role does not reach,
and a request that changes something but does not come from one of our own pages: the Origin header has to be ours, and
a request of a signed-in person has to carry the token of its session. tests/test_rate_web.py walks every route.

**Open on this machine.** While a store has no accounts and is served at a loopback address, the explore pages
(`access("explore")`) are open, as `curate sql` is to whoever sits here; with the first account, or at any other
address, they ask for a lead. Rating, and whatever else is written, always needs a session: on this machine by the link
that `curate serve` prints.
"""

from __future__ import annotations

import hmac
import sqlite3
from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar
from urllib.parse import parse_qsl, quote, urlsplit

from fastapi import HTTPException, Request
from starlette.responses import Response

from curate.rate import users
from curate.rate.ledger import Ledger
from curate.rate.users import Person

Endpoint = TypeVar("Endpoint", bound=Callable[..., Any])

LEVELS = ("public", "explore", "person", "rater", "lead", "admin")
SAFE = ("GET", "HEAD", "OPTIONS")
LANGUAGES = ("en", "zh")
LANGUAGE_COOKIE = "curate-language"
COOKIE = "curate-session"


@dataclass(frozen=True)
class Visit:
    """Who asks, and in which language, for the time of one request."""

    person: Person | None = None
    language: str = "en"
    csrf: str = ""
    path: str = "/"
    open_here: bool = False  # the explore pages ask for no login


visit: ContextVar[Visit] = ContextVar("visit", default=Visit())  # noqa: B039  a Visit is frozen


@dataclass
class Desk:
    """What all requests share: the ledger (None: ratings are not to be had here), and how we are reached."""

    ledger: Ledger | None
    loopback: bool = True
    public_url: str = ""  # https://... as browsers see it, behind a proxy; empty: as the Host header says
    why_no_ledger: str = ""
    secret: bytes = field(default=b"", repr=False)

    def __post_init__(self) -> None:
        if self.ledger is not None:
            self.secret = self.ledger.secret

    @property
    def secure(self) -> bool:
        """Whether browsers reach us by TLS."""
        return self.public_url.startswith("https://")

    @property
    def cookie(self) -> str:
        """`__Host-` binds a cookie to this host and to TLS; browsers refuse it over plain http."""
        return f"__Host-{COOKIE}" if self.secure else COOKIE

    def base(self, host: str) -> str:
        """The origin of our pages."""
        return self.public_url or f"http://{host}"

    def visit_of(self, path: str, headers: dict[str, str]) -> Visit:
        """Who sends these headers."""
        cookies = _cookies(headers.get("cookie", ""))
        language = cookies.get(LANGUAGE_COOKIE, "")
        if language not in LANGUAGES:
            language = "zh" if headers.get("accept-language", "").strip().lower().startswith("zh") else "en"
        here = Visit(language=language, path=path, open_here=self.loopback)
        if self.ledger is None:
            return here
        db = self.ledger.read()
        here = replace(here, open_here=self.loopback and not users.any_account(db))
        key = cookies.get(self.cookie, "")
        found = users.person(db, key, self.ledger.clock()) if key else None
        if found is None:
            return here
        person, stale = found
        if stale:
            now = self.ledger.clock()
            self.ledger.submit(lambda db: users.touch(db, person.session, now))
        chosen = person.settings.get("language", language)
        return replace(here, person=person, language=chosen, csrf=users.csrf_token(self.secret, person.session))

    def writer(self) -> Ledger:
        """The ledger; 503 where there is none."""
        if self.ledger is None:
            raise HTTPException(503, self.why_no_ledger or "Ratings are not available for this store.")
        return self.ledger

    def sign_in(self, response: Response, key: str) -> None:
        """Give the browser its session."""
        response.set_cookie(
            self.cookie, key, max_age=users.SESSION_MS // 1000, path="/", secure=self.secure, httponly=True,
            samesite="lax",
        )  # fmt: skip

    def sign_out(self, response: Response) -> None:
        """Take it away."""
        response.delete_cookie(self.cookie, path="/", secure=self.secure, httponly=True, samesite="lax")


def access(level: str) -> Callable[[Endpoint], Endpoint]:
    """Say whom a route is for: public, explore, person (signed in), rater, lead or admin."""
    if level not in LEVELS:
        raise ValueError(f"{level!r} is no level of access")

    def mark(endpoint: Endpoint) -> Endpoint:
        endpoint.access = level  # type: ignore[attr-defined]
        return endpoint

    return mark


def level_of(endpoint: Any) -> str | None:
    """What `access` said of an endpoint; None: nothing, so nobody may."""
    return getattr(endpoint, "access", None)


class SignInError(Exception):
    """A page that needs a session was asked for without one."""


async def admit(request: Request) -> None:
    """Let the request through, or raise SignInError or HTTPException 403."""
    route = request.scope.get("route")
    level = level_of(getattr(route, "endpoint", None))
    here = visit.get()
    if level is None:
        raise HTTPException(403, "This address is not open to anybody.")
    if request.method not in SAFE:
        _same_origin(request)
        if here.person is not None:
            await _token(request, here.csrf)
    if level == "public" or (level == "explore" and here.open_here):
        return
    if here.person is None:
        raise SignInError
    needed = {"explore": "lead", "person": "rater"}.get(level, level)
    if not here.person.may(needed):
        raise HTTPException(403, f"This page is for the role {needed}; you are signed in as {here.person.role}.")


async def form(request: Request) -> dict[str, str]:
    """The fields of a posted form (application/x-www-form-urlencoded)."""
    body = await request.body()
    try:
        return dict(parse_qsl(body.decode("utf-8"), keep_blank_values=True, max_num_fields=100))
    except (UnicodeDecodeError, ValueError):
        raise HTTPException(400, "The form is not UTF-8, or has too many fields.") from None


def person() -> Person:
    """Who is signed in; routes for a person or more have one."""
    here = visit.get().person
    if here is None:
        raise SignInError
    return here


def local_path(text: str) -> str:
    """`text` when it is a path of ours, else `/`: a login does not send people elsewhere."""
    parts = urlsplit(text)
    plain = text.startswith("/") and not text.startswith(("//", "/\\")) and not parts.scheme and not parts.netloc
    return text if plain and text.isprintable() and "\\" not in text else "/"


def login_url(path: str) -> str:
    """Where one signs in and comes back from."""
    return f"/login?next={quote(local_path(path), safe='/')}"


def note(db: sqlite3.Connection, now: int, action: str, subject: str = "", detail: str = "") -> None:
    """Audit what the person of this request did."""
    from curate.rate.ledger import audit

    here = visit.get().person
    audit(db, now, here.id if here else None, action, subject, detail)


def _same_origin(request: Request) -> None:
    desk: Desk = request.app.state.desk
    ours = desk.base(request.headers.get("host", ""))
    origin = request.headers.get("origin")
    if origin is None and request.headers.get("sec-fetch-site") == "same-origin":
        return
    if origin != ours:
        raise HTTPException(403, "This request does not come from a page of this server.")


async def _token(request: Request, expected: str) -> None:
    given = request.headers.get("x-csrf-token", "")
    if not given and request.headers.get("content-type", "").startswith("application/x-www-form-urlencoded"):
        given = (await form(request)).get("csrf", "")
    if not hmac.compare_digest(given.encode(), expected.encode()):
        raise HTTPException(403, "The page is out of date; load it again and repeat what you did.")


def _cookies(header: str) -> dict[str, str]:
    pairs = (part.strip().partition("=") for part in header.split(";"))
    return {name: value for name, equals, value in pairs if equals}
