"""The gate at which requests wait while their engine is paused."""

from __future__ import annotations

import asyncio

from agentrl.errors import UserError


class Gate:
    """Open or closed. Filled by requests that arrive while it is closed; drained in order of arrival by `open`."""

    def __init__(self) -> None:
        self._closed = False
        self._waiting: dict[str, asyncio.Future[bool]] = {}

    @property
    def closed(self) -> bool:
        """Whether requests wait now."""
        return self._closed

    def close(self) -> None:
        """Requests that arrive from now on wait."""
        self._closed = True

    def open(self) -> None:
        """Lets in those that wait, and all that follow."""
        self._closed = False
        for waiting in self._waiting.values():
            if not waiting.done():
                waiting.set_result(True)

    def abort(self, request_id: str) -> bool:
        """Turns away one request that waits; tells whether there was one."""
        waiting = self._waiting.get(request_id)
        if waiting is None or waiting.done():
            return False
        waiting.set_result(False)
        return True

    async def enter(self, request_id: str) -> bool:
        """Waits while closed. True = go on; False = aborted while it waited."""
        while self._closed:
            if request_id in self._waiting:
                raise UserError(f"request id {request_id!r} is already waiting; give every request an id of its own")
            waiting = asyncio.get_running_loop().create_future()
            self._waiting[request_id] = waiting
            try:
                if not await waiting:
                    return False
            finally:
                del self._waiting[request_id]
        return True
