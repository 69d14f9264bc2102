"""The turnstile: in order, in slices, and one that breaks harms no other."""

from __future__ import annotations

import asyncio
import time

from agentrl.runtime.turnstile import Turnstile


class Walker:
    """Wants `times` activations."""

    def __init__(self, name: str, said: list[str], times: int = 1, *, seconds: float = 0.0, breaks: bool = False) -> None:
        self.name, self.said, self.times, self.seconds, self.breaks = name, said, times, seconds, breaks
        self.queued = False
        self.broken: Exception | None = None

    def activate(self) -> bool:
        until = time.perf_counter() + self.seconds
        while time.perf_counter() < until:
            pass
        if self.breaks:
            raise ValueError(self.name)
        self.said.append(self.name)
        self.times -= 1
        return self.times <= 0

    def broke(self, error: Exception) -> None:
        self.broken = error


async def ticks(count: int) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


async def test_they_go_through_in_order_and_by_turns() -> None:
    said: list[str] = []
    turnstile = Turnstile()
    for name, times in (("a", 3), ("b", 1), ("c", 2)):
        turnstile.wake(Walker(name, said, times))
    await ticks(3)
    assert said == ["a", "b", "c", "a", "c", "a"]


async def test_one_woken_often_goes_once() -> None:
    said: list[str] = []
    turnstile = Turnstile()
    walker = Walker("a", said)
    for _ in range(5):
        turnstile.wake(walker)
    await ticks(3)
    assert said == ["a"]


async def test_the_event_loop_has_its_turn_between_slices() -> None:
    said: list[str] = []
    turnstile = Turnstile(slice_seconds=0.0)
    for n in range(5):
        turnstile.wake(Walker(f"{n}", said))
    asyncio.get_running_loop().call_soon(said.append, "loop")
    await ticks(8)
    assert said.index("loop") <= 1


async def test_one_that_breaks_is_told_and_harms_no_other() -> None:
    said: list[str] = []
    turnstile = Turnstile()
    bad = Walker("bad", said, breaks=True)
    for walker in (Walker("a", said), bad, Walker("b", said)):
        turnstile.wake(walker)
    await ticks(4)
    turnstile.wake(Walker("c", said))
    await ticks(3)
    assert said == ["a", "b", "c"]
    assert isinstance(bad.broken, ValueError)
