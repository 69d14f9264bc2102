"""Sync code that a workflow runs in threads: it runs again in a resume or a replay; that and when it came back is recorded."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, Any

from agentrl.effect import digest_request
from agentrl.runtime.branch import Branch
from agentrl.runtime.jobs import Job
from agentrl.runtime.pending import NOTHING, Host, Pending
from agentrl.workflow import Outcome

if TYPE_CHECKING:
    from agentrl.runtime.journal import Journal


class SyncCode:
    """The calls of one episode that run in threads, and the callbacks that they hand over to its loop."""

    def __init__(self, journal: Journal, host: Host) -> None:
        self.jobs: dict[str, Job] = {}
        """Those that run and could hand something over, by branch path."""
        self._journal = journal
        self._host = host
        self._real = asyncio.get_running_loop()

    def begin(self, pending: Pending, call: Callable[[], Any], executor: Any) -> asyncio.Future[Any]:
        """Runs `call`; the workflow's future of it."""
        journal = self._journal
        future = pending.future = journal.loop.create_future()
        future.add_done_callback(partial(self._let_go, pending))
        if executor is None or isinstance(executor, ThreadPoolExecutor):  # code in another process cannot hand anything over
            branch, position = pending.place
            job = pending.job = Job(Branch(f"{branch}/~{pending.name}#{position}"), journal.world)
            self.jobs[job.branch.path] = job
            call = job.wrap(call, self._ends)
        pending.task = self._host.thread(call, executor)
        pending.task.add_done_callback(partial(self._came_back, pending))
        return future

    def handed_over(self, handle: asyncio.Handle, job: Job, position: int) -> None:
        """A callback from a thread: its order among the effects is recorded, what it does is the code's own."""
        callback: Any = handle._callback  # pyright: ignore[reportPrivateUsage, reportAttributeAccessIssue]
        name = getattr(callback, "__qualname__", type(callback).__qualname__)
        pending = Pending((job.branch.path, position), "thread", name, digest_request(name), name)
        pending.handle = handle
        if not job.cancelled:
            self._journal.handed_over(pending)

    def _came_back(self, pending: Pending, ended: asyncio.Future[Any]) -> None:
        error = asyncio.CancelledError() if ended.cancelled() else ended.exception()
        self._journal.complete(pending, Outcome(ended.result()) if error is None else NOTHING, error)

    def _let_go(self, pending: Pending, future: asyncio.Future[Any]) -> None:
        if not future.cancelled():
            return
        self._journal.abandon(pending)
        if pending.job is not None:
            pending.job.cancelled = True
            self._journal.abandon_all(pending.job.branch.path)
            self.jobs.pop(pending.job.branch.path, None)

    def _ends(self, job: Job) -> None:
        if not self._real.is_closed():
            self._real.call_soon_threadsafe(self._ended, job)

    def _ended(self, job: Job) -> None:
        self.jobs.pop(job.branch.path, None)
        self._host.wake(self._journal)
