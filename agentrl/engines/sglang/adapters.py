"""LoRA adapters on one server: each publish loads one under a name of its own, and requests name the one they begin with."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from agentrl.engines.contract import Weights
from agentrl.engines.folders import adapter_config, adapter_in
from agentrl.engines.http import Call, Refused
from agentrl.episode import Version
from agentrl.errors import EngineError

log = logging.getLogger(__name__)


@dataclass(slots=True, eq=False)
class Loaded:
    """An adapter on the server; `name=None` is the base itself, which serves a policy before its first publish."""

    name: str | None
    version: Version
    using: int = 0
    retired: bool = False


class Adapters:
    """Which adapter serves each policy.

    An unload waits on the server for the requests that use the adapter, and all loads wait behind it; so an adapter that was
    replaced is unloaded only when its last request has ended. Its name is never used again: asked for an adapter that it
    unloaded, a server loads it anew from its folder.
    """

    def __init__(self, policies: Sequence[str], server: str, call: Call, seconds: float, nonce: str) -> None:
        self._policies, self._server, self._call, self._seconds = tuple(policies), server, call, seconds
        self._nonce, self._number = nonce, 0
        self._serving: dict[str, Loaded] = {}

    def begin(self, versions: Mapping[str, Version]) -> None:
        """Before any publish the base serves every policy."""
        self._serving = {policy: Loaded(None, versions[policy]) for policy in self._policies}

    def __contains__(self, policy: str) -> bool:
        return policy in self._policies

    async def publish(self, policy: str, weights: Weights, version: Version) -> None:
        """Requests that begin from now on have the new adapter."""
        path = adapter_in(weights, policy)
        if await asyncio.to_thread(path.is_dir):  # one that is not seen from here the server may see
            await asyncio.to_thread(adapter_config, path)
        self._number += 1
        name = f"{version}~{self._nonce}.{self._number}"
        try:
            await self._call("POST", "/load_lora_adapter", {"lora_name": name, "lora_path": str(path)}, seconds=self._seconds)
        except Refused as error:
            raise EngineError(f"{self._server}: it does not take the adapter in {path}: {_reason(error)}") from error
        before, self._serving[policy] = self._serving[policy], Loaded(name, version)
        before.retired = True
        await self._unload_unused(before)

    @asynccontextmanager
    async def use(self, policy: str, leave: Callable[[Awaitable[None]], Awaitable[None]]) -> AsyncGenerator[Loaded]:
        """The adapter that serves a policy now, kept until the block ends. `leave` runs what must not be cut short."""
        adapter = self._serving[policy]
        adapter.using += 1
        try:
            yield adapter
        finally:
            adapter.using -= 1
            if adapter.retired and not adapter.using:
                await leave(self._unload_unused(adapter))

    async def unload_all(self) -> None:
        """When the engine is left."""
        for adapter in self._serving.values():
            adapter.retired, adapter.using = True, 0
            await self._unload_unused(adapter)

    async def _unload_unused(self, adapter: Loaded) -> None:
        if adapter.name is None or adapter.using or not adapter.retired:
            return
        name, adapter.name = adapter.name, None
        try:
            await self._call("POST", "/unload_lora_adapter", {"lora_name": name})
        except EngineError as error:  # it costs memory there, and nothing else
            log.warning("%s", error)


def _reason(error: Refused) -> str:
    """Adapters are refused in a shape of their own: {"success": false, "error_message": ...}."""
    try:
        told: Any = json.loads(error.reason)
    except ValueError:
        return error.reason
    return str(told["error_message"]) if isinstance(told, dict) and "error_message" in told else error.reason
