"""Plain processes in a temporary folder: the same calls, no isolation. For machines that cannot, and code that is trusted."""

from __future__ import annotations

import asyncio
import socket
import tempfile
from collections.abc import Mapping
from functools import partial
from typing import Literal

from agentrl.errors import SandboxError, UserError
from agentrl.sandbox import SandboxLimits
from agentrl_sandboxes.process.backend import CLOSING, HOME, OPENING
from agentrl_sandboxes.process.session import ProcessSession, longest, setup
from agentrl_sandboxes.process.wire import Wire

START = f"import sys; sys.path.insert(0, {str(HOME)!r}); from agentrl_sandboxes.process.inside.runner import main; main()"


class UnsafeBackend:
    """Sessions that run as the user who runs this, in folders that go with them. Time, output and memory are bounded."""

    fork: Literal["replay"] = "replay"
    isolation = "NONE (unsafe_local): plain processes with your rights, in a temporary folder"

    def __init__(self, python: str, packages: str, env: Mapping[str, str]) -> None:
        self._python = python
        self._paths = [packages] if packages else []
        self._env = env
        self._live: set[ProcessSession] = set()

    async def session(self, limits: SandboxLimits) -> ProcessSession:
        if limits.network != "none":
            raise UserError(
                f"Process(unsafe_local=True) keeps nothing from the network, got network={limits.network!r}; leave it at "
                '"none", or isolate'
            )
        folder = tempfile.TemporaryDirectory(prefix="agentrl-unsafe-", ignore_cleanup_errors=True)
        end, other = socket.socketpair()
        with other:
            process = await asyncio.create_subprocess_exec(
                *(self._python, "-I", "-S", "-c", START, str(other.fileno())),
                env={},
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.DEVNULL,
                stderr=asyncio.subprocess.DEVNULL,
                pass_fds=[other.fileno()],
                start_new_session=True,
            )
        release = partial(self._release, process, folder)
        wire = Wire(end, longest(limits))
        session = ProcessSession(wire, limits, events="", python=self._python, fresh=None, release=release, work=folder.name)
        self._live.add(session)
        env = {**self._env, "HOME": folder.name}
        told = setup(limits, work=folder.name, env=env, paths=self._paths, isolated=False, watched=True)
        try:
            await wire.ask("open", told, seconds=OPENING)
        except SandboxError:
            await session.close()
            raise
        return session

    async def close(self) -> None:
        for session in tuple(self._live):
            await session.close()

    async def _release(self, process: asyncio.subprocess.Process, folder: tempfile.TemporaryDirectory[str]) -> None:
        self._live = {session for session in self._live if not session.wire.lost}
        try:  # its socket is closed: it ends what it started, and itself
            await asyncio.wait_for(process.wait(), CLOSING)
        except TimeoutError:
            process.kill()
            await process.wait()
        folder.cleanup()
