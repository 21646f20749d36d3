"""Thumbnails and previews for pages: made once, by few threads, and kept in memory up to a limit."""

from __future__ import annotations

import itertools
import queue
import threading
from collections import OrderedDict
from collections.abc import Sequence
from concurrent.futures import Future

from curate.errors import CurateError
from curate.pictures import originals, preview, thumbnail
from curate.web.reader import Reader
from schemas.errors import RowError
from workers.picture import sniff

THUMB_PX = 360  # drawn 180 px wide on a dense display
PREVIEW_PX = 1600
KEPT_BYTES = 48 << 20  # some 150 previews; raters are asked about the same pictures at about the same time
AT_ONCE = 4  # originals that one thread holds in memory
WAIT_S = 60.0
THREADS = 2
STOP, NOW, SOON, LATER = range(4)

Key = tuple[str, int]  # row_id and the longer side, px


def content_type(data: bytes) -> str:
    """The media type of a picture, by its first bytes alone.

    Raises RowError for anything but the seven formats that are read: SVG and HTML are never among them.
    """
    return f"image/{sniff(data).lower()}"


class Thumbnails:
    """Thumbnails (JPEG) and previews by row_id and size. What somebody waits for is made before what somebody may
    want.
    """

    def __init__(self, reader: Reader) -> None:
        self.reader = reader
        self._lock = threading.Lock()
        self._kept: OrderedDict[Key, bytes] = OrderedDict()
        self._size = 0
        self._waiting: dict[Key, Future[bytes]] = {}
        self._doing: set[Key] = set()
        self._number = itertools.count()
        self._jobs: queue.PriorityQueue[tuple[int, int, Key]] = queue.PriorityQueue()
        self._threads = [threading.Thread(target=self._work, name="thumbnails", daemon=True) for _ in range(THREADS)]
        for thread in self._threads:
            thread.start()

    def prefetch(self, row_ids: Sequence[str], side_px: int = THUMB_PX, *, later: bool = False) -> None:
        """Start on thumbnails that a page will ask for; `later` ones wait until nothing else is to be made."""
        with self._lock:
            for row_id in row_ids:
                self._start((row_id, side_px), LATER if later else SOON)

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
            self._start(key, NOW)
            return self._waiting[key]

    def close(self) -> None:
        """Finish what is under way and stop the threads."""
        for _ in self._threads:
            self._jobs.put((STOP, next(self._number), ("", 0)))
        for thread in self._threads:
            thread.join()

    def _start(self, key: Key, priority: int) -> None:
        """Queue a thumbnail; one that is waiting already is queued again when it has become more urgent."""
        if key in self._kept or key in self._doing or (key in self._waiting and priority != NOW):
            return
        self._waiting.setdefault(key, Future())
        self._jobs.put((priority, next(self._number), key))

    def _work(self) -> None:
        while True:
            priority, _, first = self._jobs.get()
            if priority == STOP:
                return
            keys = [first]
            # Several of one urgency at a time: their shard is then read once.
            while len(keys) < AT_ONCE:
                try:
                    more = self._jobs.get_nowait()
                except queue.Empty:
                    break
                if more[0] != priority or more[2][1] != first[1]:
                    self._jobs.put(more)
                    break
                keys.append(more[2])
            with self._lock:
                promised = {key: self._waiting[key] for key in keys if key in self._waiting and key not in self._doing}
                self._doing.update(promised)
            if promised:
                self._make(promised)

    def _make(self, promised: dict[Key, Future[bytes]]) -> None:
        try:
            with self.reader.open() as store:
                found = originals(store, [row_id for row_id, _ in promised])
        except BaseException as why:  # whoever waits must hear of it, whatever it is
            for key, future in promised.items():
                self._keep(key, future, why)
            if not isinstance(why, CurateError):
                raise
            return
        for (row_id, side_px), future in promised.items():
            data = found.pop(row_id)
            try:
                made = data if isinstance(data, RowError) else self._made(data, side_px)
            except RowError as why:
                made = why
            self._keep((row_id, side_px), future, made)

    @staticmethod
    def _made(data: bytes, side_px: int) -> bytes:
        return preview(data, side_px)[0] if side_px == PREVIEW_PX else thumbnail(data, side_px)

    def _keep(self, key: Key, future: Future[bytes], made: bytes | BaseException) -> None:
        with self._lock:
            del self._waiting[key]
            self._doing.discard(key)
            if isinstance(made, bytes):
                self._kept[key] = made
                self._size += len(made)
                while self._size > KEPT_BYTES:
                    self._size -= len(self._kept.popitem(last=False)[1])
        if isinstance(made, bytes):
            future.set_result(made)
        else:
            future.set_exception(made)
