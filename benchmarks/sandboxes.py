"""Sandboxes beside a bare subprocess, which isolates nothing, `docker run` and `docker exec`, llm-sandbox and inspect-ai.

    python benchmarks/sandboxes.py [--only process,docker,gvisor,peers] [--sessions 200]

Milliseconds: median and minimum, the machine's load beside them. A row's ratio is its peer's median over ours; a rate's, ours
over its peer's. Docker's rows need an engine and its image (`make sandboxes`), the others their packages; what is absent is
said and left out. inspect-ai wants an engine of 24.0.6 (Debian 12's is 20.10, Debian 13's 26.1) and Compose 2.21 beside it.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib.util
import itertools
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from contextlib import redirect_stdout, suppress
from functools import partial
from pathlib import Path
from typing import Any

from agentrl.errors import UserError
from agentrl.sandbox import Backend, Command, SandboxLimits, SandboxSpec, Session
from agentrl_sandboxes.docker import Docker
from agentrl_sandboxes.process import Process

PYTHON = [sys.executable, "-I", "-S", "-c", "print(6 * 7)"]
BY_HAND = [
    *("docker", "run", "--rm", "--network=none", "--read-only", "--cap-drop=ALL", "--security-opt=no-new-privileges"),
    *("--user=65534:65534", "--pids-limit=65", "--memory=576m", "--memory-swap=576m", "--cpus=1", "--tmpfs=/work"),
]
IMAGE = "agentrl-sandbox"
KEPT = {"command": ["sleep", "1000"], "network_mode": "none"}
BARE = "a bare subprocess"
WIDTHS = (1, 2, 4, 8)


async def timed(work: Callable[[], Awaitable[object]], times: int) -> list[float]:
    """Milliseconds of each."""
    found: list[float] = []
    for _ in range(times):
        began = time.perf_counter()
        await work()
        found.append(1000 * (time.perf_counter() - began))
    return found


def row(what: str, found: list[float], goal: float | None = None, peer: float | None = None, beside: str = "") -> float:
    """Prints it, and gives the median."""
    middle = statistics.median(found)
    ratio = f"{peer / middle:8.1f}x {beside}" if peer else ""
    print(f"{what:44} {middle:9.3f} {min(found):9.3f} {f'{goal:g}' if goal else '-':>6} {ratio}", flush=True)
    return middle


def peer_row(what: str, found: list[float], ours: float | None) -> None:
    """A row of another project's; its ratio is its median over that of our Docker, if that was measured in this run."""
    middle = statistics.median(found)
    ratio = f"{middle / ours:8.1f}x of ours" if ours else ""
    print(f"{what:44} {middle:9.3f} {min(found):9.3f} {'-':>6} {ratio}", flush=True)


def head(title: str) -> None:
    print(f"\n{title:44} {'median':>9} {'min':>9} {'goal':>6} {'ratio':>9}    (load {os.getloadavg()[0]:.1f})")


async def ran(*argv: str) -> None:
    process = await asyncio.create_subprocess_exec(*argv, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    await process.communicate()
    if process.returncode:
        raise RuntimeError(f"{' '.join(argv)} failed")


async def full(backend: Backend, warm: int) -> None:
    """Waits until the pool is."""
    while len(backend._idle) < warm:  # type: ignore[attr-defined]  # noqa: ASYNC110 - nothing tells it
        await asyncio.sleep(0.02)


async def calls(name: str, spec: SandboxSpec, warm: int, cold: float, floor: float, times: int) -> dict[str, float]:
    """Rows of one backend: `cold` is the peer of a fresh sandbox, `floor` that of a command. Gives what peers stand beside."""
    docker = name != "process"
    async with spec.open() as backend:
        opened: list[Session] = []

        async def take() -> None:
            opened.append(await backend.session(spec.limits))

        pool: list[float] = []
        for _ in range(times):
            await full(backend, warm)
            pool += await timed(take, warm)
            while opened:
                await opened.pop().close()
        row(f"{name}: from the pool", pool, None if docker else 2, cold, "docker run" if docker else BARE)
        numbers = itertools.count(1000)

        async def fresh() -> None:
            opened.append(await backend.session(SandboxLimits(output=next(numbers))))  # limits of its own: never from the pool
            await opened[-1].python("6 * 7")

        own: dict[str, float] = {}
        fresh_ones = await timed(fresh, times)
        own["cold"] = row(f"{name}: cold, to its first answer", fresh_ones, cold if docker else None, cold, "the same")
        session = opened[0]
        python = ("python3", *PYTHON[1:])
        in_session = await timed(lambda: session.python("6 * 7"), 400)
        own["python"] = row(f"{name}: python in a session", in_session, 1 if docker else 0.5, floor, BARE)
        row(f"{name}: exec true", await timed(lambda: session.exec(Command(("true",))), 100), None, floor, BARE)
        own["exec"] = row(f"{name}: exec python3", await timed(lambda: session.exec(Command(python)), 20), None, floor, BARE)
        row(f"{name}: write and read 1 kB", await timed(lambda: _file(session), 200))
        own["close"] = row(f"{name}: close", [(await timed(opened.pop().close, 1))[0] for _ in range(len(opened))])
        return own


async def _file(session: Session) -> None:
    await session.write("file", bytes(1000))
    await session.read("file")


async def rates(sessions: int) -> None:
    """Fresh sandboxes a second, each opened, asked once and closed; beside bare subprocesses. The CPU is of all processes."""
    columns = (
        f"{'a second':>9} {'bare':>9} {'goal':>6} {'ratio':>9} {'CPU ms':>8} {'bare':>6}    (load {os.getloadavg()[0]:.1f})"
    )
    print(f"\n{'fresh, asked once, closed; at once':44} {columns}")
    for width in WIDTHS:
        began = cpu()
        bare = await rate(lambda: ran(*PYTHON), width, sessions)
        bare_cpu, began = 1000 * (cpu() - began) / sessions, cpu()
        async with Process(warm=2 * width).open() as backend:

            async def one(backend: Backend = backend) -> None:
                session = await backend.session(SandboxLimits())
                await session.python("6 * 7")
                await session.close()

            ours = await rate(one, width, sessions)
        each = 1000 * (cpu() - began) / (sessions + 2 * width)  # what waits in the pool at the end was begun, too
        print(
            f"{f'process: {width}':44} {ours:9.1f} {bare:9.1f} {50:6} {ours / bare:8.2f}x {each:8.1f} {bare_cpu:6.1f}",
            flush=True,
        )


def cpu() -> float:
    """Seconds that this process and all that it waited for have had."""
    used = os.times()
    return used.user + used.system + used.children_user + used.children_system


async def rate(work: Callable[[], Awaitable[None]], width: int, times: int) -> float:
    left = iter(range(times))

    async def worker() -> None:
        for _ in left:
            await work()

    began = time.perf_counter()
    async with asyncio.TaskGroup() as group:
        for _ in range(width):
            group.create_task(worker())
    return times / (time.perf_counter() - began)


async def memory(sessions: int) -> None:
    """The proportional set size of all processes of open sessions, each with a live Python."""
    async with Process(warm=0).open() as backend:
        opened: list[Session] = []
        for _ in range(sessions):
            opened.append(await backend.session(SandboxLimits()))
            await opened[-1].python("x = 1")
        total = sum(map(pss, below(os.getpid()))) / 1024
        each = f"{total / sessions:.1f} MB each (goal: 200 in 2048 MB)"
        print(f"\n{f'process: {sessions} open sessions':44} {total:9.0f} MB PSS, {each}")


def below(pid: int) -> set[int]:
    parents: dict[int, int] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            parents[int(folder.name)] = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
    found = {pid}
    while more := {child for child, parent in parents.items() if parent in found} - found:
        found |= more
    return found - {pid}


def pss(pid: int) -> int:
    """Kilobytes."""
    with suppress(OSError):
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1])
    return 0


def llm_sandbox(times: int, own: dict[str, float]) -> None:
    """llm-sandbox, Docker: a session, and a call in it, which starts a Python."""
    if importlib.util.find_spec("llm_sandbox") is None:
        print("llm-sandbox: not installed, left out")
        return
    from llm_sandbox import SandboxSession

    started, called = [], []
    for _ in range(2):
        began = time.perf_counter()
        with SandboxSession(
            lang="python", image=IMAGE, skip_environment_setup=True, verbose=False, workdir="/tmp", runtime_configs=KEPT
        ) as session:
            for number in range(times):
                before = time.perf_counter()
                done = session.run("print(6 * 7)")
                assert done.stdout.strip() == "42", done
                called.append(1000 * (time.perf_counter() - before))
                if not number:
                    started.append(1000 * (time.perf_counter() - began))
    peer_row("llm-sandbox: cold, to its first answer", started, own.get("cold"))
    peer_row("llm-sandbox: run, as python in a session", called, own.get("python"))


async def inspect_ai(times: int, own: dict[str, float]) -> None:
    """inspect-ai's docker sandbox: that of a sample, and a call in it, which starts a Python (`docker compose exec`)."""
    if importlib.util.find_spec("inspect_ai") is None:
        print("inspect-ai: not installed, left out")
        return
    from inspect_ai._util.error import PrerequisiteError
    from inspect_ai.util import ComposeConfig, ComposeService
    from inspect_ai.util._sandbox.registry import registry_find_sandboxenv

    kind: Any = registry_find_sandboxenv("docker")
    service = ComposeService(image=IMAGE, command="sleep 1000", init=True, network_mode="none")
    compose = ComposeConfig(services={"default": service})
    found: dict[str, list[float]] = {"cold": [], "python": [], "close": []}
    try:
        with redirect_stdout(sys.stderr):
            await kind.task_init("bench", compose)
    except PrerequisiteError as error:
        print(f"inspect-ai: left out, {str(error).splitlines()[0].removeprefix('ERROR: ')}")
        return
    try:
        for _ in range(4):
            began = time.perf_counter()
            boxes = await kind.sample_init("bench", compose, {})
            call = partial(boxes["default"].exec, ["python3", *PYTHON[1:]])
            done = await call()
            found["cold"].append(1000 * (time.perf_counter() - began))
            assert done.stdout == "42\n", done
            found["python"] += await timed(call, times)
            found["close"] += await timed(partial(kind.sample_cleanup, "bench", compose, boxes, False), 1)
    finally:
        await kind.task_cleanup("bench", compose, True)
    peer_row("inspect-ai: cold, to its first answer", found["cold"], own.get("cold"))
    peer_row("inspect-ai: exec, as python in a session", found["python"], own.get("python"))
    peer_row("inspect-ai: exec, as exec python3", found["python"], own.get("exec"))
    peer_row("inspect-ai: close", found["close"], own.get("close"))


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="process,docker,gvisor,peers", help="which of them, with commas")
    parser.add_argument("--sessions", type=int, default=200, help="that are open at once, and opened for a rate")
    asked = parser.parse_args()
    wanted = asked.only.split(",")
    head("on this machine, ms")
    floor = await timed(lambda: ran(*PYTHON), 20)
    row("a bare subprocess, python3 -c", floor)
    bare = statistics.median(floor)
    own: dict[str, float] = {}
    if "process" in wanted:
        try:
            await calls("process", Process(warm=4), 4, bare, bare, 20)
            await rates(asked.sessions)
            await memory(asked.sessions)
        except UserError as error:
            print(f"process: left out, {error}")
    for name, runtime in (("docker", ""), ("gvisor", "runsc")):
        if name not in wanted:
            continue
        try:
            async with Docker(runtime=runtime, warm=0).open():
                pass
            head(f"{name}, ms")
            hand = [*BY_HAND, *([f"--runtime={runtime}"] if runtime else []), IMAGE, "python3", "-c", "print(6 * 7)"]
            by_hand = await timed(lambda hand=hand: ran(*hand), 8)
            row(f"{name}: docker run, python3 -c", by_hand)
            held = f"agentrl-benchmark-{os.getpid()}"
            await ran(*hand[:3], "--detach", f"--name={held}", *hand[3:-3], "sleep", "1000")
            try:
                call = ("docker", "exec", held, *hand[-3:])
                row(f"{name}: docker exec, python3 -c", await timed(lambda call=call: ran(*call), 8))
            finally:
                await ran("docker", "rm", "--force", held)
            measured = await calls(name, Docker(runtime=runtime, warm=2), 2, statistics.median(by_hand), bare, 8)
            own |= {} if runtime else measured
        except UserError as error:
            print(f"{name}: left out, {error}")
    if "peers" in wanted:
        head("others, on the same engine and image, ms")
        await asyncio.to_thread(llm_sandbox, 8, own)
        await inspect_ai(8, own)


if __name__ == "__main__":
    asyncio.run(main())
