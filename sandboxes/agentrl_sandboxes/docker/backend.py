"""The pool: containers that wait to be used, those that are used, and those on their way out.

The engine is asked by aiodocker: to begin and remove a container takes it 2 ms of CPU, docker-py 4.5 in a thread (2 cores),
and the engine itself some 200 either way. What a session says goes over a socket of its own (`attach`).
"""

from __future__ import annotations

import asyncio
import itertools
import json
import logging
import time
from collections import deque
from collections.abc import Callable, Coroutine
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import aiohttp
from aiodocker import Docker as Client
from aiodocker import DockerError

from agentrl.errors import SandboxError, UserError
from agentrl.sandbox import Command, Ran, SandboxLimits
from agentrl_sandboxes.docker.attach import attach
from agentrl_sandboxes.docker.container import bound, config
from agentrl_sandboxes.docker.owner import RUN
from agentrl_sandboxes.docker.relayed import carry_all, relay
from agentrl_sandboxes.docker.sent import sources
from agentrl_sandboxes.network import network, places
from agentrl_sandboxes.process.seccomp import MACHINES, program
from agentrl_sandboxes.process.session import ProcessSession, longest, setup
from agentrl_sandboxes.process.wire import Wire

if TYPE_CHECKING:
    from agentrl_sandboxes.docker.spec import Docker

ResultT = TypeVar("ResultT")
log = logging.getLogger(__name__)
OPENING = 60.0
"""Seconds that a new container may take."""
CLOSING = 1.0
"""Seconds that closing a session waits for its container to be gone; what takes longer goes on behind."""
GONE = 30.0
EVENTS = 20
"""Looks, 50 ms apart, for a word on why a container ended."""
NO_SUCH, BUSY, FAILED = 404, 409, 500


class DockerSession(ProcessSession):
    """A session over a container's stream."""

    starved: Callable[[], Coroutine[Any, Any, bool]] | None = None
    """Whether the engine saw the container's memory end; asked once, as that is the code's doing, and its last."""

    async def exec(self, command: Command) -> Ran:
        return await self._or_starved(super().exec(command))

    async def python(self, code: str, timeout: float | None = None) -> Ran:  # noqa: ASYNC109 - as in the contract
        return await self._or_starved(super().python(code, timeout))

    async def _or_starved(self, call: Coroutine[Any, Any, Ran]) -> Ran:
        try:
            return await call
        except SandboxError:
            starved, self.starved = self.starved, None
            if starved is not None and await starved():
                return Ran(-9, killed="memory")
            raise


class DockerBackend:
    """Opens sessions in containers. Each is used once; `warm` of them, with the spec's limits, wait."""

    fork: Literal["replay"] = "replay"

    def __init__(
        self,
        client: Client,
        spec: Docker,
        *,
        host: str,
        gvisor: bool,
        env: dict[str, str],
        labels: dict[str, str],
        tasks: asyncio.TaskGroup,
    ) -> None:
        self._client = client
        self._spec = spec
        self._host = host
        self._gvisor = gvisor
        self._env = env
        self._labels = labels
        self._tasks = tasks
        self._numbers = itertools.count(1)
        self._idle: deque[DockerSession] = deque()
        self._live: dict[str, DockerSession] = {}
        self._busy: set[asyncio.Task[Any]] = set()
        """Openings and removals under way: never cancelled, so that the engine is left with nothing that nobody knows of."""
        self._carrying: dict[str, asyncio.Task[None]] = {}
        self._filling = 0
        self._closed = False

    @property
    def isolation(self) -> str:
        """One line for people: what stands between the code and the host."""
        kernel = "gVisor's kernel is between" if self._gvisor else "the kernel is shared"
        runtime, reached = self._spec.runtime or "runc", network(self._spec.limits)
        return f"Docker ({runtime}): a container with {reached}, without capabilities or a writable system; {kernel}"

    async def session(self, limits: SandboxLimits) -> DockerSession:
        """A warm one if the limits are the spec's, else a new one."""
        while limits == self._spec.limits and self._idle:
            session = self._idle.popleft()
            if not session.wire.lost:
                break
            await session.close()
        else:
            session = await self._wanted(limits)
        self._top_up()
        return session

    async def probe(self) -> None:
        """Opens the pool's first container; `UserError` if the engine or the image does not let it."""
        try:
            self._idle.append(await self._wanted(self._spec.limits))
        except SandboxError as error:
            raise UserError(
                f"Docker sandboxes do not start: {error}; the image {self._spec.image!r} needs a Python 3.9"
            ) from error
        self._top_up()

    async def close(self) -> None:
        """Ends every sandbox and waits until the engine has none of them."""
        self._closed = True
        while self._busy or self._live:
            for session in tuple(self._live.values()):
                await session.close()
            if self._busy:
                await asyncio.wait(self._busy)

    async def remove(self, name: str) -> None:
        """Ends a container and waits until the engine has forgotten it."""
        container = self._client.containers.container(name)
        why, pause = "it is still there", 0.02
        try:
            async with asyncio.timeout(GONE):
                while True:
                    try:
                        await container.delete(force=True, v=True)
                    except DockerError as error:
                        if error.status == NO_SUCH:
                            return
                        if error.status not in (BUSY, FAILED):
                            raise
                        why = error.message  # it is being removed, as it ended by itself; or its files are still held
                    await asyncio.sleep(pause)
                    pause = min(1.25 * pause, 0.5)
        except (DockerError, aiohttp.ClientError, OSError) as error:
            told = f"not within {GONE:g} s: {why}" if isinstance(error, TimeoutError) else error
            log.error("the container %s could not be removed: %s; the next run removes it", name, told)

    def _top_up(self) -> None:
        """Starts as many as are missing in the pool; they get ready while other work is done."""
        while not self._closed and len(self._idle) + self._filling < self._spec.warm:
            self._filling += 1
            self._begin(self._open(self._spec.limits)).add_done_callback(self._filled)

    def _filled(self, opened: asyncio.Task[DockerSession | SandboxError]) -> None:
        self._filling -= 1
        if opened.cancelled():
            return
        found = opened.result()
        if isinstance(found, SandboxError):
            log.warning("a sandbox of the pool did not open: %s", found)
        else:
            self._idle.append(found)

    async def _wanted(self, limits: SandboxLimits) -> DockerSession:
        """A new session. If nobody waits for it any more it is closed as soon as it is open."""
        if self._closed:
            raise SandboxError("no sandbox could be opened: the backend is closed")
        opening = self._begin(self._open(limits))
        try:
            found = await asyncio.shield(opening)
        except asyncio.CancelledError:
            opening.add_done_callback(self._unwanted)
            raise
        if isinstance(found, SandboxError):
            raise found
        return found

    def _unwanted(self, opened: asyncio.Task[DockerSession | SandboxError]) -> None:
        if not opened.cancelled() and isinstance(found := opened.result(), DockerSession):
            self._begin(found.close())

    async def _open(self, limits: SandboxLimits) -> DockerSession | SandboxError:
        """A fresh container whose process 1 answers; or what went wrong, as a value: it is nobody else's."""
        name = f"agentrl-{self._labels[RUN]}-{next(self._numbers)}"
        try:
            async with asyncio.timeout(OPENING):
                self._live[name] = session = await self._started(name, limits)
                return session
        except TimeoutError:
            why = f"container {name} was not ready within {OPENING:g} s"
        except DockerError as error:
            why = f"the engine says {error.message}"
        except (SandboxError, aiohttp.ClientError, OSError) as error:
            why = str(error)
        await self.remove(name)
        return SandboxError(f"no sandbox could be opened: {why}")

    async def _started(self, name: str, limits: SandboxLimits) -> DockerSession:
        spec = self._spec
        container = await self._client.containers.create(config(spec, limits, self._labels, gvisor=self._gvisor), name=name)
        end = await attach(self._host, name)
        wire = Wire(end, longest(limits))
        try:
            await container.start()
            await asyncio.get_running_loop().sock_sendall(end, sources())
            await wire.ask("open", self._told(limits), seconds=OPENING)
            if allowed := places(limits.network):
                relayed = await relay(self._host, container, name, allowed, python=spec.python, user=spec.user)
                carrying = self._carrying[name] = self._tasks.create_task(carry_all(relayed, name, allowed))
                carrying.add_done_callback(lambda _: wire.fail("the relay of its network is gone"))
        except BaseException:
            wire.fail("it did not open")
            raise
        release = partial(self._release, name)
        session = DockerSession(wire, limits, events="", python=spec.python, fresh=self.session, release=release)
        session.starved = partial(self._starved, name, time.time())
        return session

    async def _starved(self, name: str, since: float) -> bool:
        """Whether the engine saw it reach its bound of memory. It says so at about the time at which the container ends."""
        asked = {"since": f"{since - 1:.3f}", "filters": json.dumps({"container": [name], "event": ["oom"]})}
        for _ in range(EVENTS):
            try:
                async with self._client._query(  # type: ignore[reportPrivateUsage]  - `events.subscribe` waits for those to come
                    "events", params=asked | {"until": f"{time.time():.3f}"}
                ) as answer:
                    if await answer.read():
                        return True
            except (DockerError, aiohttp.ClientError, OSError):
                return False
            await asyncio.sleep(0.05)
        return False

    def _told(self, limits: SandboxLimits) -> dict[str, Any]:
        told = setup(limits, work="/work", env=self._env, paths=[], isolated=False, watched=self._gvisor)
        told["filters"] = {machine: program(machine, bounded=True) for machine in MACHINES}
        if self._gvisor:
            user, group = map(int, self._spec.user.split(":"))
            told |= {
                "user": user,
                "group": group,
                "processes": limits.processes + (1 if limits.network != "none" else 0),
                "memory": bound(limits),
            }
        return told

    async def _release(self, name: str) -> None:
        if name in self._carrying:
            self._carrying.pop(name).cancel()
        if self._live.pop(name, None) is not None:
            await asyncio.wait([self._begin(self.remove(name))], timeout=CLOSING)

    def _begin(self, work: Coroutine[Any, Any, ResultT]) -> asyncio.Task[ResultT]:
        task = self._tasks.create_task(work)
        self._busy.add(task)
        task.add_done_callback(self._busy.discard)
        return task
