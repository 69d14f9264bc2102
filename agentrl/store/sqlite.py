"""`SQLiteStore`: episodes, journals, steps and blobs in one SQLite file. `docs/store.md` has the schema and the guarantees."""

from __future__ import annotations

import asyncio
import json
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from agentrl.effect import Effect
from agentrl.episode import Episode, Reward
from agentrl.errors import LeaseLost, StoreError, UserError
from agentrl.store.codec import Row, digest_blob, encode_head, encode_name, encode_reward, encode_step, encode_tail
from agentrl.store.connect import check_readable, open_writer
from agentrl.store.contract import EpisodeFilter, EpisodeHead, EpisodeTail, StoredStep
from agentrl.store.effects import encode_effect
from agentrl.store.owner import FileLock, Owner, is_live, this_owner
from agentrl.store.reader import Reader
from agentrl.store.turns import Interned
from agentrl.store.writer import Entry, Writer

_EVERYTHING = EpisodeFilter()


class SQLiteStore:
    """A `Store` in the file `path`; its write-ahead log and `path`.lock lie beside it.

    Enter it once. Values are encoded when they are handed over (so what the caller does to them later is not recorded), a
    thread writes them in groups at most `commit_seconds` apart. Reads see what is committed: `await flush()` before reading
    one's own writes. One process writes (`RunLocked`), any number read. `fault` is called in the writer thread at
    "store.before_commit", "store.mid_commit" and "store.after_commit", for tests of crashes.
    """

    def __init__(
        self, path: str | Path, *, read_only: bool = False, commit_seconds: float = 0.01, lease_seconds: float = 30.0,
        fault: Callable[[str], None] | None = None,
    ) -> None:  # fmt: skip
        if not 0 <= commit_seconds <= 0.02:
            raise UserError(f"commit_seconds is {commit_seconds}; give 0 to 0.02, a group waits no longer")
        if lease_seconds <= 0:
            raise UserError(f"lease_seconds is {lease_seconds}; give a positive time")
        self.path = Path(path).resolve()
        self._read_only = read_only
        self._commit_seconds = commit_seconds
        self._lease_seconds = lease_seconds
        self._fault = fault
        self._reader: Reader | None = None
        self._writer: Writer | None = None
        self._lock_file = FileLock(self.path.with_name(self.path.name + ".lock"))
        self._lock = threading.Lock()
        """Numbers are given and entries queued under it, so that both orders agree whatever thread calls."""
        self._open: dict[str, int] = {}
        """Episodes begun here and not finished, by number."""
        self._ending: dict[str, int] = {}
        """Those finished here whose tail may not be in the file yet."""
        self._new_steps: dict[tuple[str, int], bytes] = {}
        self._owner = this_owner()

    def __enter__(self) -> SQLiteStore:
        if self._reader is not None:
            raise StoreError(f"{self.path} was opened before; make a new SQLiteStore to open it again")
        self._owner = this_owner()
        if self._read_only:
            check_readable(self.path)
            self._reader = Reader(self.path)
        else:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._lock_file.acquire(self._owner)
            try:
                self._open_for_writing()
            finally:
                if self._writer is None:
                    self._lock_file.release()
        return self

    def __exit__(self, *exc: object) -> None:
        """Commits what is queued and gives up the leases. Raises `StoreError` if a commit failed and nothing else is raised."""
        reader, writer = self._reader, self._writer
        try:
            if reader is not None:
                reader.close()  # first, as the last connection to close folds the log into the file, which only the writer can
            if writer is not None:
                writer.close()
        finally:
            self._lock_file.release()
        if writer is not None and not any(exc):
            writer.check()

    # --- writing --------------------------------------------------------------------------------------------------------------
    def begin(self, head: EpisodeHead) -> None:
        """Takes the lease of a new or unfinished episode, whose first head and journal stay.

        `LeaseLost` if a live writer has it, `UserError` if it has ended.
        """
        with self._lock:
            writer, owner = self._writing(), self._owner
            if encode_name(head.id, "episode id") in self._open:
                return
            if head.id in self._ending:
                raise UserError(f"episode {head.id!r} has ended; fork it, or begin one with another id")
            found = self._reading().rows(_OWNER_OF, (head.id,))
            if not found:
                self._begin_new(writer, owner, head)
                return
            seq, status, token, host, pid, started, expires = found[0]
            if status is not None:
                raise UserError(f"episode {head.id!r} has ended ({status}); fork it, or begin one with another id")
            if token is not None and host is not None and is_live(Owner(token, host, pid, started), expires):
                raise LeaseLost(
                    f"episode {head.id!r} is written by pid {pid} on {host}, which is alive; stop that process first"
                )
            entry = Entry([], episode=seq, name=head.id, opens=True)
            if token is None:
                entry.rows.append(("lease", (seq, owner.token)))
            else:
                entry.takes_from = token
            self._put(writer, entry)
            self._open[head.id] = seq

    def append(self, episode: str, effects: Sequence[Effect]) -> None:
        """Queues effects of an episode begun here, in order, to be committed together."""
        with self._lock:
            writer = self._writing()
            seq = self._opened(episode)
            if not effects:
                return
            entry = Entry([], episode=seq, name=episode)
            blobs: list[Row] = []
            for n, effect in enumerate(effects):
                try:
                    row = encode_effect(self._next_effect + n, seq, effect, self._interned, blobs)
                except (TypeError, ValueError, AttributeError, OverflowError) as error:  # a UserError is a ValueError
                    raise UserError(f"effect {effect.key} of episode {episode!r} cannot be stored: {error}") from error
                entry.rows.append(("effect", row))
                entry.size += 128 + sum(len(part) for part in (row[13], row[15], row[16]) if part is not None)
            self._add_blobs(entry, blobs)
            self._put(writer, entry)
            self._next_effect += len(effects)

    def finish(self, episode: str, tail: EpisodeTail) -> None:
        """Writes the tail, once, and gives up the lease."""
        with self._lock:
            writer = self._writing()
            seq = self._opened(episode)
            if tail.status == "running":
                raise UserError(f"episode {episode!r} cannot end with status 'running'; give the status it ended with")
            blobs: list[Row] = []
            row = encode_tail(seq, tail, blobs)
            entry = Entry([("tail", row)], size=256 + len(row[3]), episode=seq, name=episode, ends=True)
            self._add_blobs(entry, blobs)
            self._put(writer, entry)
            del self._open[episode]
            self._ending[episode] = seq
            if len(self._ending) % 1024 == 0:
                self._forget_ended()

    def reward(self, episode: str, reward: Reward) -> None:
        """Adds a reward to an episode, running or ended; `UserError` if there is none of this id."""
        with self._lock:
            writer = self._writing()
            seq = self._open[episode] if episode in self._open else self._seq(episode)
            row = encode_reward(self._next_reward, seq, reward, time.time())
            self._put(writer, Entry([("reward", row)], size=128))
            self._next_reward += 1

    def commit_step(self, *steps: StoredStep) -> None:
        """Queues steps, all in one transaction. A repetition is passed over, other content is a `StoreError`."""
        with self._lock:
            writer = self._writing()
            entry, blobs, new = Entry([]), list[Row](), dict[tuple[str, int], bytes]()
            for step in steps:
                row, rows = encode_step(self._next_step + len(new), step, blobs)
                digest = self._step_digest(step.policy, step.step)
                if digest == row[3]:
                    continue
                if digest is not None:
                    raise StoreError(
                        f"step {step.step} of policy {step.policy!r} is committed already, with other content; "
                        "go on from the last committed step instead of repeating it"
                    )
                entry.rows += [("step", row), *(("step_row", each) for each in rows)]
                entry.size += sum(128 + len(each[5]) for each in rows)
                new[step.policy, step.step] = row[3]
            if not new:
                return
            self._add_blobs(entry, blobs)
            self._put(writer, entry)
            self._next_step += len(new)
            self._new_steps |= new

    def put_blob(self, data: bytes) -> str:
        """Queues bytes, stored once however often they come; gives their digest, 64 hex digits."""
        digest = digest_blob(data)
        with self._lock:
            writer = self._writing()
            entry = Entry([])
            self._add_blobs(entry, [(digest, bytes(data))])
            self._put(writer, entry)
        return digest.hex()

    async def flush(self) -> None:
        """Returns when all queued before is durable.

        `StoreError` with the cause if it cannot be; `LeaseLost` if something was not written as its episode has another writer.
        """
        loop = asyncio.get_running_loop()
        durable: asyncio.Future[None] = loop.create_future()

        def settle(error: StoreError | None) -> None:
            if not durable.done():
                if error is None:
                    durable.set_result(None)
                else:
                    durable.set_exception(error)

        def done(error: StoreError | None) -> None:
            if not loop.is_closed():
                loop.call_soon_threadsafe(settle, error)

        self._writing().put(Entry([], done=done))
        await durable

    def flush_sync(self) -> None:
        """`flush` for a thread without an event loop; blocks it."""
        settled = threading.Event()
        errors: list[StoreError | None] = []

        def done(error: StoreError | None) -> None:
            errors.append(error)
            settled.set()

        self._writing().put(Entry([], done=done))
        settled.wait()
        if errors[0] is not None:
            raise errors[0]

    # --- reading --------------------------------------------------------------------------------------------------------------
    def heads(self, where: EpisodeFilter = _EVERYTHING) -> Iterator[EpisodeHead]:
        """Lazily, in the order of begin."""
        return self._reading().heads(where)

    def tail(self, episode: str) -> EpisodeTail | None:
        """With the rewards given since the end; None while the episode has not ended."""
        return self._reading().tail(episode)

    def journal(self, episode: str) -> tuple[Effect, ...]:
        """The effects in commit order, a fork's inherited ones first."""
        return self._reading().journal(episode)

    def episodes(self, where: EpisodeFilter = _EVERYTHING) -> Iterator[Episode]:
        """Lazily, in the order of begin."""
        return self._reading().episodes(where)

    def skim(self, where: EpisodeFilter = _EVERYTHING) -> Iterator[tuple[EpisodeHead, Episode]]:
        """Heads and episodes without their tokens (see `decode_turn`), lazily: `episodes` in half the time."""
        return self._reading().skim(where)

    def episode(self, episode: str) -> Episode:
        """`UserError` naming near ids if there is none of this id."""
        return self._reading().episode(episode)

    def policies(self) -> tuple[str, ...]:
        """Those that have committed steps."""
        return self._reading().policies()

    def steps(self, policy: str, after: int = -1) -> Iterator[StoredStep]:
        """Committed steps with a number above `after`, in order."""
        return self._reading().steps(policy, after)

    def blob(self, digest: str) -> bytes:
        """`UserError` if there is none, `StoreError` if its bytes no longer have this digest."""
        return self._reading().blob(digest)

    def counts(self) -> Mapping[str, int]:
        """Number of episodes by status, "running" always among them."""
        return self._reading().counts()

    def check(self) -> tuple[str, ...]:
        """What SQLite finds wrong with the file, reading all of it; empty = sound."""
        return self._reading().check()

    # --- within ---------------------------------------------------------------------------------------------------------------
    def _open_for_writing(self) -> None:
        connection = open_writer(self.path)
        self._interned = Interned(connection.execute("SELECT id, kind, body FROM shared"))
        self._next_episode, self._next_effect, self._next_reward, self._next_step = (
            connection.execute(f"SELECT coalesce(max(seq), 0) + 1 FROM {table}").fetchone()[0]
            for table in ("episode", "effect", "reward", "step")
        )
        self._reader = Reader(self.path)
        self._writer = Writer(
            connection,
            self.path,
            self._owner,
            commit_seconds=self._commit_seconds,
            lease_seconds=self._lease_seconds,
            fault=self._fault,
        )
        self._writer.start()

    def _reading(self) -> Reader:
        if self._reader is None:
            raise StoreError(f"{self.path} is not open: use the store in a with block")
        if os.getpid() != self._owner.pid:  # neither threads nor SQLite's connections outlive a fork
            raise StoreError(
                f"{self.path} was opened by pid {self._owner.pid} and this is a fork of it: open the store anew here"
            )
        return self._reader

    def _writing(self) -> Writer:
        self._reading()
        if self._writer is None:
            raise UserError(f"{self.path} was opened with read_only=True and cannot be written")
        self._writer.check()
        return self._writer

    def _put(self, writer: Writer, entry: Entry) -> None:
        """Queues an entry behind what it made `shared`, which others will refer to even if this entry is dropped."""
        if self._interned.fresh:
            writer.put(Entry([("shared", row) for row in self._interned.fresh]))
            self._interned.fresh.clear()
        writer.put(entry)

    def _add_blobs(self, entry: Entry, blobs: list[Row]) -> None:
        entry.rows.extend(("blob", row) for row in blobs)
        entry.size += sum(len(data) for _, data in blobs)

    def _begin_new(self, writer: Writer, owner: Owner, head: EpisodeHead) -> None:
        if head.fork_of is not None and head.fork_of not in self._open:
            self._seq(head.fork_of)
        blobs: list[Row] = []
        seq = self._next_episode
        rows = [("episode", encode_head(seq, head, blobs)), ("lease", (seq, owner.token))]
        entry = Entry(rows, size=512, episode=seq, name=head.id, opens=True)
        self._add_blobs(entry, blobs)
        self._put(writer, entry)
        self._next_episode += 1
        self._open[head.id] = seq

    def _opened(self, episode: str) -> int:
        if episode not in self._open:
            raise UserError(f"episode {episode!r} is not open here: begin it first, and write nothing after finish but rewards")
        return self._open[episode]

    def _seq(self, episode: str) -> int:
        if episode in self._ending:
            return self._ending[episode]
        return self._reading().seq(episode)

    def _forget_ended(self) -> None:
        """Drops from `_ending` what the file tells by now."""
        numbers = json.dumps(list(self._ending.values()))
        sql = "SELECT episode FROM tail WHERE episode IN (SELECT value FROM json_each(?))"
        committed = {seq for (seq,) in self._reading().rows(sql, (numbers,))}
        self._ending = {name: seq for name, seq in self._ending.items() if seq not in committed}

    def _step_digest(self, policy: str, step: int) -> bytes | None:
        if (policy, step) in self._new_steps:
            return self._new_steps[policy, step]
        found = self._reading().rows("SELECT digest FROM step WHERE policy = ? AND step = ?", (policy, step))
        return found[0][0] if found else None


_OWNER_OF = """
SELECT e.seq, t.status, l.writer, w.host, w.pid, w.started, w.expires FROM episode e
LEFT JOIN tail t ON t.episode = e.seq LEFT JOIN lease l ON l.episode = e.seq LEFT JOIN writer w ON w.token = l.writer
WHERE e.id = ?
"""
