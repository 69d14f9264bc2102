"""JSON over HTTP to one engine server. Every call has a deadline, every failure names server, call and cure.

Lean, for it is the hot path: docs/network.md has what its parts cost. A body may hold numpy arrays.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Mapping
from typing import Any, Protocol, TypeAlias
from urllib.parse import urlsplit

import orjson

from agentrl.engines.connection import Connections, Listen, NoReply, Reply
from agentrl.engines.events import Events
from agentrl.errors import EngineError, UserError

Body: TypeAlias = Mapping[str, Any]


class Call(Protocol):
    """A call of one server, with its client's own limits of time."""

    def __call__(
        self, method: str, path: str, body: Body | None = None, *, seconds: float | None = None
    ) -> Coroutine[Any, Any, Any]: ...


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
    """One server. `call` gives the parsed reply, `stream` its events as they come, `reply` gives it as it is."""

    def __init__(self, kind: str, url: str, *, connect_s: float, api_key: str = "", dies_of: str = "") -> None:
        self.url = url.rstrip("/")
        self.name = f"{kind} at {self.url}"
        """How messages call it; `dies_of` is what they say when it is gone."""
        self._kind, self._dies_of = kind, f" ({dies_of})" if dies_of else ""
        self._connect_s = connect_s
        self._parts = urlsplit(self.url)
        key = f"Authorization: Bearer {api_key}\r\n" if api_key else ""
        if self._parts.scheme not in ("http", "https") or not self._parts.hostname or "@" in self._parts.netloc:
            raise UserError(
                f"{kind}: the URL must begin with http:// or https:// and a host, as http://host:30000, got {url!r}; "
                "a key goes into api_key"
            )
        if not (self.url + api_key).isascii() or not (self.url + api_key).isprintable():
            raise UserError(f"{self.name}: url and api_key must be printable ASCII")
        self._head = (
            f"Host: {self._parts.netloc}\r\nUser-Agent: agentrl\r\n{key}Content-Type: application/json\r\nContent-Length: "
        )
        self._connections: Connections | None = None

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

    async def call(self, method: str, path: str, body: Body | None = None, *, deadline: asyncio.Timeout, seconds: float) -> Any:
        """The parsed reply, None when it is empty; see `reply`."""
        return self.parsed(method, path, await self.reply(method, path, body, deadline=deadline, seconds=seconds))

    async def stream(
        self, path: str, body: Body, each: Callable[[Any], None], *, deadline: asyncio.Timeout, seconds: float
    ) -> None:
        """POSTs, and calls `each` with every server-sent event, parsed, up to `[DONE]`; see `reply`.

        An event that tells an error raises `Refused`, an end before `[DONE]` `EngineError`. What `each` raises ends the request
        and is raised as it is.
        """
        events = Events(lambda data: each(self._event(path, data)))
        reply = await self.reply("POST", path, body, deadline=deadline, seconds=seconds, listen=events.feed)
        if reply.status != 200:
            raise self._refused("POST", path, reply.status, reply.body)
        events.feed(reply.body)
        events.close()
        if not events.ended:
            raise EngineError(f"{self.name}: POST {path}: the stream broke off before its end", retryable=True)

    async def reply(
        self,
        method: str,
        path: str,
        body: Body | None = None,
        *,
        deadline: asyncio.Timeout,
        seconds: float,
        listen: Listen | None = None,
    ) -> Reply:
        """The reply, whatever its status. `EngineError` when there is none.

        `deadline` may be moved meanwhile; `seconds` is what the message says of it.
        """
        if self._connections is None:
            raise EngineError(f"{self.name}: {method} {path} before the engine was entered; use `async with engine:`")
        payload = b"" if body is None else self._payload(method, path, body)
        head = f"{method} {self._parts.path}{path} HTTP/1.1\r\n{self._head}{len(payload)}\r\n\r\n"
        try:
            async with deadline:
                return await self._connections.ask(head.encode(), payload, listen)
        except NoReply as error:
            raise EngineError(
                f"{self.name}: {method} {path} failed: {error}; check that the server runs{self._dies_of}", retryable=True
            ) from error
        except TimeoutError as error:
            if not deadline.expired():  # a listener's own
                raise
            raise EngineError(
                f"{self.name}: {method} {path} had no answer within {seconds:g} s; look at the server's log, "
                "or allow it more time",
                retryable=True,
            ) from error

    def parsed(self, method: str, path: str, reply: Reply) -> Any:
        """The body of a 200; any other status raises `Refused`."""
        if reply.status != 200:
            raise self._refused(method, path, reply.status, reply.body)
        return self._loaded(method, path, reply.body) if reply.body.strip() else None

    def _event(self, path: str, data: bytes) -> Any:
        event = self._loaded("POST", path, data)
        if isinstance(event, dict) and "error" in event:
            error: Any = event["error"]  # pyright: ignore[reportUnknownVariableType]
            code: Any = error.get("code") if isinstance(error, dict) else None  # pyright: ignore[reportUnknownMemberType]
            raise self._refused("POST", path, code if isinstance(code, int) else 500, data, "failed in mid-stream with")
        return event

    def _refused(self, method: str, path: str, status: int, body: bytes, how: str = "answered") -> Refused:
        reason = error_reason(body.decode(errors="replace"))
        return Refused(f"{self.name}: {method} {path} {how} {status}: {' '.join(reason.split())[:2000]}", status, reason)

    def _payload(self, method: str, path: str, body: Body) -> bytes:
        try:
            return orjson.dumps(body, option=orjson.OPT_SERIALIZE_NUMPY)
        except TypeError as error:
            raise UserError(f"{self.name}: {method} {path} cannot be sent as JSON: {error}") from error

    def _loaded(self, method: str, path: str, data: bytes) -> Any:
        try:
            return orjson.loads(data)
        except ValueError as error:
            raise EngineError(
                f"{self.name}: {method} {path} answered 200 with something that is no JSON "
                f"({data[:80].decode(errors='replace')!r}); "
                f"check that this is the address of {self._kind} itself and not of a proxy's page"
            ) from error
