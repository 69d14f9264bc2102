"""The sandboxes under test, what the checks need of them, and a host for them to reach for."""

from __future__ import annotations

import asyncio
import os
import secrets
import socket
import subprocess
import tempfile
from collections.abc import Awaitable, Generator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from agentrl.errors import SandboxError
from agentrl.sandbox import Backend, Command, Ran, SandboxLimits, Session
from agentrl.testing.claims import ClaimBroken, require

HOST_MARK = "AGENTRL_CHECK_OF_THE_HOST"
"""A variable of the host's environment while the checks run."""
GROWING = "while :; do echo x >> {}; sleep 0.02; done"
"""A line that shows whether it still runs."""


@dataclass(frozen=True, slots=True)
class Host:
    """Things of the host that no sandbox may reach."""

    word: str
    """Stands in a file that anyone may read, and in the environment."""
    folder: Path
    file: Path
    port: int
    """Of a server on the loopback, by IPv4."""
    abstract: str
    """An abstract Unix socket that is listened on; empty where there are none."""
    process: subprocess.Popen[bytes]
    """Has the word in its environment."""


@contextmanager
def a_host() -> Generator[Host]:
    """Makes one, until the block ends."""
    word = secrets.token_hex(8)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="agentrl-check-")))
        folder.chmod(0o755)
        file = folder / "secret"
        file.write_text(word)
        server = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        abstract = f"agentrl-check-{word}"
        local = stack.enter_context(socket.socket(socket.AF_UNIX))
        try:
            local.bind(f"\0{abstract}")
            local.listen()
        except OSError:
            abstract = ""
        os.environ[HOST_MARK] = word
        stack.callback(os.environ.pop, HOST_MARK, None)
        process = stack.enter_context(subprocess.Popen(["sleep", "1000"], stdin=subprocess.DEVNULL))
        stack.callback(process.kill)
        yield Host(word, folder, file, server.getsockname()[1], abstract, process)


@dataclass(slots=True)
class Subject:
    """One backend, and the sessions that a check opens in it; they are closed with the block."""

    backend: Backend
    limits: SandboxLimits
    """The spec's own."""
    small: SandboxLimits
    host: Host
    opened: list[Session] = field(default_factory=list[Session])

    async def __aenter__(self) -> Subject:
        return self

    async def __aexit__(self, *error: object) -> None:
        for session in self.opened:
            await session.close()

    async def session(self, limits: SandboxLimits | None = None) -> Session:
        """A fresh one, with the spec's limits if no other are named."""
        session = await self.backend.session(limits or self.limits)
        self.opened.append(session)
        return session

    async def fork(self, session: Session) -> Session | None:
        """Another session like this one, if it can be had."""
        other = await session.fork()
        if other is not None:
            self.opened.append(other)
        return other


async def sh(session: Session, line: str, **more: Any) -> Ran:
    """A shell line."""
    return await session.exec(Command(line, **more))


async def program(session: Session, code: str, seconds: float = 20.0) -> Ran:
    """A Python program of its own, as a command."""
    return await session.exec(Command(("python3", "-c", code), timeout=seconds))


def same(found: object, wanted: object, what: str) -> None:
    """Breaks the claim unless they are equal."""
    require(found == wanted, f"{what}: got {_short(found)}, expected {_short(wanted)}")


def well(ran: Ran, what: str) -> str:
    """The standard output of what must have ended well."""
    require(ran.ok, f"{what} ended with {_short(ran)}")
    return ran.text


async def fails_as(call: Awaitable[Any], kind: type[OSError], what: str) -> None:
    """The call must raise this."""
    try:
        found = await call
    except kind:
        return
    except OSError as error:
        raise ClaimBroken(f"{what} raised {error!r}, expected {kind.__name__}") from error
    raise ClaimBroken(f"{what} gave {_short(found)}, expected {kind.__name__}")


async def is_lost(call: Awaitable[Any], what: str) -> None:
    """The call must raise SandboxError, with a message that says something."""
    try:
        found = await call
    except SandboxError as error:
        require(len(str(error)) > 10, f"{what} was refused with the message {str(error)!r}, which tells nothing")
        return
    raise ClaimBroken(f"{what} gave {_short(found)}, expected a SandboxError")


async def cut_off(call: Awaitable[Any], seconds: float, what: str) -> None:
    """The call is cancelled after so long, and must end with that."""
    try:
        async with asyncio.timeout(seconds):
            found = await call
    except TimeoutError:
        return
    raise ClaimBroken(f"{what} was cancelled after {seconds:g} s, and gave {_short(found)}")


async def stands_still(session: Session, files: Sequence[str], what: str) -> None:
    """Nothing may write to these files any more."""
    before = [await session.read(file) for file in files]
    await sh(session, "sleep 0.3")
    for file, size in zip(files, before, strict=True):
        require(await session.read(file) == size, f"{what} runs on: its file {file} grew")


async def works(session: Session, after: str) -> None:
    """It still answers, rightly."""
    same((await sh(session, "echo whole")).text, "whole\n", f"a command after {after}")
    same((await session.python("6 * 7")).text, "42\n", f"Python after {after}")


def _short(found: object) -> str:
    text = repr(found)
    return text if len(text) < 300 else f"{text[:300]}..."
