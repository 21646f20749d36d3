"""Pages of the lead."""

from __future__ import annotations

from fastapi import FastAPI

from curate.web.access import Desk
from curate.web.pages import Pages
from curate.web.pictures import Thumbnails
from curate.web.reader import Reader


def add_lead(app: FastAPI, page: Pages, desk: Desk, reader: Reader, thumbnails: Thumbnails) -> None:
    """Add the routes."""
