"""Episodes that a rollout plan leads from one model call to the next: each stands still before it, until it is told to go on.

    async with run.line(member) as line:
        while (cut := await line.point()) is not None:   # the next model call was asked for, and has not begun
            line.go_on()
        episode = line.episode

A point is the same place in an episode that runs, in one resumed after a crash and in one that has ended and is read back, so
that a plan which is run again comes to the same decisions.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

from agentrl.effect import Effect, EffectKind
from agentrl.episode import Episode
from agentrl.errors import WorkflowError
from agentrl.runtime.execution import Execution
from agentrl.runtime.pending import Place
from agentrl.store.contract import EpisodeHead
from agentrl.store.fold import fold


class Line:
    """A live episode, led. It is the gate of its execution, too."""

    def __init__(self, head: EpisodeHead, task: Any) -> None:
        self._head = head
        self._task = task
        self._execution: Execution | None = None
        self._running: asyncio.Task[Episode] | None = None
        self._place: Place | None = None
        self._cut = -1
        self._opened: Place | None = None
        self._free = False
        self._changed = asyncio.Event()

    # --- what a plan may ask -----------------------------------------------------------------------------------------------
    async def point(self) -> int | None:
        """Waits for the next model call. The cut of a fork that shares all before it; None = the episode has ended."""
        while self._place is None and not self._ended:
            self._changed.clear()
            await self._changed.wait()
        return None if self._ended else self._cut

    def go_on(self) -> None:
        """Lets the model call begin that the line stands before."""
        assert self._place is not None and self._execution is not None, "a line goes on from a point; await line.point() first"
        place, self._place = self._place, None
        self._opened = place
        self._execution.journal.go_on(place)

    def run_on(self) -> None:
        """From here on the episode stands still no more."""
        self._free = True
        if self._place is not None:
            self.go_on()

    async def stop(self) -> None:
        """Ends the episode here for good, with status "stopped": its cleanup runs, it is compared as it is."""
        self._free = True
        if not self._ended and self._execution is not None:
            self._execution.stop()
        await self.ended()

    async def ended(self) -> Episode:
        """Waits for the end. A line that was not told to run on or to stop must have ended by itself."""
        assert self._running is not None
        await asyncio.wait([self._running])
        return self._running.result()

    @property
    def episode(self) -> Episode:
        """All of it that happened before the point, or the whole of one that has ended."""
        assert self._running is not None and self._execution is not None
        if self._ended:
            return self._running.result()
        before = [effect for effect in self._execution.journal.written.effects if effect.completed < self._cut]
        return fold(self._head, before, None, task=self._task)

    @property
    def _ended(self) -> bool:
        return self._running is not None and self._running.done()

    # --- what the runtime tells --------------------------------------------------------------------------------------------
    def begin(self, running: asyncio.Task[Episode]) -> None:
        """The task that executes the episode."""
        self._running = running
        running.add_done_callback(lambda _: self._changed.set())

    def led_by(self, execution: Execution) -> None:
        """The execution that asks this gate."""
        self._execution = execution

    def holds(self, kind: EffectKind, place: Place, issued: int) -> bool:
        """A model call waits here, unless it stands before the line's own beginning or was told to go on."""
        if self._free or kind != "model" or issued < self._head.fork_cut or place == self._opened:
            return False
        if self._place is not None and place != self._place:
            assert self._execution is not None
            told = "its workflow asks for two model calls at once; take a plan of whole episodes, --set rollout=independent"
            self._execution.journal.fail(
                WorkflowError(f"episode {self._head.id} is led from one model call to the next: {told}")
            )
        self._place, self._cut = place, issued
        self._changed.set()
        return True


class ReadLine:
    """The same of an episode that has ended and is read back from the store: its points are told by its record."""

    def __init__(self, episode: Episode, record: Sequence[Effect], head: EpisodeHead) -> None:
        self._whole = episode
        self._record = record
        self._head = head
        made = (effect for effect in record if effect.kind == "model" and effect.completed >= 0 and effect.status != "lost")
        self._cuts = [effect.issued for effect in sorted(made, key=_completed) if effect.issued >= head.fork_cut]

    async def point(self) -> int | None:
        """See `Line`."""
        return self._cuts[0] if self._cuts else None

    def go_on(self) -> None:
        """See `Line`."""
        del self._cuts[0]

    def run_on(self) -> None:
        """See `Line`."""
        self._cuts.clear()

    async def stop(self) -> None:
        """See `Line`; what has ended is as it is."""
        self._cuts.clear()

    async def ended(self) -> Episode:
        """See `Line`."""
        return self._whole

    @property
    def episode(self) -> Episode:
        """See `Line`."""
        if not self._cuts:
            return self._whole
        before = [effect for effect in self._record if effect.completed < self._cuts[0]]
        return fold(self._head, before, None, task=self._whole.task)


_completed: Callable[[Effect], int] = lambda effect: effect.completed  # noqa: E731
