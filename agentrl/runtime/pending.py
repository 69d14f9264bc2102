"""An effect that was asked for and has not been handed back, and what a journal needs of its host."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

from agentrl.effect import Effect, EffectKey, EffectKind, EffectStatus
from agentrl.workflow import Ask, Outcome

if TYPE_CHECKING:
    from agentrl.runtime.jobs import Job
    from agentrl.runtime.journal import Journal

Place: TypeAlias = tuple[str, int]
"""Branch path and position: an effect's key without the attempt."""


UNASKED = b"\0" * 16
"""The request of what is told by its place alone."""


class Pending:
    """An effect that was asked for and has not been handed back."""

    __slots__ = (
        "abandoned", "ask", "attempt", "delivered", "error", "future", "handle", "issued", "issued_at", "job", "kind", "name",
        "note", "outcome", "place", "request", "status", "task",
    )  # fmt: skip

    def __init__(self, place: Place, kind: EffectKind, name: str, request: bytes, note: str) -> None:
        self.place = place
        self.kind: EffectKind = kind
        self.name = name
        self.request = request
        self.note = note
        self.issued = -1
        """-1 until it is launched."""
        self.issued_at = 0.0
        self.attempt = 0
        self.ask: Ask | None = None
        self.job: Job | None = None
        self.handle: asyncio.Handle | None = None
        """The callback of a timer or of a thread, run when it is handed in."""
        self.future: asyncio.Future[Any] | None = None
        """What the workflow waits for."""
        self.task: Any = None
        """What runs on the real loop: a task, a timer, or a thread's future."""
        self.abandoned = False
        self.delivered = False
        self.status: EffectStatus | None = None
        """Set when it has ended."""
        self.outcome: Outcome = NOTHING
        self.error: BaseException | None = None

    def __str__(self) -> str:
        return told(self.kind, self.name, EffectKey(self.place[0], 0, self.place[1]), self.note, self.request)


NOTHING = Outcome()


def told(kind: EffectKind, name: str, key: EffectKey, note: str, request: bytes) -> str:
    """An effect in a message: what, where, and its request in short."""
    return f"{kind} {name!r} at {key} ({note or request.hex()[:12]})"


class Host(Protocol):
    """What a journal needs of the runtime."""

    def spawn(self, coroutine: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
        """Runs an effect on the real loop. What it raises harms no other."""
        ...

    async def execute(self, journal: Journal, pending: Pending) -> None:
        """Runs `pending.ask` with its retries and calls `journal.complete`. Never raises."""
        ...

    async def abandon(self, journal: Journal, pending: Pending) -> None:
        """Runs `pending.ask.abandon`. Never raises."""
        ...

    def holds(self, kind: EffectKind, place: Place, issued: int) -> bool:
        """Whether what is about to be launched, or handed in from the record, waits for `Journal.go_on`."""
        ...

    def thread(self, call: Callable[[], Any], executor: Any) -> asyncio.Future[Any]: ...

    def write(self, effect: Effect) -> None:
        """Appends to the store, in order."""
        ...

    def wake(self, journal: Journal) -> None:
        """Has `activate` called soon."""
        ...
