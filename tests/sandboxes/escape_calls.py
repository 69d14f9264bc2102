"""Attempts to get out of a sandbox, to starve its neighbours or to trick the host, made of calls of the contract.

Each gives how it got through, or nothing. Beside those of `escapes.py`, which are programs that run inside alone.
"""

from __future__ import annotations

import asyncio
import gzip
import io
import os
import tarfile
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from agentrl.errors import SandboxError
from agentrl.sandbox import Backend, Command, Ran, Session
from tests.sandboxes.escapes import ATTEMPTS, Host, program
from tests.sandboxes.process_backend import LIMITS


@dataclass(frozen=True)
class Try:
    """What an attempt has: a fresh session with `LIMITS`, its backend, and the host that it is after."""

    backend: Backend
    session: Session
    host: Host

    async def sh(self, line: str, seconds: float = 20.0) -> Ran:
        return await self.session.exec(Command(line, timeout=seconds))

    async def run(self, code: str, seconds: float = 20.0) -> Ran:
        return await self.session.exec(Command(("python3", "-c", code), timeout=seconds))

    async def read(self, *paths: str) -> str:
        """Which of these paths `read` gave."""
        found = []
        for path in paths:
            with suppress(OSError):
                found.append(f"{path} held {await self.session.read(path)!r:.80}")
        return "; ".join(found)

    async def write(self, *paths: str) -> str:
        """Whether one of these writes changed the host."""
        for path in paths:
            with suppress(OSError):
                await self.session.write(path, b"overwritten")
        return self.changed()

    def changed(self) -> str:
        folder = os.path.dirname(self.host.secret)
        with open(self.host.secret) as file:
            text = file.read()
        return "" if (text, sorted(os.listdir(folder))) == ("of the host", ["secret", "unix"]) else "the host's folder changed"

    async def neighbour_after(self, said: str) -> str:
        """What was found, or that the backend does not serve others any more."""
        other = await self.backend.session(LIMITS)
        try:
            return said or ("" if (await other.exec(Command("echo whole"))).text == "whole\n" else "the next session is broken")
        finally:
            await other.close()


# what the host does with its files


async def link_that_the_host_reads(t: Try) -> str:
    await t.sh(f"ln -s {t.host.secret} a; mkdir d; ln -s {t.host.secret} d/b; ln -s d/b c; ln -s /proc/1/root{t.host.secret} e")
    return await t.read("a", "c", "e")


async def hard_link_that_the_host_reads(t: Try) -> str:
    await t.sh(f"ln {t.host.secret} a; ln /etc/shadow b; ln /proc/1/environ c")
    return await t.read("a", "b", "c")


async def link_that_the_host_writes(t: Try) -> str:
    folder = os.path.dirname(t.host.secret)
    await t.sh(f"ln -s {t.host.secret} a; ln -s {folder} d; ln -s d/secret b; ln -s {folder}/new c")
    return await t.write("a", "b", "c", "d/new", "d/secret")


async def folder_that_becomes_a_link(t: Try) -> str:
    await t.session.write("results/secret", b"")
    await t.sh(f"rm -r results; ln -s {os.path.dirname(t.host.secret)} results")
    listed = ""
    with suppress(OSError):
        listed = f"listed {await t.session.list('results')}"
    return listed or await t.read("results/secret") or await t.write("results/new")


async def link_that_changes_while_the_host_reads(t: Try) -> str:
    swap = f"""if True:
        import os
        open("own", "w").write("own"); os.symlink({t.host.secret!r}, "out")
        while True:
            for target in ("own", "out"):
                try:
                    os.link(target, "next", follow_symlinks=False); os.rename("next", "file")
                except OSError: pass
    """
    await t.session.write("swap.py", swap.encode())
    await t.session.python("import subprocess; p = subprocess.Popen(['python3', 'swap.py'])")
    found: set[bytes] = set()
    for _ in range(300):
        with suppress(OSError):
            found.add(await t.session.read("file"))
    return "" if found <= {b"own", b""} else f"read {found}"


async def path_with_dots(t: Try) -> str:
    name = t.host.secret
    return await t.read(
        f"../../../../../../{name}", f"/work/../../..{name}", "..", f"/proc/1/root{name}", f"/proc/self/root/..{name}"
    )


async def path_with_dots_that_the_host_writes(t: Try) -> str:
    folder = os.path.dirname(t.host.secret)
    return await t.write(f"../../../../..{folder}/new", f"/proc/1/root{folder}/new", f"/proc/1/cwd/../..{folder}/new")


async def names_with_newlines_and_dots(t: Try) -> str:
    code = """if True:
        import os
        for name in (b"a\\nb", b"..\\n", b"x\\n../../secret", b"\\xff", b" ", b"-rf"):
            try: open(name, "w")
            except OSError: pass
    """
    await t.run(code)
    names = {entry.name for entry in await t.session.list("/work")}
    if names != {"a\nb", "..\n", "\udcff", " ", "-rf"}:  # the one with slashes cannot be made
        return f"it listed {names}"
    return await t.read(*(f"{name}/../../..{t.host.secret}" for name in names))


async def tar_bomb(t: Try) -> str:
    """Small to upload, a gigabyte to unpack, with names that lead out."""
    held = io.BytesIO()
    with tarfile.open(fileobj=held, mode="w") as tar:
        for name in ("../../out", f"../../../..{t.host.secret}", t.host.secret, "zeros"):
            member = tarfile.TarInfo(name)
            member.size = 1 << 28
            tar.addfile(member, _Zeros())
    await t.session.write("bomb.tgz", gzip.compress(held.getvalue(), 1))
    del held
    await t.sh("tar -xPzf bomb.tgz; tar -xzf bomb.tgz")
    used = int((await t.sh("du -sk /work /tmp /dev/shm 2>/dev/null | awk '{n += $1} END {print n}'")).text or 0)
    return t.changed() or (f"it holds {used} KiB" if used > 4 * LIMITS.disk_mb << 10 else "")


class _Zeros(io.RawIOBase):
    def read(self, size: int = -1) -> bytes:
        return bytes(size)


async def bomb_in_what_is_forked(t: Try) -> str:
    """A fork carries the files over the host: it must neither hold what is sparse in full, nor follow links."""
    await t.run(
        "import os\nfor n in range(40):\n    try: open(f'sparse{n}', 'w').truncate(1 << 30)\n    except OSError: pass\n"
        f"os.symlink({t.host.secret!r}, 'link')"
    )
    other = await t.session.fork()
    if other is None:
        return ""
    try:
        return await Try(t.backend, other, t.host).read("link")
    finally:
        await other.close()


# what it may use


async def fork_bomb(t: Try) -> str:
    ran = await t.sh(":(){ :|:& };:; sleep 60", 2)
    return await t.neighbour_after("the bomb ended well" if ran.ok else "")


async def forks_without_end(t: Try) -> str:
    code = """if True:
        import os, time
        n = 0
        try:
            while n < 400:
                if not os.fork():
                    time.sleep(9); os._exit(0)
                n += 1
        except OSError: pass
        print(n)
    """
    made = int((await t.run(code, 8)).stdout or 0)
    return await t.neighbour_after(f"{made} processes" if made >= LIMITS.processes else "")


async def memory_in_one_process(t: Try) -> str:
    ran = await t.run("held = b'x' * (10 << 30); print('held')")
    return await t.neighbour_after("it held 10 GB" if b"held" in ran.stdout else "")


async def memory_over_many_processes(t: Try) -> str:
    each = LIMITS.memory_mb // 3
    code = f"""if True:
        import os, time
        for _ in range(12):
            if not os.fork():
                held = b"x" * ({each} << 20); time.sleep(4); os._exit(7)
        print([os.wait()[1] for _ in range(12)].count(7 << 8))
    """
    held = int((await t.run(code, 15)).stdout or 0)
    return await t.neighbour_after(f"{held} processes held {each} MB each" if held > 3 else "")


async def memory_that_is_shared(t: Try) -> str:
    code = """if True:
        import mmap
        held = []
        for _ in range(300):
            held.append(mmap.mmap(-1, 4 << 20)); held[-1].write(b"x" * (4 << 20))
        print("held")
    """
    ran = await t.run(code, 10)
    return await t.neighbour_after("it held 1.2 GB" if b"held" in ran.stdout else "")


async def disk_flood(t: Try) -> str:
    code = f"""if True:
        held = 0
        for n in range({12 * LIMITS.disk_mb}):
            try:
                with open(f"{{('/work', '/tmp', '/dev/shm')[n % 3]}}/{{n}}", "wb", 0) as file:
                    for _ in range(16): held += file.write(bytes(1 << 16))
            except OSError: pass
        print(held)
    """
    held = int((await t.run(code)).stdout or 0)
    return await t.neighbour_after(f"it wrote {held} bytes" if held > 3 * LIMITS.disk_mb << 20 else "")


async def inode_flood(t: Try) -> str:
    code = "n = 0\ntry:\n    while n < 10**6: open(f'/tmp/{n}', 'x').close(); n += 1\n    print('made')\nexcept OSError: pass"
    ran = await t.run(code, 20)
    return await t.neighbour_after("a million files" if b"made" in ran.stdout else "")


async def output_flood_on_both_streams(t: Try) -> str:
    code = "import os, threading\ndef flood(fd):\n    for _ in range(8000): os.write(fd, b'x' * 65536)\n"
    ran = await t.run(f"{code}threading.Thread(target=flood, args=(1,)).start(); flood(2)", 30)
    return await t.neighbour_after(_too_long(ran))


async def output_flood_of_the_python_session(t: Try) -> str:
    ran = await t.session.python(
        "import os, sys\nwhile True: _ = os.write(1, b'o' * 65536), os.write(2, b'e' * 65536)", timeout=1
    )
    return _too_long(ran) or ("" if (await t.session.python("1")).text == "1\n" else "Python is broken")


def _too_long(ran: Ran) -> str:
    longest = max(len(ran.stdout), len(ran.stderr))
    return f"{longest} bytes came out" if longest > LIMITS.output else ""


async def endless_computing(t: Try) -> str:
    ran = await t.sh("trap '' XCPU TERM INT HUP; while :; do :; done", 20)
    return "" if ran.killed == "cpu" else f"it ended as {ran}"


async def sleep_that_ignores_signals(t: Try) -> str:
    ran = await t.sh("trap '' TERM INT HUP QUIT; while :; do sleep 1; done", 0.5)
    return "" if ran.timed_out and ran.seconds < 10 else f"it ended as {ran}"


async def daemon_that_outlives_its_call(t: Try) -> str:
    await t.sh("setsid sh -c 'while :; do echo x >> /work/alive; sleep 0.02; done' > /dev/null 2>&1 & sleep 0.1")
    before = await t.read("alive")
    await t.sh("sleep 0.3")
    return "" if await t.read("alive") == before else "it runs on"


async def daemon_that_outlives_its_session(t: Try) -> str:
    """Seen from outside: whatever has this word in its arguments."""
    word = f"outlives{os.getpid()}{time.monotonic_ns()}"
    await t.session.python(
        f"import subprocess; subprocess.Popen(['sh', '-c', 'while :; do sleep 1; done', '{word}'], start_new_session=True)"
    )
    await t.session.close()
    until = time.monotonic() + 5
    while found := _running(word):
        if time.monotonic() > until:
            return f"{found} run on"
        await asyncio.sleep(0.05)
    return ""


def _running(word: str) -> list[str]:
    found = []
    for name in filter(str.isdigit, os.listdir("/proc")):
        with suppress(OSError), open(f"/proc/{name}/cmdline", "rb") as file:
            if word.encode() in file.read():
                found.append(name)
    return found


# the neighbours


async def neighbours_files_and_sockets(t: Try) -> str:
    other = await t.backend.session(LIMITS)
    try:
        await other.exec(Command("echo secret > mine; echo secret > /tmp/mine; echo secret > /dev/shm/mine"))
        await other.python("import socket; s = socket.socket(); s.bind(('127.0.0.1', 4321)); s.listen()")
        ran = await t.sh("cat /work/* /tmp/* /dev/shm/* /proc/*/root/work/mine /proc/*/cwd/mine")
        found = "it read a neighbour's file" if "secret" in ran.text else ""
        ran = await t.session.python("import socket; socket.create_connection(('127.0.0.1', 4321), 2)")
        return found or ("it reached a neighbour's port" if ran.ok else "")
    finally:
        await other.close()


async def neighbour_starved_of_processes(t: Try) -> str:
    other = await t.backend.session(LIMITS)
    try:
        await t.session.python(
            "import os, time\ntry:\n  while True:\n    if not os.fork(): time.sleep(60); os._exit(0)\nexcept OSError: pass"
        )
        return (
            "" if (await other.exec(Command("echo a | cat | cat"))).text == "a\n" else "a neighbour finds no room for a process"
        )
    finally:
        await other.close()


async def neighbour_starved_of_cpu(t: Try) -> str:
    """All its processes compute: a neighbour's command must still be done within seconds."""
    other = await t.backend.session(LIMITS)
    burn = "import os\nfor _ in range(15):\n    if not os.fork(): break\nwhile True: pass"
    try:
        async with asyncio.TaskGroup() as group:
            group.create_task(_ignored(t.run(burn, 3)))
            await asyncio.sleep(0.3)
            ran = await other.exec(Command(("python3", "-c", "print(sum(range(10**5)))"), timeout=15))
        return "" if ran.ok else f"a neighbour's command ended as {ran}"
    finally:
        await other.close()


async def _ignored(call: Awaitable[Any]) -> None:
    with suppress(SandboxError):
        await call


CALLS: dict[str, Callable[[Try], Awaitable[str]]] = {
    attempt.__name__.replace("_", "-"): attempt
    for attempt in (
        link_that_the_host_reads, hard_link_that_the_host_reads, link_that_the_host_writes, folder_that_becomes_a_link,
        link_that_changes_while_the_host_reads, path_with_dots, path_with_dots_that_the_host_writes,
        names_with_newlines_and_dots, tar_bomb, bomb_in_what_is_forked, fork_bomb, forks_without_end, memory_in_one_process,
        memory_over_many_processes, memory_that_is_shared, disk_flood, inode_flood, output_flood_on_both_streams,
        output_flood_of_the_python_session, endless_computing, sleep_that_ignores_signals, daemon_that_outlives_its_call,
        daemon_that_outlives_its_session, neighbours_files_and_sockets, neighbour_starved_of_processes,
        neighbour_starved_of_cpu,
    )
}  # fmt: skip


async def got_through(backend: Backend, session: Session, host: Host, name: str) -> str:
    """How an attempt of `escapes.py` or of this module got through, in a fresh session; empty = it was stopped."""
    return await (CALLS[name](Try(backend, session, host)) if name in CALLS else got_through_program(session, host, name))


async def got_through_program(session: Session, host: Host, name: str) -> str:
    ran = await session.exec(Command(("python3", "-c", program(ATTEMPTS[name], host)), timeout=10))
    said = ran.text + ran.error_text
    if "ESCAPED" in said or "SyntaxError" in said:
        return said.strip()[:200]
    try:
        whole = (await session.exec(Command(("echo", "whole")))).text == "whole\n" and (await session.python("1")).text == "1\n"
    except SandboxError as error:
        return f"its sandbox is lost: {error}"
    return "" if whole else "its sandbox is broken"
