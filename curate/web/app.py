"""The application: the explore pages' routes, security headers, error pages, and the server.

Each request reads one snapshot of the store (reader.py). Pictures go out by row_id only. What is written goes through
the ledger of ratings (curate/rate/ledger.py); who may ask for what says access.py.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import ipaddress
import os
import socket
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from http import HTTPStatus
from importlib.resources import files as resource_files
from urllib.parse import urlsplit

import pyarrow as pa
import typer
from fastapi import Depends, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, PlainTextResponse, RedirectResponse, Response
from fastapi.staticfiles import StaticFiles
from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from curate.errors import CurateError, StoreError, UsageError
from curate.explain import lineage
from curate.pictures import original
from curate.rate import campaign, users
from curate.rate.ledger import Ledger, ledger_path
from curate.store import Store
from curate.web import gallery, whatif
from curate.web.access import Desk, SignInError, Visit, access, admit, login_url, visit
from curate.web.account import add_account, unauthorised
from curate.web.lead import add_lead
from curate.web.metrics import Metrics, add_metrics
from curate.web.pages import Pages
from curate.web.pictures import PREVIEW_PX, THUMB_PX, Thumbnails, content_type
from curate.web.rating import add_rating, page_json
from curate.web.reader import Reader, TooSlow
from curate.web.sync import Sync
from curate.web.training import add_training
from schemas.errors import RowError

PAGE_POLICY = (
    "default-src 'none'; img-src 'self' blob:; style-src 'self'; script-src 'self'; connect-src 'self'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
# The report is one file with its style and pictures inside and no script.
REPORT_POLICY = (
    "default-src 'none'; img-src data:; style-src 'unsafe-inline'; font-src data:; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'"
)
LOOPBACK = ("localhost", "127.0.0.1", "::1")
KEEP_ALIVE_S = 75  # somebody may look at a picture for a minute
MOST_BODY = 1 << 20  # bytes of a request; the largest is a batch of answers, some 30 kB
PICTURES = ("/thumb/", "/preview/", "/image/", "/static/")


def make_app(
    store: Store, hosts: tuple[str, ...] | None = LOOPBACK, ledger: Ledger | None = None, *, loopback: bool = True,
    public_url: str = "", why_no_ledger: str = "",
) -> FastAPI:  # fmt: skip
    """The application over one store.

    `hosts` are the names under which it answers; any other Host header is refused, so that a web page elsewhere cannot
    point a name of its own at this machine and read the store. None: any name. Without a ledger there are the explore
    pages alone. `loopback`: only this machine reaches it. `public_url`: where browsers see it, behind a proxy.
    """
    reader = Reader(store)
    thumbnails = Thumbnails(reader)
    desk = Desk(ledger, loopback, public_url.rstrip("/"), why_no_ledger)

    sync = Sync(reader, active=ledger is not None)

    @asynccontextmanager
    async def life(app: FastAPI) -> AsyncIterator[None]:
        sync.start()
        settling = asyncio.create_task(asyncio.to_thread(_settle, ledger)) if ledger is not None else None
        yield
        if settling is not None:
            await settling
        await asyncio.to_thread(sync.close)
        thumbnails.close()
        reader.close()
        if ledger is not None:
            ledger.close()

    app = FastAPI(
        title="curate", docs_url=None, redoc_url=None, openapi_url=None, lifespan=life, dependencies=[Depends(admit)],
        description="The rating service of a curate store. Every request needs the session cookie of a signed-in "
        "person; one that changes something needs the header X-CSRF-Token with the token of GET /api/me.",
    )  # fmt: skip
    app.state.desk = desk
    app.add_middleware(_Guard, hosts=hosts, desk=desk)
    static = resource_files("curate.web").joinpath("static")
    app.mount("/static", StaticFiles(directory=str(static)), name="static")
    page = Pages(reader, desk, page_json)
    metrics = Metrics()
    _add_explore(app, page, reader, thumbnails)
    _add_pictures(app, reader, thumbnails)
    add_account(app, page, desk)
    add_rating(app, page, desk, reader, thumbnails, metrics)
    add_lead(app, page, desk, reader, thumbnails, sync)
    add_metrics(app, desk, reader, metrics)
    add_training(app, page, reader)
    _add_errors(app, page)

    @app.get("/api/openapi.json", include_in_schema=False)
    @access("rater")
    def openapi() -> Response:
        return JSONResponse(app.openapi())

    return app


def _add_explore(app: FastAPI, page: Pages, reader: Reader, thumbnails: Thumbnails) -> None:
    @app.get("/", response_class=HTMLResponse, include_in_schema=False)
    @access("explore")
    def show_gallery(request: Request) -> Response:
        with reader.open() as store:
            view = gallery.View.of(request.query_params)
            problem, condition = "", "TRUE"
            try:
                condition = store.condition(view.where) if view.where else "TRUE"
                counts = gallery.counts(reader, store, condition)
                rows = gallery.page(reader, store, view, condition)
            except (UsageError, TooSlow) as why:
                if not view.where:
                    raise
                problem, rows = str(why), []
                counts = dict.fromkeys(gallery.OUTCOMES, 0)
            columns = gallery.numeric_columns(reader, store)
        thumbnails.prefetch([row["row_id"] for row in rows if row["width"]])
        shown = counts.get(view.show, 0)
        reasons = [(key, count) for key, count in counts.items() if ":" in key]
        return page(
            "gallery.html", status=400 if problem else 200, view=view, counts=counts, reasons=reasons, rows=rows,
            columns=columns, problem=problem, shown=shown, pages=max(-(-shown // gallery.PAGE_ROWS), 1),
        )  # fmt: skip

    @app.get("/what-if", response_class=HTMLResponse, include_in_schema=False)
    @access("explore")
    def show_what_if(request: Request) -> Response:
        with reader.open() as store:
            policy = [(p["name"], p["sql"]) for p in reader.record(store)["predicates"]]
            problem, answer = "", None
            try:
                form = whatif.fields(policy, request.query_params)
                answer = whatif.judge(reader, store, form, request.query_params.get("cut", ""))
            except (UsageError, TooSlow) as why:
                problem = str(why)
                typed = {k: v for k, v in request.query_params.items() if not k.startswith("n.")}
                form = whatif.fields(policy, typed)
        if answer:
            strips = [*answer.strips.values(), *([answer.cut.below, answer.cut.above] if answer.cut else [])]
            thumbnails.prefetch(list(dict.fromkeys(r["row_id"] for strip in strips for r in strip if r["width"])))
        return page("whatif.html", status=400 if problem else 200, form=form, answer=answer, problem=problem)

    @app.get("/row/{row_id}", response_class=HTMLResponse, include_in_schema=False)
    @access("explore")
    def show_row(row_id: str) -> Response:
        with reader.open() as store:
            try:
                found = lineage(store, row_id)
            except UsageError as why:
                raise HTTPException(404, str(why)) from None
            before = store.rows(
                "SELECT (SELECT row_id FROM wide WHERE _id = (SELECT max(_id) FROM wide WHERE _id < w._id)), "
                "(SELECT row_id FROM wide WHERE _id = (SELECT min(_id) FROM wide WHERE _id > w._id)) "
                "FROM wide AS w WHERE row_id = $1",
                [row_id],
            )
        return page("row.html", found=found, neighbours=before[0])

    @app.get("/favicon.ico", include_in_schema=False)
    @access("public")
    def no_icon() -> Response:
        return Response(status_code=204)

    @app.get("/report", include_in_schema=False)
    @access("explore")
    def report() -> Response:
        if not reader.store.files.exists("report.html"):
            raise HTTPException(404, f"no report yet; write one with: curate report {reader.store.uri}")
        headers = {"Content-Security-Policy": REPORT_POLICY}
        return HTMLResponse(reader.store.files.read("report.html"), headers=headers)


def _add_pictures(app: FastAPI, reader: Reader, thumbnails: Thumbnails) -> None:
    def small(row_id: str, side_px: int) -> Response:
        data = thumbnails.get(row_id, side_px)
        return Response(data, media_type=content_type(data), headers=Pages.file_headers)

    @app.get("/thumb/{row_id}", include_in_schema=False)
    @access("explore")
    def thumb(row_id: str) -> Response:
        return small(row_id, THUMB_PX)

    @app.get("/preview/{row_id}", include_in_schema=False)
    @access("explore")
    def preview(row_id: str) -> Response:
        return small(row_id, PREVIEW_PX)

    @app.get("/image/{row_id}", include_in_schema=False)
    @access("explore")
    def image(row_id: str) -> Response:
        with reader.open() as store:
            data = original(store, row_id)
        kind = content_type(data)
        name = f"{row_id.replace(':', '-')}.{kind.partition('/')[2]}"
        headers = Pages.file_headers | {"Content-Disposition": f'inline; filename="{name}"'}
        return Response(data, media_type=kind, headers=headers)


def _add_errors(app: FastAPI, page: Pages) -> None:
    """Every failure is a page that says what is wrong; of a picture a line of plain text, of the API a line of JSON."""

    def answer(request: Request, status: int, message: str) -> Response:
        if request.url.path.startswith("/api/"):
            return JSONResponse({"detail": message}, status)
        if request.url.path.startswith(PICTURES):
            return PlainTextResponse(message, status)
        return page("error.html", status=status, message=message, title=HTTPStatus(status).phrase)

    @app.exception_handler(HTTPException)
    def http(request: Request, why: HTTPException) -> Response:
        plain = f"There is nothing at {request.url.path}."
        message = plain if why.status_code == 404 and why.detail == "Not Found" else why.detail
        made = answer(request, why.status_code, message)
        made.headers.update(why.headers or {})
        return made

    @app.exception_handler(SignInError)
    def sign_in(request: Request, why: SignInError) -> Response:
        if request.url.path.startswith("/api/"):
            return unauthorised()
        if request.url.path.startswith(PICTURES):
            return PlainTextResponse("Sign in first.", 401)
        if request.method not in ("GET", "HEAD"):  # a form whose session is over: its page is where one goes back to
            return page("login.html", status=401, next=request.url.path, problem="login.over", name="", open_here=False)
        asked = request.url.path + (f"?{request.url.query}" if request.url.query else "")
        return RedirectResponse(login_url(asked), 303)

    @app.exception_handler(RequestValidationError)
    def invalid(request: Request, why: RequestValidationError) -> Response:
        first = why.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        return answer(request, 422, f"{where}: {first['msg']}")

    @app.exception_handler(RowError)
    def row(request: Request, why: RowError) -> Response:
        return answer(request, 404, f"{why.code}: {why.message}")

    @app.exception_handler(CurateError)
    def ours(request: Request, why: CurateError) -> Response:
        status = 503 if isinstance(why, TooSlow) else 400
        if isinstance(why, StoreError):
            status = 404 if "row" in request.path_params or "row_id" in request.path_params else 503
        return answer(request, status, str(why))

    @app.exception_handler(Exception)
    def bug(request: Request, why: Exception) -> Response:
        broken = answer(request, 500, "Something broke here; the log of the server says what.")
        _harden(broken.headers)  # this answer is made outside of _Guard
        return broken


class _Guard:
    """Refuses foreign Host headers and large bodies, finds out who asks, and hardens every answer."""

    def __init__(self, app: ASGIApp, hosts: tuple[str, ...] | None, desk: Desk) -> None:
        self.app = app
        self.hosts = hosts
        self.desk = desk

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = {key.decode("latin-1"): value.decode("latin-1") for key, value in scope["headers"]}
        held = 0
        began = time.perf_counter()

        async def guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                _harden(MutableHeaders(scope=message))
                spent_ms = 1000 * (time.perf_counter() - began)
                MutableHeaders(scope=message)["Server-Timing"] = f"app;dur={spent_ms:.2f}"
                if self.desk.secure:
                    MutableHeaders(scope=message)["Strict-Transport-Security"] = "max-age=31536000"
            await send(message)

        async def measured() -> Message:
            nonlocal held
            message = await receive()
            held += len(message.get("body", b""))
            if held > MOST_BODY:
                raise HTTPException(413, f"A request has at most {MOST_BODY:,} bytes.")
            return message

        host = headers.get("host", "")
        name = host[1 : host.find("]")] if host.startswith("[") else host.partition(":")[0]
        if self.hosts is not None and name.lower() not in self.hosts:
            refuse = PlainTextResponse(f"This server does not answer to the name {name!r}.", 421)
            await refuse(scope, receive, guarded)
            return
        length = headers.get("content-length", "0")
        if not length.isdigit() or int(length[:12]) > MOST_BODY:
            await PlainTextResponse(f"A request has at most {MOST_BODY:,} bytes.", 413)(scope, receive, guarded)
            return
        path = scope["path"]
        visit.set(Visit() if path.startswith("/static/") else self.desk.visit_of(path, headers))
        await self.app(scope, measured, guarded)


def _harden(headers: MutableHeaders) -> None:
    headers.setdefault("Content-Security-Policy", PAGE_POLICY)
    headers["X-Content-Type-Options"] = "nosniff"
    headers["X-Frame-Options"] = "DENY"
    headers["Referrer-Policy"] = "same-origin"
    headers["Cross-Origin-Resource-Policy"] = "same-origin"
    headers["Cross-Origin-Opener-Policy"] = "same-origin"
    headers["Permissions-Policy"] = "camera=(), geolocation=(), microphone=()"


def serve(store: Store, host: str, port: int, public_url: str = "", workers: int = 1) -> None:
    """Serve the pages until interrupted; raises CurateError when the address cannot be had.

    Port 0 takes a free one. The address is printed once the port is ours. `public_url` is the https:// address of a
    proxy in front of us; several `workers` share the port.
    """
    import uvicorn
    from uvicorn.supervisors import Multiprocess

    _check_url(public_url)
    ledger, why = _ledger(store)
    loopback = _is_loopback(host) and not public_url
    if ledger is None and not loopback:
        raise UsageError(f"--host {host}: without accounts the pages are for this machine only. {why}")
    listening = _listen(host, port)
    try:
        store.connection()  # a store that cannot be read is said now and not on the first page
        store.close()
        shown = f"[{host}]" if ":" in host else host
        address = public_url.rstrip("/") or f"http://{shown}:{listening.getsockname()[1]}"
        _say(store, ledger, why, address, host, loopback)
        if ledger is not None:
            ledger.close()
        os.environ["CURATE_SERVE"] = "\n".join((store.uri, host, public_url))
        config = uvicorn.Config(
            "curate.web.app:from_environment", factory=True, log_level="warning", server_header=False,
            date_header=True, lifespan="on", workers=workers, timeout_keep_alive=KEEP_ALIVE_S,
            proxy_headers=bool(public_url),
        )  # fmt: skip
        if workers > 1:
            Multiprocess(config, sockets=[listening]).run()
        else:
            uvicorn.Server(config).run(sockets=[listening])
    finally:
        listening.close()


def _settle(ledger: Ledger) -> None:
    """Go on with changes of a campaign's rule that a process did not live to finish."""
    for campaign_id in campaign.unsettled(ledger.read()):
        campaign.settle(ledger, campaign_id)


def _tidy_memory() -> None:
    """Give pictures back to the system as they go.

    Arrow's own allocator keeps what it had (45 MB more after 400 pictures), glibc keeps an arena for each thread, and
    after the first large block that is freed it keeps blocks of that size too.
    """
    pa.set_memory_pool(pa.system_memory_pool())
    with contextlib.suppress(OSError, AttributeError):  # another C library
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(-8, 2)  # M_ARENA_MAX
        libc.mallopt(-3, 128 << 10)  # M_MMAP_THRESHOLD, bytes; naming it ends its growth


def from_environment() -> FastAPI:
    """The application that `serve` describes in CURATE_SERVE: for each of its worker processes."""
    _tidy_memory()
    uri, host, public_url = os.environ["CURATE_SERVE"].split("\n")
    store = Store(uri)
    ledger, why = _ledger(store)
    loopback = _is_loopback(host) and not public_url
    names: tuple[str, ...] | None = (
        *LOOPBACK,
        host.lower(),
        *((urlsplit(public_url).hostname or "",) if public_url else ()),
    )
    if not loopback and not public_url:
        names = None
    return make_app(store, names, ledger, loopback=loopback, public_url=public_url, why_no_ledger=why)


def _ledger(store: Store) -> tuple[Ledger | None, str]:
    """The ledger of the store, or why there is none: then the explore pages still work."""
    try:
        return Ledger(ledger_path(store.files)), ""
    except (UsageError, StoreError, OSError) as why:
        return None, f"{why}"


def _say(store: Store, ledger: Ledger | None, why: str, address: str, host: str, loopback: bool) -> None:
    typer.echo(f"serving {store.uri} at {address}   (Ctrl+C ends)")
    if ledger is None:
        typer.echo(f"no ratings here: {why}", err=True)
        return
    if not users.any_account(ledger.read()):
        if loopback:
            now = ledger.clock()
            key = ledger.write(lambda db: users.invite(db, users.local_lead(db, now), None, now, kind="session"))
            typer.echo(f"to rate and to lead, sign in by this link (works once): {address}/invitation/{key}")
        else:
            typer.echo(f"nobody has an account yet; make one with: curate users add {store.uri} NAME --role admin")
    if not loopback and address.startswith("http://"):
        typer.echo(
            f"warning: {host} is reachable from other machines, and passwords would cross the network in the clear. "
            "Listen at 127.0.0.1 behind a proxy that has a certificate, and name its address: "
            "--public-url https://rate.example.org (docs/rating.md)",
            err=True,
        )


def _check_url(public_url: str) -> None:
    parts = urlsplit(public_url)
    if public_url and (parts.scheme not in ("https", "http") or not parts.hostname or parts.path.strip("/")):
        raise UsageError(f"--public-url {public_url!r}: write it as https://rate.example.org, without a path")


def _listen(host: str, port: int) -> socket.socket:
    """A listening socket, taken before anything is said, so that a busy port is one clear line."""
    try:
        family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        found = socket.socket(family, socket.SOCK_STREAM)
    except (OSError, OverflowError) as why:
        raise UsageError(f"--host {host} --port {port}: {getattr(why, 'strerror', None) or why}") from None
    try:
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        found.bind(address)
        found.listen(128)
    except OSError as why:
        found.close()
        raise CurateError(
            f"cannot serve at {host}:{port}: {why.strerror}; choose another port with --port (0 takes a free one)"
        ) from None
    return found


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"
