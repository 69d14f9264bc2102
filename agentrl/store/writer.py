"""The writer thread: takes queued entries in order and commits them in groups.

Any thread fills the queue (`put`), the writer alone drains it. `put` and `close` wake the writer; the writer resolves those
who wait (`Entry.done`) after the commit that holds everything queued before them. A group opens with its first entry and is
committed at most `commit_seconds` later; someone who waits cuts that short unless the last commit was that recent, so that
many who wait share one. An entry is never split over two commits.

A failed commit is final: the store takes nothing more until it is opened again, since what was queued behind the failure may
rest on what was lost in it.
"""

from __future__ import annotations

import logging
import sqlite3
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from agentrl.errors import LeaseLost, StoreError
from agentrl.store.codec import HEAD_COLUMNS, Row
from agentrl.store.owner import Owner

logger = logging.getLogger(__name__)

MAX_ROWS = 256
MAX_BYTES = 1 << 20
"""A group closes at this many rows or bytes: so many are committed well within 20 ms."""
STATEMENT_ROWS = 128
"""Rows of one insert. Every number up to it is a statement of its own, kept prepared by the connection."""
CHECKPOINT_BYTES = 2 << 20
"""Bytes of write-ahead log after which it is copied into the database."""

TABLES = {
    "shared": ("INSERT INTO shared(id, kind, body) VALUES", 3, ""),
    "blob": ("INSERT OR IGNORE INTO blob(digest, data) VALUES", 2, ""),
    "episode": (
        f"INSERT INTO episode({HEAD_COLUMNS}) VALUES",
        13,
        "",
    ),
    "lease": ("INSERT INTO lease(episode, writer) VALUES", 2, " ON CONFLICT(episode) DO NOTHING"),
    "effect": ("INSERT INTO effect VALUES", 17, ""),
    "tail": ("INSERT INTO tail(episode, status, seconds, body) VALUES", 4, ""),
    "reward": ("INSERT INTO reward(seq, episode, at, name, value, turn, agent) VALUES", 7, ""),
    "step": ("INSERT INTO step(seq, policy, step, digest, version, stats, state) VALUES", 7, ""),
    "step_row": ("INSERT INTO step_row(step, n, episode, leaf, turns, advantages, weight) VALUES", 7, ""),
}
"""Table -> (insert, number of columns, clause behind). All keys are given, so the order of tables within a group is free."""


@dataclass(slots=True)
class Entry:
    """What one call queued: rows that are committed together, or someone who waits."""

    rows: list[tuple[str, Row]]
    size: int = 0
    episode: int = 0
    """The episode whose lease the rows need; 0 = none."""
    name: str = ""
    opens: bool = False
    takes_from: str = ""
    """The dead writer whose lease on the episode is taken over."""
    ends: bool = False
    done: Callable[[StoreError | None], None] | None = None

    @property
    def writes(self) -> bool:
        """Whether there is anything to commit."""
        return bool(self.rows or self.takes_from)


class Writer:
    """Owns the one writing connection, which must not be used elsewhere once `start` was called."""

    def __init__(
        self, connection: sqlite3.Connection, path: Path, owner: Owner, *, commit_seconds: float, lease_seconds: float,
        fault: Callable[[str], None] | None,
    ) -> None:  # fmt: skip
        self._connection = connection
        self._path = path
        self._owner = owner
        self._commit_seconds = commit_seconds
        self._lease_seconds = lease_seconds
        self._fault = fault
        self._wake = threading.Condition()
        self._queue: deque[Entry] = deque()
        self._group: list[Entry] = []
        """The entries being committed; if that fails, those who wait in them are told with the rest."""
        self._first = 0.0
        self._waiting = 0
        self._unsaved = 0
        self._closing = False
        self._failure: tuple[str, BaseException | None] | None = None
        self._lost: dict[int, str] = {}
        self._untold: list[str] = []
        self._held: dict[int, str] = {}
        self._renew_at = 0.0  # Unix time, as the expiry that others read
        self._committed_at = 0.0
        self._logged = 0
        self._thread = threading.Thread(target=self._run, name="agentrl-store-writer", daemon=True)

    def start(self) -> None:
        """From here on the thread commits what is put."""
        self._thread.start()

    def put(self, entry: Entry) -> None:
        """Queues an entry. `StoreError` once a commit has failed, `LeaseLost` if its episode has another writer now."""
        with self._wake:
            self.check()
            if entry.episode in self._lost:
                raise LeaseLost(self._lost[entry.episode])
            if self._closing:
                raise StoreError(f"{self._path} is closed")
            idle = entry.done is not None and not self._unsaved and not self._untold
            if not idle:
                self._queue_entry(entry)
        if idle and entry.done is not None:
            entry.done(None)

    def _queue_entry(self, entry: Entry) -> None:
        if not self._queue:
            self._first = time.monotonic()
        self._queue.append(entry)
        self._unsaved += entry.writes
        self._waiting += entry.done is not None
        if len(self._queue) in (1, MAX_ROWS) or entry.done is not None:
            self._wake.notify()

    def check(self) -> None:
        """Raises what made the writer stop, if anything did."""
        if self._failure is not None:
            message, cause = self._failure
            raise StoreError(message) from cause

    def close(self) -> None:
        """Commits what is queued, gives up all leases and ends the thread; `check` then raises if a commit had failed."""
        with self._wake:
            self._closing = True
            self._wake.notify()
        self._thread.join()

    def _run(self) -> None:
        clean = False
        try:
            self._enrol()
            while (group := self._take()) is not None:
                self._commit(group)
            self._connection.execute("DELETE FROM lease WHERE writer = ?", (self._owner.token,))
            self._connection.execute("DELETE FROM writer WHERE token = ?", (self._owner.token,))
            clean = True
        except (sqlite3.Error, OSError, ValueError, TypeError, OverflowError) as error:
            self._fail(_explain(self._path, error), error)
        finally:
            if not clean:
                self._fail(f"the writer of {self._path} has stopped on an error of its own; its traceback was printed", None)
            self._connection.close()

    def _enrol(self) -> None:
        """Names this writer in the file and forgets dead ones that hold no lease."""
        owner = self._owner
        self._renew_at = time.time() + self._lease_seconds / 3
        expires = time.time() + self._lease_seconds
        row = (owner.token, owner.host, owner.pid, owner.started, expires)
        self._connection.execute("INSERT INTO writer(token, host, pid, started, expires) VALUES(?, ?, ?, ?, ?)", row)
        idle = "DELETE FROM writer WHERE token != ? AND token NOT IN (SELECT writer FROM lease)"
        self._connection.execute(idle, (owner.token,))

    def _take(self) -> list[Entry] | None:
        """Waits for the next group; an empty one when only the lease is due, None at the end."""
        with self._wake:
            while True:
                now = time.monotonic()
                if self._queue:
                    due = self._committed_at if self._waiting else self._first
                    if self._closing or (due := due + self._commit_seconds) <= now or len(self._queue) >= MAX_ROWS:
                        break
                    self._wake.wait(due - now)
                elif self._closing:
                    return None
                elif (rest := self._renew_at - time.time()) <= 0:
                    return []
                else:
                    self._wake.wait(rest)
            group: list[Entry] = []
            rows = size = 0
            while self._queue and rows < MAX_ROWS and size < MAX_BYTES:
                entry = self._queue.popleft()
                rows += len(entry.rows)
                size += entry.size
                self._waiting -= entry.done is not None
                group.append(entry)
            self._first = now
            self._group = group
            return group

    def _commit(self, group: list[Entry]) -> None:
        """One group, durable; those who waited for it are told, of failure too."""
        entries = sum(entry.writes for entry in group)
        if entries or time.time() >= self._renew_at:
            self._write(group)
        with self._wake:
            self._unsaved -= entries
            self._group = []
        waiting = [entry.done for entry in group if entry.done is not None]
        if waiting:
            failure = LeaseLost("; ".join(dict.fromkeys(self._untold))) if self._untold else None
            self._untold.clear()
            for done in waiting:
                done(failure)
        self._checkpoint(group)

    def _write(self, group: list[Entry]) -> None:
        self._reach("store.before_commit")
        self._connection.execute("BEGIN IMMEDIATE")
        if time.time() >= self._renew_at:  # asked with the lock held, for which it may have waited
            self._renew()
        self._take_over(group)
        self._insert([entry for entry in group if not self._is_lost(entry)])
        self._reach("store.mid_commit")
        self._connection.execute("COMMIT")
        self._committed_at = time.monotonic()
        self._reach("store.after_commit")

    def _insert(self, group: list[Entry]) -> None:
        tables: dict[str, list[Row]] = {}
        ended: list[int] = []
        for entry in group:
            for table, row in entry.rows:
                tables.setdefault(table, []).append(row)
            if entry.opens:
                self._held[entry.episode] = entry.name
            if entry.ends:
                ended.append(entry.episode)
                self._held.pop(entry.episode, None)
        for table in TABLES:
            if table in tables:
                self._insert_rows(table, tables[table])
        if ended:
            listed = ",".join(map(str, ended))
            self._connection.execute(
                "DELETE FROM lease WHERE writer = ? AND episode IN (SELECT value FROM json_each(?))",
                (self._owner.token, f"[{listed}]"),
            )

    def _insert_rows(self, table: str, rows: list[Row]) -> None:
        """Few statements, of many rows: each gives up the GIL once, and a busy event loop may then keep it for 5 ms."""
        head, width, behind = TABLES[table]
        values = f"({','.join('?' * width)})"
        for at in range(0, len(rows), STATEMENT_ROWS):
            some = rows[at : at + STATEMENT_ROWS]
            self._connection.execute(f"{head} {','.join([values] * len(some))}{behind}", [*chain.from_iterable(some)])

    def _renew(self) -> None:
        """Prolongs the lease and looks which episodes have another writer by now.

        Enough, though it is done only now and then: nobody may take a lease over before it expires, and a writer that slept
        past its expiry comes here before it writes.
        """
        self._renew_at = time.time() + self._lease_seconds / 3
        expires = time.time() + self._lease_seconds
        self._connection.execute("UPDATE writer SET expires = ? WHERE token = ?", (expires, self._owner.token))
        mine = {
            episode
            for (episode,) in self._connection.execute("SELECT episode FROM lease WHERE writer = ?", (self._owner.token,))
        }
        for episode, name in list(self._held.items()):
            if episode not in mine:
                self._lose(episode, name)

    def _take_over(self, group: list[Entry]) -> None:
        for entry in group:
            if entry.takes_from:
                swap = "UPDATE lease SET writer = ? WHERE episode = ? AND writer = ?"
                if not self._connection.execute(swap, (self._owner.token, entry.episode, entry.takes_from)).rowcount:
                    self._lose(entry.episode, entry.name)

    def _lose(self, episode: int, name: str) -> None:
        self._held.pop(episode, None)
        with self._wake:
            self._lost[episode] = f"episode {name!r} has another writer now: stop it here"

    def _is_lost(self, entry: Entry) -> bool:
        """Whether another writer has the entry's episode; the next to wait is told that it was not written."""
        if entry.episode not in self._lost:
            return False
        self._untold.append(self._lost[entry.episode] + "; what was queued for it since is not written")
        return True

    def _checkpoint(self, group: list[Entry]) -> None:
        """Copies the log into the database now and then, between commits and after those who waited were told."""
        self._logged += 16384 + sum(entry.size for entry in group)
        if self._logged < CHECKPOINT_BYTES:
            return
        self._logged = 0
        _, pages, copied = self._connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
        if pages - copied > 65536:
            logger.warning(
                "a reader of %s holds back its write-ahead log: %d pages wait to be copied", self._path, pages - copied
            )

    def _reach(self, point: str) -> None:
        if self._fault is not None:
            self._fault(point)

    def _fail(self, message: str, cause: BaseException | None) -> None:
        """From here on every call raises; those who wait are told now."""
        with self._wake:
            self._failure = self._failure or (message, cause)
            waiting = [entry.done for entry in (*self._group, *self._queue) if entry.done is not None]
            self._group = []
            self._queue.clear()
        message, cause = self._failure
        for done in waiting:
            error = StoreError(message)
            error.__cause__ = cause
            done(error)


def _explain(path: Path, error: BaseException) -> str:
    name = (
        error.sqlite_errorname
        if isinstance(error, sqlite3.Error) and hasattr(error, "sqlite_errorname")
        else type(error).__name__
    )
    hint = "the disk or the file's limit is full; make room and " if name == "SQLITE_FULL" else ""
    return (
        f"cannot write {path}: {error} ({name}); {hint}open the store again. "
        "What flush() acknowledged is safe, what was queued since is not written"
    )
