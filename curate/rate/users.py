"""Accounts: invitations, passwords, sessions, limits.

Nobody registers: an account is made by `curate users add` or by an admin, and its owner chooses a password at a link
that works once. Keys of links and of sessions are random and stored as SHA-256, so that a copy of the file opens
nothing; passwords are stored by argon2id. A session ends after IDLE_MS without a request, at most SESSION_MS after the
login, with a new password, and when the account is disabled.
"""

from __future__ import annotations

import functools
import hashlib
import hmac
import json
import secrets
import sqlite3
import unicodedata
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from curate.errors import UsageError
from curate.rate import queue
from curate.rate.ledger import Ledger, audit

if TYPE_CHECKING:
    from argon2 import PasswordHasher

ROLES = ("rater", "lead", "admin")  # each may do what those before it may
LOCAL = "local"  # the lead of a store that nobody else has an account for
HOUR_MS = 3_600_000
INVITATION_MS = 7 * 24 * HOUR_MS
SESSION_MS = 14 * 24 * HOUR_MS
IDLE_MS = 24 * HOUR_MS
TOUCH_MS = 5 * 60_000  # how exactly the last request of a session is known
LIMIT_MS = 15 * 60_000
MOST_FAILURES = {"name": 8, "address": 40}  # within LIMIT_MS; then even the right password waits
PASSWORD = (10, 200)  # characters


@dataclass(frozen=True)
class Person:
    """Who asks."""

    id: int
    name: str
    role: str
    settings: dict[str, Any] = field(default_factory=dict)
    session: str = ""  # hash of the session's key

    def may(self, role: str) -> bool:
        """Whether the person's role includes `role`."""
        return ROLES.index(self.role) >= ROLES.index(role)


class LoginError(Exception):
    """The login failed; `wait` when it failed because there were too many before it."""

    def __init__(self, wait: bool = False) -> None:
        super().__init__("too many attempts" if wait else "wrong name or password")
        self.wait = wait


def add(db: sqlite3.Connection, name: str, role: str, by: int | None, now: int) -> int:
    """A new account without a password; returns its id. Raises UsageError for a bad name, or one that is taken."""
    name = normal(name)
    if role not in ROLES:
        raise UsageError(f"role {role!r}: use one of: {', '.join(ROLES)}")
    if not (1 <= len(name) <= 40 and name.isprintable()):
        raise UsageError(f"name {name!r}: 1 to 40 printable characters")
    try:
        cursor = db.execute("INSERT INTO users (name, role, created_ms) VALUES (?, ?, ?)", [name, role, now])
    except sqlite3.IntegrityError:
        raise UsageError(f"an account named {name!r} is there already") from None
    audit(db, now, by, "account added", name, role)
    return int(cursor.lastrowid or 0)


def normal(name: str) -> str:
    """A name as accounts have it: one that is typed in full width is the same."""
    return unicodedata.normalize("NFKC", name).strip()


def named(db: sqlite3.Connection, name: str) -> sqlite3.Row:
    """The account of that name; raises UsageError."""
    row: sqlite3.Row | None = db.execute("SELECT * FROM users WHERE name = ?", [normal(name)]).fetchone()
    if row is None:
        names = [r["name"] for r in db.execute("SELECT name FROM users ORDER BY name LIMIT 12")]
        raise UsageError(f"no account named {name!r}" + (f"; there are: {', '.join(names)}" if names else ""))
    return row


def any_account(db: sqlite3.Connection) -> bool:
    """Whether anybody has an account: from then on every page asks for a login."""
    return db.execute("SELECT 1 FROM users WHERE name <> ? LIMIT 1", [LOCAL]).fetchone() is not None


def local_lead(db: sqlite3.Connection, now: int) -> int:
    """The account of the one who serves a store on the own machine; it has no password and is opened by a link."""
    row = db.execute("SELECT id FROM users WHERE name = ?", [LOCAL]).fetchone()
    return int(row["id"]) if row else add(db, LOCAL, "admin", None, now)


def invite(db: sqlite3.Connection, user_id: int, by: int | None, now: int, *, kind: str = "password") -> str:
    """The key of a link that works once: to choose a password, or (kind `session`) to be signed in at once."""
    key = secrets.token_urlsafe(24)
    db.execute("DELETE FROM invitations WHERE user_id = ? AND used_ms IS NULL", [user_id])
    life = INVITATION_MS if kind == "password" else 12 * HOUR_MS
    db.execute("INSERT INTO invitations VALUES (?, ?, ?, ?, ?, NULL)", [digest(key), user_id, by, kind, now + life])
    audit(db, now, by, "invited", str(user_id), kind)
    return key


def invitation(db: sqlite3.Connection, key: str, now: int) -> sqlite3.Row | None:
    """The open invitation of a key, with `name` of the account."""
    row: sqlite3.Row | None = db.execute(
        "SELECT i.*, u.name FROM invitations AS i JOIN users AS u ON u.id = i.user_id WHERE hash = ? "
        "AND used_ms IS NULL AND expires_ms > ? AND u.disabled_ms IS NULL",
        [digest(key), now],
    ).fetchone()
    return row


def redeem(db: sqlite3.Connection, key: str, password_hash: str | None, now: int) -> int | None:
    """Use up an invitation: set the password it is for; returns the account, None when the link is no good any more."""
    row = invitation(db, key, now)
    if row is None or (row["kind"] == "password") != (password_hash is not None):
        return None
    db.execute("UPDATE invitations SET used_ms = ? WHERE hash = ?", [now, row["hash"]])
    if password_hash is not None:
        db.execute("UPDATE users SET password = ? WHERE id = ?", [password_hash, row["user_id"]])
        db.execute("DELETE FROM sessions WHERE user_id = ?", [row["user_id"]])
    audit(db, now, row["user_id"], "invitation used", row["kind"])
    return int(row["user_id"])


def check_password(password: str, name: str) -> None:
    """Raises UsageError for a password that is too short, too long or the name."""
    low, high = PASSWORD
    if not low <= len(password) <= high:
        raise UsageError(f"a password has {low} to {high} characters")
    if password.casefold().strip() in (name.casefold(), name.casefold() * 2) or len(set(password)) < 4:
        raise UsageError("this password is too easy to guess")


def login(ledger: Ledger, name: str, password: str, address: str) -> int:
    """The account whose name and password these are. Raises LoginError, after the same work whatever is wrong.

    Failures are counted for the name and for the address, in the file, so that they hold over all worker processes.
    """
    now = ledger.clock()
    name = normal(name)
    subjects = {"name": f"name:{name.casefold()[:80]}", "address": f"address:{address}"}
    db = ledger.read()
    for kind, subject in subjects.items():
        count = db.execute(
            "SELECT count(*) FROM failures WHERE subject = ? AND at_ms > ?", [subject, now - LIMIT_MS]
        ).fetchone()[0]
        if count >= MOST_FAILURES[kind]:
            raise LoginError(wait=True)
    row = db.execute("SELECT * FROM users WHERE name = ?", [name]).fetchone()
    good = verify(row["password"] if row and row["password"] else _nobody(), password)
    if row is None or row["password"] is None or row["disabled_ms"] is not None or not good:

        def fail(sql: sqlite3.Connection) -> None:
            sql.execute("DELETE FROM failures WHERE at_ms < ?", [now - LIMIT_MS])
            sql.executemany("INSERT INTO failures VALUES (?, ?)", [(subject, now) for subject in subjects.values()])
            audit(sql, now, row["id"] if row else None, "login failed", name[:80], address)

        ledger.write(fail)
        raise LoginError
    return int(row["id"])


def open_session(db: sqlite3.Connection, user_id: int, now: int, old: str = "") -> str:
    """A new session; returns its key. The session whose key came with the request ends, so that none can be planted."""
    key = secrets.token_urlsafe(32)
    db.execute("DELETE FROM sessions WHERE expires_ms < ? OR hash = ?", [now, digest(old)])
    db.execute("INSERT INTO sessions VALUES (?, ?, ?, ?, ?)", [digest(key), user_id, now, now, now + SESSION_MS])
    name = db.execute("SELECT name FROM users WHERE id = ?", [user_id]).fetchone()["name"]
    db.execute("DELETE FROM failures WHERE subject = ?", [f"name:{name.casefold()}"])
    audit(db, now, user_id, "signed in")
    return key


def person(db: sqlite3.Connection, key: str, now: int) -> tuple[Person, bool] | None:
    """Whose session this is, and whether its last request should be noted (touch); None when it is over."""
    row = db.execute(
        "SELECT u.id, u.name, u.role, u.settings, s.hash, s.seen_ms FROM sessions AS s JOIN users AS u "
        "ON u.id = s.user_id WHERE s.hash = ? AND s.expires_ms > ? AND s.seen_ms > ? AND u.disabled_ms IS NULL",
        [digest(key), now, now - IDLE_MS],
    ).fetchone()
    if row is None:
        return None
    who = Person(row["id"], row["name"], row["role"], json.loads(row["settings"]), row["hash"])
    return who, now - row["seen_ms"] > TOUCH_MS


def touch(db: sqlite3.Connection, session: str, now: int) -> None:
    """Note that the session is in use."""
    db.execute("UPDATE sessions SET seen_ms = ? WHERE hash = ?", [now, session])


def close_session(db: sqlite3.Connection, session: str) -> None:
    """Sign out."""
    db.execute("DELETE FROM sessions WHERE hash = ?", [session])


def set_disabled(db: sqlite3.Connection, user_id: int, disabled: bool, by: int | None, now: int) -> None:
    """Disable an account (its sessions end, its leases are given back, its votes stay) or enable it again."""
    row = db.execute("SELECT name, role FROM users WHERE id = ?", [user_id]).fetchone()
    if disabled:
        _keep_an_admin(db, user_id)
    db.execute("UPDATE users SET disabled_ms = ? WHERE id = ?", [now if disabled else None, user_id])
    if disabled:
        db.execute("DELETE FROM sessions WHERE user_id = ?", [user_id])
        db.execute("DELETE FROM invitations WHERE user_id = ? AND used_ms IS NULL", [user_id])
        queue.release(db, user_id, now)
    audit(db, now, by, "account disabled" if disabled else "account enabled", row["name"])


def set_role(db: sqlite3.Connection, user_id: int, role: str, by: int | None, now: int) -> None:
    """Give an account another role."""
    if role not in ROLES:
        raise UsageError(f"role {role!r}: use one of: {', '.join(ROLES)}")
    if role != "admin":
        _keep_an_admin(db, user_id)
    db.execute("UPDATE users SET role = ? WHERE id = ?", [role, user_id])
    audit(db, now, by, "role changed", str(user_id), role)


def csrf_token(secret: bytes, session: str) -> str:
    """The token that a form of this session carries."""
    return hmac.new(secret, b"csrf:" + session.encode(), hashlib.sha256).hexdigest()


def pseudonym(secret: bytes, user_id: int) -> str:
    """The name under which a person's votes leave the store: the same in every export, and no way back without the
    key.
    """
    return "r" + hmac.new(secret, f"rater:{user_id}".encode(), hashlib.sha256).hexdigest()[:10]


def metrics_token(secret: bytes) -> str:
    """What a Prometheus server shows as its bearer token."""
    return hmac.new(secret, b"metrics", hashlib.sha256).hexdigest()


def digest(key: str) -> str:
    """What is stored of a key."""
    return hashlib.sha256(key.encode()).hexdigest()


def hashed(password: str) -> str:
    """argon2id of a password."""
    return _hasher().hash(password)


def verify(stored: str, password: str) -> bool:
    """Whether `password` is the one that was hashed."""
    from argon2.exceptions import Argon2Error, InvalidHashError

    try:
        return _hasher().verify(stored, password)
    except (Argon2Error, InvalidHashError):
        return False


@functools.cache
def _hasher() -> PasswordHasher:
    from argon2 import PasswordHasher

    # OWASP's second choice: little memory, so that a hundred logins at once do not take the machine's.
    return PasswordHasher(time_cost=3, memory_cost=19 * 1024, parallelism=1)


@functools.cache
def _nobody() -> str:
    """The hash of a password that nobody has: checking a name that is not there takes as long as one that is."""
    return hashed(secrets.token_urlsafe(16))


def _keep_an_admin(db: sqlite3.Connection, user_id: int) -> None:
    others = db.execute(
        "SELECT count(*) FROM users WHERE role = 'admin' AND disabled_ms IS NULL AND id <> ? AND name <> ?",
        [user_id, LOCAL],
    ).fetchone()[0]
    row = db.execute("SELECT role, name FROM users WHERE id = ?", [user_id]).fetchone()
    if row["role"] == "admin" and row["name"] != LOCAL and not others:
        raise UsageError("this is the last admin; make another one first")
