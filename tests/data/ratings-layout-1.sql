-- The tables of a ledger of layout 1, with a campaign of three images: one decided, one with a vote, one untouched.
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
    reopened INTEGER NOT NULL DEFAULT 0) STRICT;
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
    UNIQUE (campaign_id, sha256), CHECK (votes <= wanted)) STRICT;
CREATE INDEX ready ON items (campaign_id, urgent, position) WHERE open = 1;
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
    PRIMARY KEY (campaign_id, user_id)) STRICT, WITHOUT ROWID;

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

INSERT INTO users (id, name, role, created_ms) VALUES (1, 'mei', 'rater', 0), (2, 'otto', 'rater', 0);
INSERT INTO campaigns (id, name, state, votes, extra_votes, keep_tier, gold_every, repeat_every, captions, everyone,
    condition, sampling, seed, created_ms, images, done, cast_votes) VALUES
    (1, 'old', 'running', 2, 0, 4, 0, 0, 'shown', 1, 'TRUE', 'random', 0, 0, 3, 1, 3);
INSERT INTO items (id, campaign_id, position, sha256, row_id, width, height, wanted, votes, open, tier, rule) VALUES
    (1, 1, 0, 'a', 'r:0', 10, 10, 2, 2, 0, 2, 'median'), (2, 1, 1, 'b', 'r:1', 10, 10, 2, 1, 1, NULL, NULL),
    (3, 1, 2, 'c', 'r:2', 10, 10, 2, 0, 1, NULL, NULL);
INSERT INTO leases (id, campaign_id, item_id, user_id, kind, issued_ms, expires_ms, closed_ms, outcome) VALUES
    (1, 1, 1, 1, 'work', 0, 1, 1, 'voted'), (2, 1, 2, 1, 'work', 0, 1, 1, 'voted'), (3, 1, 1, 2, 'work', 0, 1, 1, 'voted');
INSERT INTO seen VALUES (1, 1), (1, 2), (2, 1);
INSERT INTO desks (campaign_id, user_id, served, rated, place) VALUES (1, 1, 2, 2, 1), (1, 2, 1, 1, 0);
INSERT INTO events (id, key, campaign_id, item_id, user_id, kind, tier, part, counted, lease_id, rubric_version, at_ms)
    VALUES (1, 'key-1', 1, 1, 1, 'vote', 2, 'work', 1, 1, 1, 60000), (2, 'key-2', 1, 2, 1, 'vote', 5, 'work', 1, 2, 1, 60001),
    (3, 'key-3', 1, 1, 2, 'vote', 4, 'work', 1, 3, 1, 180000);
INSERT INTO votes (item_id, user_id, part, campaign_id, event_id, tier, flags, at_ms) VALUES
    (1, 1, 'work', 1, 1, 2, '', 60000), (2, 1, 'work', 1, 2, 5, '', 60001), (1, 2, 'work', 1, 3, 4, '', 180000);
PRAGMA user_version = 1;
