"""The fake's LoRA registry: an unload waits for the requests that use the adapter, and every load waits behind it."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

from agentrl.engines.sglang.fake.replies import engine_error
from agentrl.engines.sglang.fake.served import Served
from agentrl.errors import UserError

NOT_ENABLED = "LoRA is not enabled. Please set `--enable-lora` to enable LoRA."


class Registry:
    """`loaded` is name -> folder. A name once loaded is loaded again, unasked, when a request names it after its unload."""

    def __init__(self, served: Served, enabled: bool) -> None:
        self.enabled = enabled
        self.loaded: dict[str, str] = {}
        self._served = served
        self._known: dict[str, str] = {}
        self._using: Counter[str] = Counter()
        self._lock = asyncio.Lock()
        self._changed = asyncio.Condition()

    async def load(self, name: str, folder: str) -> dict[str, Any]:
        """The body of the answer."""
        if not self.enabled:
            return self._told(NOT_ENABLED)
        async with self._lock:
            if name in self.loaded:
                return self._told(f"Failed to load LoRA adapter {name} because it is already loaded")
            try:
                self._served.add_adapter(folder)
            except UserError as error:
                return self._told(str(error))
            self.loaded[name] = self._known[name] = folder
            return self._told("")

    async def unload(self, name: str) -> dict[str, Any]:
        """The body of the answer."""
        if not self.enabled:
            return self._told(NOT_ENABLED)
        async with self._lock:
            if name not in self.loaded:
                known = f"odict_keys({list(self.loaded)})"
                return self._told(f"LoRA with name {name} does not exist. Loaded LoRAs: {known}") | {"loaded_adapters": None}
            del self.loaded[name]
            async with self._changed:
                await self._changed.wait_for(lambda: not self._using[name])
            return self._told("")

    @asynccontextmanager
    async def use(self, name: str | None) -> AsyncGenerator[str | None]:
        """The folder of the adapter that a request names."""
        if name is None:
            yield None
            return
        if not self.enabled:
            raise engine_error(
                f"LoRA adapter '{name}' was requested, but LoRA is not enabled. Please launch the server with --enable-lora "
                "flag and preload adapters using --lora-paths or /load_lora_adapter endpoint."
            )
        if name not in self._known:
            keys = f"dict_keys({list(self._known)})"
            raise engine_error(f"Got LoRA adapter that has never been loaded: {name}\nAll loaded adapters: {keys}.")
        if name not in self.loaded:
            await self.load(name, self._known[name])
        self._using[name] += 1
        try:
            yield self.loaded[name]
        finally:
            self._using[name] -= 1
            async with self._changed:
                self._changed.notify_all()

    def _told(self, error: str) -> dict[str, Any]:
        loaded = None if error == NOT_ENABLED else dict(self.loaded)
        return {"rid": None, "http_worker_ipc": None, "success": not error, "error_message": error, "loaded_adapters": loaded}
