"""HTTP/1.1 connections to one server, kept open between requests. One request at a time on each; as many as are asked for.

Connections wait in `Connections` while nobody uses them, youngest first. A request takes one or opens one, and gives it back
when its reply is whole; one whose request failed, timed out or was cancelled is closed, for its reply may still come.
"""

from __future__ import annotations

import asyncio
import ssl
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, cast

import httptools

from agentrl.errors import describe

KEEP_ALIVE_S = 3.0
"""Shorter than the server's own 5 s: it must never close a connection that is about to be used again."""
PIECE = 1 << 20
"""Bytes written before the socket must have taken them."""
LARGEST = 1 << 30
"""Bytes of a reply from which it is no reply: nothing here is near, and it would fill the memory."""

Listen = Callable[[bytes], None]
"""Is given the body of a 200 as it comes, in the task that asked. What it raises is raised there as it is."""


class NoReply(Exception):
    """A request failed before its reply was whole. No `OSError`, for a listener may raise one."""


class Reply(NamedTuple):
    """A whole reply. The names of headers are in small letters; the body is what no listener was given."""

    status: int
    headers: Mapping[bytes, bytes]
    body: bytes


class Connection(asyncio.Protocol):
    """One connection. What goes wrong with it, or with what comes over it, is a `NoReply` of `ask`."""

    transport: asyncio.Transport

    def __init__(self) -> None:
        self.usable = True
        """Another request may be sent on it."""
        self.idle_since = 0.0
        self._parser = httptools.HttpResponseParser(self)
        self._reply: asyncio.Future[Reply | NoReply] | None = None
        self._room: asyncio.Future[None] | None = None
        """While the transport can take no more."""
        self._headers: dict[bytes, bytes] = {}
        self._parts: list[bytes] = []
        self._came = asyncio.Event()
        """Something of the reply, or its end."""
        self._read = 0
        self._listened = self._until_closed = False

    async def ask(self, head: bytes, body: bytes, listen: Listen | None = None) -> Reply:
        """Sends one request and gives the reply to it. Left before that, the connection is closed."""
        reply: Reply | NoReply = NoReply("nobody waits for it")
        waiting = self._reply = asyncio.get_running_loop().create_future()
        self._read, self._listened = 0, listen is not None
        self._came.clear()
        try:
            if len(body) <= PIECE:
                self.transport.write(head + body)
            else:
                await self._write_large(head, memoryview(body), waiting)
            while listen is not None and not waiting.done():
                await self._came.wait()
                self._came.clear()
                if self._parts and self._parser.get_status_code() == 200:
                    listen(self._body())
            reply = await waiting
        finally:
            self._reply = None
            if not isinstance(reply, Reply):
                self.close()
        if isinstance(reply, NoReply):
            raise reply
        return reply

    async def _write_large(self, head: bytes, rest: memoryview, waiting: asyncio.Future[Any]) -> None:
        """Piece by piece, so that the transport never copies all of it."""
        self.transport.write(head)
        while len(rest) and not waiting.done():
            self.transport.write(rest[:PIECE])
            rest = rest[PIECE:]
            if self._room is not None:
                await asyncio.wait((self._room, waiting), return_when=asyncio.FIRST_COMPLETED)
        if len(rest):  # it was answered before it was sent
            self.close()

    def close(self) -> None:
        """At once: what was not sent is dropped."""
        self.usable = False
        self.transport.abort()

    def fail(self, why: str) -> None:
        """Closes it and ends its request."""
        self.close()
        self._end(NoReply(why))

    def _end(self, reply: Reply | NoReply) -> None:
        if self._reply is not None and not self._reply.done():
            self._reply.set_result(reply)
            self._came.set()

    # --- what asyncio tells ----------------------------------------------------------------------------------------------
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        self._read += len(data)
        if self._read > LARGEST and not self._listened:
            self.fail(f"its reply goes on after {LARGEST} bytes")
        else:
            try:
                self._parser.feed_data(data)
            except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
                self.fail(f"what came is not an HTTP/1.1 reply ({error}): {data[:60]!r}")

    def pause_writing(self) -> None:
        self._room = asyncio.get_running_loop().create_future()

    def resume_writing(self) -> None:
        if self._room is not None and not self._room.done():
            self._room.set_result(None)
        self._room = None

    def connection_lost(self, exc: Exception | None) -> None:
        self.resume_writing()
        if self._until_closed and exc is None:
            self._whole()
        self.fail(f"the server closed the connection after {self._read} bytes of reply" if exc is None else describe(exc))

    # --- what the parser tells -------------------------------------------------------------------------------------------
    def on_message_begin(self) -> None:
        self._headers, self._parts = {}, []
        self._until_closed = False
        if self._reply is None or self._reply.done():
            self.close()  # nothing was asked

    def on_header(self, name: bytes, value: bytes) -> None:
        self._headers[name.lower()] = value

    def on_headers_complete(self) -> None:
        self._until_closed = b"content-length" not in self._headers and b"transfer-encoding" not in self._headers

    def on_body(self, body: bytes) -> None:
        self._parts.append(body)
        self._came.set()

    def on_message_complete(self) -> None:
        if self._parser.get_status_code() >= 200:  # before it may come one that only announces it
            self.usable = self.usable and self._parser.should_keep_alive()
            self._whole()

    def _whole(self) -> None:
        self._end(Reply(self._parser.get_status_code(), self._headers, self._body()))

    def _body(self) -> bytes:
        parts, self._parts = self._parts, []
        return b"".join(parts)


class Connections:
    """All to one server. Those in `_idle` wait for the next request, put there when their reply was whole."""

    def __init__(self, host: str, port: int, *, tls: bool, connect_s: float) -> None:
        self._host, self._port, self._connect_s = host, port, connect_s
        self._tls = ssl.create_default_context() if tls else None
        self._idle: deque[Connection] = deque()
        self._busy: set[Connection] = set()

    async def ask(self, head: bytes, body: bytes, listen: Listen | None = None) -> Reply:
        """One request on a connection of its own. `NoReply` when there is none to be had, or it fails."""
        connection = self._youngest() or await self._connect()
        self._busy.add(connection)
        try:
            reply = await connection.ask(head, body, listen)
        finally:
            self._busy.discard(connection)
        if connection.usable:
            connection.idle_since = asyncio.get_running_loop().time()
            self._idle.append(connection)
        else:
            connection.close()
        return reply

    async def close(self) -> None:
        """Every connection; requests under way fail."""
        for connection in (*self._idle, *self._busy):
            connection.fail("it was closed here")
        self._idle.clear()
        await asyncio.sleep(0)  # asyncio closes the sockets in its next turn

    def _youngest(self) -> Connection | None:
        oldest = asyncio.get_running_loop().time() - KEEP_ALIVE_S
        while self._idle and (self._idle[0].idle_since < oldest or not self._idle[0].usable):
            self._idle.popleft().close()
        while self._idle:
            connection = self._idle.pop()
            if connection.usable:
                return connection
        return None

    async def _connect(self) -> Connection:
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(self._connect_s):
                _, connection = await loop.create_connection(Connection, self._host, self._port, ssl=self._tls)
        except TimeoutError as error:
            raise NoReply(f"no connection within {self._connect_s:g} s") from error
        except OSError as error:
            raise NoReply(describe(error)) from error
        return connection
