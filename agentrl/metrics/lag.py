"""How late the event loop is: what is due now runs that much later, and every episode waits for it."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Sequence

EVERY = 0.05
"""Seconds between the moments at which the loop is looked at: 20 wake-ups a second."""


class LoopLag:
    """Seconds by which the running loop is late at moments evenly apart. Every moment counts, those it slept through too,
    so that one long stop weighs as much in the percentile as it does in waiting."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._late: list[float] = []
        self._due = self._loop.time()
        self._timer = self._loop.call_soon(self._look)

    def take(self) -> list[float]:
        """What was seen since the last call; of a loop that has not come round since, its lag up to now."""
        self._count(self._loop.time())
        late, self._late = self._late, []
        return late

    def close(self) -> None:
        """Looks no more."""
        self._timer.cancel()

    def _look(self) -> None:
        self._count(self._loop.time())
        self._timer = self._loop.call_at(self._due, self._look)

    def _count(self, now: float) -> None:
        while self._due <= now:
            self._late.append(now - self._due)
            self._due += EVERY


def percentile(values: Sequence[float], q: float) -> float:
    """The smallest value that at least `q` of all do not exceed; nan of none."""
    ranked = sorted(values)
    return ranked[max(0, math.ceil(q * len(ranked)) - 1)] if ranked else math.nan
