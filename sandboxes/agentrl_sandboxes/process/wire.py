"""The host's end of a sandbox's socket. Nothing that comes over it is believed: sizes are bounded, figures are checked."""

from __future__ import annotations

import asyncio
import marshal
import socket
from typing import Any

from agentrl.errors import SandboxError

PIECE = 1 << 18
LONGEST_HEAD = 256


class Wire:
    """Asks one thing after the other; answers to what was given up are dropped by their number."""

    def __init__(self, end: socket.socket, longest: int) -> None:
        end.setblocking(False)
        self._socket = end
        self._longest = longest
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(end, self._readable)
        self._received = bytearray()
        self._unsent = bytearray()
        self._number = 0
        self._asked: asyncio.Future[tuple[list[str], bytes]] | None = None
        self._turn = asyncio.Lock()
        self.lost = ""
        """Why nothing more can be asked; empty while it can."""

    async def ask(self, *head: Any, body: bytes = b"", seconds: float) -> tuple[list[str], bytes]:
        """The answer's words and body; `OSError` as the sandbox met it, `SandboxError` if none came in so many seconds.

        Cancelled, it tells the sandbox to end what it runs.
        """
        async with self._turn:
            answer = self.post(*head, body=body)
            number = self._number
            late = self._loop.call_later(seconds, self.fail, f"it gave no answer to {head[0]!r} within {seconds:g} s")
            try:
                words, found = await answer
            except asyncio.CancelledError:
                self._send((number, "cancel"))
                raise
            finally:
                late.cancel()
                self._asked = None
        if words[0] == "error":
            raise OSError(whole(words, 1), found.decode("utf-8", "backslashreplace"))
        return words[1:], found

    def post(self, *head: Any, body: bytes = b"") -> asyncio.Future[tuple[list[str], bytes]]:
        """Sends a request; what its answer will be."""
        self._asked = self._loop.create_future()
        if self.lost:
            self._asked.set_exception(SandboxError(f"the sandbox is lost: {self.lost}"))
        self._number += 1
        self._send((self._number, *head), body)
        return self._asked

    def fail(self, why: str) -> None:
        """Nothing more comes or goes; what waits for an answer raises `SandboxError`."""
        if self.lost:
            return
        self.lost = why
        self._loop.remove_reader(self._socket)
        self._loop.remove_writer(self._socket)
        self._socket.close()
        if self._asked is not None and not self._asked.done():
            self._asked.set_exception(SandboxError(f"the sandbox is lost: {why}"))

    def _send(self, head: tuple[Any, ...], body: bytes = b"") -> None:
        if self.lost:
            return
        said = marshal.dumps(head, 2)
        frame = b"".join((len(said).to_bytes(4, "little"), len(body).to_bytes(4, "little"), said, body))
        if self._unsent:
            self._unsent += frame
            return
        self._unsent = bytearray(memoryview(frame)[self._sent(frame) :])
        if self._unsent:
            self._loop.add_writer(self._socket, self._writable)

    def _sent(self, data: bytes | bytearray) -> int:
        try:
            return self._socket.send(data)
        except BlockingIOError:
            return 0
        except OSError as error:
            self.fail(f"its socket is closed ({error.strerror})")
            return len(data)

    def _writable(self) -> None:
        with memoryview(self._unsent) as view:
            sent = self._sent(view[:PIECE])  # type: ignore[arg-type]
        del self._unsent[:sent]
        if not self._unsent and not self.lost:
            self._loop.remove_writer(self._socket)

    def _readable(self) -> None:
        try:
            piece = self._socket.recv(PIECE)
        except BlockingIOError:
            return
        except OSError as error:
            self.fail(f"its socket is closed ({error.strerror})")
            return
        if not piece:
            self.fail("its process 1 has ended")
            return
        self._received += piece
        while len(self._received) >= 8 and not self.lost:
            head, body = (int.from_bytes(self._received[at : at + 4], "little") for at in (0, 4))
            if head > LONGEST_HEAD or body > self._longest:
                self.fail(f"it sent a frame of {head} and {body} bytes")
                return
            if len(self._received) < 8 + head + body:
                return
            words = self._received[8 : 8 + head].decode("latin-1").split()
            found = bytes(memoryview(self._received)[8 + head : 8 + head + body])
            del self._received[: 8 + head + body]
            self._take(words, found)

    def _take(self, words: list[str], body: bytes) -> None:
        if len(words) < 2 or words[0] != str(self._number):
            return  # of a call that was given up
        if self._asked is not None and not self._asked.done():
            self._asked.set_result((words[1:], body))


def whole(words: list[str], at: int) -> int:
    """A whole number that a sandbox said; `SandboxError` if it said something else."""
    if len(words) > at and words[at].lstrip("-").isascii() and words[at].lstrip("-").isdigit() and len(words[at]) < 12:
        return int(words[at])
    raise SandboxError(f"the sandbox's process 1 does not keep to its protocol: {words[:8]}")
