"""Lets episodes run one after another, in slices, so that thousands of them never hold up the event loop."""

from __future__ import annotations

import asyncio
from collections import deque
from time import perf_counter
from typing import Protocol

from agentrl.errors import capture


class Waiting(Protocol):
    """Something that can go on."""

    queued: bool

    def activate(self) -> bool:
        """Goes on; True = it waits for the world now, False = it has used its slice and wants to be called again."""
        ...

    def broke(self, error: Exception) -> None:
        """`activate` raised: this one is over."""
        ...


class Turnstile:
    """Who has something to do goes through in order; after `slice_seconds` the event loop gets a turn.

    Filled by `wake`, drained by itself through `call_soon`. One that raises is told so and harms no other.
    """

    def __init__(self, slice_seconds: float = 0.004) -> None:
        self._slice = slice_seconds
        self._queue: deque[Waiting] = deque()
        self._scheduled = False
        self.loop = asyncio.get_running_loop()

    def wake(self, waiting: Waiting) -> None:
        """Has `activate` called soon; once, however often it is woken before."""
        if waiting.queued:
            return
        waiting.queued = True
        self._queue.append(waiting)
        if not self._scheduled:
            self._scheduled = True
            self.loop.call_soon(self._turn)

    def _turn(self) -> None:
        until = perf_counter() + self._slice
        waiting: Waiting | None = None
        with capture() as caught:
            while self._queue:
                waiting = self._queue.popleft()
                waiting.queued = False
                if not waiting.activate() and not waiting.queued:
                    waiting.queued = True
                    self._queue.append(waiting)
                if perf_counter() > until:
                    break
        if self._queue or caught.error is not None:
            self.loop.call_soon(self._turn)
        else:
            self._scheduled = False
        if caught.error is not None and waiting is not None:
            waiting.broke(caught.error)
