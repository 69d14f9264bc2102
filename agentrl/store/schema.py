"""The database file: its tables, its version, and how an older version becomes this one.

A new file runs the same migrations as an old one, so there is one path to the present schema and every open of a new store
walks it. Nothing in these tables is ever changed or deleted, by trigger, except `lease` and `writer`.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from pathlib import Path

from agentrl.errors import StoreError, UserError

APPLICATION_ID = 0x61676C31
"""`PRAGMA application_id` of every store ("agl1")."""

_VERSION_1 = """
CREATE TABLE meta(key TEXT PRIMARY KEY, value NOT NULL) WITHOUT ROWID;
CREATE TABLE episode(
  seq INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE, group_id TEXT NOT NULL, member INTEGER NOT NULL, wanted INTEGER NOT NULL,
  split TEXT NOT NULL, step INTEGER NOT NULL, fork_of TEXT, fork_cut INTEGER NOT NULL, created REAL, head TEXT NOT NULL, task);
CREATE INDEX episode_group ON episode(group_id);
CREATE INDEX episode_split ON episode(split, step);
CREATE INDEX episode_step ON episode(step);
CREATE TABLE effect(
  seq INTEGER PRIMARY KEY, episode INTEGER NOT NULL, branch TEXT NOT NULL, attempt INTEGER NOT NULL, position INTEGER NOT NULL,
  kind TEXT NOT NULL, name TEXT NOT NULL, request BLOB NOT NULL, note TEXT NOT NULL, issued INTEGER NOT NULL,
  completed INTEGER NOT NULL, at REAL, status TEXT NOT NULL, value, more TEXT, turn, tokens BLOB);
CREATE INDEX effect_episode ON effect(episode);
CREATE TABLE tail(episode INTEGER PRIMARY KEY, status TEXT NOT NULL, seconds REAL, body NOT NULL);
CREATE INDEX tail_status ON tail(status);
CREATE TABLE reward(
  seq INTEGER PRIMARY KEY, episode INTEGER NOT NULL, at REAL, name TEXT NOT NULL, value REAL, turn TEXT, agent TEXT);
CREATE INDEX reward_episode ON reward(episode);
CREATE TABLE blob(seq INTEGER PRIMARY KEY, digest BLOB NOT NULL UNIQUE, data BLOB NOT NULL);
CREATE TABLE shared(id INTEGER PRIMARY KEY, kind TEXT NOT NULL, body TEXT NOT NULL);
CREATE TABLE step(
  seq INTEGER PRIMARY KEY, policy TEXT NOT NULL, step INTEGER NOT NULL, digest BLOB NOT NULL, version TEXT NOT NULL,
  stats TEXT NOT NULL, state, UNIQUE(policy, step));
CREATE TABLE step_row(
  step INTEGER NOT NULL, n INTEGER NOT NULL, episode TEXT NOT NULL, leaf TEXT NOT NULL, turns TEXT NOT NULL,
  advantages BLOB NOT NULL, weight REAL, PRIMARY KEY(step, n));
CREATE TABLE writer(
  token TEXT PRIMARY KEY, host TEXT NOT NULL, pid INTEGER NOT NULL, started TEXT NOT NULL, expires REAL NOT NULL);
CREATE TABLE lease(episode INTEGER PRIMARY KEY, writer TEXT NOT NULL);
CREATE INDEX lease_writer ON lease(writer);
"""

_APPEND_ONLY = ("episode", "effect", "tail", "reward", "blob", "shared", "step", "step_row")


def _forbid_changes(connection: sqlite3.Connection, table: str) -> None:
    for event in ("UPDATE", "DELETE"):
        connection.execute(
            f"CREATE TRIGGER {table}_no_{event.lower()} BEFORE {event} ON {table} "
            f"BEGIN SELECT RAISE(ABORT, '{table} is append-only'); END"
        )


def _allow_changes(connection: sqlite3.Connection, table: str) -> None:
    for event in ("update", "delete"):
        connection.execute(f"DROP TRIGGER {table}_no_{event}")


def _statements(script: str) -> list[str]:
    # not executescript: it commits, and a migration must be one transaction
    return [statement for statement in (part.strip() for part in script.split(";\n")) if statement]


def _to_1(connection: sqlite3.Connection) -> None:
    """An empty file becomes a store."""
    for statement in _statements(_VERSION_1):
        connection.execute(statement)
    for table in _APPEND_ONLY:
        _forbid_changes(connection, table)
    connection.execute("INSERT INTO meta(key, value) VALUES('schema', 1)")


def _to_2(connection: sqlite3.Connection) -> None:
    """`source` leaves the head's JSON for a column of its own with an index, so that a filter by source reads no JSON."""
    _allow_changes(connection, "episode")
    connection.execute("ALTER TABLE episode ADD COLUMN source TEXT NOT NULL DEFAULT 'policy'")
    connection.execute("UPDATE episode SET source = json_extract(head, '$.source'), head = json_remove(head, '$.source')")
    connection.execute("CREATE INDEX episode_source ON episode(source)")
    _forbid_changes(connection, "episode")


MIGRATIONS: tuple[Callable[[sqlite3.Connection], None], ...] = (_to_1, _to_2)
"""`MIGRATIONS[v]` makes version v + 1 of version v."""

VERSION = len(MIGRATIONS)


def read_version(connection: sqlite3.Connection, path: Path) -> int:
    """The file's schema version, 0 for an empty file. `StoreError` if it is no store, `UserError` if it is newer than this."""
    names = {name for (name,) in connection.execute("SELECT name FROM sqlite_master")}
    if not names:
        return 0
    (application,) = connection.execute("PRAGMA application_id").fetchone()
    if application != APPLICATION_ID or "meta" not in names:
        raise StoreError(
            f"{path} is an SQLite database but no agentrl store (it holds {', '.join(sorted(names)[:5])}); give another path"
        )
    found = connection.execute("SELECT value FROM meta WHERE key = 'schema'").fetchone()
    if found is None or not isinstance(found[0], int) or found[0] < 1:
        raise StoreError(f"{path} is damaged: its meta table names no schema version")
    if found[0] > VERSION:
        raise UserError(
            f"{path} has store schema {found[0]}, and this agentrl knows schemas up to {VERSION}: "
            "it was written by a newer agentrl; install that one to read it"
        )
    return found[0]


def migrate(connection: sqlite3.Connection, path: Path) -> None:
    """Brings the file to `VERSION`, one transaction a version; a crash leaves it at a whole version."""
    for version in range(read_version(connection, path), VERSION):
        connection.execute("BEGIN IMMEDIATE")
        try:
            MIGRATIONS[version](connection)
            connection.execute("UPDATE meta SET value = ? WHERE key = 'schema'", (version + 1,))
            connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
            connection.execute("COMMIT")
        finally:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
