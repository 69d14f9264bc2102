"""The pool: a launcher process that starts sandboxes, those that wait to be used, and those that are used."""

from __future__ import annotations

import asyncio
import json
import logging
import socket
import sys
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

from agentrl.errors import SandboxError, UserError
from agentrl.sandbox import MOST_HOSTS, SandboxLimits
from agentrl_sandboxes.network import names, network, places, serve
from agentrl_sandboxes.process.kernel import SLOTS
from agentrl_sandboxes.process.session import ProcessSession, longest, setup
from agentrl_sandboxes.process.wire import Wire

log = logging.getLogger(__name__)
OPENING = 60.0
"""Seconds that a new sandbox may take."""
CLOSING = 5.0
PACKET = 1 << 16
HOME = Path(__file__).resolve().parents[2]
START = f"import sys; sys.path.insert(0, {str(HOME)!r}); from agentrl_sandboxes.process.launcher import main; main()"


def refusal(why: str) -> UserError:
    """This machine cannot isolate."""
    return UserError(
        f"this machine cannot isolate sandboxes: {why}. Allow that, use another backend (Docker), or, for code that you trust, "
        "Process(unsafe_local=True) (--unsafe-local)"
    )


class Launcher:
    """The host's side of the launcher: a process of its own, asked by packets."""

    def __init__(self, process: asyncio.subprocess.Process, link: socket.socket) -> None:
        self._process = process
        self._link = link
        self._loop = asyncio.get_running_loop()
        self._unsent: deque[tuple[bytes, socket.socket | None]] = deque()
        self.ended: dict[int, asyncio.Future[str]] = {}
        """What a slot's sandbox said last, once nothing of it is left."""
        self.listening: dict[int, Callable[[list[socket.socket]], None]] = {}
        """Who takes a slot's listeners, where it has a network."""
        self.lost = ""
        self.ready: dict[str, Any] = {}

    @classmethod
    async def start(cls, told: dict[str, Any]) -> Launcher:
        """`UserError` if this machine cannot isolate, with why."""
        link, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with other:
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-I", "-S", "-c", START, str(other.fileno())),
                env={},
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.DEVNULL,
                stderr=asyncio.subprocess.PIPE,
                pass_fds=[other.fileno()],
                start_new_session=True,
            )
        link.setblocking(False)
        launcher = cls(process, link)
        await launcher._loop.sock_sendall(link, json.dumps(told).encode())
        packet = await launcher._loop.sock_recv(link, PACKET)
        launcher.ready = json.loads(packet) if packet else {"refused": await launcher._last_words()}
        launcher._loop.add_reader(link, launcher._readable)
        if "refused" in launcher.ready:
            await launcher.close()
            raise refusal(launcher.ready["refused"])
        return launcher

    def send(self, message: dict[str, Any], end: socket.socket | None = None) -> None:
        """A packet, with the sandbox's end of its socket, which is closed here."""
        self._unsent.append((json.dumps(message).encode(), end))
        if len(self._unsent) == 1:
            self._writable()

    async def close(self) -> None:
        """End of file is its order to end all; it waits for them and goes."""
        self._lose("it was closed")
        try:
            async with asyncio.timeout(CLOSING):
                await self._process.wait()
        except TimeoutError:
            self._process.kill()
            await self._process.wait()
        assert self._process.stderr is not None
        said = (await self._process.stderr.read()).decode("utf-8", "replace")
        if said:
            log.error("the launcher of the sandboxes failed: %s", said)

    def _writable(self) -> None:
        while self._unsent and not self.lost:
            packet, end = self._unsent[0]
            try:
                socket.send_fds(self._link, [packet], [end.fileno()] if end else [])
            except BlockingIOError:
                self._loop.add_writer(self._link, self._writable)
                return
            except OSError as error:
                self._lose(f"its socket is closed ({error.strerror})")
                return
            if end:
                end.close()
            self._unsent.popleft()
        if not self.lost:
            self._loop.remove_writer(self._link)

    def _readable(self) -> None:
        try:
            packet, fds, _, _ = socket.recv_fds(self._link, PACKET, MOST_HOSTS)
        except OSError as error:
            return self._lose(f"its socket is closed ({error.strerror})")
        if not packet:
            return self._lose("it ended")
        message = json.loads(packet)
        if "listening" in message:
            listeners = [socket.socket(fileno=fd) for fd in fds]
            self.listening.pop(message["listening"])(listeners)
            return None
        self.ended.pop(message["ended"]).set_result(message["notes"].strip())
        return None

    def _lose(self, why: str) -> None:
        if self.lost:
            return
        self.lost = why
        self._loop.remove_reader(self._link)
        self._loop.remove_writer(self._link)
        self._link.close()
        for _, end in self._unsent:
            if end:
                end.close()
        for future in self.ended.values():
            future.set_result(f"the launcher is lost: {why}")
        self.ended.clear()

    async def _last_words(self) -> str:
        assert self._process.stderr is not None
        said = (await self._process.stderr.read()).decode("utf-8", "replace").strip()
        return f"the launcher ended at once ({said.splitlines()[-1] if said else 'without a word'})"


@dataclass(frozen=True, eq=False)
class Opening:
    """A sandbox on its way: `opened` when its process 1 answers, `ended` when nothing of it is left."""

    session: ProcessSession
    opened: asyncio.Future[Any]
    ended: asyncio.Future[str]
    end: Callable[[], None]

    async def finish(self) -> ProcessSession:
        """The open session; `SandboxError` with what bubblewrap said if it does not come up."""
        try:
            await asyncio.wait([self.opened], timeout=OPENING)
        finally:
            if not self.opened.done():
                self.session.wire.fail("it did not open")
                self.end()
                self.opened.add_done_callback(lambda end: end.cancelled() or end.exception())  # nobody asks what it came to
        if self.opened.exception() is None:
            return self.session
        await asyncio.wait([self.ended], timeout=1.0)
        why = self.ended.result() if self.ended.done() else ""
        raise SandboxError(f"no sandbox could be opened: {why or self.session.wire.lost}")


class ProcessBackend:
    """Sandboxes by bubblewrap. Each is used once; `warm` of them, with the spec's limits, wait."""

    fork: Literal["replay"] = "replay"

    def __init__(
        self,
        launcher: Launcher,
        limits: SandboxLimits,
        warm: int,
        told: dict[str, Any],
        env: dict[str, str],
        tasks: asyncio.TaskGroup,
    ) -> None:
        self._launcher = launcher
        self._limits = limits
        self._warm = warm
        self._told = told
        self._env = env
        self._tasks = tasks
        self._slots = deque(range(SLOTS))
        self._idle: deque[ProcessSession] = deque()
        self._live: set[ProcessSession] = set()
        self._starting = 0

    @property
    def isolation(self) -> str:
        """One line for people: what stands between the code and the host."""
        ready = self._launcher.ready
        user = "a user of its own" if ready["users"] else "your user"
        bound = f"cgroup v{ready['cgroup']}" if ready["cgroup"] else "memory watched, not bounded (no cgroup can be written)"
        return f"bubblewrap: {user}, namespaces, {network(self._limits)}, seccomp, {bound}; the kernel is shared"

    async def probe(self) -> None:
        """Opens the pool's first sandbox; `UserError` if this machine does not let it."""
        try:
            self._idle.append(await self._begin(self._limits).finish())
        except SandboxError as error:
            raise refusal(str(error)) from error
        self._top_up()

    async def session(self, limits: SandboxLimits) -> ProcessSession:
        """A warm one if the limits are the spec's, else a new one."""
        while limits == self._limits and self._idle:
            session = self._idle.popleft()
            if not session.wire.lost:
                break
        else:
            session = await self._begin(limits).finish()
        self._top_up()
        return session

    async def close(self) -> None:
        """Ends every sandbox and the launcher."""
        self._warm = 0
        for session in tuple(self._live):
            session.wire.fail("its backend was closed")
        await self._launcher.close()

    def _top_up(self) -> None:
        """Starts as many as are missing in the pool; they get ready while other work is done."""
        while len(self._idle) + self._starting < self._warm and not self._launcher.lost:
            opening = self._begin(self._limits)
            self._starting += 1
            opening.opened.add_done_callback(partial(self._ready, opening.session))

    def _ready(self, session: ProcessSession, opened: asyncio.Future[Any]) -> None:
        self._starting -= 1
        if opened.cancelled() or opened.exception() is not None:
            log.log(
                logging.WARNING if self._warm else logging.DEBUG, "a sandbox of the pool did not open: %s", session.wire.lost
            )
        else:
            self._idle.append(session)

    def _begin(self, limits: SandboxLimits) -> Opening:
        if self._launcher.lost:
            raise SandboxError(f"no sandbox could be opened: the launcher is lost ({self._launcher.lost})")
        if not self._slots:
            raise SandboxError(f"no sandbox could be opened: {SLOTS} are open; close some")
        slot = self._slots.popleft()
        end, other = socket.socketpair()
        ended = self._launcher.ended[slot] = asyncio.get_running_loop().create_future()
        asked: dict[str, Any] = {
            "start": slot,
            "memory_mb": limits.memory_mb,
            "disk_mb": limits.disk_mb,
            "processes": limits.processes,
        }
        asked["network"] = self._network(slot, limits, ended)
        self._launcher.send(asked, other)
        wire = Wire(end, longest(limits))
        session = ProcessSession(
            wire,
            limits,
            events=self._launcher.ready["events"].format(slot),
            python=self._told["python"],
            fresh=self.session,
            release=partial(self._release, slot, ended),
        )
        self._live.add(session)
        ended.add_done_callback(partial(self._gone, slot, session))
        paths = ["/packages"] if self._told["packages"] else []
        watched = not self._launcher.ready["cgroup"]
        opened = wire.post("open", setup(limits, work="/work", env=self._env, paths=paths, isolated=True, watched=watched))
        return Opening(session, opened, ended, partial(self._launcher.send, {"end": slot}))

    def _network(self, slot: int, limits: SandboxLimits, ended: asyncio.Future[str]) -> dict[str, Any]:
        """What the launcher is told of a sandbox's network; its connections are carried for as long as it lives."""
        allowed = places(limits.network)
        if not allowed:
            return {}

        def carry(listeners: list[socket.socket]) -> None:
            task = self._tasks.create_task(serve(listeners, allowed))
            ended.add_done_callback(lambda _: task.cancel())
            for listener in listeners:  # one that is cancelled at once never comes to close them
                task.add_done_callback(lambda _, listener=listener: listener.close())

        self._launcher.listening[slot] = carry
        return {"places": [(place.address, place.port) for place in allowed], "names": names(allowed)}

    def _gone(self, slot: int, session: ProcessSession, ended: asyncio.Future[str]) -> None:
        """Nothing of the slot's sandbox is left: it may be used again."""
        session.wire.fail(f"it ended ({ended.result() or 'without a word'})")
        self._launcher.listening.pop(slot, None)
        self._live.discard(session)
        self._slots.append(slot)

    async def _release(self, slot: int, ended: asyncio.Future[str]) -> None:
        if not ended.done():
            self._launcher.send({"end": slot})
            await asyncio.wait([ended], timeout=CLOSING)
