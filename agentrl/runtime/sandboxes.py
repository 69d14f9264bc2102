"""The live sandboxes of all episodes: opened when the first call needs one, brought to where the record ends, closed with the
episode."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import Any

from agentrl.box import Call, differs, make
from agentrl.errors import ReplayDiverged, UserError
from agentrl.sandbox import Backend, SandboxLimits, SandboxSpec, Session
from agentrl.store.contract import EpisodeHead


@dataclass(slots=True)
class _Slot:
    """A box: its live session, if it has one, and how many calls that has seen."""

    session: Session | None = None
    calls: int = 0
    alone: asyncio.Lock = field(default_factory=asyncio.Lock)


class Sandboxes:
    """Of one runtime. `backend` is None where the experiment has no sandbox."""

    def __init__(self, spec: SandboxSpec | None, backend: Backend | None) -> None:
        self._spec = spec
        self._backend = backend
        self._open: dict[str, dict[str, _Slot]] = {}

    def of(self, head: EpisodeHead) -> EpisodeSandboxes:
        """Those of one episode."""
        return EpisodeSandboxes(self, head)

    async def close(self, episode: str, box: str = "") -> None:
        """Ends the sandboxes of an episode, or one of them, whatever runs in them."""
        slots = self._open.get(episode, {})
        ended = [slots.pop(name) for name in ([box] if box in slots else [] if box else list(slots))]
        if not slots:
            self._open.pop(episode, None)
        async with asyncio.TaskGroup() as tasks:
            for slot in ended:
                if slot.session is not None:
                    tasks.create_task(slot.session.close())

    @property
    def spec(self) -> SandboxSpec:
        """What the experiment says; `UserError` if it says nothing."""
        if self._spec is None:
            raise UserError(
                "this experiment has no sandbox; Experiment(..., sandbox=Process()) from agentrl_sandboxes.process, or "
                "--set sandbox=process"
            )
        return self._spec

    async def call(
        self, head: EpisodeHead, box: str, limits: SandboxLimits, past: Sequence[Call], call: Call
    ) -> Mapping[str, Any]:
        """See `agentrl.box.Sessions`."""
        slot = self._open.setdefault(head.id, {}).setdefault(box, _Slot())
        async with slot.alone:
            if slot.session is None:
                slot.session, slot.calls = await self._as_of(head, box, limits, past), len(past)
            before, slot.calls = slot.calls, -1  # a call that is cancelled leaves nobody knows what
            given = await make(slot.session, call)
            slot.calls = before + 1 if before >= 0 else before
            return given

    async def _as_of(self, head: EpisodeHead, box: str, limits: SandboxLimits, past: Sequence[Call]) -> Session:
        """A session in which these calls were made."""
        assert self._backend is not None
        copy = await self._copied(head.fork_of or "", box, len(past)) if past else None
        if copy is not None:
            return copy
        if past and self._backend.fork == "none":
            backend = type(self.spec).__name__
            raise ReplayDiverged(f"episode {head.id}: the sandbox {box} is gone, and {backend} cannot make its calls again")
        async with AsyncExitStack() as stack:
            session = await self._backend.session(limits)
            stack.push_async_callback(session.close)
            for number, made in enumerate(past):
                if told := differs(made.given, await make(session, made)):
                    what = f"call {number} of {box} ({made.method} {made.arguments[0]!s:.100})"
                    raise ReplayDiverged(f"episode {head.id}: {what}, made again, gave something else: {told}")
            stack.pop_all()
        return session

    async def _copied(self, parent: str, box: str, calls: int) -> Session | None:
        """A copy of the parent's live session, if that has seen just these calls and can be copied."""
        slot = self._open.get(parent, {}).get(box)
        if slot is None:
            return None
        async with slot.alone:
            return await slot.session.fork() if slot.session is not None and slot.calls == calls else None


class EpisodeSandboxes:
    """See `agentrl.box.Sessions`."""

    def __init__(self, sandboxes: Sandboxes, head: EpisodeHead) -> None:
        self._sandboxes = sandboxes
        self._head = head

    @property
    def limits(self) -> SandboxLimits:
        return self._sandboxes.spec.limits

    async def call(self, box: str, limits: SandboxLimits, past: Sequence[Call], call: Call) -> Mapping[str, Any]:
        return await self._sandboxes.call(self._head, box, limits, past, call)

    async def close(self, box: str) -> None:
        await self._sandboxes.close(self._head.id, box)
