"""The tables of the DuckDB index that are not made of operators' columns."""

from __future__ import annotations

TABLES = """
CREATE TABLE IF NOT EXISTS commits (      -- the ledger: a part is in the index exactly when it is here
    path VARCHAR PRIMARY KEY, operator VARCHAR, fingerprint VARCHAR, shard VARCHAR, sequence INTEGER);
CREATE TABLE IF NOT EXISTS cell_errors (
    _id BIGINT, operator VARCHAR, fingerprint VARCHAR, error VARCHAR, message VARCHAR);
CREATE TABLE IF NOT EXISTS shard_numbers (shard VARCHAR PRIMARY KEY, number INTEGER);
CREATE TABLE IF NOT EXISTS operators (    -- every version ever seen; `active` is the one that `samples` shows
    operator VARCHAR, fingerprint VARCHAR, active BOOLEAN, engine VARCHAR, model VARCHAR, revision VARCHAR,
    facts JSON, PRIMARY KEY (operator, fingerprint));
CREATE TABLE IF NOT EXISTS runs (
    run_id VARCHAR PRIMARY KEY, started TIMESTAMP, finished TIMESTAMP, state VARCHAR, rows BIGINT, kept BIGINT,
    dropped BIGINT, failed BIGINT, exit_code INTEGER, recipe VARCHAR, report JSON);
CREATE TABLE IF NOT EXISTS shards (       -- input shards of the last run, with those that could not be read
    shard VARCHAR PRIMARY KEY, uri VARCHAR, format VARCHAR, error VARCHAR, message VARCHAR);
CREATE TABLE IF NOT EXISTS policy (position INTEGER, name VARCHAR, predicate VARCHAR);
"""


def identifier(name: str) -> str:
    """A column name as DuckDB reads it whatever is in it."""
    return '"' + name.replace('"', '""') + '"'
