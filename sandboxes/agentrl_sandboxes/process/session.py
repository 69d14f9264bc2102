"""A session over a sandbox's wire: the contract's calls as requests, and their answers as results."""

from __future__ import annotations

import re
from collections.abc import Callable, Coroutine, Sequence
from pathlib import Path
from typing import Any, Literal

from agentrl.errors import SandboxError
from agentrl.sandbox import Command, Entry, Ran, SandboxLimits
from agentrl_sandboxes.process.wire import Wire, whole

GRACE = 10.0
"""Seconds over a call's own timeout, which process 1 sees to, that the host waits for its answer."""
STACK = 8 << 20
KINDS: dict[bytes, Literal["file", "folder", "link", "other"]] = {b"f": "file", b"d": "folder", b"l": "link"}
REASONS = ("timeout", "memory", "cpu")
PACK = """
import os, sys, tarfile
def exact(member):
    member.pax_headers = {"mtime": "%d.%09d" % divmod(os.lstat(member.name).st_mtime_ns, 10**9)}
    return member
with tarfile.open(fileobj=sys.stdout.buffer, mode="w|", format=tarfile.PAX_FORMAT) as tar:
    for place in "work", "tmp":
        tar.add(place, filter=exact)
"""
UNPACK = """
import os, sys, tarfile
tarfile.TarFile.extraction_filter = staticmethod(lambda member, path: member)
with tarfile.open(fileobj=sys.stdin.buffer, mode="r|") as tar:
    tar.extractall()
    for member in reversed(tar.getmembers()):
        at = int(member.pax_headers["mtime"].replace(".", ""))
        os.utime(member.name, ns=(at, at), follow_symlinks=False)
"""


def setup(
    limits: SandboxLimits, *, work: str, env: dict[str, str], paths: list[str], isolated: bool, watched: bool
) -> dict[str, Any]:
    """What process 1 is told first. `watched`: no cgroup bounds the memory, so it looks itself."""
    memory = limits.memory_mb << 20
    # CORE: with 0, a dump still goes to a program that /proc/sys/kernel/core_pattern names, which runs as root; with 1, none
    reserved = memory + limits.processes * STACK  # counted when reserved: so that each thread finds room for its stack
    own = {"CPU": limits.cpu_seconds, "DATA": reserved, "NOFILE": limits.open_files, "FSIZE": limits.disk_mb << 20, "CORE": 1}
    if isolated:
        own["NPROC"] = limits.processes + 1  # counted in the sandbox's user namespace, and process 1 is in it
    return {
        "work": work,
        "env": env,
        "paths": paths,
        "limits": own,
        "output": limits.output,
        "largest": limits.disk_mb << 20,
        "memory": memory if watched else 0,
    }


def longest(limits: SandboxLimits) -> int:
    """Bytes of the largest answer that is taken: both streams, a file, or the packed files of a fork."""
    return 2 * max(limits.output, limits.disk_mb << 20) + (32 << 20)


class ProcessSession:
    """One sandbox. `fresh` opens another with the same limits, `release` ends this one."""

    def __init__(
        self,
        wire: Wire,
        limits: SandboxLimits,
        *,
        events: str,
        python: str,
        fresh: Callable[[SandboxLimits], Coroutine[Any, Any, ProcessSession]] | None,
        release: Callable[[], Coroutine[Any, Any, None]],
        work: str = "/work",
    ) -> None:
        self.wire = wire
        self._limits = limits
        self._events = Path(events) if events else None
        self._ended_by_memory = self._memory_ends()
        self._python = python
        self._fresh = fresh
        self._release = release
        self._work = work

    async def exec(self, command: Command) -> Ran:
        return await self._exec(command, self._limits.output)

    async def _exec(self, command: Command, most: int) -> Ran:
        argv = ["/bin/sh", "-c", command.argv] if isinstance(command.argv, str) else list(command.argv)
        seconds = command.timeout or self._limits.timeout
        head = ("exec", argv, self._place(command.cwd), dict(command.env), seconds, most)
        return await self._run(head, command.stdin, seconds)

    async def python(self, code: str, timeout: float | None = None) -> Ran:  # noqa: ASYNC109 - the sandbox ends it itself
        seconds = timeout or self._limits.timeout
        return await self._run(("python", seconds), code.encode("utf-8", "surrogatepass"), seconds)

    async def read(self, path: str) -> bytes:
        return (await self._file("read", path))[1]

    async def write(self, path: str, data: bytes) -> None:
        await self._file("write", path, data)

    async def list(self, path: str) -> Sequence[Entry]:
        return tuple(_entries((await self._file("list", path))[1]))

    async def fork(self) -> ProcessSession | None:
        if self._fresh is None or (await self.wire.ask("live", seconds=GRACE))[1]:
            return None
        packed = await self._exec(Command((self._python, "-I", "-c", PACK), cwd="/"), longest(self._limits))
        if not packed.ok or packed.truncated:
            return None  # a file that its own user may not read, say
        other = await self._fresh(self._limits)
        unpacked = await other.exec(Command((self._python, "-I", "-c", UNPACK), stdin=packed.stdout, cwd="/"))
        if unpacked.ok:
            return other
        await other.close()
        return None

    async def close(self) -> None:
        self.wire.fail("it was closed")
        await self._release()

    async def _file(self, what: str, path: str, data: bytes = b"") -> tuple[Sequence[str], bytes]:
        try:
            return await self.wire.ask(what, self._place(path), body=data, seconds=self._limits.timeout + GRACE)
        except OSError as error:
            raise OSError(error.errno, error.strerror, path) from None

    async def _run(self, head: tuple[Any, ...], body: bytes, seconds: float) -> Ran:
        try:
            words, streams = await self.wire.ask(*head, body=body, seconds=seconds + GRACE)
        except SandboxError:
            if self._memory_ended():  # of all its processes, process 1 too: the code's doing, and its last
                return Ran(-9, killed="memory")
            raise
        except OSError as error:  # there was no room for another process
            return Ran(126, stderr=f"{error.strerror}\n".encode())
        status, truncated, out = (whole(words, at) for at in (0, 1, 4))
        times = words[2:4]
        if len(words) < 6 or not 0 <= out <= len(streams) or not all(re.fullmatch(r"\d{1,9}\.\d{1,9}", time) for time in times):
            raise SandboxError(f"the sandbox's process 1 does not keep to its protocol: {words[:8]}")
        killed = words[5] if words[5] in REASONS else "memory" if status and self._memory_ended() else ""
        return Ran(
            status=status,
            stdout=streams[:out],
            stderr=streams[out:],
            truncated=bool(truncated),
            timed_out=killed == "timeout",
            seconds=float(times[0]),
            cpu_seconds=float(times[1]),
            killed=killed,
        )

    def _place(self, path: str) -> str:
        """A path of the sandbox where /work lies elsewhere."""
        if self._work == "/work" or not (path + "/").startswith("/work/"):
            return path
        return self._work + path.removeprefix("/work")

    def _memory_ended(self) -> bool:
        """Whether the cgroup has ended a process since the last look."""
        before, self._ended_by_memory = self._ended_by_memory, self._memory_ends()
        return self._ended_by_memory > before

    def _memory_ends(self) -> int:
        try:
            text = self._events.read_text() if self._events else ""
        except OSError:
            return 0
        return sum(int(line.split()[1]) for line in text.splitlines() if line.startswith("oom_kill "))


def _entries(data: bytes) -> Sequence[Entry]:
    found: list[Entry] = []
    at = 0
    while at < len(data):
        size, length = int.from_bytes(data[at + 1 : at + 9], "little"), int.from_bytes(data[at + 9 : at + 11], "little")
        name = data[at + 11 : at + 11 + length]
        if len(name) != length or not length:
            raise SandboxError("the sandbox's process 1 does not keep to its protocol: a listing that breaks off")
        found.append(Entry(name.decode("utf-8", "surrogateescape"), KINDS.get(data[at : at + 1], "other"), size))
        at += 11 + length
    return found
