"""Where the tasks of effects live.

A `TaskGroup` ends them all when one raises, and never ends while one refuses to. Effects are other people's code: what one
raises must harm no other, and one that ignores its cancellation is left behind, by name, after a time of grace.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Any, Protocol

logger = logging.getLogger(__name__)


class Member(Protocol):
    """An episode, whose effects run as tasks."""

    running: set[asyncio.Task[Any]]

    def put_aside(self) -> None:
        """The runtime ends: the effects do not fail now, their world ends."""
        ...


class EffectTasks:
    """The episodes of a runtime. Leaving it ends the tasks of their effects, and waits for them at most `grace` seconds."""

    def __init__(self, grace: float = 5.0) -> None:
        self._grace = grace
        self.members: set[Member] = set()
        self.loop = asyncio.get_running_loop()

    async def __aenter__(self) -> EffectTasks:
        return self

    async def __aexit__(self, *exc: object) -> None:
        members = list(self.members)
        for member in members:
            member.put_aside()
        await end_tasks({task for member in members for task in member.running}, self._grace)


async def end_tasks(tasks: set[asyncio.Task[Any]], grace: float) -> None:
    """Cancels tasks and waits for them at most `grace` seconds; those that go on are left behind and named."""
    if not tasks:
        return
    for task in tasks:
        task.cancel()
    _, left = await asyncio.wait(list(tasks), timeout=grace)
    for task in left:
        logger.warning("%s ignores its cancellation and is left behind after %g s", task.get_name(), grace)
