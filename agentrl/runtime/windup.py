"""The end of a workflow that has returned, or is put aside: what it left running."""

from __future__ import annotations

from agentrl.runtime.loop import EpisodeLoop, EpisodeTask

_TRIES = 8
"""How often a task that swallows its cancellation is asked again before it is left behind."""


class WindUp:
    """First the tasks that are left are cancelled; those that they begin meanwhile, after them; generators are last."""

    def __init__(self, loop: EpisodeLoop) -> None:
        self._loop = loop
        self._wave: list[EpisodeTask] = []
        self._tries = 0

    def waits(self) -> bool:
        """Whether tasks that were asked to end have not."""
        return any(not task.done() for task in self._wave)

    def goes_on(self) -> bool:
        """Asks the next ones to end; False = there are none."""
        self._wave = self._loop.live_tasks()
        if self._wave:
            self._cancel("the workflow has ended")
        elif self._loop.has_generators():
            self._wave = [self._loop.root(self._loop.shutdown_asyncgens(), "/~generators")]
        return bool(self._wave)

    def insist(self) -> bool:
        """Asks once more those that wait for nothing that could come; False = they are left behind."""
        self._tries += 1
        if self._tries < _TRIES:
            self._cancel("the workflow has ended")
            return True
        return False

    def leave(self) -> None:
        """Ends all that can be ended at once, while effects are refused."""
        for _ in range(_TRIES):
            self._wave = self._loop.live_tasks()
            if not self._wave:
                return
            self._cancel("suspended")
            self._loop.drain()

    def _cancel(self, why: str) -> None:
        for task in self._wave:
            if not task.done():
                self._loop.cancel(task, why)
