"""Renders a template with who asks, in the language of who asks."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any
from urllib.parse import quote

import jinja2
from fastapi.responses import HTMLResponse, Response

from curate.explain import provenance
from curate.table import format_value
from curate.web import gallery
from curate.web.access import Desk, visit
from curate.web.reader import Reader
from curate.web.words import say, translated
from schemas.errors import ROW_ERRORS

# Errors that leave a picture to show: they befell an operator and not the file.
UNDECODABLE = frozenset(ROW_ERRORS) - {"timeout", "out_of_memory", "worker_crash", "operator_failed"}
FILE_POLICY = "default-src 'none'; sandbox; frame-ancestors 'none'"
SHORT_CACHE = "private, max-age=600"


class Pages:
    """The templates; HTML is escaped and a name that is not there is an error."""

    file_headers = {"Cache-Control": SHORT_CACHE, "Content-Security-Policy": FILE_POLICY}  # noqa: RUF012

    def __init__(self, reader: Reader, desk: Desk, to_json: Callable[[Any], str]) -> None:
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
            "json": to_json,
            "time": _time,
        }
        self.templates.globals |= {
            "about": gallery.ABOUT,
            "error_words": ROW_ERRORS,
            "undecodable": UNDECODABLE,
            "store_uri": reader.store.uri,
            "has_report": lambda: reader.store.files.exists("report.html"),
            "has_ratings": desk.ledger is not None,
        }

    def __call__(self, template: str, status: int = 200, **context: Any) -> Response:
        here = visit.get()

        def t(key: str, **values: object) -> str:
            return say(here.language, key, **values)

        def tr(sentence: object) -> str:
            return translated(here.language, sentence)

        html = self.templates.get_template(template).render(context, visit=here, who=here.person, t=t, tr=tr)
        return HTMLResponse(html, status, headers={"Cache-Control": "no-store"})


def _time(at_ms: int | None) -> str:
    """A moment as people write it, UTC."""
    return datetime.fromtimestamp(at_ms / 1000, UTC).strftime("%Y-%m-%d %H:%M") if at_ms else "–"
