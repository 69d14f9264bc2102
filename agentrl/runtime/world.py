"""The world as one workflow meets it: what its team asks (`World`), and what asyncio asks inside it (`Outside`)."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from agentrl.effect import EffectKind, derive_seed, digest_request
from agentrl.errors import WorkflowError
from agentrl.runtime.jobs import Job
from agentrl.runtime.loop import EpisodeTimer
from agentrl.runtime.pending import UNASKED, Pending
from agentrl.workflow import Ask, Outcome

if TYPE_CHECKING:
    from agentrl.runtime.journal import Journal


class EpisodeWorld:
    """See the module. Everything passes on to the journal, under the branch that runs now."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self._real = asyncio.get_running_loop()

    # --- what the workflow asks ------------------------------------------------------------------------------------------
    @property
    def episode(self) -> str:
        return self._journal.head.id

    def now(self) -> float:
        return self._journal.now

    def seed(self, *parts: str | int) -> int:
        """Drawn once and written down: a fork draws others, but only after the cut."""
        pending = self._issue("note", "seed", digest_request("seed", *parts), "")
        branch, position = pending.place
        return self._journal.made(pending, derive_seed(self._journal.head.seed, branch, position, *parts))

    def record(self, kind: EffectKind, name: str, value: Any) -> Any:
        return self._journal.made(self._issue(kind, name, digest_request(kind, name, value), ""), value)

    async def perform(self, ask: Ask) -> Outcome:
        journal = self._journal
        pending = self._issue(ask.kind, ask.name, ask.request, ask.note)
        pending.ask = ask
        future = pending.future = asyncio.Future(loop=journal.loop)
        journal.begin(pending)
        try:
            await future
        finally:
            if not pending.delivered:  # cancelled, or closed
                journal.abandon(pending)
        error, pending.error = pending.error, None
        if error is not None:
            try:
                raise error
            finally:
                del error  # its traceback holds this frame
        return pending.outcome

    # --- what asyncio asks -----------------------------------------------------------------------------------------------
    def clock(self) -> float:
        return self._journal.now

    def timer(self, handle: EpisodeTimer) -> None:
        pending = handle.pending = self._issue("timer", "timer", UNASKED, "")
        pending.handle = handle
        self._journal.begin(pending)

    def timer_cancelled(self, handle: EpisodeTimer) -> None:
        if not handle.pending.delivered:
            self._journal.abandon(handle.pending)

    def thread(self, call: Callable[[], Any], name: str, executor: Any) -> asyncio.Future[Any]:
        return self._journal.begin_thread(self._issue("thread", name, digest_request(name), name), call, executor)

    def from_thread(self, handle: asyncio.Handle, job: Job, position: int) -> None:
        self._real.call_soon_threadsafe(self._journal.sync.handed_over, handle, job, position)

    def from_outside(self, error: WorkflowError) -> None:
        if not self._real.is_closed():
            self._real.call_soon_threadsafe(self._journal.fail, error)

    def unhandled(self, context: dict[str, Any]) -> None:
        self._real.call_exception_handler(context)

    def _issue(self, kind: EffectKind, name: str, request: bytes, note: str) -> Pending:
        branch = self._journal.loop.here()
        if branch is None:
            raise WorkflowError(
                f"{kind} {name!r} was asked for outside the workflow's own tasks; use `team` only inside it, never in a tool, "
                f"an effect or a thread"
            )
        return Pending((branch.path, branch.next_position()), kind, name, request, note)
