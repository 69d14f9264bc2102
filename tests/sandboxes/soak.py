"""Opens sandboxes by the thousand, kills, cuts off and abandons them at random, and then looks for what is left.

    python -m tests.sandboxes.soak --backend process --sessions 10000 [--at-once 8] [--seed 0]

What is looked for: processes, mounts, cgroups, containers and files of the machine, descriptors and threads of this process.
It ends with status 1 if one is left, or if a session that nobody killed was lost or gave a wrong answer.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from agentrl.errors import SandboxError
from agentrl.sandbox import Backend, Command, SandboxSpec, Session
from agentrl_sandboxes.docker import Docker
from agentrl_sandboxes.process import Process
from tests.sandboxes.process_backend import LIMITS
from tests.sandboxes.test_process_lives import alive, below, groups, parent

SPECS: dict[str, SandboxSpec] = {
    "process": Process(limits=LIMITS, warm=4),
    "docker": Docker(limits=LIMITS, warm=2),
    "gvisor": Docker(limits=LIMITS, warm=2, runtime="runsc"),
}
ACTS = ("command", "python", "files", "timeout", "cancel", "crash", "daemon", "flood", "fork")
ENDS = ("close", "close twice", "abandoned", "closed while it runs", "killed", "cancelled while it opens")
WEIGHTS = (55, 12, 1, 10, 12, 10)
"""Those of the ends. What is abandoned stays until the backend closes, so it is rare."""
LOOK = 0.5
"""Seconds between two looks at which processes there are."""
PATIENCE = 15.0


@dataclass
class Soak:
    """One run: what was done, what was seen of it, and what was wrong."""

    backend: Backend
    docker: bool
    chance: random.Random
    word: str
    """Stands in the arguments of all that sessions leave running."""
    done: Counter[str] = field(default_factory=Counter[str])
    wrong: list[str] = field(default_factory=list[str])
    seen: dict[int, str] = field(default_factory=dict[int, str])
    """Processes below this one, each with its start."""
    containers: set[str] = field(default_factory=set[str])
    mounts: set[str] = field(default_factory=set[str])
    """Their root file systems, as the engine mounts them."""
    spared: frozenset[int] = frozenset()
    """What starts the sandboxes: were it killed, all would end, which has a test of its own."""

    async def live(self, number: int) -> None:
        """A session, from its beginning to one of the ends."""
        end = self.chance.choices(ENDS, WEIGHTS)[0]
        self.done[end] += 1
        opening = asyncio.ensure_future(self.backend.session(LIMITS))
        try:
            if end == "cancelled while it opens":
                await asyncio.sleep(self.chance.choice((0.0, 0.002, 0.02)))
                opening.cancel()
            session = await opening
        except asyncio.CancelledError:
            return
        except SandboxError:
            self.done["lost"] += 1
            return
        try:
            for _ in range(self.chance.randint(1, 3)):
                await self.act(session, self.chance.choice(ACTS), number)
            await self.end(session, end)
        except SandboxError:
            self.done["lost"] += 1
            await session.close()

    async def act(self, session: Session, act: str, number: int) -> None:
        self.done[act] += 1
        kills = self.done["kills"]
        unexpected = await self.unexpected(session, act, number)
        if unexpected and kills == self.done["kills"]:  # else a kill may have hit what ran
            self.wrong.append(f"{act} {unexpected}")

    async def unexpected(self, session: Session, act: str, number: int) -> str:
        """How an act went wrong, or nothing."""
        found: object = None
        wanted: object = None
        left = f"setsid sh -c 'while :; do sleep 9; done' {self.word} &"
        match act:
            case "command":
                wanted, found = f"{number}\n", (await session.exec(Command(f"echo {number} | cat"))).text
            case "python":
                await session.python(f"x = {number}")
                wanted, found = f"{number}\n", (await session.python("x")).text
            case "files":
                await session.write("a/b", b"%d" % number)
                wanted, found = b"%d" % number, await session.read("a/b")
            case "timeout":
                wanted, found = True, (await session.exec(Command(f"{left} sleep 99", timeout=0.05))).timed_out
            case "cancel":
                with suppress(TimeoutError):
                    async with asyncio.timeout(self.chance.choice((0.0, 0.003, 0.05))):
                        await session.exec(Command(f"{left} sleep 99"))
            case "crash":
                wanted, found = -9, (await session.python("import os; os.kill(os.getpid(), 9)")).status
            case "daemon":
                await session.python(f"import subprocess; d = subprocess.Popen(['sh', '-c', 'sleep 999', '{self.word}'])")
                await session.exec(Command(left))
            case "flood":
                wanted, found = True, (await session.exec(Command("head -c 999999 /dev/zero"))).truncated
            case _:
                other = await session.fork()
                if other is not None:
                    await other.close()
        return "" if found == wanted else f"gave {found!r:.80}, expected {wanted!r}"

    async def end(self, session: Session, end: str) -> None:
        match end:
            case "close" | "close twice":
                await session.close()
                if end == "close twice":
                    await session.close()
            case "closed while it runs":
                async with asyncio.TaskGroup() as group:
                    group.create_task(self.lost(session))
                    await asyncio.sleep(0.01)
                    await session.close()
            case "killed":
                await self.kill()
                with suppress(SandboxError):
                    await session.exec(Command("true"))
                await session.close()
            case _:
                return  # the backend's close ends it

    async def lost(self, session: Session) -> None:
        with suppress(SandboxError):
            await session.exec(Command("sleep 99"))
            self.wrong.append("a call outlived its session")

    async def kill(self) -> None:
        """SIGKILL to any process of any sandbox, or to the first of any container."""
        if self.docker:
            pids = await asyncio.to_thread(self.first_processes)
        else:
            pids = [pid for pid in below(os.getpid()) if pid not in self.spared]
        if pids:
            with suppress(ProcessLookupError):
                os.kill(self.chance.choice(pids), signal.SIGKILL)
                self.done["kills"] += 1

    def mine(self) -> list[str]:
        """This run's containers; their file systems are noted."""
        label = f"label=agentrl.run={self.backend._labels['agentrl.run']}"  # type: ignore[attr-defined]
        found = docker("ps", "--all", "--quiet", "--no-trunc", "--filter", label)
        self.containers.update(found)
        if found:
            self.mounts.update(docker("inspect", "--format", "{{.GraphDriver.Data.MergedDir}}", *found))
        return found

    def mounts_left(self, before: set[str]) -> set[str]:
        """A Docker engine beside this may mount for others: only its own containers' count, or none."""
        return mounts() & self.mounts if self.docker else {place for place in mounts() - before if "/docker/" not in place}

    def first_processes(self) -> list[int]:
        """As the host numbers them."""
        ids = self.mine()
        pids = docker("inspect", "--format", "{{.State.Pid}}", *ids) if ids else []
        return [int(pid) for pid in pids if int(pid) > 1]

    async def watch(self) -> None:
        while True:
            self.seen |= below(os.getpid())
            if self.docker:
                await asyncio.to_thread(self.mine)
            await asyncio.sleep(LOOK)


def docker(*arguments: str) -> list[str]:
    done = subprocess.run(["docker", *arguments], capture_output=True, text=True)
    return done.stdout.split()


def mounts() -> set[str]:
    return {line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()}


def files() -> set[str]:
    """All in this process's folder for such files, its own (`soaked`), and what has our name where nobody else puts any."""
    ours = {str(path) for place in ("/dev/shm", "/run") for path in Path(place).glob("agentrl*")}
    return ours | {str(path) for path in Path(tempfile.gettempdir()).rglob("*")}


def with_word(word: str) -> set[str]:
    found = set()
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):
            if word.encode() in path.read_bytes() and path.parent.name != str(os.getpid()):
                found.add(path.parent.name)
    return found


def container_cgroups(ids: set[str]) -> set[str]:
    return {str(path) for path in Path("/sys/fs/cgroup").glob("**/docker/*") if path.name in ids} if ids else set()


async def run(name: str, sessions: int, at_once: int, seed: int) -> tuple[Soak, dict[str, object]]:
    """The soak, and what is left of it by kind."""
    before = {"mounts": mounts(), "files": files()}
    word = f"soak-{os.getpid()}-{time.monotonic_ns()}"
    numbers = iter(range(sessions))
    async with SPECS[name].open() as backend:
        opened = below(os.getpid())
        spared = frozenset(pid for pid in opened if os.getpid() in (parent(pid), parent(parent(pid))))
        soak = Soak(backend, name != "process", random.Random(seed), word, spared=spared)
        async with asyncio.TaskGroup() as group:
            watching = group.create_task(soak.watch())
            async with asyncio.TaskGroup() as workers:
                for _ in range(at_once):
                    workers.create_task(worker(soak, numbers))
            watching.cancel()
        last = await backend.session(LIMITS)
        if (await last.exec(Command("echo whole"))).text != "whole\n":
            soak.wrong.append("the last session is broken")
        soak.seen |= below(os.getpid())
    kinds: dict[str, Callable[[], object]] = {
        "processes": lambda: sorted({*map(str, alive(soak.seen)), *with_word(word)}),
        "mounts": lambda: sorted(soak.mounts_left(before["mounts"])),
        "cgroups": lambda: sorted(map(str, groups(soak.seen))) + sorted(container_cgroups(soak.containers)),
        "containers": lambda: soak.mine() if soak.docker else [],
        "files": lambda: sorted(files() - before["files"]),
    }
    return soak, {kind: await settled(look) for kind, look in kinds.items()}


async def worker(soak: Soak, numbers: Iterator[int]) -> None:
    for number in numbers:
        await soak.live(number)


async def settled(look: Callable[[], object]) -> object:
    """What is still there after a while."""
    until = time.monotonic() + PATIENCE
    while (found := look()) and time.monotonic() < until:  # noqa: ASYNC110 - nothing tells it
        await asyncio.sleep(0.2)
    return found


def soaked(name: str, sessions: int, at_once: int, seed: int) -> tuple[Soak, dict[str, object]]:
    """`run`, with what it leaves in this process."""
    asyncio.run(asyncio.sleep(0))
    descriptors, threads = set(os.listdir("/proc/self/fd")), len(os.listdir("/proc/self/task"))
    before = tempfile.tempdir
    with tempfile.TemporaryDirectory() as own:
        tempfile.tempdir = own  # others of this machine have files as well
        try:
            soak, left = asyncio.run(run(name, sessions, at_once, seed))
        finally:
            tempfile.tempdir = before
    left["descriptors"] = sorted(set(os.listdir("/proc/self/fd")) - descriptors)
    until = time.monotonic() + PATIENCE  # a thread that was joined may be on its way out
    while (more := len(os.listdir("/proc/self/task")) - threads) > 0 and time.monotonic() < until:
        time.sleep(0.05)
    left["threads"] = max(more, 0)
    return soak, left


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backend", choices=SPECS, default="process")
    parser.add_argument("--sessions", type=int, default=10_000)
    parser.add_argument("--at-once", type=int, default=8)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    began = time.monotonic()
    soak, left = soaked(asked.backend, asked.sessions, asked.at_once, asked.seed)
    seconds = time.monotonic() - began
    print(f"{asked.backend}: {asked.sessions} sessions in {seconds:.0f} s, {asked.sessions / seconds:.1f} a second")
    print("done:", ", ".join(f"{what} {count}" for what, count in soak.done.most_common()))
    print("wrong:", soak.wrong or "nothing")
    print("left:", ", ".join(f"{kind} {what or 'none'}" for kind, what in left.items()))
    return 1 if soak.wrong or any(left.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
