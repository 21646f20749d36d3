"""The index brought up to date in a process of its own, so that the driver of a run stays small: `python -m
curate.store.apart URI`, which speaks lines of JSON with the process that started it."""

from __future__ import annotations

import json
import logging
import signal
import subprocess
import sys
from collections.abc import Callable

import pyarrow as pa

from curate.errors import CurateError, StoreError
from curate.store import index
from curate.store.files import Files, open_files


def update(files: Files, closing: Callable[[index.Counts], None] | None = None) -> int:
    """`index.update` elsewhere. Raises StoreError with its reason; the parts are safe whatever happens to it."""
    command = [sys.executable, "-m", "curate.store.apart", files.uri]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdin and child.stdout
        for line in child.stdout:
            match json.loads(line):
                case {"warning": text}:
                    logging.getLogger("curate").warning("%s", text)
                case {"counts": counts}:
                    if closing:
                        closing(counts)
                    child.stdin.write("\n")
                    child.stdin.flush()
                case {"error": text}:
                    raise StoreError(text)
                case {"added": added}:
                    return int(added)
    raise StoreError(
        f"the process that makes the index ended with code {child.returncode}; "
        f"nothing is lost, make it with: curate store ingest {files.uri}"
    )


class _Tell(logging.Handler):
    """Warnings travel to the process that shows them."""

    def emit(self, record: logging.LogRecord) -> None:
        _say({"warning": record.getMessage()})


def _say(message: object) -> None:
    sys.stdout.write(json.dumps(message) + "\n")
    sys.stdout.flush()


def _closing(counts: index.Counts) -> None:
    """Wait until the run's record holds the counts."""
    _say({"counts": counts})
    if not sys.stdin.readline():
        sys.exit("the run that asked for the index has ended")


def main() -> None:
    """Update the index of the store at the URI that is the only argument."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the run decides
    pa.set_memory_pool(pa.system_memory_pool())  # gives pages back at once: 70 MB less at the peak
    logging.getLogger("curate").addHandler(_Tell())
    try:
        _say({"added": index.update(open_files(sys.argv[1]), closing=_closing)})
    except CurateError as why:
        _say({"error": str(why)})


if __name__ == "__main__":
    main()
