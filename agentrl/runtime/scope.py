"""Where the tasks of effects live.

A `TaskGroup` ends them all when one raises, and never ends while one refuses to. Effects are other people's code: what one
raises must harm no other, and one that ignores its cancellation is left behind, by name, after a time of grace.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from typing import Any

logger = logging.getLogger(__name__)


class EffectTasks:
    """Tasks of the loop it is made in. Leaving it cancels those that run, and waits for them at most `grace` seconds."""

    def __init__(self, grace: float = 5.0) -> None:
        self._grace = grace
        self._loop = asyncio.get_running_loop()
        self._tasks: set[asyncio.Task[Any]] = set()
        self.on_close: set[Callable[[], None]] = set()
        """Called first when it is left: who began tasks here learns that they do not fail, but that their world ends."""

    async def __aenter__(self) -> EffectTasks:
        return self

    async def __aexit__(self, *exc: object) -> None:
        for told in list(self.on_close):
            told()
        await end_tasks(self._tasks, self._grace)

    def create_task(self, coroutine: Coroutine[Any, Any, Any], *, name: str | None = None) -> asyncio.Task[Any]:
        """Begins a task."""
        task = self._loop.create_task(coroutine, name=name)  # not the running one: that may be an episode's
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            logger.error("the task %s of an effect raised", task.get_name(), exc_info=error)


async def end_tasks(tasks: set[asyncio.Task[Any]], grace: float) -> None:
    """Cancels tasks and waits for them at most `grace` seconds; those that go on are left behind and named."""
    if not tasks:
        return
    for task in tasks:
        task.cancel()
    _, left = await asyncio.wait(list(tasks), timeout=grace)
    for task in left:
        logger.warning("%s ignores its cancellation and is left behind after %g s", task.get_name(), grace)
