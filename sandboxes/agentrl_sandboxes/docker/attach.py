"""The stream to a container's process 1: an HTTP connection to the engine that becomes its standard input and output."""

from __future__ import annotations

import asyncio
import errno
import socket
from urllib.parse import urlsplit

from agentrl.errors import SandboxError, UserError

LAST_WORDS = 2000
HEAD = 8
"""Bytes before each piece that the engine sends: whose stream, three zeros, how long."""
STDERR = 2


class Attached(socket.socket):
    """Sends to process 1's standard input and receives from its standard output, which the engine cuts where it likes."""

    def __init__(self, end: socket.socket, container: str) -> None:
        super().__init__(end.family, end.type, fileno=end.detach())
        self.setblocking(False)
        self._container = container
        self._stream, self._left, self._head = 0, 0, b""
        self.words = ""
        """What process 1 wrote to its standard error: why it did not start, or fell."""

    def recv(self, size: int, flags: int = 0, /) -> bytes:
        """Bytes of standard output; BlockingIOError if none came. The end is an error that names the container."""
        piece = super().recv(size, flags)
        if not piece:
            words = self.words.strip().splitlines()
            raise ConnectionResetError(
                errno.ECONNRESET, f"container {self._container} is gone{': ' if words else ''}{'; '.join(words[-1:])}"
            )
        found = bytearray()
        while piece:
            if not self._left:
                need = HEAD - len(self._head)
                self._head, piece = self._head + piece[:need], piece[need:]
                if len(self._head) == HEAD:
                    self._stream, self._left, self._head = self._head[0], int.from_bytes(self._head[4:], "big"), b""
                continue
            part, piece = piece[: self._left], piece[self._left :]
            self._left -= len(part)
            if self._stream == STDERR:
                self.words = (self.words + part.decode("utf-8", "replace"))[-LAST_WORDS:]
            else:
                found += part
        if not found:
            raise BlockingIOError
        return bytes(found)


async def attach(host: str, container: str) -> Attached:
    """Attaches to a container that is created and not yet started. `SandboxError` if the engine says no."""
    return await _upgraded(host, f"/containers/{container}/attach?stream=1&stdin=1&stdout=1&stderr=1", b"", container)


async def start(host: str, command: str, container: str) -> Attached:
    """Starts a command that the engine was told of (`exec`) and attaches to it. `SandboxError` if the engine says no."""
    return await _upgraded(host, f"/exec/{command}/start", b'{"Detach": false, "Tty": false}', container)


async def _upgraded(host: str, path: str, body: bytes, container: str) -> Attached:
    end = await _connected(host)
    try:
        loop = asyncio.get_running_loop()
        asked = f"POST {path} HTTP/1.1\r\nHost: docker\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n"
        asked += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        await loop.sock_sendall(end, asked.encode() + body)
        answer = b""
        while not answer.endswith(b"\r\n\r\n"):  # what is attached to may speak at once, so byte by byte
            piece = await loop.sock_recv(end, 1)
            if not piece:
                break
            answer += piece
        if not answer.startswith(b"HTTP/1.1 101 "):
            raise SandboxError(f"cannot attach to container {container}: the engine answered {answer[:200]!r}")
        return Attached(end, container)
    except BaseException:
        end.close()
        raise


async def _connected(host: str) -> socket.socket:
    where = urlsplit(host)
    unix = where.scheme == "unix"
    end = socket.socket(socket.AF_UNIX if unix else socket.AF_INET, socket.SOCK_STREAM)
    end.setblocking(False)
    try:
        await asyncio.get_running_loop().sock_connect(end, where.path if unix else (where.hostname or "", where.port or 2375))
        if not unix:
            end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return end
    except OSError as error:
        end.close()
        raise SandboxError(f"the Docker engine at {host} does not answer: {error.strerror}") from error
    except BaseException:
        end.close()
        raise


def checked(host: str) -> str:
    """An address that can be attached to. `UserError` for others: TLS and ssh are not among them."""
    where = urlsplit(host)
    if (where.scheme == "unix" and where.path) or (where.scheme in ("tcp", "http") and where.hostname):
        return host
    raise UserError(
        f"Docker(...) speaks to unix:///PATH or tcp://NAME:PORT, got {host!r}; forward the engine's socket to one of them"
    )
