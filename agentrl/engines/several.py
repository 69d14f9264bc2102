"""`SeveralEngines`: one engine to the runtime, several behind it, each serving its own policies."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from contextlib import AsyncExitStack
from dataclasses import fields
from typing import Any

from agentrl.engines.contract import (
    Engine,
    EngineInfo,
    GenerateRequest,
    Generation,
    Offers,
    PauseMode,
    ScoreRequest,
    Scores,
    Weights,
)
from agentrl.episode import Version
from agentrl.errors import UserError


class SeveralEngines:
    """Routes by policy; `pause`, `resume` and `abort` reach all. It enters its engines, and leaves them.

    It offers what all of them offer. Vocabulary and context are the smallest of the engines with token ids, if there are any:
    the ids of the others are bytes of messages.
    """

    def __init__(self, by_policy: Mapping[str, Engine]) -> None:
        if not by_policy:
            raise UserError("several engines need at least one policy: SeveralEngines({NAME: engine, ...})")
        self._by_policy = dict(by_policy)
        self._engines = list({id(engine): engine for engine in by_policy.values()}.values())
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> SeveralEngines:
        async with AsyncExitStack() as stack:
            for engine in self._engines:
                await stack.enter_async_context(engine)
            self._stack = stack.pop_all()
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self._stack.aclose()

    @property
    def info(self) -> EngineInfo:
        """See the class."""
        infos = [engine.info for engine in self._engines]
        sized = [info for info in infos if info.offers.token_ids] or infos
        return EngineInfo(
            " + ".join(info.name for info in infos),
            min(info.vocab_size for info in sized),
            min(info.max_context for info in sized),
            _common([info.offers for info in infos]),
        )

    def of(self, policy: str) -> Engine:
        """The engine that serves a policy."""
        if policy not in self._by_policy:
            raise UserError(f"no engine serves policy {policy!r}; there are engines for {', '.join(self._by_policy)}")
        return self._by_policy[policy]

    async def generate(self, request: GenerateRequest) -> Generation:
        """See `Engine.generate`."""
        return await self.of(request.policy).generate(request)

    async def score(self, request: ScoreRequest) -> Scores:
        """See `Engine.score`."""
        return await self.of(request.policy).score(request)

    async def publish(self, policy: str, weights: Weights, version: Version) -> None:
        """See `Engine.publish`."""
        await self.of(policy).publish(policy, weights, version)

    def version(self, policy: str) -> Version:
        """See `Engine.version`."""
        return self.of(policy).version(policy)

    async def abort(self, request_id: str) -> None:
        """Whichever has it; to the others it is unknown."""
        for engine in self._engines:
            await engine.abort(request_id)

    async def pause(self, mode: PauseMode = "in_place") -> None:
        """See `Engine.pause`."""
        await self._all(lambda engine: engine.pause(mode))

    async def resume(self) -> None:
        """See `Engine.resume`."""
        await self._all(lambda engine: engine.resume())

    async def _all(self, call: Callable[[Engine], Awaitable[None]]) -> None:
        """One after the other: a failure leaves the rest to `resume`, which the caller sends then."""
        for engine in self._engines:
            await call(engine)


def _common(offers: list[Offers]) -> Offers:
    """What all offer."""
    common: dict[str, Any] = {}
    for offered in fields(Offers):
        values = [getattr(one, offered.name) for one in offers]
        common[offered.name] = frozenset[str].intersection(*values) if offered.name == "columns" else all(values)
    return Offers(**common)
