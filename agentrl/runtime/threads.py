"""Threads for sync code: daemons, so that one that hangs costs a thread and never the end of the process."""

from __future__ import annotations

import asyncio
import logging
import queue
import threading
from collections.abc import Callable
from typing import Any

from agentrl.errors import UserError, capture

logger = logging.getLogger(__name__)

_Job = tuple[Callable[[], Any], asyncio.AbstractEventLoop, "asyncio.Future[Any]"]


class DaemonThreads:
    """Runs sync calls; a thread is made when none is idle, up to `limit`; calls beyond wait in line.

    A call that nobody waits for any more (its future was cancelled) does not count: so many hang, so many more there may be.
    """

    def __init__(self, limit: int = 64) -> None:
        self._limit = limit
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._threads = 0
        self._made = 0
        self._idle = 0
        """Threads that no job in the queue is meant for."""
        self._line = 0
        """Jobs in the queue that no thread is free for."""
        self._left: set[asyncio.Future[Any]] = set()
        """Futures of running calls that nobody waits for."""
        self._running: set[asyncio.Future[Any]] = set()
        self._closed = False

    def run(self, call: Callable[[], Any]) -> asyncio.Future[Any]:
        """A future of the running loop with what `call` returns or raises."""
        return self.run_on(asyncio.get_running_loop(), call)

    def run_on(self, loop: asyncio.AbstractEventLoop, call: Callable[[], Any]) -> asyncio.Future[Any]:
        """The same for a loop that need not be the running one."""
        future: asyncio.Future[Any] = loop.create_future()
        future.add_done_callback(self._cancelled)
        with self._lock:
            if self._closed:
                raise UserError("the threads of this runtime are closed; sync code runs inside `async with Runtime(...)` only")
            if self._idle:
                self._idle -= 1
            elif self._threads - len(self._left) < self._limit:
                self._begin_thread()
            else:
                self._line += 1
        self._jobs.put((call, loop, future))
        return future

    def close(self) -> None:
        """Idle threads end; busy ones end after their call, if it ends."""
        with self._lock:
            self._closed = True
            threads = self._threads
        for _ in range(threads):
            self._jobs.put(None)

    def _begin_thread(self) -> None:
        self._threads += 1
        self._made += 1
        threading.Thread(target=self._work, name=f"agentrl-sync-{self._made}", daemon=True).start()

    def _cancelled(self, future: asyncio.Future[Any]) -> None:
        if not future.cancelled():
            return
        with self._lock:
            if future in self._running:
                self._left.add(future)
                if self._line and self._threads - len(self._left) < self._limit:
                    self._line -= 1
                    self._begin_thread()
                logger.warning("sync code runs on in its thread though nobody waits for it; such threads: %d", len(self._left))

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            call, loop, future = job
            result = None
            with self._lock:
                self._running.add(future)
            with capture() as caught:
                if not future.cancelled():
                    try:
                        result = call()
                    except SystemExit as error:
                        raise RuntimeError(f"sync code called sys.exit({error.code})") from error
            with self._lock:
                self._running.discard(future)
                retires = future in self._left and self._threads - len(self._left) >= self._limit
                self._left.discard(future)
                if retires:
                    self._threads -= 1
                elif self._line:
                    self._line -= 1
                else:
                    self._idle += 1
            with capture():  # a loop that was closed has nobody to tell
                loop.call_soon_threadsafe(_settle, future, result, caught.error)
            if retires:
                return
            del job, call, loop, future, result, caught  # what a call gave must not live until the next


def _settle(future: asyncio.Future[Any], result: Any, error: Exception | None) -> None:
    if future.done():
        return
    if isinstance(error, StopIteration):  # a future cannot carry it
        error = RuntimeError("sync code raised StopIteration")
    if error is not None:
        future.set_exception(error)
    else:
        future.set_result(result)
