"""The application: routes, security headers, error pages, and the server.

Each request reads one snapshot of the store (reader.py). Pictures go out by row_id only. Nothing here writes.
"""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from http import HTTPStatus
from importlib.resources import files as resource_files
from typing import Any
from urllib.parse import quote

import jinja2
import typer
from fastapi import FastAPI, Request
from fastapi.responses import HTMLResponse, PlainTextResponse, Response
from fastapi.staticfiles import StaticFiles
from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from curate.errors import CurateError, StoreError, UsageError
from curate.explain import lineage, provenance
from curate.pictures import original
from curate.store import Store
from curate.table import format_value
from curate.web import gallery, whatif
from curate.web.pictures import PREVIEW_PX, THUMB_PX, Thumbnails, content_type
from curate.web.reader import Reader, TooSlow
from schemas.errors import ROW_ERRORS, RowError

PAGE_POLICY = (
    "default-src 'none'; img-src 'self'; style-src 'self'; script-src 'self'; form-action 'self'; "
    "base-uri 'none'; frame-ancestors 'none'"
)
FILE_POLICY = "default-src 'none'; sandbox; frame-ancestors 'none'"
# The report is one file with its style and pictures inside and no script.
REPORT_POLICY = (
    "default-src 'none'; img-src data:; style-src 'unsafe-inline'; font-src data:; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'"
)
# Errors that leave a picture to show: they befell an operator and not the file.
UNDECODABLE = frozenset(ROW_ERRORS) - {"timeout", "out_of_memory", "worker_crash", "operator_failed"}
LOOPBACK = ("localhost", "127.0.0.1", "::1")
SHORT_CACHE = "private, max-age=600"


def make_app(store: Store, hosts: tuple[str, ...] | None = LOOPBACK) -> FastAPI:
    """The application over one store.

    `hosts` are the names under which it answers; any other Host header is refused, so that a web page elsewhere cannot
    point a name of its own at this machine and read the store. None: any name.
    """
    reader = Reader(store)
    thumbnails = Thumbnails(reader)

    @asynccontextmanager
    async def life(app: FastAPI) -> AsyncIterator[None]:
        yield
        thumbnails.close()
        reader.close()

    app = FastAPI(title="curate", docs_url=None, redoc_url=None, openapi_url=None, lifespan=life)
    app.add_middleware(_Guard, hosts=hosts)
    static = resource_files("curate.web").joinpath("static")
    app.mount("/static", StaticFiles(directory=str(static)), name="static")
    page = _Pages(reader)
    _add_explore(app, page, reader, thumbnails)
    _add_pictures(app, reader, thumbnails)
    _add_errors(app, page)
    return app


def _add_explore(app: FastAPI, page: _Pages, reader: Reader, thumbnails: Thumbnails) -> None:
    @app.get("/", response_class=HTMLResponse)
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

    @app.get("/what-if", response_class=HTMLResponse)
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

    @app.get("/row/{row_id}", response_class=HTMLResponse)
    def show_row(row_id: str) -> Response:
        with reader.open() as store:
            try:
                found = lineage(store, row_id)
            except UsageError as why:
                raise HTTPException(404, str(why)) from None
            before = store.rows(
                "SELECT (SELECT row_id FROM wide WHERE id = (SELECT max(id) FROM wide WHERE id < w.id)), "
                "(SELECT row_id FROM wide WHERE id = (SELECT min(id) FROM wide WHERE id > w.id)) "
                "FROM wide AS w WHERE row_id = $1",
                [row_id],
            )
        return page("row.html", found=found, neighbours=before[0])

    @app.get("/favicon.ico")
    def no_icon() -> Response:
        return Response(status_code=204)

    @app.get("/report")
    def report() -> Response:
        if not reader.store.files.exists("report.html"):
            raise HTTPException(404, f"no report yet; write one with: curate report {reader.store.uri}")
        headers = {"Content-Security-Policy": REPORT_POLICY}
        return HTMLResponse(reader.store.files.read("report.html"), headers=headers)


def _add_pictures(app: FastAPI, reader: Reader, thumbnails: Thumbnails) -> None:
    def small(row_id: str, side_px: int) -> Response:
        return Response(thumbnails.get(row_id, side_px), media_type="image/jpeg", headers=_file_headers())

    @app.get("/thumb/{row_id}")
    def thumb(row_id: str) -> Response:
        return small(row_id, THUMB_PX)

    @app.get("/preview/{row_id}")
    def preview(row_id: str) -> Response:
        return small(row_id, PREVIEW_PX)

    @app.get("/image/{row_id}")
    def image(row_id: str) -> Response:
        with reader.open() as store:
            data = original(store, row_id)
        kind = content_type(data)
        name = f"{row_id.replace(':', '-')}.{kind.partition('/')[2]}"
        headers = _file_headers() | {"Content-Disposition": f'inline; filename="{name}"'}
        return Response(data, media_type=kind, headers=headers)


def _file_headers() -> dict[str, str]:
    return {"Cache-Control": SHORT_CACHE, "Content-Security-Policy": FILE_POLICY}


def _add_errors(app: FastAPI, page: _Pages) -> None:
    """Every failure is a page that says what is wrong; a picture that is not there is a line of plain text."""

    def answer(request: Request, status: int, message: str) -> Response:
        if request.url.path.startswith(("/thumb/", "/preview/", "/image/", "/static/")):
            return PlainTextResponse(message, status)
        return page("error.html", status=status, message=message, title=HTTPStatus(status).phrase)

    @app.exception_handler(HTTPException)
    def http(request: Request, why: HTTPException) -> Response:
        plain = f"There is nothing at {request.url.path}."
        message = plain if why.status_code == 404 and why.detail == "Not Found" else why.detail
        return answer(request, why.status_code, message)

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


class _Pages:
    """Renders a template; HTML is escaped and a name that is not there is an error."""

    def __init__(self, reader: Reader) -> None:
        self.reader = reader
        self.templates = jinja2.Environment(
            loader=jinja2.PackageLoader("curate.web", "templates"),
            autoescape=True,
            undefined=jinja2.StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        self.templates.filters |= {
            "value": lambda value: "NULL" if value is None else format_value(value),
            "url": lambda text: quote(str(text), safe=""),
            "provenance": provenance,
        }
        self.templates.globals |= {
            "about": gallery.ABOUT,
            "error_words": ROW_ERRORS,
            "undecodable": UNDECODABLE,
            "store_uri": reader.store.uri,
            "has_report": lambda: reader.store.files.exists("report.html"),
        }

    def __call__(self, template: str, status: int = 200, **context: Any) -> Response:
        html = self.templates.get_template(template).render(context)
        return HTMLResponse(html, status, headers={"Cache-Control": "no-store"})


class _Guard:
    """Refuses foreign Host headers and puts the security headers on every answer."""

    def __init__(self, app: ASGIApp, hosts: tuple[str, ...] | None) -> None:
        self.app = app
        self.hosts = hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        async def guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                _harden(MutableHeaders(scope=message))
            await send(message)

        host = next((v.decode("latin-1") for k, v in scope["headers"] if k == b"host"), "")
        name = host[1 : host.find("]")] if host.startswith("[") else host.partition(":")[0]
        if self.hosts is not None and name.lower() not in self.hosts:
            refuse = PlainTextResponse(f"This server does not answer to the name {name!r}.", 421)
            await refuse(scope, receive, guarded)
            return
        await self.app(scope, receive, guarded)


def _harden(headers: MutableHeaders) -> None:
    headers.setdefault("Content-Security-Policy", PAGE_POLICY)
    headers["X-Content-Type-Options"] = "nosniff"
    headers["Referrer-Policy"] = "same-origin"
    headers["Cross-Origin-Resource-Policy"] = "same-origin"
    headers["Cross-Origin-Opener-Policy"] = "same-origin"
    headers["Permissions-Policy"] = "camera=(), geolocation=(), microphone=()"


def serve(store: Store, host: str, port: int) -> None:
    """Serve the pages until interrupted; raises CurateError when the address cannot be had.

    Port 0 takes a free one. The address is printed once the port is ours.
    """
    import uvicorn

    listening = _listen(host, port)
    try:
        store.connection()  # a store that cannot be read is said now and not on the first page
        store.close()
        shown = f"[{host}]" if ":" in host else host
        address = f"http://{shown}:{listening.getsockname()[1]}"
        typer.echo(f"serving {store.uri} at {address}   (Ctrl+C ends)")
        hosts: tuple[str, ...] | None = (*LOOPBACK, host.lower())
        if not _is_loopback(host):
            typer.echo(
                f"warning: {host} is reachable from other machines and there is no login yet: whoever can connect sees "
                "every picture and caption. Use 127.0.0.1 and an SSH tunnel, or a proxy that asks for a password.",
                err=True,
            )
            hosts = None
        config = uvicorn.Config(
            make_app(store, hosts), log_level="warning", server_header=False, date_header=True, lifespan="on"
        )
        uvicorn.Server(config).run(sockets=[listening])
    finally:
        listening.close()


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
