"""Threads for sync code: daemons, so that one that hangs costs a thread and never the end of the process."""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import Callable
from typing import Any

from agentrl.errors import capture

_Job = tuple[Callable[[], Any], asyncio.AbstractEventLoop, "asyncio.Future[Any]"]


class DaemonThreads:
    """Runs sync calls; a thread is made when none is idle, up to `limit`; calls beyond wait in line."""

    def __init__(self, limit: int = 64) -> None:
        self._limit = limit
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._threads = 0
        self._idle = 0
        self._lock = threading.Lock()

    def run(self, call: Callable[[], Any]) -> asyncio.Future[Any]:
        """A future of the running loop with what `call` returns or raises."""
        loop = asyncio.get_running_loop()
        return self.run_on(loop, call)

    def run_on(self, loop: asyncio.AbstractEventLoop, call: Callable[[], Any]) -> asyncio.Future[Any]:
        """The same for a loop that need not be the running one."""
        future: asyncio.Future[Any] = loop.create_future()
        with self._lock:
            spare = self._idle > self._jobs.qsize()
            if not spare and self._threads < self._limit:
                self._threads += 1
                threading.Thread(target=self._work, name=f"agentrl-sync-{self._threads}", daemon=True).start()
        self._jobs.put((call, loop, future))
        return future

    def close(self) -> None:
        """Idle threads end; busy ones end after their call, if it ends."""
        for _ in range(self._threads):
            self._jobs.put(None)

    def _work(self) -> None:
        while True:
            with self._lock:
                self._idle += 1
            job = self._jobs.get()
            with self._lock:
                self._idle -= 1
            if job is None:
                return
            call, loop, future = job
            result = None
            with capture() as caught:
                result = call()
            if not loop.is_closed():
                loop.call_soon_threadsafe(_settle, future, result, caught.error)


def _settle(future: asyncio.Future[Any], result: Any, error: Exception | None) -> None:
    if future.done():
        return
    if isinstance(error, StopIteration):  # a future cannot carry it
        error = RuntimeError("sync code raised StopIteration")
    if error is not None:
        future.set_exception(error)
    else:
        future.set_result(result)
