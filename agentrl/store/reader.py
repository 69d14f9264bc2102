"""The read side: one connection a thread, every read a short snapshot, so that a slow reader never holds the log back."""

from __future__ import annotations

import difflib
import json
import sqlite3
import threading
import weakref
from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from agentrl.effect import Effect, EffectKey, digest_request
from agentrl.episode import Episode, Ledger, Reward
from agentrl.errors import StoreError, UserError
from agentrl.store.codec import (
    HEAD_COLUMNS,
    REWARD_COLUMNS,
    Row,
    decode_documents,
    decode_head,
    decode_reward,
    decode_step,
    decode_tail,
    decode_text,
    digest_blob,
)
from agentrl.store.connect import Connection, open_reader
from agentrl.store.contract import EpisodeFilter, EpisodeHead, EpisodeTail, StoredStep
from agentrl.store.effects import EFFECT_COLUMNS, decode_effect
from agentrl.store.fold import Told, fold
from agentrl.store.turns import Known, decode_turn

PAGE = 256
"""Heads fetched at once."""

_EVERYTHING = EpisodeFilter()


class Reader:
    """Reads a store file. Safe to call from any thread; sees what is committed."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._local = threading.local()
        self._all: weakref.WeakSet[Connection] = weakref.WeakSet()
        self._lock = threading.Lock()
        self._closed = False

    def close(self) -> None:
        """Closes the connections of all threads; no read may be under way."""
        with self._lock:
            self._closed = True
            for connection in self._all:
                connection.close()

    def heads(self, where: EpisodeFilter = _EVERYTHING) -> Iterator[EpisodeHead]:
        """Lazily, in the order of begin."""
        return (head for _, head in self._numbered_heads(where))

    def tail(self, episode: str) -> EpisodeTail | None:
        """With the rewards given since the end; None while the episode has not ended."""
        with self._snapshot() as connection:
            return self._tail(connection, self._seq(connection, episode))

    def journal(self, episode: str) -> tuple[Effect, ...]:
        """The effects in commit order, a fork's inherited ones first."""
        with self._snapshot() as connection:
            return self._journal(connection, self._seq(connection, episode))

    def episodes(self, where: EpisodeFilter = _EVERYTHING) -> Iterator[Episode]:
        """Lazily, in the order of begin; each is read in a snapshot of its own."""
        for seq, head in self._numbered_heads(where):
            yield self._episode(seq, head)

    def skim(self, where: EpisodeFilter = _EVERYTHING) -> Iterator[tuple[EpisodeHead, Episode]]:
        """Heads and episodes without their tokens (see `decode_turn`), lazily, many to a snapshot."""
        for page in self._pages(where):
            yield from self._skimmed(page)

    def episode(self, episode: str) -> Episode:
        """`UserError` naming near ids if there is none of this id."""
        with self._snapshot() as connection:
            seq = self._seq(connection, episode)
            row = connection.execute(f"SELECT {HEAD_COLUMNS} FROM episode WHERE seq = ?", (seq,)).fetchone()
            head = self._head(row)
        return self._episode(seq, head)

    def policies(self) -> tuple[str, ...]:
        """Those that have committed steps."""
        return tuple(name for (name,) in self.rows("SELECT DISTINCT policy FROM step ORDER BY policy"))

    def steps(self, policy: str, after: int = -1) -> Iterator[StoredStep]:
        """Committed steps with a number above `after`, in order."""
        while (step := self._step_after(policy, after)) is not None:
            yield step
            after = step.step

    def blob(self, digest: str) -> bytes:
        """`UserError` if there is none, `StoreError` if its bytes no longer have this digest."""
        try:
            key = bytes.fromhex(digest)
        except ValueError:
            raise UserError(f"{digest!r} is no blob digest; give the 64 hex digits that put_blob returned") from None
        with self._snapshot():
            return self._load(key)

    def counts(self) -> Mapping[str, int]:
        """Number of episodes by status, from indexes alone."""
        with self._snapshot() as connection:
            ended = dict(connection.execute("SELECT status, count(*) FROM tail GROUP BY status"))
            (begun,) = connection.execute("SELECT count(*) FROM episode").fetchone()
        return {"running": begun - sum(ended.values()), **ended}

    def check(self) -> tuple[str, ...]:
        """What SQLite finds wrong with the file, reading all of it; empty = sound."""
        try:
            found = tuple(text for (text,) in self.rows("PRAGMA integrity_check"))
        except StoreError as error:  # too damaged to look through
            return (str(error),)
        return () if found == ("ok",) else found

    # --- for the writing side -------------------------------------------------------------------------------------------
    def rows(self, sql: str, parameters: tuple[Any, ...] = ()) -> list[Row]:
        """Rows of one statement."""
        with self._snapshot() as connection:
            return connection.execute(sql, parameters).fetchall()

    def seq(self, episode: str) -> int:
        """The number of an episode; `UserError` naming near ids if there is none."""
        with self._snapshot() as connection:
            return self._seq(connection, episode)

    # --- connections --------------------------------------------------------------------------------------------------------
    @contextmanager
    def _snapshot(self) -> Generator[sqlite3.Connection]:
        """All reads in the block see one state of the file. Errors of the file leave as `StoreError`."""
        try:
            connection = self._connection()
            connection.execute("BEGIN")
            try:
                yield connection
            finally:
                connection.execute("ROLLBACK")
        except sqlite3.Error as error:
            raise StoreError(f"cannot read {self.path}: {error}; it is no agentrl store or it is damaged") from error

    def _connection(self) -> sqlite3.Connection:
        connection: Connection | None = getattr(self._local, "connection", None)
        if connection is None or self._closed:
            with self._lock:
                if self._closed:
                    raise StoreError(f"{self.path} is closed")
                connection = open_reader(self.path)
                self._all.add(connection)
            self._local.connection = connection
            self._local.known = Known()
        return connection

    def _known(self, connection: sqlite3.Connection) -> Known:
        """What the numbers in turns stand for, brought up to the snapshot."""
        known: Known = self._local.known
        last = max((*known.frames, *known.versions), default=0)
        known.learn(connection.execute("SELECT id, kind, body FROM shared WHERE id > ?", (last,)))
        return known

    def _load(self, digest: bytes) -> bytes:
        found = self._connection().execute("SELECT data FROM blob WHERE digest = ?", (digest,)).fetchone()
        if found is None:
            raise UserError(f"no blob {digest.hex()} in {self.path}; it may be queued and not yet flushed")
        if digest_blob(found[0]) != digest:
            raise StoreError(f"{self.path} is damaged: blob {digest.hex()} holds other bytes than its digest says")
        return found[0]

    # --- episodes -----------------------------------------------------------------------------------------------------------
    def _seq(self, connection: sqlite3.Connection, episode: str) -> int:
        found = connection.execute("SELECT seq FROM episode WHERE id = ?", (episode,)).fetchone()
        if found is None:
            near = self._near(episode)
            raise UserError(f"no episode {episode!r} in {self.path}" + (f"; did you mean {', '.join(near)}?" if near else ""))
        return found[0]

    def _near(self, episode: str) -> list[str]:
        """Ids like this one, among the latest and those that begin alike: not among all, which may be many."""
        sql = (
            "SELECT id FROM (SELECT id FROM episode ORDER BY seq DESC LIMIT 1000) UNION "
            "SELECT id FROM (SELECT id FROM episode WHERE id >= ? ORDER BY id LIMIT 500) UNION "
            "SELECT id FROM (SELECT id FROM episode WHERE id < ? ORDER BY id DESC LIMIT 500)"
        )
        ids = [name for (name,) in self._connection().execute(sql, (episode, episode))]
        return difflib.get_close_matches(episode, ids, n=3, cutoff=0.5)

    def _numbered_heads(self, where: EpisodeFilter) -> Iterator[tuple[int, EpisodeHead]]:
        return (numbered for page in self._pages(where) for numbered in page)

    def _pages(self, where: EpisodeFilter) -> Iterator[list[tuple[int, EpisodeHead]]]:
        condition, parameters = _condition(where)
        sql = f"SELECT {HEAD_COLUMNS} FROM episode WHERE seq > ? {condition} ORDER BY seq LIMIT {PAGE}"
        last = 0
        while True:
            with self._snapshot() as connection:
                page = [(row[0], self._head(row)) for row in connection.execute(sql, (last, *parameters))]
            if page:
                yield page
            if len(page) < PAGE:
                return
            last = page[-1][0]

    def _head(self, row: Row) -> EpisodeHead:
        with self._decoding(f"the head of episode {row[1]!r}"):
            return decode_head(row, self._load)

    def _tail(self, connection: sqlite3.Connection, seq: int, later: bool = True) -> EpisodeTail | None:
        row = connection.execute("SELECT episode, status, seconds, body FROM tail WHERE episode = ?", (seq,)).fetchone()
        with self._decoding(f"the tail of episode number {seq}"):
            return None if row is None else decode_tail(row, self._later(connection, seq) if later else (), self._load)

    def _later(self, connection: sqlite3.Connection, seq: int) -> list[Reward]:
        sql = f"SELECT {REWARD_COLUMNS} FROM reward WHERE episode = ? ORDER BY seq"
        return [decode_reward(row) for row in connection.execute(sql, (seq,))]

    def _journal(self, connection: sqlite3.Connection, seq: int) -> tuple[Effect, ...]:
        """Own effects behind those of the line of parents, each cut where the line below it forked."""
        known = self._known(connection)
        columns = f"SELECT {EFFECT_COLUMNS} FROM effect WHERE episode = ?"
        parts = [connection.execute(f"{columns} ORDER BY seq", (seq,)).fetchall()]
        cut: int | None = None
        while True:
            parent = connection.execute(
                "SELECT p.seq, e.fork_cut FROM episode e JOIN episode p ON p.id = e.fork_of WHERE e.seq = ?", (seq,)
            ).fetchone()
            if parent is None:
                break
            seq, own_cut = parent
            cut = own_cut if cut is None else min(cut, own_cut)
            parts.append(
                connection.execute(f"{columns} AND completed >= 0 AND completed < ? ORDER BY seq", (seq, cut)).fetchall()
            )
        with self._decoding(f"the journal of episode number {seq}"):
            return tuple(decode_effect(row, known, self._load) for part in reversed(parts) for row in part)

    def _episode(self, seq: int, head: EpisodeHead) -> Episode:
        with self._snapshot() as connection:
            tail = self._tail(connection, seq, later=False)
            later = self._later(connection, seq)
            journal = self._journal(connection, seq)
        return fold(head, (*journal, *_as_effects(later)), tail, fresh=True)

    def _skimmed(self, page: list[tuple[int, EpisodeHead]]) -> list[tuple[EpisodeHead, Episode]]:
        """What the effects of these episodes say of turns, without building the effects."""
        numbers = (json.dumps([seq for seq, _ in page]),)
        of_page = "WHERE episode IN (SELECT value FROM json_each(?))"
        told = {seq: Told() for seq, _ in page}
        with self._snapshot() as connection, self._decoding(f"the episodes {page[0][1].id} to {page[-1][1].id}"):
            known = self._known(connection)
            rows = connection.execute(
                "SELECT episode, branch, attempt, position, kind, name, issued, status, turn NOTNULL, coalesce(turn, value) "
                f"FROM effect {of_page} AND coalesce(turn, value) IS NOT NULL AND status IN ('ok', 'error') "
                "AND kind IN ('model', 'tool', 'reward', 'score', 'note') ORDER BY episode, seq",
                numbers,
            ).fetchall()
            documents = decode_documents([row[-1] for row in rows], self._load)
            for (seq, branch, attempt, position, kind, name, issued, status, is_turn, _), document in zip(
                rows, documents, strict=True
            ):
                if is_turn:
                    key = EffectKey(decode_text(branch), attempt, position)
                    told[seq].turns.append((issued, decode_turn(document, None, str(key), key.branch, known)))
                else:
                    told[seq].add(kind, decode_text(name), document, status == "ok")
            for seq, *row in connection.execute(
                f"SELECT episode, {REWARD_COLUMNS} FROM reward {of_page} ORDER BY seq", numbers
            ):
                told[seq].reward(decode_reward(tuple(row)))
            sql = f"SELECT episode, status, seconds, body FROM tail {of_page}"
            tails = {row[0]: decode_tail(row, (), self._load) for row in connection.execute(sql, numbers)}
        episodes: list[tuple[EpisodeHead, Episode]] = []
        for seq, head in page:
            if head.fork_of is not None:  # its journal begins with another's
                episode = self._episode(seq, head)
            else:
                tail = tails.get(seq)
                paid, seconds = (tail.ledger, tail.seconds) if tail else (Ledger(), 0.0)
                episode = told[seq].episode(head, tail, paid, seconds, fresh=True)
            episodes.append((head, episode))
        return episodes

    def _step_after(self, policy: str, after: int) -> StoredStep | None:
        with self._snapshot() as connection:
            step = connection.execute(
                "SELECT seq, policy, step, version, stats, state FROM step WHERE policy = ? AND step > ? ORDER BY step LIMIT 1",
                (policy, after),
            ).fetchone()
            if step is None:
                return None
            rows = connection.execute(
                "SELECT episode, leaf, turns, advantages, weight FROM step_row WHERE step = ? ORDER BY n", (step[0],)
            ).fetchall()
            with self._decoding(f"step {step[2]} of policy {policy!r}"):
                return decode_step(step[1:], rows, self._load)

    @contextmanager
    def _decoding(self, what: str) -> Generator[None]:
        try:
            yield
        except UserError as error:  # a blob that a record refers to is missing
            raise StoreError(f"{self.path} is damaged at {what}: {error}") from error
        except (ValueError, KeyError, IndexError, TypeError) as error:
            raise StoreError(f"{self.path} is damaged at {what}: {type(error).__name__}: {error}") from error


def _as_effects(later: list[Reward]) -> list[Effect]:
    """Rewards given from outside, as the journal would hold them, so that `fold` puts each on its turn."""
    return [
        Effect(
            key=EffectKey("", 0, n),
            kind="reward",
            name=reward.name,
            request=digest_request(reward.name),
            note="given later",
            issued=0,
            completed=0,
            at=0.0,
            value={"name": reward.name, "value": reward.value, "turn": reward.turn, "agent": reward.agent, "later": True},
        )
        for n, reward in enumerate(later)
    ]


def _condition(where: EpisodeFilter) -> tuple[str, list[Any]]:
    """SQL behind `WHERE seq > ?` and its parameters."""
    parts: list[str] = []
    parameters: list[Any] = []
    for column, value in (("group_id", where.group), ("split", where.split), ("step", where.step), ("source", where.source)):
        if value is not None:
            parts.append(f"AND {column} = ?")
            parameters.append(value)
    if where.ids is not None:
        parts.append("AND id IN (SELECT value FROM json_each(?))")
        parameters.append(json.dumps(where.ids))
    if where.status is not None:
        ended = "seq IN (SELECT episode FROM tail WHERE status IN (SELECT value FROM json_each(?)))"
        running = "OR NOT EXISTS (SELECT 1 FROM tail WHERE tail.episode = seq)" if "running" in where.status else ""
        parts.append(f"AND ({ended} {running})")
        parameters.append(json.dumps(where.status))
    return " ".join(parts), parameters
