"""Connections to a store file: the one that writes and those that read."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Generator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from agentrl.errors import StoreError, UserError
from agentrl.store.schema import VERSION, migrate, read_version


class Connection(sqlite3.Connection):
    """Can be referred to weakly, unlike its base."""


def open_writer(path: Path) -> sqlite3.Connection:
    """The writing connection to a file at the present schema, made or brought there if need be. It may change threads."""
    with _opening(path), ExitStack() as undo:
        connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False, cached_statements=512)
        undo.callback(connection.close)
        read_version(connection, path)  # before anything is changed in a file that may not be ours
        _set_up(connection, path)
        migrate(connection, path)
        undo.pop_all()
    return connection


def _set_up(connection: sqlite3.Connection, path: Path) -> None:
    """Write-ahead log, synced at every commit: with NORMAL a power cut may take what was acknowledged."""
    (mode,) = connection.execute("PRAGMA journal_mode = WAL").fetchone()
    if mode != "wal":
        raise StoreError(
            f"{path} cannot have a write-ahead log (mode {mode!r}): its file system lacks shared memory; use a local disk"
        )
    connection.execute("PRAGMA synchronous = FULL")
    connection.execute("PRAGMA fullfsync = ON")  # macOS: through the drive's cache too
    connection.execute("PRAGMA checkpoint_fullfsync = ON")
    connection.execute("PRAGMA wal_autocheckpoint = 0")  # the writer does it between commits
    connection.execute(f"PRAGMA journal_size_limit = {64 << 20}")
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)  # the file's name too must outlive a power cut
    finally:
        os.close(folder)


def check_readable(path: Path) -> None:
    """`UserError` if there is no store or one of another schema, `StoreError` if the file is something else."""
    if not path.is_file():
        raise UserError(f"there is no store at {path}; give the file that a run wrote")
    with _opening(path):
        connection = open_reader(path)
        try:
            version = read_version(connection, path)
        finally:
            connection.close()
    if version < VERSION:
        raise UserError(
            f"{path} has store schema {version}, this agentrl reads {VERSION}: open it once for writing to bring it up"
        )


def open_reader(path: Path) -> Connection:
    """A connection that cannot write, for one thread. Raises `sqlite3.Error`."""
    connection = _connect_reader(path, "mode=ro")
    try:
        connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
    except sqlite3.Error as error:
        connection.close()
        refused = error.sqlite_errorname == "SQLITE_CANTOPEN" or error.sqlite_errorname.startswith("SQLITE_READONLY")
        if not refused or path.with_name(path.name + "-wal").exists():
            raise
        # in a folder that cannot be written SQLite cannot set up the log's index; without a log there is nothing to miss
        connection = _connect_reader(path, "mode=ro&immutable=1")
    return connection


def _connect_reader(path: Path, query: str) -> Connection:
    return sqlite3.connect(
        f"{path.as_uri()}?{query}", uri=True, isolation_level=None, check_same_thread=False, factory=Connection
    )


@contextmanager
def _opening(path: Path) -> Generator[None]:
    try:
        yield
    except sqlite3.Error as error:
        raise StoreError(
            f"cannot open {path}: {error}; it is no agentrl store, or damaged, or the place cannot be written"
        ) from error
