"""The command `curate`, and `python -m curate`: Ctrl-C and `kill` end it with one line while it is being loaded."""

from __future__ import annotations

import os
import signal
import sys
from types import FrameType
from typing import NoReturn

TAKE_SIGTERM = ("synth",)  # commands that take SIGTERM for Ctrl-C as soon as they begin
TOLD = b"curate: interrupted; run the same command to go on\n"


def main() -> None:
    """Load the command line, which takes a second or two on a busy machine, and run it."""
    before = [(number, signal.getsignal(number)) for number in (signal.SIGINT, signal.SIGTERM)]
    for number, handler in before:
        if handler != signal.SIG_IGN:  # as in a shell's background job
            signal.signal(number, _stopped)
    from curate.cli import main as run

    for number, handler in before:
        if number == signal.SIGINT or "".join(sys.argv[1:2]) not in TAKE_SIGTERM:
            signal.signal(number, handler)
    run()


def _stopped(number: int, frame: FrameType | None) -> NoReturn:
    # Nothing has been written yet, and an exception in the middle of an import may be taken for another one.
    os.write(sys.stderr.fileno(), TOLD)
    os._exit(1)


if __name__ == "__main__":
    main()
