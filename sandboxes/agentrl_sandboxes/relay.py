"""Connections that are carried: between two sockets, or between a socket and a link that carries many.

It is sent as source into containers, where it listens (`main`), so it needs Python 3.9 and the standard library alone. A frame
of a link is nine bytes (its kind, the connection's number, a figure), and after DATA as many bytes as the figure says.
"""

from __future__ import annotations

import asyncio
import struct
import sys
from collections.abc import Callable
from functools import partial
from typing import Any, Protocol

OPEN, OPENED, DATA, TAKEN, END, ABORT = range(6)
HEAD = struct.Struct("<BII")
WINDOW = 1 << 17
"""Bytes that may be on their way to an end that has not taken them."""
PIECE = 1 << 18
"""What asyncio reads at once, and so what one frame may hold and what a window may be overrun by."""


class End(Protocol):
    """One of the two ends of a connection, as the other sees it."""

    def take(self, data: bytes) -> None: ...

    def taken(self, size: int) -> None:
        """So many of the bytes that it gave have found their way out."""
        ...

    def finish(self) -> None:
        """Nothing more is given to it; it may still give."""
        ...

    def abort(self) -> None:
        """The other end is gone. May be called at any time, more than once."""
        ...


class Tcp(asyncio.Protocol):
    """A socket's end. `made` gives its peer, if it has one yet; nothing is handed on until `go`."""

    def __init__(self, made: Callable[[Tcp], End | None]) -> None:
        self._made = made
        self.transport: Any = None
        self.peer: End | None = None
        self.closed = asyncio.get_running_loop().create_future()
        self.owed = 0
        """Bytes that it took and that are not out yet."""
        self._window = WINDOW
        self._early: bytes | None = b""
        """What came before `go`: older Pythons read once although they are paused. None = it has gone."""
        self._given_all = self._taken_all = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport
        self.transport.set_write_buffer_limits(high=0)
        self.transport.pause_reading()
        self.peer = self._made(self)

    def go(self, peer: End | None = None) -> None:
        """Begins to read."""
        self.peer = peer or self.peer
        early, self._early = self._early, None
        assert self.peer is not None
        if self.transport.is_closing():
            self.peer.abort()
            return
        self.transport.resume_reading()
        if early:
            self.data_received(early)
        if self._given_all:
            self.peer.finish()

    def data_received(self, data: bytes) -> None:
        if self._early is not None:
            self._early += data
            self.transport.pause_reading()
            return
        self._window -= len(data)
        if self._window <= 0:
            self.transport.pause_reading()
        assert self.peer is not None
        self.peer.take(data)

    def eof_received(self) -> bool:
        self._given_all = True
        if self._early is None and self.peer is not None:
            self.peer.finish()
        self._close_if_done()
        return True  # the other direction may go on

    def resume_writing(self) -> None:
        owed, self.owed = self.owed, 0
        if owed and self.peer is not None:
            self.peer.taken(owed)

    def connection_lost(self, exc: Exception | None) -> None:
        if self.peer is not None and (exc is not None or not (self._given_all and self._taken_all)):
            self.peer.abort()
        if not self.closed.done():
            self.closed.set_result(None)

    def take(self, data: bytes) -> None:
        self.owed += len(data)
        self.transport.write(data)
        if not self.transport.get_write_buffer_size():
            self.resume_writing()

    def taken(self, size: int) -> None:
        before, self._window = self._window, self._window + size
        if before <= 0 < self._window and not self.transport.is_closing():
            self.transport.resume_reading()

    def finish(self) -> None:
        if not self._taken_all and not self.transport.is_closing():
            self._taken_all = True
            self.transport.write_eof()
            self._close_if_done()

    def abort(self) -> None:
        self.transport.abort()

    def _close_if_done(self) -> None:
        if self._given_all and self._taken_all:
            self.transport.close()  # once what was taken is out


class Channel:
    """The far end of a connection, over a link."""

    def __init__(self, link: Link, number: int) -> None:
        self._link, self.number = link, number
        self.near: Tcp | None = None
        self._ends = 0
        link.channels[number] = self

    def take(self, data: bytes) -> None:
        self._link.say(DATA, self.number, len(data), data)

    def taken(self, size: int) -> None:
        if self.number in self._link.channels:
            self._link.say(TAKEN, self.number, size)

    def finish(self) -> None:
        self._link.say(END, self.number)
        self.half_done()

    def abort(self) -> None:
        if self._link.channels.pop(self.number, None):
            self._link.say(ABORT, self.number)

    def go(self, near: Tcp) -> None:
        """The near end is connected."""
        self.near = near
        if self.number in self._link.channels:
            self._link.say(OPENED, self.number)
        else:  # the far end went while this one was on its way
            near.abort()

    def half_done(self) -> None:
        """One of its two directions has ended."""
        self._ends += 1
        if self._ends == 2:
            self._link.channels.pop(self.number, None)


class Link:
    """Many connections over one stream of bytes. `send` takes what goes out, `opened` what the far side opens.

    What comes in is not believed: `ValueError` for what a far side that keeps to this protocol never sends.
    """

    def __init__(self, send: Callable[[bytes], None], opened: Callable[[Channel, int], None] | None = None) -> None:
        self._send, self._opened = send, opened
        self._received = bytearray()
        self.channels: dict[int, Channel] = {}

    def say(self, kind: int, number: int, figure: int = 0, data: bytes = b"") -> None:
        self._send(HEAD.pack(kind, number, figure) + data)

    def hear(self, piece: bytes) -> None:
        """Takes in what came."""
        self._received += piece
        while len(self._received) >= HEAD.size:
            kind, number, figure = HEAD.unpack_from(self._received)
            size = HEAD.size + (figure if kind == DATA else 0)
            if size > HEAD.size + PIECE:
                raise ValueError(f"a frame of {size} bytes")
            if len(self._received) < size:
                return
            data = bytes(self._received[HEAD.size : size])
            del self._received[:size]
            self._act(kind, number, figure, data)

    def _act(self, kind: int, number: int, figure: int, data: bytes) -> None:
        channel = self.channels.get(number)
        if kind == OPEN and self._opened is not None and channel is None:
            return self._opened(Channel(self, number), figure)
        if kind not in (OPENED, DATA, TAKEN, END, ABORT):
            raise ValueError(f"a frame of kind {kind} for connection {number}")
        if channel is None:
            return None  # it was given up here while this was on its way
        near = channel.near
        if kind == ABORT:
            del self.channels[number]
            if near is not None:
                near.abort()
            return None
        if near is None:
            raise ValueError(f"a frame of kind {kind} for connection {number}, which is not open yet")
        if kind == OPENED:
            near.go()
        elif kind == DATA:
            if near.owed + len(data) > WINDOW + PIECE:
                raise ValueError(f"{near.owed + len(data)} bytes that were not asked for")
            near.take(data)
        elif kind == TAKEN:
            near.taken(figure)
        else:
            channel.half_done()
            near.finish()
        return None


class _Inside(asyncio.Protocol):
    """Inside a container: what came from the host; its end is the end."""

    def __init__(self, link: Link) -> None:
        self._link = link
        self.over = asyncio.get_running_loop().create_future()

    def data_received(self, data: bytes) -> None:
        self._link.hear(data)

    def connection_lost(self, exc: Exception | None) -> None:
        self.over.set_result(None)


async def listen(places: list[tuple[str, int]]) -> None:
    """Listens at these addresses and ports and carries what connects over standard input and output, until the host goes."""
    loop = asyncio.get_running_loop()
    out: Any = (await loop.connect_write_pipe(asyncio.BaseProtocol, sys.stdout.buffer))[0]
    link = Link(out.write)
    numbers = iter(range(1 << 32))

    def accepted(place: int, near: Tcp) -> End:
        channel = Channel(link, next(numbers))
        channel.near = near
        link.say(OPEN, channel.number, place)
        return channel

    for at, (address, port) in enumerate(places):
        await loop.create_server(partial(Tcp, partial(accepted, at)), address, port)
    link.say(OPENED, 0)
    _, inside = await loop.connect_read_pipe(partial(_Inside, link), sys.stdin.buffer)
    await inside.over


def main() -> None:
    """`python -I -S -c SOURCE ADDRESS:PORT ...`"""
    asyncio.run(listen([(address, int(port)) for address, _, port in (word.partition(":") for word in sys.argv[1:])]))
