"""`SGLangFleet`: the engine contract over several SGLang servers with the same weights."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from agentrl.engines.contract import EngineInfo, GenerateRequest, Generation, ScoreRequest, Scores, Weights
from agentrl.engines.fleet.router import Router
from agentrl.engines.fleet.transport import SESSION, FleetTransport, Member
from agentrl.engines.http import Transport
from agentrl.engines.launch import Command, Server, Servers
from agentrl.engines.replies import no_tokens
from agentrl.engines.serving import Seconds
from agentrl.engines.sglang import SGLangEngine
from agentrl.episode import Version
from agentrl.errors import AgentRLError, EngineAborted, EngineError, UserError

log = logging.getLogger(__name__)

PATIENCE = 3
"""So many probes in a row must go unanswered before an idle member is dropped."""


class SGLangFleet(SGLangEngine):
    """Each of `servers` is the URL of a running server, or a `Command` to start one with, which is started again when it ends.

    Requests go through SGLang's own router, those of a session to the same server; a single server needs no router. Control
    goes to every server at once. A server that fails is dropped: its requests are sent again to the others, or wait for one
    to come back, within their own deadlines. It comes back, with the current weights, as soon as it answers: every `probe_s`
    seconds somebody looks. A publish that fails on some servers drops those; one that fails on all raises every cause.

    A launched server that hangs is ended and started again; what another that hangs had begun waits for its own deadline. For
    servers that come back a copy of the last published weights is kept in memory. Logs go to the folder `logs`.
    """

    def __init__(
        self,
        servers: Sequence[str | Command],
        *,
        logs: Path,
        policy: str = "policy",
        vocab_size: int | None = None,
        model: str | Path | None = None,
        weights: Literal["tensors", "disk"] = "tensors",
        exchange: str | Path = "",
        seconds: Seconds | None = None,
        start_s: float = 600.0,
        probe_s: float = 2.0,
    ) -> None:
        if not servers:
            raise UserError("a fleet needs at least one server, got none")
        urls = [server.url if isinstance(server, Command) else server.rstrip("/") for server in servers]
        if len(set(urls)) < len(urls):
            raise UserError(f"each server of a fleet once, got {', '.join(urls)}")
        seconds = seconds or Seconds()
        options: dict[str, Any] = {
            "policy": policy, "vocab_size": vocab_size, "model": model, "weights": weights, "exchange": exchange or None,
            "seconds": seconds,
        }  # fmt: skip
        super().__init__(urls[0], **options)
        self._options = options
        self._launched = Servers([one for one in servers if isinstance(one, Command)], logs, start_s=start_s)
        started: dict[str, Server] = {server.url: server for server in self._launched.servers}
        members = [Member(url, Transport("SGLang", url, connect_s=seconds.connect), started.get(url)) for url in urls]
        self._router = Router(logs / "router.log") if len(urls) > 1 else None
        self._fleet = FleetTransport(members, self._router, connect_s=seconds.connect)
        self._http, self._name = self._fleet, self._fleet.name
        self._probe_s = probe_s
        self._changing = asyncio.Lock()
        self._kept: tuple[Weights, Version] | None = None
        self._tending: list[asyncio.Task[None]] = []
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> SGLangFleet:
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(self._launched)
            if self._router is not None:
                stack.push_async_callback(self._router.stop)
                await self._router.start()
            await self._compare()
            await super().__aenter__()
            stack.push_async_exit(super().__aexit__)
            self._fleet.current = await self._fleet.probe(self._fleet.members[0])
            for member in self._fleet.members:
                await self._fleet.take(member)
            self._stack = stack.pop_all()
        self._tending = [self._tasks.create_task(self._tend(member)) for member in self._fleet.members]
        return self

    async def __aexit__(self, *exc: object) -> None:
        for task in self._tending:
            task.cancel()
        await self._stack.aclose()

    @property
    def info(self) -> EngineInfo:
        """That of its servers; but a reply may be sampled again, so it is told in one piece, and memory is not lent."""
        info = super().info
        count = len(self._fleet.members)
        return replace(info, name=f"{info.name} x {count}", offers=replace(info.offers, streaming=False, memory=False))

    @property
    def live(self) -> tuple[str, ...]:
        """The URLs of the servers that take part now."""
        return tuple(member.url for member in self._fleet.live)

    async def generate(self, request: GenerateRequest) -> Generation:
        """See `Engine.generate`."""
        token = SESSION.set(request.session)
        try:
            return await super().generate(request)
        except EngineAborted:
            return no_tokens(request.prompt)
        finally:
            SESSION.reset(token)

    async def score(self, request: ScoreRequest) -> Scores:
        """See `Engine.score`."""
        token = SESSION.set(request.session)
        try:
            return await super().score(request)
        finally:
            SESSION.reset(token)

    async def publish(self, policy: str, weights: Weights, version: Version) -> None:
        """See `Engine.publish`. While no server lives it waits for one."""
        self.version(policy)
        await self._fleet.some(self._seconds.publish)
        await self._to_the_end(self._published(policy, weights, version, super().publish))

    async def _published(self, policy: str, weights: Weights, version: Version, publish: Any) -> None:
        async with self._changing:
            kept = await asyncio.to_thread(copied, weights)
            await publish(policy, weights, version)
            self._kept, self._fleet.current = (kept, version), str(version)

    # --- members -----------------------------------------------------------------------------------------------------------
    async def _compare(self) -> None:
        """All servers must be alike."""
        seen: dict[str, tuple[EngineInfo, Version]] = {}
        for member in self._fleet.members:
            async with SGLangEngine(member.url, **self._options) as engine:
                seen[member.url] = engine.info, engine.version(self._policy)
        first, *others = seen.items()
        for url, what in others:
            if what != first[1]:
                raise UserError(f"the servers of a fleet must be alike: {first[0]} is {first[1]}, but {url} is {what}")

    async def _tend(self, member: Member) -> None:
        """Looks after one member for ever."""
        failures = 0
        while True:
            try:
                async with asyncio.timeout(self._probe_s * min(2**failures, 4)):
                    await member.wake.wait()
            except TimeoutError:
                pass
            member.wake.clear()
            try:
                await self._keep_router()
                await (self._look_at(member) if member.live else self._take_back_member(member))
                failures = 0
            except AgentRLError as error:
                failures += 1
                log.warning("%s is not back: %s", member.url, error)

    async def _keep_router(self) -> None:
        if self._router is None or self._router.server.running or self._changing.locked():
            return
        async with self._changing:
            if not self._router.server.running:
                log.warning("the router ended; it is started again")
                await self._router.start()
                for member in self._fleet.live:
                    await self._router.add(member.url)

    async def _look_at(self, member: Member) -> None:
        try:
            told = await self._fleet.probe(member)
        except EngineError as error:
            member.missed += 1
            if member.missed == PATIENCE or (member.server is not None and not member.server.running):
                await self._fleet.drop(member, error)
            return
        member.missed = 0
        if told != self._fleet.current and not self._changing.locked():
            await self._fleet.drop(member, f"it serves {told}, not {self._fleet.current}; was it restarted?")

    async def _take_back_member(self, member: Member) -> None:
        """Nothing while the fleet is paused: a server must not be, to come back."""
        if member.server is not None:
            try:
                await self._fleet.probe(member)
            except EngineError:  # it is gone, or hangs, and what it holds would wait for it
                await member.server.stop()
                await member.server.start()
        await self._fleet.calm(member)
        async with self._changing:
            if self._gate.closed:
                return
            async with SGLangEngine(member.url, **self._options) as engine:
                if self._kept is not None:
                    await engine.publish(self._policy, *self._kept)
            told = await self._fleet.probe(member)
            if told != self._fleet.current:
                raise EngineError(f"{member.url} serves {told}, but the fleet {self._fleet.current}")
            await self._fleet.take(member)
        log.info("%s is back in the fleet, with %s", member.url, told)


def copied(weights: Weights) -> Weights:
    """The learner changes its tensors in place; a folder is taken as it is."""
    if set(weights) == {"path"}:
        return dict(weights)
    return {
        name: value.detach().cpu().clone() if hasattr(value, "detach") else np.array(value) for name, value in weights.items()
    }
