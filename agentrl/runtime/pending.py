"""An effect that was asked for and has not been handed back, and what a journal needs of its host."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any, Protocol

from agentrl.effect import Effect, EffectKey, EffectKind, EffectStatus
from agentrl.workflow import Ask, Outcome

if TYPE_CHECKING:
    from agentrl.runtime.journal import Journal


class Pending:
    """An effect that was asked for and has not been handed back."""

    __slots__ = (
        "abandoned", "ask", "future", "handle", "issued", "issued_at", "key", "kind", "name", "note", "outcome", "request",
        "task", "thread",
    )  # fmt: skip

    def __init__(self, key: EffectKey, kind: EffectKind, name: str, request: bytes, note: str) -> None:
        self.key = key
        self.kind: EffectKind = kind
        self.name = name
        self.request = request
        self.note = note
        self.issued = -1
        self.issued_at = 0.0
        self.future: asyncio.Future[Any] | None = None
        self.handle: asyncio.Handle | None = None
        self.ask: Ask | None = None
        self.task: Any = None
        self.thread: Callable[[], asyncio.Future[Any]] | None = None
        self.abandoned = False
        self.outcome: tuple[EffectStatus, Outcome, BaseException | None] | None = None

    @property
    def place(self) -> tuple[str, int]:
        """Its key without the attempt."""
        return (self.key.branch, self.key.position)


class Host(Protocol):
    """What a journal needs of the runtime."""

    def spawn(self, coroutine: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
        """Runs an effect on the real loop, in the episode's own task group."""
        ...

    async def execute(self, journal: Journal, pending: Pending) -> None:
        """Runs `pending.ask` with its retries and calls `journal.complete`. Never raises."""
        ...

    def thread(self, call: Callable[[], Any], executor: Any) -> asyncio.Future[Any]: ...

    def write(self, effect: Effect) -> None:
        """Appends to the store, in order."""
        ...

    def wake(self, journal: Journal) -> None:
        """Has `activate` called soon."""
        ...
