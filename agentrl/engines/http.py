"""JSON over HTTP to one engine server. Every call has a deadline, every failure names server, call and cure."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from typing import Any, TypeAlias

import aiohttp

from agentrl.errors import EngineError, describe

Body: TypeAlias = Mapping[str, Any]

KEEP_ALIVE_S = 3.0
"""Shorter than the server's own 5 s: it must never close a connection that the client is about to use again."""


class Refused(EngineError):
    """The server answered with an error status. `reason` is its own message, whichever of its three shapes it came in."""

    def __init__(self, message: str, status: int, reason: str) -> None:
        super().__init__(message, retryable=status >= 500)
        self.status = status
        self.reason = reason


def error_reason(text: str) -> str:
    """The message in an error body: {"error": {"message"}}, {"error": str}, {"message"}, or the text itself."""
    try:
        body = json.loads(text)
    except ValueError:
        return text.strip()
    if not isinstance(body, dict):
        return text.strip()
    error: Any = body.get("error", body)  # pyright: ignore[reportUnknownMemberType]
    if isinstance(error, dict):
        error = error.get("message", text)
    return str(error).strip()


class Transport:
    """One server: `call` sends a body and gives the parsed reply (None when it is empty)."""

    def __init__(self, kind: str, url: str, *, connect_s: float, api_key: str = "", dies_of: str = "") -> None:
        self.url = url.rstrip("/")
        self.name = f"{kind} at {self.url}"
        """How messages call it; `dies_of` is what they say when it is gone."""
        self._kind, self._dies_of = kind, f" ({dies_of})" if dies_of else ""
        self._connect_s = connect_s
        self._headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        self._session: aiohttp.ClientSession | None = None

    async def open(self) -> None:
        """Must run in the loop that will use it."""
        # limit=0: the default of 100 connections would queue requests here, unseen by the server's own scheduler.
        connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=KEEP_ALIVE_S)
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=self._connect_s)
        self._session = aiohttp.ClientSession(connector=connector, timeout=timeout, headers=self._headers)

    async def close(self) -> None:
        """Closes every connection."""
        if self._session is not None:
            await self._session.close()
            self._session = None

    async def call(self, method: str, path: str, body: Body | None = None, *, deadline: asyncio.Timeout, seconds: float) -> Any:
        """The parsed reply. `deadline` may be moved while the call runs; `seconds` is what the message says of it."""
        if self._session is None:
            raise EngineError(f"{self.name}: {method} {path} before the engine was entered; use `async with engine:`")
        try:
            async with deadline:
                payload = None if body is None else json.dumps(body).encode()
                headers = {"Content-Type": "application/json"}
                async with self._session.request(method, self.url + path, data=payload, headers=headers) as response:
                    status, raw = response.status, await response.read()
        except aiohttp.ClientError as error:  # before TimeoutError: a timeout of the connection is both
            raise self._lost(method, path, error) from error
        except TimeoutError as error:
            raise EngineError(
                f"{self.name}: {method} {path} had no answer within {seconds:g} s; look at the server's log, "
                "or allow it more time",
                retryable=True,
            ) from error
        except OSError as error:
            raise self._lost(method, path, error) from error
        return self._parsed(method, path, status, raw)

    def _lost(self, method: str, path: str, error: Exception) -> EngineError:
        return EngineError(
            f"{self.name}: {method} {path} failed: {describe(error)}; check that the server runs{self._dies_of}",
            retryable=True,
        )

    def _parsed(self, method: str, path: str, status: int, raw: bytes) -> Any:
        """The body of a 200, parsed; any other status raises."""
        text = raw.decode(errors="replace")
        if status != 200:
            reason = error_reason(text)
            raise Refused(f"{self.name}: {method} {path} answered {status}: {' '.join(reason.split())[:2000]}", status, reason)
        if not text.strip():
            return None
        try:
            return json.loads(text)
        except ValueError as error:
            raise EngineError(
                f"{self.name}: {method} {path} answered 200 with something that is no JSON ({text[:80]!r}); "
                f"check that this is the address of {self._kind} itself and not of a proxy's page"
            ) from error
