"""The journal of one episode: every effect, in order; crash resume, replay and fork are the same walk over it.

    workflow (EpisodeLoop) ── issue ──> running on the real loop ── completes ──> arrived ── release, one at a time ──> workflow
                                  └──> held, while the record lasts ── its recorded turn ──────┘

`activate` is the whole machine: let the workflow run until all of it waits, hand in the next completion, again. While the
record lasts the next completion is the record's; an effect that the code asks for and the record lacks is held, for the
record may show that it was cancelled before it ended. When the record is used up, what is still held is launched. A live
episode is one whose record is empty. So one episode runs the same way whether it is new, resumed, replayed or a fork.

Who wakes whom: a completion wakes the turnstile, the turnstile calls `activate`, `activate` sets `ended` when the workflow
is over.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, Literal

from agentrl.effect import Effect, EffectKey, EffectKind, EffectStatus, derive_seed, digest_request
from agentrl.errors import AgentRLError, ReplayDiverged, WorkflowError, record_error, recreate_error
from agentrl.runtime.loop import BRANCH, EpisodeLoop
from agentrl.store.contract import EpisodeHead
from agentrl.runtime.pending import Host, Pending
from agentrl.workflow import Ask, Asked, Outcome

_UNASKED = b"\0" * 16
_SYNCHRONOUS = ("reward", "note")
_EXTERNAL = ("cancel", "deadline", "inbound")


class Journal:
    """See the module. One per episode; lives on the real loop's thread."""

    def __init__(
        self,
        head: EpisodeHead,
        record: Sequence[Effect],
        host: Host,
        *,
        mode: Literal["live", "replay"] = "live",
        strict: bool = True,
    ) -> None:
        self.head = head
        self.mode = mode
        self._strict = strict
        self.fault: AgentRLError | None = None
        """What ended the episode against the workflow's will: a divergence or an effect of unknown outcome."""
        self.interrupted: EffectKind | None = None
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.effects: list[Effect] = list(record)
        self.loop = EpisodeLoop(self)
        self.root: asyncio.Task[Any] | None = None
        self.queued = False
        self.waiting = 0
        """Effects that run on the real loop now; for the view of what everyone waits on."""
        self._host = host
        self._real = asyncio.get_running_loop()
        self._record = sorted(
            (entry for entry in record if entry.completed >= 0 and entry.status != "lost"), key=lambda entry: entry.completed
        )
        self._recorded = {(entry.key.branch, entry.key.position): entry for entry in self._record}
        ended = {(entry.key.branch, entry.key.position) for entry in record if entry.status != "intent"}
        self._intents = {(e.key.branch, e.key.position) for e in record if e.status == "intent"} - ended
        self._next = 0
        self._used: set[tuple[str, int]] = set()
        self._sequence = max((max(entry.issued, entry.completed) for entry in record), default=-1) + 1
        self._pending: dict[tuple[str, int], Pending] = {}
        self._timers: dict[asyncio.TimerHandle, Pending] = {}
        self._arrived: deque[Pending] = deque()
        self._from_threads: dict[str, int] = {}
        self._now = 0.0
        self._base = max((entry.at for entry in record), default=0.0)
        self._began = time.monotonic()
        self._closing = False
        self._suspended = False
        self._halt = False

    # --- what the workflow asks (World) ---------------------------------------------------------------------------------
    @property
    def episode(self) -> str:
        return self.head.id

    def now(self) -> float:
        return self._now

    def seed(self, *parts: str | int) -> int:
        return derive_seed(self.head.seed, BRANCH.get().path, *parts)

    async def perform(self, ask: Ask) -> Outcome:
        pending = self._issue(ask.kind, ask.name, ask.request, ask.note)
        pending.ask = ask
        pending.future = self.loop.create_future()
        self._begin(pending)
        try:
            await pending.future
        except asyncio.CancelledError:
            self._abandon(pending)
            raise
        assert pending.outcome is not None
        _, outcome, error = pending.outcome
        if error is not None:
            raise error
        return outcome

    def record(self, kind: EffectKind, name: str, value: Any) -> None:
        request = digest_request(kind, name, value)
        pending = self._issue(kind, name, request, "")
        if pending.place in self._recorded:
            self._compare(self._recorded[pending.place], pending)
            self._used.add(pending.place)
        elif self.replaying:
            self._diverge(f"the code records {_said(pending)}; the record holds no such effect there")
        else:
            self._write(pending, "ok", Outcome(value))

    # --- what asyncio asks inside the episode (Outside) --------------------------------------------------------------------
    def clock(self) -> float:
        return self._now

    def timer(self, handle: asyncio.TimerHandle) -> None:
        pending = self._issue("timer", "timer", _UNASKED, "")
        pending.handle = handle
        self._timers[handle] = pending
        self._begin(pending)

    def timer_cancelled(self, handle: asyncio.TimerHandle) -> None:
        pending = self._timers.pop(handle, None)
        if pending is not None:
            pending.abandoned = True
            self._pending.pop(pending.place, None)
            self._stop(pending)

    def thread(self, call: Callable[[], Any], name: str, executor: Any) -> asyncio.Future[Any]:
        pending = self._issue("thread", name, digest_request(name), name)
        pending.future = self.loop.create_future()
        pending.thread = lambda: self._host.thread(call, executor)
        self._begin(pending)
        return pending.future

    def from_thread(self, handle: asyncio.Handle) -> None:
        self._real.call_soon_threadsafe(self._handed_in, handle)

    def unhandled(self, context: dict[str, Any]) -> None:
        self._real.call_exception_handler(context)

    # --- driving -----------------------------------------------------------------------------------------------------------
    def start(self, coroutine: Coroutine[Any, Any, Any]) -> None:
        """Begins the workflow; the turnstile does the rest."""
        self.root = self.loop.root(coroutine)
        self._host.wake(self)

    def activate(self) -> bool:
        """Runs the workflow until it waits for the world (True) or has used its slice (False: call again)."""
        while not self.ended.done():
            if not self.loop.drain():
                return False
            if (self.fault is not None or self._halt) and not self._suspended:
                self.suspend()
            elif self._suspended:
                self._end_suspended()
            elif self.root is not None and self.root.done() and self._wind_up():
                continue
            elif self.ended.done() or not self._hand_in():
                return True
        return True

    def interrupt(self, kind: Literal["cancel", "deadline"], reason: str) -> None:
        """The world cancels the episode: recorded, so that a replay is cancelled at the same place."""
        if self.ended.done() or self.interrupted is not None:
            return
        self.interrupted = kind
        pending = Pending(EffectKey("", 0, -1), kind, kind, _UNASKED, reason)
        pending.outcome = ("ok", Outcome(reason), None)
        self._arrived.append(pending)
        self._host.wake(self)

    def suspend(self) -> None:
        """Ends the workflow here without a word in the record, as a crash would; a resume goes on from it.

        Its cleanup runs, but touches nothing: effects are refused.
        """
        self._suspended = True
        for pending in list(self._pending.values()):
            self._stop(pending)
        self._pending.clear()
        for task in list(self.loop.tasks):
            self.loop.cancel(task, "suspended")
        self._host.wake(self)

    def close(self) -> None:
        """After the end: stops what still runs for nobody."""
        for pending in list(self._pending.values()):
            self._stop(pending)
        self._pending.clear()
        self.loop.close()

    @property
    def replaying(self) -> bool:
        """Whether the record still has something to hand back."""
        record, used = self._record, self._used
        while self._next < len(record):
            entry = record[self._next]
            if entry.kind not in _SYNCHRONOUS or (entry.key.branch, entry.key.position) not in used:
                return True
            self._next += 1
        return False

    def in_flight(self) -> list[str]:
        """Kind and name of what runs for this episode now."""
        return [f"{p.kind} {p.name}" for p in self._pending.values() if p.task is not None and p.outcome is None]

    def complete(self, pending: Pending, outcome: Outcome, error: BaseException | None = None) -> None:
        """An effect has ended on the real loop."""
        self.waiting -= 1
        pending.outcome = ("error" if error is not None else "ok", outcome, error)
        if pending.abandoned or self._suspended or self.ended.done():
            if not self._suspended:
                self._write(pending, "lost", outcome, error=error)
            return
        self._arrived.append(pending)
        self._host.wake(self)

    def lost(self, pending: Pending, attempt: int, outcome: Outcome, error: BaseException) -> None:
        """A failed attempt that will be made again: paid for, never handed back."""
        if not self._suspended:
            self._write(pending, "lost", outcome, attempt=attempt, error=error)

    def intend(self, pending: Pending) -> None:
        """Writes that something which outlives the process is about to begin."""
        entry = Effect(
            pending.key, pending.kind, pending.name, pending.request, pending.note, pending.issued, -1, self._at(), "intent"
        )
        self.effects.append(entry)
        self._host.write(entry)

    def asked(self, pending: Pending, attempt: int) -> Asked:
        """What an effect's `run` is told."""
        key = pending.key
        forced = self.head.fork_forced[str(key)] if str(key) in self.head.fork_forced else ()
        seed = derive_seed(self.head.seed, key.branch, key.position)
        resumed = (key.branch, key.position) in self._intents
        return Asked(self.head.id, key.branch, key.position, seed, pending.issued_at, self._at, forced, resumed, attempt)

    def fail(self, error: AgentRLError) -> None:
        """Ends the episode against the workflow's will; nothing it catches can hide it."""
        if self.fault is None:
            self.fault = error
        self._host.wake(self)

    # --- inside ------------------------------------------------------------------------------------------------------------
    def _issue(self, kind: EffectKind, name: str, request: bytes, note: str) -> Pending:
        branch = BRANCH.get(None)
        if branch is None:
            raise WorkflowError(f"{kind} {name!r} was asked for outside the workflow's own tasks; use `team` only inside it")
        if self._suspended:
            raise asyncio.CancelledError("suspended")
        return Pending(EffectKey(branch.path, 0, branch.next_position()), kind, name, request, note)

    def _begin(self, pending: Pending) -> None:
        place = pending.place
        self._pending[place] = pending
        recorded = place in self._recorded
        if recorded:
            self._compare(self._recorded[place], pending)
        if pending.thread is not None or (not recorded and not self.replaying):
            self._launch(pending)  # sync code of the workflow runs again; only when it came back is recorded

    def _launch(self, pending: Pending) -> None:
        if self.mode == "replay" and pending.thread is None:
            self._record_ends(pending)
            return
        pending.issued = self._tick()
        pending.issued_at = self._at()
        self.waiting += 1
        if pending.ask is not None:
            pending.task = self._host.spawn(self._host.execute(self, pending), pending.ask.name)
        elif pending.thread is not None:
            pending.task = pending.thread()
            pending.task.add_done_callback(lambda future: self._thread_done(pending, future))
        elif isinstance(pending.handle, asyncio.TimerHandle):
            delay = max(0.0, pending.handle.when() - self._at())
            pending.task = self._real.call_later(delay, self.complete, pending, Outcome())

    def _thread_done(self, pending: Pending, future: asyncio.Future[Any]) -> None:
        error = asyncio.CancelledError() if future.cancelled() else future.exception()
        self.complete(pending, Outcome() if error else Outcome(future.result()), error)

    def _handed_in(self, handle: asyncio.Handle) -> None:
        """A callback from another thread: its order among the effects is recorded, what it does is the code's own."""
        callback: Any = handle._callback  # pyright: ignore[reportPrivateUsage, reportAttributeAccessIssue]
        context: Any = handle._context  # pyright: ignore[reportPrivateUsage, reportAttributeAccessIssue]
        path = f"{context[BRANCH].path if BRANCH in context else ''}/~thread"
        position = self._from_threads[path] if path in self._from_threads else 0
        self._from_threads[path] = position + 1
        name = getattr(callback, "__qualname__", type(callback).__qualname__)
        pending = Pending(EffectKey(path, 0, position), "thread", name, digest_request(name), name)
        pending.handle = handle
        pending.issued = self._tick()
        self._pending[pending.place] = pending
        self.waiting += 1
        self.complete(pending, Outcome())

    def _hand_in(self) -> bool:
        """Hands the next completion to the workflow; False when it must wait for one."""
        if self.replaying:
            return self._hand_in_recorded(self._record[self._next])
        for pending in list(self._pending.values()) if self._record else ():
            if pending.issued < 0:
                self._launch(pending)  # the record is used up: what was held begins now
        if not self._arrived:
            return False
        pending = self._arrived.popleft()
        if pending.abandoned:
            if pending.ask is not None:
                assert pending.outcome is not None
                self._write(pending, "lost", pending.outcome[1], error=pending.outcome[2])
            return True
        assert pending.outcome is not None
        status, outcome, error = pending.outcome
        self._write(pending, status, Outcome() if pending.thread is not None else outcome, error=error)
        self._now = self.effects[-1].at
        if error is not None and pending.ask is not None:  # the workflow sees the same error live and on replay
            pending.outcome = (status, outcome, recreate_error(record_error(error)))
        self._deliver(pending)
        return True

    def _hand_in_recorded(self, entry: Effect) -> bool:
        place = (entry.key.branch, entry.key.position)
        pending = self._pending[place] if place in self._pending else None
        if entry.kind in _EXTERNAL:
            pending = Pending(entry.key, entry.kind, entry.name, entry.request, entry.note)
            self.interrupted = self.interrupted or entry.kind
        elif entry.kind == "thread" and (pending is None or pending.outcome is None):
            if pending is None and not entry.key.branch.endswith("/~thread"):
                self._diverge(f"the record holds {_told(entry)}, which the code never asks for")
            return self.fault is not None  # else the thread is still at it
        elif pending is None or entry.kind in _SYNCHRONOUS:
            self._diverge(f"the record holds {_told(entry)}, which the code never asks for")
            return True
        if entry.kind == "thread":
            assert pending is not None and pending.outcome is not None
            self._arrived.remove(pending)
            if pending.outcome[0] != entry.status:
                self._diverge(f"{_told(entry)} ended as {entry.status} in the record and as {pending.outcome[0]} now")
        else:
            error = recreate_error(entry.value) if entry.status == "error" else None
            value = None if error else entry.value
            pending.outcome = (entry.status, Outcome(value, entry.turn, entry.costs, entry.blobs), error)
        self._next += 1
        self._now = entry.at
        self._deliver(pending)
        return True

    def _deliver(self, pending: Pending) -> None:
        self._pending.pop(pending.place, None)
        if pending.kind in _EXTERNAL:
            assert self.root is not None
            self.loop.cancel(self.root, pending.kind)
        elif pending.handle is not None:
            if isinstance(pending.handle, asyncio.TimerHandle):
                self._timers.pop(pending.handle, None)
            self.loop.run_now(pending.handle)
        elif pending.future is not None and pending.outcome is not None:
            _, outcome, error = pending.outcome
            self.loop.resolve(pending.future, outcome.value, error if pending.thread is not None else None)

    def _abandon(self, pending: Pending) -> None:
        """The workflow does not wait for it any more. (Cancelled after it was handed in, it stays as it is recorded.)"""
        if pending.future is not None and pending.future.cancelled():
            pending.abandoned = True
            self._pending.pop(pending.place, None)
            self._stop(pending)

    def _stop(self, pending: Pending) -> None:
        if pending.task is None or pending.outcome is not None:
            return
        if pending.ask is not None and pending.ask.abandon is not None and not self._suspended:
            self._host.spawn(pending.ask.abandon(self.asked(pending, 0)), "abandon")
        elif pending.thread is None:
            pending.task.cancel()
            if pending.ask is None:
                self.waiting -= 1

    def _wind_up(self) -> bool:
        """The workflow has returned: ends what it left running. True = there is something to run."""
        if not self._closing:
            self._closing = True
            for task in list(self.loop.tasks):
                self.loop.cancel(task, "the workflow has ended")
            if self.loop.has_generators:
                self.loop.root(self.loop.shutdown_asyncgens())
            return True
        if not self.loop.tasks:
            if self.replaying:
                self._diverge(f"the code ended; the record still holds {_told(self._record[self._next])}")
            if self.fault is None:
                self.ended.set_result(None)
        return False

    def _end_suspended(self) -> None:
        for _ in range(8):  # code may swallow a cancellation; it is asked again, then left behind
            if not self.loop.tasks:
                break
            for task in list(self.loop.tasks):
                self.loop.cancel(task, "suspended")
            self.loop.drain()
        self.ended.set_result(None)

    def _compare(self, entry: Effect, pending: Pending) -> None:
        if entry.kind != pending.kind or entry.request != pending.request:
            self._diverge(f"the record holds {_told(entry)}, the code asks for {_said(pending)}")

    def _record_ends(self, pending: Pending) -> None:
        if self._strict:
            self._diverge(f"the record ends here, and the code goes on with {_said(pending)}")
        else:
            self._halt = True  # the episode was stopped here when it was recorded, too

    def _diverge(self, what: str) -> None:
        self.fail(ReplayDiverged(f"episode {self.head.id}: {what}"))

    def _tick(self) -> int:
        sequence = self._sequence
        self._sequence = sequence + 1
        return sequence

    def _at(self) -> float:
        return self._base + time.monotonic() - self._began

    def _write(
        self, pending: Pending, status: EffectStatus, outcome: Outcome, *, attempt: int = 0, error: BaseException | None = None
    ) -> None:
        key = pending.key._replace(attempt=attempt) if attempt else pending.key
        value = record_error(error) if error is not None else outcome.value
        issued = pending.issued if pending.issued >= 0 else self._tick()
        entry = Effect(
            key, pending.kind, pending.name, pending.request, pending.note, issued, self._tick(), self._at(), status, value,
            outcome.turn, outcome.blobs, outcome.costs,
        )  # fmt: skip
        self.effects.append(entry)
        self._host.write(entry)


def _told(entry: Effect) -> str:
    return f"{entry.kind} {entry.name!r} at {entry.key} ({entry.note or entry.request.hex()[:12]})"


def _said(pending: Pending) -> str:
    return f"{pending.kind} {pending.name!r} at {pending.key} ({pending.note or pending.request.hex()[:12]})"
