"""The journal of one episode: every effect, in order; crash resume, replay and fork are the same walk over it.

    workflow ── asks ──> runs on the real loop ── completes ──> arrived ── handed in, one at a time ──> workflow
                   └──> held, while the record lasts ── its recorded turn ──────────┘

`activate` is the whole machine: let the workflow run until all of it waits, hand in the next completion, again. While the
record lasts the next completion is the record's; an effect that the code asks for and the record lacks is held, for the
record may show that it was cancelled before it ended. When the record is used up, what is still held is launched. A live
episode is one whose record is empty. So one episode runs the same way whether it is new, resumed, replayed or a fork.

Who wakes whom: a completion wakes the turnstile, the turnstile calls `activate`, `activate` sets `ended` when the workflow
is over.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, Literal

from agentrl.effect import Effect, EffectKind
from agentrl.errors import AgentRLError, ReplayDiverged, WorkflowError, describe, record_error, recreate_error
from agentrl.runtime.loop import EpisodeLoop, EpisodeTask, EpisodeTimer
from agentrl.runtime.pending import NOTHING, UNASKED, Host, Pending, Place
from agentrl.runtime.record import Record, said
from agentrl.runtime.sync import SyncCode
from agentrl.runtime.windup import WindUp
from agentrl.runtime.world import EpisodeWorld
from agentrl.runtime.written import Written
from agentrl.store.contract import EpisodeHead
from agentrl.workflow import Asked, Outcome

_EXTERNAL = ("cancel", "deadline", "inbound")
_TURNS = 64
"""Completions handed in before another episode has its turn."""
_DRAINS = 100
"""Full drains without waiting for anything (a million callbacks) after which the workflow is taken to poll."""


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
        self.fault: AgentRLError | None = None
        """What ended the episode against the workflow's will: a divergence or an effect of unknown outcome."""
        self.interrupted: EffectKind | None = None
        self.halted = False
        """A replay came to the end of a record that was cut off there, too."""
        self.suspended = False
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.sync = SyncCode(self, host)
        self.world = EpisodeWorld(self)
        self.loop = EpisodeLoop(self.world)
        self.root: EpisodeTask | None = None
        self.queued = False
        self._strict = strict
        self._host = host
        self._real = asyncio.get_running_loop()
        self._record = Record(record)
        self._record.sequence = max(self._record.sequence, head.fork_cut)  # numbers tell a fork's own from what it shares
        self.written = Written(record, self._record, host.write)
        self._winding: WindUp | None = None
        self._pending: dict[Place, Pending] = {}
        self._held: list[Pending] = []
        self._arrived: deque[Pending] = deque()
        self.now = 0.0
        """Seconds since the episode began, as the workflow may see them: when the last result came."""
        self._drains = 0
        self._interrupting = False
        self.written.keeps_lost = mode == "live"

    # --- driving -----------------------------------------------------------------------------------------------------
    def start(self, coroutine: Coroutine[Any, Any, Any]) -> None:
        """Begins the workflow; the turnstile does the rest."""
        self.root = self.loop.root(coroutine)
        self._host.wake(self)

    def activate(self) -> bool:
        """Runs the workflow until it waits for the world (True) or has used its slice (False: call again)."""
        for _ in range(_TURNS):
            if self.ended.done():
                return True
            if self.suspended:
                WindUp(self.loop).leave()
                self.ended.set_result(None)
                return True
            drained = self.loop.drain()
            self._drains = 0 if drained else self._drains + 1
            if self._drains >= _DRAINS:
                self.fail(WorkflowError("the workflow runs on and on without waiting; await what it waits for, do not poll it"))
            if self.fault is not None or self.halted:
                self.suspend(final=True)
            elif not drained:
                return False
            elif not (
                (self.root is not None and self.root.done() and self._winds_up())
                or (not self._pending and self._is_stuck())
                or self._hand_in()
            ):
                return True
        return False

    def interrupt(self, kind: Literal["cancel", "deadline"], reason: str, name: str = "") -> None:
        """The world cancels the episode: recorded, so that a replay is cancelled at the same place."""
        if self._interrupting or self.interrupted is not None or self.ended.done():
            return
        self._interrupting = True
        pending = Pending(("", -1), kind, name or kind, UNASKED, reason)
        pending.status, pending.outcome = "ok", Outcome(reason)
        self._arrived.append(pending)
        self._host.wake(self)

    def go_on(self, place: Place) -> None:
        """The host holds the effect at this place no more: runs it, or has it handed in from the record."""
        pending = self._pending.get(place)
        if pending is not None and pending.issued >= 0:
            pending.task = self._host.spawn(self._host.execute(self, pending), pending.name)
        self._host.wake(self)

    def suspend(self, *, final: bool = False) -> None:
        """Ends the workflow here without a word in the record, as a crash would; a resume goes on from it.

        Its cleanup runs, but touches nothing: what it asks for never comes. `final` = there will be no resume: what is
        still paid for the effects that run is recorded as lost.
        """
        if self.suspended or self.ended.done():
            return
        self.suspended = True
        self.written.keeps_lost = final and self.mode == "live"
        self.stop()
        self._host.wake(self)

    def broke(self, error: Exception) -> None:
        """The journal itself cannot go on, as when the store refuses an effect."""
        if self.fault is None:
            self.fault = error if isinstance(error, AgentRLError) else AgentRLError(describe(error))
        self.suspend()
        if not self.ended.done():
            self.ended.set_result(None)

    def stop(self) -> None:
        """Stops what runs for the workflow."""
        pendings = list(self._pending.values())
        self._pending.clear()
        for pending in pendings:
            pending.abandoned = True
            self._stop(pending)

    def close(self) -> None:
        """After the end: nothing runs or is written any more."""
        for pending in self._arrived:
            if pending.ask is not None and not pending.delivered:
                self.written.lose(pending, pending.outcome, pending.error)
        self._arrived.clear()
        self.written.keeps_lost = False
        self.loop.close()

    def in_flight(self) -> list[str]:
        """Kind and name of what runs for this episode now."""
        return [f"{p.kind} {p.name}" for p in self._pending.values() if p.task is not None and p.status is None]

    # --- what the host tells -----------------------------------------------------------------------------------------
    def complete(self, pending: Pending, outcome: Outcome, error: BaseException | None = None) -> None:
        """An effect has ended on the real loop."""
        pending.status, pending.outcome, pending.error = "error" if error is not None else "ok", outcome, error
        if pending.abandoned:
            if pending.ask is not None:
                self.written.lose(pending, outcome, error)
        elif not self.ended.done():
            self._arrived.append(pending)
            self._host.wake(self)

    def asked(self, pending: Pending) -> Asked:
        """What an effect's `run` is told."""
        head = self.head
        branch, position = pending.place
        forced = head.fork_forced.get(f"{branch}:{position}", ()) if head.fork_forced else ()
        resumed = pending.place in self._record.intents
        return Asked(head.id, branch, position, head.seed, pending.issued_at, self.written.at, forced, resumed, pending.attempt)

    def fail(self, error: AgentRLError) -> None:
        """Ends the episode against the workflow's will; nothing it catches can hide it."""
        if self.fault is None:
            self.fault = error
        self._host.wake(self)

    # --- what the workflow asks --------------------------------------------------------------------------------------
    def made(self, pending: Pending, value: Any) -> Any:
        """Writes a synchronous effect, or hands back what the record holds of it."""
        if self.suspended:
            return value
        entry = self._record.at(pending.place)
        if entry is not None:
            if self._differs(pending):
                return value
            self._record.made(pending.place)
            return entry.value
        if self._record.next() is None or (self.mode == "live" and self._record.edits_last()):
            self.written.write(pending, "ok", Outcome(value))
        else:
            self._diverge(f"the code records {pending}; the record holds no such effect there")
        return value

    def begin(self, pending: Pending) -> None:
        """Launches an effect, or holds it while the record lasts."""
        if self.suspended:
            return
        self._pending[pending.place] = pending
        if self._record.next() is None and self.mode == "live":
            self._launch(pending)
        elif not self._differs(pending) and self._record.at(pending.place) is None:
            self._held.append(pending)

    def begin_thread(self, pending: Pending, call: Callable[[], Any], executor: Any) -> asyncio.Future[Any]:
        """Runs sync code, whatever the record says of it; only when it came back is recorded."""
        if self.suspended:
            return self.loop.create_future()
        self._pending[pending.place] = pending
        self._differs(pending)
        pending.issued, pending.issued_at = self.written.tick(), self.written.at()
        return self.sync.begin(pending, call, executor)

    def _differs(self, pending: Pending) -> bool:
        difference = self._record.differs(pending)
        if difference:
            self._diverge(difference)
        return bool(difference)

    def _launch(self, pending: Pending) -> None:
        pending.issued, pending.issued_at = self.written.tick(), self.written.at()
        if pending.ask is not None:
            pending.attempt = self._record.attempts.get(pending.place, 0)
            if not self._host.holds(pending.kind, pending.place, pending.issued):
                pending.task = self._host.spawn(self._host.execute(self, pending), pending.name)
        elif isinstance(pending.handle, EpisodeTimer):
            delay = max(0.0, pending.handle.when() - pending.issued_at)
            pending.task = self._real.call_later(delay, self.complete, pending, NOTHING)

    def abandon(self, pending: Pending) -> None:
        """The workflow does not wait for it any more."""
        pending.abandoned = True
        self._pending.pop(pending.place, None)
        self._stop(pending)

    def abandon_all(self, branch: str) -> None:
        """The workflow waits for nothing more of a thread."""
        for pending in [pending for pending in self._pending.values() if pending.place[0] == branch]:
            self.abandon(pending)

    def _stop(self, pending: Pending) -> None:
        if pending.task is None or pending.status is not None:
            return
        if pending.ask is not None and pending.ask.abandon is not None and self.written.keeps_lost:
            self._host.spawn(self._host.abandon(self, pending), pending.name)
        else:
            pending.task.cancel()

    def handed_over(self, pending: Pending) -> None:
        """A callback came from a thread."""
        if self.suspended or self.ended.done():
            return
        pending.issued = self.written.tick()
        self._pending[pending.place] = pending
        self._differs(pending)
        self.complete(pending, NOTHING)

    # --- handing in --------------------------------------------------------------------------------------------------
    def _hand_in(self) -> bool:
        """Hands the next completion to the workflow; False when it must wait for one."""
        entry = self._record.next()
        if entry is not None:
            return self._hand_in_recorded(entry)
        if self.mode == "replay":
            self._record_ends()
            return True
        if self._held:
            held, self._held = self._held, []
            for pending in held:
                if not pending.abandoned:
                    self._launch(pending)
        while self._arrived:
            pending = self._arrived.popleft()
            if pending.delivered:
                continue
            if pending.abandoned:
                if pending.ask is not None:
                    self.written.lose(pending, pending.outcome, pending.error)
                continue
            self._hand_in_live(pending)
            return True
        return False

    def _hand_in_live(self, pending: Pending) -> None:
        status, error = pending.status, pending.error
        assert status is not None
        self.written.write(pending, status, pending.outcome if pending.kind != "thread" else NOTHING, error)
        self.now = self.written.effects[-1].at
        if error is not None and pending.ask is not None:  # the workflow sees the same error live and on replay
            pending.error = recreate_error(record_error(error))
            pending.error.__cause__ = error
        self._deliver(pending)

    def _hand_in_recorded(self, entry: Effect) -> bool:
        place = (entry.key.branch, entry.key.position)
        if self._host.holds(entry.kind, place, entry.issued):
            return False
        pending = self._pending.get(place)
        if entry.kind in _EXTERNAL:
            pending = Pending(place, entry.kind, entry.name, entry.request, entry.note)
        elif pending is None:
            if entry.kind == "thread" and entry.key.branch in self.sync.jobs:
                return False  # sync code that is still at it
            self._diverge(f"the record holds {said(entry)}, which the code never asks for")
            return True
        if entry.kind == "thread":
            if pending.status is None:
                return False
            if pending.status != entry.status:
                now = describe(pending.error) if pending.error is not None else "ok"
                self._diverge(f"{said(entry)} ended as {entry.status} in the record, and now: {now}")
        else:
            pending.status = entry.status
            if entry.status == "error":
                pending.error = recreate_error(entry.value)
            else:
                pending.outcome = Outcome(entry.value, entry.turn, entry.costs, entry.blobs)
        self._record.advance()
        self.now = entry.at
        self._deliver(pending)
        return True

    def _deliver(self, pending: Pending) -> None:
        pending.delivered = True
        self._pending.pop(pending.place, None)
        if pending.handle is not None:
            self.loop.run_now(pending.handle)
        elif pending.future is not None:
            of_thread = pending.kind == "thread"
            self.loop.resolve(
                pending.future, pending.outcome.value if of_thread else None, pending.error if of_thread else None
            )
        else:
            self.interrupted = self.interrupted or pending.kind
            assert self.root is not None
            for task in self.loop.live_tasks() if self.root.done() else [self.root]:
                self.loop.cancel(task, pending.kind)

    def _is_stuck(self) -> bool:
        """With nothing under way nothing can ever wake the workflow: it ends at once, not at its deadline.

        That nothing is pending is told by what the code has asked for alone, so it comes at the same place live and on replay.
        """
        if self.interrupted is not None:
            self.suspend(final=True)
            return True
        if self._winding is not None:
            return self._winding.insist() or self._is_over()
        names = ", ".join(task.get_name() for task in self.loop.live_tasks()[:8])
        self.fail(WorkflowError(f"every task of the workflow waits for another ({names}), and nothing under way can wake one"))
        return True

    def _record_ends(self) -> None:
        """A replay is at the end of its record, and the code is not."""
        if self._strict:
            waits = next(iter(self._pending.values()))
            self._diverge(f"the record ends here, and the code goes on with {waits}")
        else:
            self.halted = True

    def _diverge(self, what: str) -> None:
        self.fail(ReplayDiverged(f"episode {self.head.id}: {what}"))

    # --- the end -----------------------------------------------------------------------------------------------------
    def _winds_up(self) -> bool:
        """The workflow has returned: whether there is more of it to run, or all is over."""
        if self._winding is None:
            self._winding = WindUp(self.loop)
        if self._winding.waits():
            return False
        return self._winding.goes_on() or self._is_over()

    def _is_over(self) -> bool:
        entry = self._record.next()
        if entry is not None:
            self._diverge(f"the code ended; the record still holds {said(entry)}")
        else:
            self.stop()
            self.ended.set_result(None)
        return True
