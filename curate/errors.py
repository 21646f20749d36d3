"""What can go wrong for the user, and the exit code that says so.

    CurateError            1   the run or command failed
    ├── UsageError         2   bad arguments, bad recipe, bad SQL: names the key, the value and the fix
    └── StoreError         1   the store is missing, damaged or of another version

Each message is one clear line; the command line prints it without a traceback. Errors of single rows and shards
are data and no exceptions of the run: schemas/errors.py.
"""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches

MOST_LISTED = 12  # known words in a hint
DONE, FAILED, USAGE, TOO_MANY_FAILED_ROWS = 0, 1, 2, 3


class CurateError(Exception):
    """The command failed; the message says what, where and how to fix it."""

    exit_code = FAILED


class UsageError(CurateError):
    """The user's input is wrong."""

    exit_code = USAGE


class StoreError(CurateError):
    """The store is missing, damaged or of another version."""


def nearest(word: str, known: Iterable[str]) -> str:
    """A hint `; did you mean 'x'?` when a known word is close, else a list of the known words."""
    words = sorted(known)
    close = get_close_matches(word, words, n=1, cutoff=0.6)
    if close:
        return f"; did you mean {close[0]!r}?"
    listed = ", ".join(words[:MOST_LISTED]) + (
        f" and {len(words) - MOST_LISTED} more" if len(words) > MOST_LISTED else ""
    )
    return f"; known: {listed}" if words else ""
