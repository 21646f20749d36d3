"""Thumbnails for pages: made once, by few threads, and kept in memory up to a limit."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor

from curate.errors import CurateError
from curate.pictures import originals, preview, thumbnail
from curate.web.reader import Reader
from schemas.errors import RowError
from workers.picture import sniff

THUMB_PX = 360  # drawn 180 px wide on a dense display
PREVIEW_PX = 1600
KEPT_BYTES = 128 << 20
AT_ONCE = 8  # originals that one thread holds in memory
WAIT_S = 60.0


def content_type(data: bytes) -> str:
    """The media type of a picture, by its first bytes alone.

    Raises RowError for anything but the seven formats that are read: SVG and HTML are never among them.
    """
    return f"image/{sniff(data).lower()}"


class Thumbnails:
    """JPEG thumbnails by row_id and size."""

    def __init__(self, reader: Reader) -> None:
        self.reader = reader
        self._pool = ThreadPoolExecutor(2, thread_name_prefix="thumbnails")
        self._lock = threading.Lock()
        self._kept: OrderedDict[tuple[str, int], bytes] = OrderedDict()
        self._size = 0
        self._waiting: dict[tuple[str, int], Future[bytes]] = {}

    def prefetch(self, row_ids: Sequence[str], side_px: int = THUMB_PX) -> None:
        """Start on thumbnails that a page will ask for: a shard is then read once and not once for each picture."""
        with self._lock:
            new = [r for r in row_ids if (r, side_px) not in self._kept and (r, side_px) not in self._waiting]
            for start in range(0, len(new), AT_ONCE):
                self._start(new[start : start + AT_ONCE], side_px)

    def get(self, row_id: str, side_px: int) -> bytes:
        """The thumbnail; raises RowError or StoreError when there is none."""
        return self.ask(row_id, side_px).result(WAIT_S)

    def ask(self, row_id: str, side_px: int) -> Future[bytes]:
        """A promise of the thumbnail, kept already when it was made before."""
        key = row_id, side_px
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
                kept: Future[bytes] = Future()
                kept.set_result(self._kept[key])
                return kept
            if key not in self._waiting:
                self._start([row_id], side_px)
            return self._waiting[key]

    def close(self) -> None:
        """Finish what was begun and stop the threads."""
        self._pool.shutdown(cancel_futures=True)

    def _start(self, row_ids: Sequence[str], side_px: int) -> None:
        promised: dict[str, Future[bytes]] = {row_id: Future() for row_id in row_ids}
        self._waiting.update({(row_id, side_px): future for row_id, future in promised.items()})
        self._pool.submit(self._make, promised, side_px)

    def _make(self, promised: dict[str, Future[bytes]], side_px: int) -> None:
        try:
            with self.reader.open() as store:
                found = originals(store, promised)
        except CurateError as why:
            for row_id, future in promised.items():
                self._keep(row_id, side_px, future, why)
            return
        except BaseException as why:  # whoever waits must hear of it, whatever it is
            for row_id, future in promised.items():
                self._keep(row_id, side_px, future, why)
            raise
        for row_id, future in promised.items():
            data = found.pop(row_id)
            try:
                make = preview if side_px == PREVIEW_PX else thumbnail
                made = data if isinstance(data, RowError) else make(data, side_px)
            except RowError as why:
                made = why
            self._keep(row_id, side_px, future, made)

    def _keep(self, row_id: str, side_px: int, future: Future[bytes], made: bytes | BaseException) -> None:
        with self._lock:
            del self._waiting[row_id, side_px]
            if isinstance(made, bytes):
                self._kept[row_id, side_px] = made
                self._size += len(made)
                while self._size > KEPT_BYTES:
                    self._size -= len(self._kept.popitem(last=False)[1])
        if isinstance(made, bytes):
            future.set_result(made)
        else:
            future.set_exception(made)
