"""A real server over a store with accounts and a campaign, for tests of the pages."""

from __future__ import annotations

import contextlib
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx

from curate.rate import campaign, users
from curate.rate.ledger import Ledger
from curate.store import Store

PASSWORD = "correct horse battery"


def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


def with_people(store: Path, **roles: str) -> None:
    """Add accounts `name=role`, all with PASSWORD."""
    ledger = Ledger(store / "ratings.sqlite")
    password = users.hashed(PASSWORD)

    def add(db: object) -> None:
        for name, role in roles.items():
            user_id = users.add(db, name, role, None, 0)  # type: ignore[arg-type]
            db.execute("UPDATE users SET password = ? WHERE id = ?", [password, user_id])  # type: ignore[attr-defined]

    ledger.write(add)
    ledger.close()


def with_campaign(store: Path, **plan: object) -> int:
    """Make a campaign; returns its id."""
    ledger = Ledger(store / "ratings.sqlite")
    wanted: dict[str, object] = {"name": "test", "where": "TRUE", "votes": 1, "gold_every": 0, "repeat_every": 0} | plan
    made = campaign.create(ledger, Store(store), campaign.Plan(**wanted))  # type: ignore[arg-type]
    ledger.close()
    return made


@contextlib.contextmanager
def serving(store: Path, port: int = 0, *options: str) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """`curate serve` in a process of its own: its address, and the process."""
    command = [sys.executable, "-m", "curate.cli", "serve", str(store), "--port", str(port), *options]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout
        line = process.stdout.readline()
        found = re.search(r"http://\S+", line)
        try:
            assert found, process.stderr.read() if process.stderr else line
            yield found.group(), process
        finally:
            process.terminate()
            process.communicate(timeout=30)


class Browser(httpx.Client):
    """A client that behaves as our pages do: keeps cookies, sends its origin, and the token of its session."""

    def __init__(self, address: str) -> None:
        super().__init__(base_url=address, timeout=30, headers={"origin": address})

    def sign_in(self, name: str, password: str = PASSWORD) -> httpx.Response:
        """Log in by the form and take the session's token."""
        answer = self.post("/login", data={"name": name, "password": password})
        if answer.status_code == 303:
            self.headers["x-csrf-token"] = self.get("/api/me").json()["csrf"]
        return answer
