"""ratings.sqlite: the tables, and the one thread that writes.

    ledger = Ledger(path)
    ledger.write(lambda db: db.execute("..."))      # returns once the change is on the disk

What people say is the one thing here that cannot be computed again, so a write returns after its transaction is
committed with `synchronous=FULL`: what was acknowledged outlives kill -9 and a power cut. Writes that arrive while a
commit is under way share the next one (one fsync for all of them), each under a savepoint of its own. Several
processes may hold the same file; SQLite lets one of them commit at a time.

`events` is append-only (a trigger refuses anything else) and decides everything: `votes`, `items.tier` and the
counters say what follows from it, in the same transaction.
"""

from __future__ import annotations

import contextlib
import os
import queue
import secrets
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any, TypeVar

from curate.errors import StoreError, UsageError
from curate.store.files import Files

Answer = TypeVar("Answer")

LAYOUT = 2
MOST_AT_ONCE = 64  # writes that share one commit
BUSY_MS = 10_000  # how long a commit of another process may keep us waiting
NAME = "ratings.sqlite"

# Lists of a campaign's images that pages and the queue read from the front, without walking over a million others.
_INDEXES = """
CREATE INDEX ready ON items (campaign_id, urgent, position, cluster) WHERE open = 1;
CREATE INDEX begun ON items (campaign_id, id) WHERE tier IS NULL AND votes > 0 AND gold_tier IS NULL;
CREATE INDEX disputes ON items (campaign_id, disputed DESC, id) WHERE disputed > 0;
"""
# Counters follow from what they count by triggers, whoever changes it: numbers of a million images cost a look.
_COUNTERS = """
CREATE TABLE pace (                   -- votes a minute
    campaign_id INTEGER NOT NULL, minute INTEGER NOT NULL, votes INTEGER NOT NULL,
    PRIMARY KEY (campaign_id, minute)) STRICT, WITHOUT ROWID;
CREATE TRIGGER images_are_counted AFTER UPDATE OF tier, votes, disputed ON items
WHEN old.tier IS NOT new.tier OR old.votes <> new.votes OR old.disputed <> new.disputed BEGIN
    UPDATE campaigns SET done = done + (new.tier IS NOT NULL) - (old.tier IS NOT NULL),
        cast_votes = cast_votes + new.votes - old.votes,
        disputed = disputed + (new.disputed > 0) - (old.disputed > 0),
        tier1 = tier1 + (new.tier IS 1) - (old.tier IS 1), tier2 = tier2 + (new.tier IS 2) - (old.tier IS 2),
        tier3 = tier3 + (new.tier IS 3) - (old.tier IS 3), tier4 = tier4 + (new.tier IS 4) - (old.tier IS 4),
        tier5 = tier5 + (new.tier IS 5) - (old.tier IS 5)
    WHERE id = new.campaign_id; END;
CREATE TRIGGER votes_are_counted AFTER INSERT ON votes WHEN new.part = 'work' BEGIN
    INSERT INTO pace VALUES (new.campaign_id, new.at_ms / 60000, 1) ON CONFLICT DO UPDATE SET votes = votes + 1; END;
CREATE TRIGGER votes_are_taken_back AFTER DELETE ON votes WHEN old.part = 'work' BEGIN
    UPDATE pace SET votes = votes - 1 WHERE campaign_id = old.campaign_id AND minute = old.at_ms / 60000; END;
"""
TABLES = """
CREATE TABLE users (
    id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE COLLATE NOCASE,
    role TEXT NOT NULL CHECK (role IN ('rater', 'lead', 'admin')),
    password TEXT, settings TEXT NOT NULL DEFAULT '{}', disabled_ms INTEGER, created_ms INTEGER NOT NULL) STRICT;
CREATE TABLE invitations (            -- one-time links, by the hash of their key
    hash TEXT PRIMARY KEY, user_id INTEGER NOT NULL REFERENCES users, made_by INTEGER REFERENCES users,
    kind TEXT NOT NULL CHECK (kind IN ('password', 'session')), expires_ms INTEGER NOT NULL, used_ms INTEGER) STRICT;
CREATE TABLE sessions (               -- by the hash of the cookie
    hash TEXT PRIMARY KEY, user_id INTEGER NOT NULL REFERENCES users, created_ms INTEGER NOT NULL,
    seen_ms INTEGER NOT NULL, expires_ms INTEGER NOT NULL) STRICT;
CREATE INDEX sessions_of ON sessions (user_id);
CREATE TABLE failures (               -- logins that went wrong, for the limits
    subject TEXT NOT NULL, at_ms INTEGER NOT NULL) STRICT;
CREATE INDEX failures_of ON failures (subject, at_ms);
CREATE TABLE audit (
    id INTEGER PRIMARY KEY AUTOINCREMENT, at_ms INTEGER NOT NULL, user_id INTEGER REFERENCES users,
    action TEXT NOT NULL, subject TEXT NOT NULL DEFAULT '', detail TEXT NOT NULL DEFAULT '') STRICT;

CREATE TABLE campaigns (
    id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE,
    state TEXT NOT NULL CHECK (state IN ('running', 'paused', 'closed')),
    votes INTEGER NOT NULL CHECK (votes BETWEEN 1 AND 15), extra_votes INTEGER NOT NULL CHECK (extra_votes >= 0),
    keep_tier INTEGER NOT NULL CHECK (keep_tier BETWEEN 1 AND 5), gold_every INTEGER NOT NULL,
    repeat_every INTEGER NOT NULL, captions TEXT NOT NULL CHECK (captions IN ('shown', 'after', 'hidden')),
    everyone INTEGER NOT NULL, condition TEXT NOT NULL, sampling TEXT NOT NULL, seed INTEGER NOT NULL,
    created_ms INTEGER NOT NULL, created_by INTEGER REFERENCES users,
    images INTEGER NOT NULL DEFAULT 0, done INTEGER NOT NULL DEFAULT 0, cast_votes INTEGER NOT NULL DEFAULT 0,
    reopened INTEGER NOT NULL DEFAULT 0,
    tier1 INTEGER NOT NULL DEFAULT 0, tier2 INTEGER NOT NULL DEFAULT 0, tier3 INTEGER NOT NULL DEFAULT 0,
    tier4 INTEGER NOT NULL DEFAULT 0, tier5 INTEGER NOT NULL DEFAULT 0, disputed INTEGER NOT NULL DEFAULT 0,
    resettle_after INTEGER) STRICT;  -- images up to this id stand under the rule; NULL: all do
CREATE TABLE rubrics (                -- every version of a campaign's rubric; events name the one they were made under
    campaign_id INTEGER NOT NULL REFERENCES campaigns, version INTEGER NOT NULL, body TEXT NOT NULL,
    at_ms INTEGER NOT NULL, PRIMARY KEY (campaign_id, version)) STRICT;
CREATE TABLE assigned (
    campaign_id INTEGER NOT NULL REFERENCES campaigns, user_id INTEGER NOT NULL REFERENCES users,
    PRIMARY KEY (campaign_id, user_id)) STRICT, WITHOUT ROWID;
CREATE TABLE items (                  -- an image of a campaign
    id INTEGER PRIMARY KEY, campaign_id INTEGER NOT NULL REFERENCES campaigns, position INTEGER NOT NULL,
    sha256 TEXT NOT NULL, row_id TEXT NOT NULL, width INTEGER NOT NULL, height INTEGER NOT NULL,
    cluster INTEGER NOT NULL DEFAULT 0, gold_tier INTEGER, exemplar_tier INTEGER,
    wanted INTEGER NOT NULL, votes INTEGER NOT NULL DEFAULT 0, skips INTEGER NOT NULL DEFAULT 0,
    open INTEGER NOT NULL, urgent INTEGER NOT NULL DEFAULT 0, tier INTEGER, rule TEXT,
    disputed INTEGER NOT NULL DEFAULT 0, risky INTEGER NOT NULL DEFAULT 0,
    UNIQUE (campaign_id, sha256), CHECK (votes <= wanted)) STRICT;
CREATE INDEX golds ON items (campaign_id) WHERE gold_tier IS NOT NULL;
CREATE INDEX exemplars ON items (campaign_id) WHERE exemplar_tier IS NOT NULL;
CREATE INDEX tiers ON items (campaign_id, tier) WHERE tier IS NOT NULL;
CREATE TABLE words (                  -- the captions that are shown beside an image
    item_id INTEGER PRIMARY KEY REFERENCES items, raw TEXT, en TEXT, zh TEXT) STRICT;

CREATE TABLE leases (                 -- the number of a lease is its fence: a later one of the same image is higher
    id INTEGER PRIMARY KEY AUTOINCREMENT, campaign_id INTEGER NOT NULL REFERENCES campaigns,
    item_id INTEGER NOT NULL REFERENCES items, user_id INTEGER NOT NULL REFERENCES users,
    kind TEXT NOT NULL CHECK (kind IN ('work', 'gold', 'repeat')),
    issued_ms INTEGER NOT NULL, expires_ms INTEGER NOT NULL, closed_ms INTEGER, outcome TEXT) STRICT;
CREATE UNIQUE INDEX one_open_lease ON leases (user_id, item_id) WHERE closed_ms IS NULL;
CREATE INDEX leases_of ON leases (user_id, item_id);
CREATE INDEX leases_on ON leases (item_id) WHERE closed_ms IS NULL;
CREATE INDEX lease_ends ON leases (expires_ms) WHERE closed_ms IS NULL;
CREATE TABLE seen (                   -- images that a person is not to be asked about any more
    user_id INTEGER NOT NULL, item_id INTEGER NOT NULL, PRIMARY KEY (user_id, item_id)) STRICT, WITHOUT ROWID;
CREATE TABLE desks (                  -- where a person stands in a campaign
    campaign_id INTEGER NOT NULL REFERENCES campaigns, user_id INTEGER NOT NULL REFERENCES users,
    served INTEGER NOT NULL DEFAULT 0, rated INTEGER NOT NULL DEFAULT 0,
    place INTEGER NOT NULL DEFAULT -1, urgent_place INTEGER NOT NULL DEFAULT -1, dry INTEGER NOT NULL DEFAULT -1,
    round INTEGER NOT NULL DEFAULT -1, PRIMARY KEY (campaign_id, user_id)) STRICT, WITHOUT ROWID;

CREATE TABLE events (                 -- everything that anybody said, in order; the client's key makes a retry harmless
    id INTEGER PRIMARY KEY AUTOINCREMENT, key TEXT NOT NULL UNIQUE, campaign_id INTEGER NOT NULL REFERENCES campaigns,
    item_id INTEGER NOT NULL REFERENCES items, user_id INTEGER NOT NULL REFERENCES users,
    kind TEXT NOT NULL CHECK (kind IN ('vote', 'skip', 'undo', 'adjudicate')), tier INTEGER,
    flags TEXT NOT NULL DEFAULT '', reason TEXT, part TEXT NOT NULL, counted INTEGER NOT NULL, undoes INTEGER,
    lease_id INTEGER, rubric_version INTEGER NOT NULL, seconds REAL, at_ms INTEGER NOT NULL,
    context TEXT NOT NULL DEFAULT '{}', CHECK (tier IS NULL OR tier BETWEEN 1 AND 5)) STRICT;
CREATE INDEX events_of ON events (campaign_id, user_id, id);
CREATE INDEX events_by ON events (user_id, at_ms);
CREATE INDEX events_on ON events (item_id, id);
CREATE TRIGGER events_are_kept BEFORE DELETE ON events BEGIN SELECT raise(ABORT, 'events are append-only'); END;
CREATE TRIGGER events_stay BEFORE UPDATE ON events BEGIN SELECT raise(ABORT, 'events are append-only'); END;
CREATE TABLE votes (                  -- the votes that count now; `part` keeps hidden repeats apart from first answers
    item_id INTEGER NOT NULL REFERENCES items, user_id INTEGER NOT NULL REFERENCES users, part TEXT NOT NULL,
    campaign_id INTEGER NOT NULL, event_id INTEGER NOT NULL REFERENCES events, tier INTEGER NOT NULL,
    flags TEXT NOT NULL, seconds REAL, at_ms INTEGER NOT NULL,
    PRIMARY KEY (item_id, user_id, part)) STRICT, WITHOUT ROWID;
CREATE INDEX votes_of ON votes (campaign_id, user_id, event_id);
CREATE TABLE releases (
    id INTEGER PRIMARY KEY, campaign_id INTEGER NOT NULL REFERENCES campaigns, at_ms INTEGER NOT NULL,
    path TEXT NOT NULL, sha256 TEXT NOT NULL, facts TEXT NOT NULL) STRICT;
"""
TABLES += _INDEXES + _COUNTERS
# What brings a ledger of an older layout to the next one: votes of people are not to be lost to a new version.
UPGRADES = {
    1: """
ALTER TABLE campaigns ADD COLUMN tier1 INTEGER NOT NULL DEFAULT 0;
ALTER TABLE campaigns ADD COLUMN tier2 INTEGER NOT NULL DEFAULT 0;
ALTER TABLE campaigns ADD COLUMN tier3 INTEGER NOT NULL DEFAULT 0;
ALTER TABLE campaigns ADD COLUMN tier4 INTEGER NOT NULL DEFAULT 0;
ALTER TABLE campaigns ADD COLUMN tier5 INTEGER NOT NULL DEFAULT 0;
ALTER TABLE campaigns ADD COLUMN disputed INTEGER NOT NULL DEFAULT 0;
ALTER TABLE campaigns ADD COLUMN resettle_after INTEGER;
ALTER TABLE items ADD COLUMN disputed INTEGER NOT NULL DEFAULT 0;
ALTER TABLE items ADD COLUMN risky INTEGER NOT NULL DEFAULT 0;
ALTER TABLE desks ADD COLUMN round INTEGER NOT NULL DEFAULT -1;
DROP INDEX ready;
UPDATE campaigns SET tier1 = (SELECT count(*) FROM items WHERE campaign_id = campaigns.id AND tier = 1),
    tier2 = (SELECT count(*) FROM items WHERE campaign_id = campaigns.id AND tier = 2),
    tier3 = (SELECT count(*) FROM items WHERE campaign_id = campaigns.id AND tier = 3),
    tier4 = (SELECT count(*) FROM items WHERE campaign_id = campaigns.id AND tier = 4),
    tier5 = (SELECT count(*) FROM items WHERE campaign_id = campaigns.id AND tier = 5), resettle_after = 0;
"""
    + _INDEXES
    + _COUNTERS
    + "INSERT INTO pace SELECT campaign_id, at_ms / 60000, count(*) FROM votes WHERE part = 'work' GROUP BY 1, 2;\n"
}


def now_ms() -> int:
    """Milliseconds since 1970."""
    return time.time_ns() // 1_000_000


def ledger_path(files: Files) -> Path:
    """Where the ratings of a store lie; raises UsageError for a store that is not on a local disk."""
    path = files.local(NAME)
    if path is None:
        raise UsageError(
            f"{files.uri}: ratings are kept in SQLite and need a store on a local disk; copy the store's folder there "
            "(the shards may stay where they are)"
        )
    return path


class Ledger:
    """The ratings of one store. Safe to use from many threads; close it to stop the writer."""

    def __init__(self, path: Path, clock: Callable[[], int] = now_ms) -> None:
        self.path = path
        self.clock = clock
        self._local = threading.local()
        self._readers: list[sqlite3.Connection] = []
        self._wishes: queue.SimpleQueue[tuple[Callable[[sqlite3.Connection], Any], Future[Any]] | None] = (
            queue.SimpleQueue()
        )
        self._closing = threading.Lock()
        self._closed = False
        self._create()
        self._writer = threading.Thread(target=self._work, name="ratings", daemon=True)
        self._writer.start()

    @property
    def secret(self) -> bytes:
        """32 random bytes of this store, made at first use and readable by its owner only."""
        path = self.path.with_name("ratings.secret")
        try:
            found = path.read_bytes()
        except FileNotFoundError:
            draft = path.with_name(f".{secrets.token_hex(8)}.secret")
            handle = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(handle, "wb") as file:
                file.write(secrets.token_bytes(32))
                file.flush()
                os.fsync(file.fileno())
            with contextlib.suppress(FileExistsError):  # another process was quicker; its secret holds
                os.link(draft, path)
            draft.unlink()
            found = path.read_bytes()
        if len(found) != 32:
            raise StoreError(
                f"{path}: has {len(found)} bytes, must have 32; remove it to make a new one (signs all out)"
            )
        return found

    def read(self) -> sqlite3.Connection:
        """This thread's read-only connection; each statement sees everything that was acknowledged before it."""
        db: sqlite3.Connection | None = getattr(self._local, "db", None)
        if db is None:
            db = _open(self.path)
            db.execute("PRAGMA query_only = ON")
            db.execute(
                "PRAGMA cache_size = -2000"
            )  # there is one for each thread, and the file is in the system's cache
            self._local.db = db
            with self._closing:
                self._readers.append(db)
        return db

    @contextlib.contextmanager
    def snapshot(self) -> Iterator[sqlite3.Connection]:
        """A connection of its own that sees one state of the ledger: for what reads long, from any thread."""
        with contextlib.closing(_open(self.path)) as db:
            db.execute("PRAGMA query_only = ON")
            db.execute("BEGIN")
            yield db

    def submit(self, change: Callable[[sqlite3.Connection], Answer]) -> Future[Answer]:
        """Queue a change; the future has its answer once it is on the disk, or what it raised and then left undone."""
        future: Future[Answer] = Future()
        with self._closing:
            if self._closed:
                raise StoreError(f"{self.path}: closed")
            self._wishes.put((change, future))
        return future

    def write(self, change: Callable[[sqlite3.Connection], Answer]) -> Answer:
        """As `submit`, waiting for the answer."""
        return self.submit(change).result()

    def backup(self, target: Path) -> None:
        """A copy of the whole ledger as of now, made while others write; raises UsageError when `target` exists."""
        if target.exists():
            raise UsageError(f"{target} is already there; name a new file")
        draft = target.with_name(f".{target.name}.{secrets.token_hex(4)}")
        try:
            with contextlib.closing(sqlite3.connect(draft)) as copy:
                _open_source = _open(self.path)
                with contextlib.closing(_open_source):
                    _open_source.backup(copy, pages=4096)
            draft.chmod(0o600)
            with draft.open("rb") as file:
                os.fsync(file.fileno())
            draft.rename(target)
        except (OSError, sqlite3.Error) as why:
            draft.unlink(missing_ok=True)
            raise UsageError(f"{target}: {why}") from None

    def close(self) -> None:
        """Finish what is queued and close the connections."""
        with self._closing:
            if self._closed:
                return
            self._closed = True
            self._wishes.put(None)
        self._writer.join()
        for db in self._readers:
            db.close()

    def _create(self) -> None:
        new = not self.path.exists()
        if new:
            os.close(os.open(self.path, os.O_WRONLY | os.O_CREAT, 0o600))
        with contextlib.closing(_open(self.path)) as db:
            layout = db.execute("PRAGMA user_version").fetchone()[0]
            if not 0 <= layout <= LAYOUT:
                raise StoreError(f"{self.path}: layout {layout}; this version reads 1 to {LAYOUT}")
            if layout < LAYOUT:
                with immediate(db):
                    for at in range(db.execute("PRAGMA user_version").fetchone()[0], LAYOUT):
                        for statement in _statements(UPGRADES[at] if at else TABLES):
                            db.execute(statement)
                        if not at:
                            break
                    db.execute(f"PRAGMA user_version = {LAYOUT}")

    def _work(self) -> None:
        db = _open(self.path)
        try:
            while True:
                first = self._wishes.get()
                if first is None:
                    return
                batch = [first]
                while len(batch) < MOST_AT_ONCE:
                    try:
                        more = self._wishes.get_nowait()
                    except queue.Empty:
                        break
                    if more is None:
                        self._wishes.put(None)
                        break
                    batch.append(more)
                self._commit(db, batch)
        finally:
            db.close()

    def _commit(
        self, db: sqlite3.Connection, batch: list[tuple[Callable[[sqlite3.Connection], Any], Future[Any]]]
    ) -> None:
        answers: list[tuple[Future[Any], Any, BaseException | None]] = []
        batch = [wish for wish in batch if wish[1].set_running_or_notify_cancel()]  # whoever hung up is not served
        try:
            with immediate(db):
                for change, future in batch:
                    db.execute("SAVEPOINT one")
                    try:
                        answers.append((future, change(db), None))
                    except BaseException as why:
                        db.execute("ROLLBACK TO one")
                        answers.append((future, None, why))
                    db.execute("RELEASE one")
        except BaseException as why:  # nothing of the batch was committed: a full disk, a lock that was not given back
            for _, future in batch:
                future.set_exception(why)
            return
        for future, answer, error in answers:
            if error is None:
                future.set_result(answer)
            else:
                future.set_exception(error)


@contextlib.contextmanager
def immediate(db: sqlite3.Connection) -> Iterator[None]:
    """A transaction that has the write lock from its start: a read that turns into a write could not wait for it."""
    db.execute("BEGIN IMMEDIATE")
    try:
        yield
        db.execute("COMMIT")
    except BaseException:
        if db.in_transaction:
            db.execute("ROLLBACK")
        raise


def audit(
    db: sqlite3.Connection, at_ms: int, user_id: int | None, action: str, subject: str = "", detail: str = ""
) -> None:
    """Note who did what, in the transaction that does it."""
    db.execute(
        "INSERT INTO audit (at_ms, user_id, action, subject, detail) VALUES (?, ?, ?, ?, ?)",
        [at_ms, user_id, action, subject, detail[:2000]],
    )


def _open(path: Path) -> sqlite3.Connection:
    try:
        db = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=BUSY_MS / 1000)
        db.row_factory = sqlite3.Row
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("PRAGMA synchronous = FULL")
        db.execute("PRAGMA foreign_keys = ON")
        db.execute("PRAGMA cache_size = -16000")
    except sqlite3.DatabaseError as why:
        raise StoreError(f"{path}: {why}") from None
    return db


def _statements(script: str) -> Iterator[str]:
    """The statements of a script; `executescript` would commit the transaction that is open."""
    held = ""
    for line in script.splitlines(keepends=True):
        held += line
        if sqlite3.complete_statement(held):
            yield held
            held = ""
