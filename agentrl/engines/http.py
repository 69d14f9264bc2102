"""JSON over HTTP to one engine server. Every call has a deadline, every failure names server, call and cure.

Lean, for it is the hot path: docs/network.md has what its parts cost. A body may hold numpy arrays.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, TypeAlias
from urllib.parse import urlsplit

import orjson

from agentrl.engines.connection import KEEP_ALIVE_S, Connections
from agentrl.errors import EngineError, UserError, describe

if TYPE_CHECKING:
    import aiohttp

Body: TypeAlias = Mapping[str, Any]


class Refused(EngineError):
    """The server answered with an error status. `reason` is its own message, whichever of its three shapes it came in."""

    def __init__(self, message: str, status: int, reason: str) -> None:
        super().__init__(message, retryable=status >= 500)
        self.status = status
        self.reason = reason


def error_reason(text: str) -> str:
    """The message in an error body: {"error": {"message"}}, {"error": str}, {"message"}, or the text itself."""
    try:
        body = orjson.loads(text)
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
        self._connect_s, self._key = connect_s, api_key
        self._parts = urlsplit(self.url)
        key = f"Authorization: Bearer {api_key}\r\n" if api_key else ""
        if self._parts.scheme not in ("http", "https") or not self._parts.hostname or "@" in self._parts.netloc:
            raise UserError(f"{kind}: the url is {url!r}; give one like http://host:30000, and a key by api_key")
        if not (self.url + api_key).isascii() or not (self.url + api_key).isprintable():
            raise UserError(f"{self.name}: url and api_key must be printable ASCII")
        self._head = f"Host: {self._parts.netloc}\r\n{key}Content-Type: application/json\r\nContent-Length: "
        self._connections: Connections | None = None
        self._aiohttp: aiohttp.ClientSession | None = None

    async def open(self) -> None:
        """Must run in the loop that will use it."""
        tls = self._parts.scheme == "https"
        port = self._parts.port or (443 if tls else 80)
        self._connections = Connections(self._parts.hostname or "", port, tls=tls, connect_s=self._connect_s)

    async def close(self) -> None:
        """Closes every connection."""
        if self._connections is not None:
            await self._connections.close()
            self._connections = None
        if self._aiohttp is not None:
            await self._aiohttp.close()
            self._aiohttp = None

    @property
    def _session(self) -> aiohttp.ClientSession | None:
        """For those who read a reply while it comes, or its headers; None before `open`."""
        import aiohttp

        if self._aiohttp is None and self._connections is not None:
            # limit=0: the default of 100 connections would queue requests here, unseen by the server's own scheduler.
            connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=KEEP_ALIVE_S)
            timeout = aiohttp.ClientTimeout(total=None, sock_connect=self._connect_s)
            headers = {"Authorization": f"Bearer {self._key}"} if self._key else {}
            self._aiohttp = aiohttp.ClientSession(connector=connector, timeout=timeout, headers=headers)
        return self._aiohttp

    async def call(self, method: str, path: str, body: Body | None = None, *, deadline: asyncio.Timeout, seconds: float) -> Any:
        """The parsed reply. `deadline` may be moved while the call runs; `seconds` is what the message says of it."""
        if self._connections is None:
            raise EngineError(f"{self.name}: {method} {path} before the engine was entered; use `async with engine:`")
        try:
            async with deadline:
                payload = b"" if body is None else self._payload(method, path, body)
                head = f"{method} {self._parts.path}{path} HTTP/1.1\r\n{self._head}{len(payload)}\r\n\r\n"
                status, raw = await self._connections.ask(head.encode(), payload)
        except OSError as error:  # a TimeoutError is one: of the deadline, or of a connection
            if not deadline.expired():
                raise self._lost(method, path, error) from error
            raise EngineError(
                f"{self.name}: {method} {path} had no answer within {seconds:g} s; look at the server's log, "
                "or allow it more time",
                retryable=True,
            ) from error
        return self._parsed(method, path, status, raw)

    def _payload(self, method: str, path: str, body: Body) -> bytes:
        try:
            return orjson.dumps(body, option=orjson.OPT_SERIALIZE_NUMPY)
        except TypeError as error:
            raise UserError(f"{self.name}: {method} {path} cannot be sent as JSON: {error}") from error

    def _lost(self, method: str, path: str, error: Exception) -> EngineError:
        return EngineError(
            f"{self.name}: {method} {path} failed: {describe(error)}; check that the server runs{self._dies_of}",
            retryable=True,
        )

    def _parsed(self, method: str, path: str, status: int, raw: bytes) -> Any:
        """The body of a 200, parsed; any other status raises."""
        if status != 200:
            reason = error_reason(raw.decode(errors="replace"))
            raise Refused(f"{self.name}: {method} {path} answered {status}: {' '.join(reason.split())[:2000]}", status, reason)
        try:
            return orjson.loads(raw) if raw.strip() else None
        except ValueError as error:
            raise EngineError(
                f"{self.name}: {method} {path} answered 200 with something that is no JSON "
                f"({raw[:80].decode(errors='replace')!r}); "
                f"check that this is the address of {self._kind} itself and not of a proxy's page"
            ) from error
