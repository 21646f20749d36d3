"""Brings what people said into the index while the server runs, so that SQL sees it soon.

One thread looks every few seconds whether the ledger has events that the index has not, and then updates the index in a
process of its own with low priority, so that nobody who rates waits for it and its memory is given back; it rests ten
times as long as the last update took. The update takes the index's own lock, so that several workers, a job and a
person may do the same.
"""

from __future__ import annotations

import contextlib
import logging
import os
import subprocess
import sys
import threading
import time

from curate.errors import CurateError, StoreError
from curate.rate import mirror
from curate.web.reader import Reader

LOOK_S = 10.0
REST = 10.0
NICE = 10


class Sync:
    """Updates the index from the ledger; `start` it once the server runs and `close` it after."""

    def __init__(self, reader: Reader, active: bool = True) -> None:
        self.reader = reader
        self.active = active
        self.last: float | None = None  # time.time() of the last update
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._process: subprocess.Popen[str] | None = None

    def start(self) -> None:
        """Begin to look."""
        if self.active:
            self._thread = threading.Thread(target=self._work, name="sync", daemon=True)
            self._thread.start()

    def close(self) -> None:
        """Stop looking. An update under way is ended: the index is replaced whole or not at all, and the next one does
        the same work.
        """
        self._stop.set()
        if self._process and self._process.poll() is None:
            self._process.terminate()
        if self._thread:
            self._thread.join()

    def now(self) -> None:
        """Update the index at once."""
        command = [sys.executable, "-m", "curate.cli", "ratings", "sync", self.reader.store.uri]
        with (
            self._lock,
            subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process,
        ):
            self._process = process
            with contextlib.suppress(OSError):  # it may be over already
                os.setpriority(os.PRIO_PROCESS, process.pid, NICE)
            _, said = process.communicate()
            if process.returncode and not self._stop.is_set():
                raise StoreError(said.strip().splitlines()[-1] if said.strip() else f"exit code {process.returncode}")
            self.last = time.time()

    def state(self) -> dict[str, float | bool | None]:
        """When the index was updated last by this process, and whether the ledger is ahead of it."""
        with self.reader.open() as store:
            return {"last": self.last, "behind": mirror.behind(store.cursor, store.files)}

    def _work(self) -> None:
        rest = LOOK_S
        while not self._stop.wait(rest):
            rest = LOOK_S
            try:
                with self.reader.open() as store:
                    if not mirror.behind(store.cursor, store.files):
                        continue
                began = time.monotonic()
                self.now()
                rest = max(LOOK_S, REST * (time.monotonic() - began))
            except (CurateError, OSError) as why:
                logging.getLogger("curate").warning("ratings are not in the index yet: %s", why)
                rest = 6 * LOOK_S
