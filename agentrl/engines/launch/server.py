"""`Server`: one child process that serves HTTP. It is started, watched, and ended with us however we end."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import sys
from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType

from agentrl.engines.http import Transport
from agentrl.engines.launch import guard
from agentrl.errors import EngineError, unwrapped

log = logging.getLogger(__name__)

TAIL_BYTES = 3000
ASK_AGAIN_S = 0.2
ANSWER_S = 5.0
TELL_EVERY_S = 10.0
_given: deque[int] = deque(maxlen=100)
"""Ports, far fewer than there are to draw from."""


@dataclass(frozen=True, slots=True)
class Command:
    """How a server is started, and where it will be. `ready` answers 200 once it serves."""

    name: str
    arguments: tuple[str, ...]
    url: str
    ready: str
    environment: Mapping[str, str] = field(default_factory=dict[str, str])
    """Set on top of our own environment."""
    grace_s: float = 5.0
    """Seconds between SIGTERM and SIGKILL when it is ended."""


class Server:
    """`async with Server(command, log):` is entered when the server answers, and left when its processes are gone.

    Raises `EngineError` with the end of the log when the server ends before it answers, or does not answer within `start_s`.
    """

    def __init__(self, command: Command, log: Path, *, start_s: float = 600.0) -> None:
        self.command, self.log, self.start_s = command, log, start_s
        self._process: asyncio.subprocess.Process | None = None

    @property
    def url(self) -> str:
        """Where it serves."""
        return self.command.url

    @property
    def running(self) -> bool:
        """Whether its process is there."""
        return self._process is not None and self._process.returncode is None

    async def __aenter__(self) -> Server:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    async def start(self) -> None:
        """Again, too, after it has ended; the log goes on."""
        if self.running:
            raise EngineError(f"{self.command.name} is running already")
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with self.log.open("ab") as output:
            self._process = await asyncio.create_subprocess_exec(
                sys.executable, "-I", str(guard.__file__), str(self.command.grace_s), *self.command.arguments,
                stdin=asyncio.subprocess.PIPE, stdout=output, stderr=output,
                env={**os.environ, **self.command.environment}, start_new_session=True,
            )  # fmt: skip
        async with AsyncExitStack() as unless_it_serves:
            unless_it_serves.push_async_callback(self.stop)
            await self._answers(self._process)
            unless_it_serves.pop_all()

    async def stop(self) -> None:
        """Ends it and all its children; a server that has ended already stays so."""
        process = self._process
        if process is None:
            return
        assert process.stdin is not None
        process.stdin.close()
        await asyncio.shield(process.wait())

    def tail(self) -> str:
        """The end of its log."""
        with self.log.open("rb") as file:
            file.seek(max(0, self.log.stat().st_size - TAIL_BYTES))
            return file.read().decode(errors="replace")

    async def _answers(self, process: asyncio.subprocess.Process) -> None:
        name, loop = self.command.name, asyncio.get_running_loop()
        started = told = loop.time()
        http = Transport(name, self.command.url, connect_s=ANSWER_S)
        await http.open()
        try:
            while not await _serves(http, self.command.ready):
                now = loop.time()
                if process.returncode is not None:
                    raise self._failed(
                        f"ended with exit code {process.returncode} after {now - started:.0f} s, before it served"
                    )
                if now - started > self.start_s:
                    raise self._failed(f"did not serve within {self.start_s:g} s; allow it more time, or look why")
                if now - told >= TELL_EVERY_S:
                    told = now
                    log.info("%s is starting since %.0f s; its log is %s", name, now - started, self.log)
                await asyncio.sleep(ASK_AGAIN_S)
        finally:
            await http.close()
        log.info("%s serves at %s after %.1f s", name, self.command.url, loop.time() - started)

    def _failed(self, how: str) -> EngineError:
        return EngineError(
            f"{self.command.name} {how}\n  command: {' '.join(self.command.arguments)}\n  {self.log}:\n{self.tail()}"
        )


class Servers:
    """Several, started at the same time: when one fails to start the others are ended, and its error is raised."""

    def __init__(self, commands: Sequence[Command], logs: Path, *, start_s: float = 600.0) -> None:
        self.servers = tuple(Server(command, logs / f"{command.name}.log", start_s=start_s) for command in commands)

    async def __aenter__(self) -> tuple[Server, ...]:
        async with AsyncExitStack() as unless_all_serve:
            unless_all_serve.push_async_callback(self._stop)
            with unwrapped():
                async with asyncio.TaskGroup() as group:
                    for server in self.servers:
                        group.create_task(server.start())
            unless_all_serve.pop_all()
        return self.servers

    async def __aexit__(self, *exc: object) -> None:
        await self._stop()

    async def _stop(self) -> None:
        async with asyncio.TaskGroup() as group:
            for server in self.servers:
                group.create_task(server.stop())


def free_port() -> int:
    """A port of the loopback that nobody listens on now, and none of those given last: their servers may not listen yet."""
    while True:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = int(probe.getsockname()[1])
        if port not in _given:
            _given.append(port)
            return port


async def _serves(http: Transport, path: str) -> bool:
    try:
        return (await http.reply("GET", path, deadline=asyncio.timeout(ANSWER_S), seconds=ANSWER_S)).status == 200
    except EngineError:
        return False
