"""Server-sent events over the transport: a reply of /generate while it grows."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from typing import Any, cast

import aiohttp

from agentrl.engines.http import Body, Refused
from agentrl.engines.serving import StreamTransport
from agentrl.errors import EngineError

EVENT = b"data: "
END = b"[DONE]"


class EventTransport(StreamTransport):
    """Gives events one by one, however long, so that what their reader raises is its own and never taken for the server's."""

    async def events(self, path: str, body: Body, *, deadline: asyncio.Timeout, seconds: float) -> AsyncGenerator[Any, None]:
        """The events of one POST, parsed. Errors as `call` raises them; one that comes in mid-stream raises `Refused`.

        `deadline` bounds the whole stream; it is entered here, so the caller's own work between two events counts.
        """
        with self._failures(path, seconds):
            async with deadline, self._posted(path, body) as response:
                if response.status != 200:
                    self._parsed("POST", path, response.status, await response.read())
                async for line in _lines(response.content):
                    if line == END:
                        return
                    yield self._event(path, line)
        raise EngineError(f"{self.name}: POST {path}: the stream broke off before its end", retryable=True)

    def _event(self, path: str, line: bytes) -> Any:
        event = self._parsed("POST", path, 200, line)
        if isinstance(event, dict) and "error" in event:
            told = cast("dict[str, Any]", event)["error"]
            error: dict[str, Any] = told if isinstance(told, dict) else {"message": told}
            status, reason = int(error.get("code") or 500), str(error.get("message", error))
            raise Refused(f"{self.name}: POST {path} failed in mid-stream with {status}: {reason[:2000]}", status, reason)
        return event


async def _lines(content: aiohttp.StreamReader) -> AsyncGenerator[bytes, None]:
    """The data of each event. A chunk holds the reply from its start, so a line may be longer than a reader's limit."""
    rest = b""
    async for piece in content.iter_any():
        *lines, rest = (rest + piece).split(b"\n")
        for line in lines:
            if line.startswith(EVENT):
                yield line[len(EVENT) :].strip()
            elif line.strip() and not line.startswith(b":"):
                yield line.strip()  # no event: what it is, parsing it will tell
    if rest.strip() and not rest.startswith(EVENT):
        yield rest.strip()
