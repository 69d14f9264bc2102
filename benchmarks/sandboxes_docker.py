"""Docker sandboxes beside what the engine does for anyone: a call in a session, a fresh session, a container begun by hand.

    python benchmarks/sandboxes_docker.py            needs an engine and the image: `make sandboxes`

Milliseconds, median and minimum; a call's floor is `docker exec`, an opening's is `docker run`, with the same limits.
"""

from __future__ import annotations

import asyncio
import statistics
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable

from agentrl.errors import UserError
from agentrl.sandbox import Command, SandboxLimits, Session
from agentrl_sandboxes.docker import Docker

BY_HAND = [
    *("--network=none", "--read-only", "--cap-drop=ALL", "--security-opt=no-new-privileges", "--user=65534:65534"),
    *("--pids-limit=65", "--memory=576m", "--memory-swap=576m", "--cpus=1", "--tmpfs=/work", "--log-driver=none"),
]


async def timed(work: Callable[[], Awaitable[object]], times: int) -> list[float]:
    found: list[float] = []
    for _ in range(times):
        began = time.perf_counter()
        await work()
        found.append(1000 * (time.perf_counter() - began))
    return found


async def docker(*words: str) -> None:
    process = await asyncio.create_subprocess_exec("docker", *words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    if await process.wait():
        raise RuntimeError(f"docker {' '.join(words)} failed")


async def measured(runtime: str) -> None:
    name = runtime or "runc"
    async with Docker(runtime=runtime, warm=0).open():
        """It can be measured; else a `UserError` says why not."""
    rows: list[tuple[str, list[float], list[float]]] = []
    limits = SandboxLimits()
    held = f"agentrl-benchmark-{name}"
    hand = [*BY_HAND, *([f"--runtime={runtime}"] if runtime else [])]
    await docker("run", "--detach", "--rm", f"--name={held}", *hand, "agentrl-sandbox", "sleep", "1000")
    try:
        begun_by_hand = await timed(lambda: docker("run", "--rm", *hand, "agentrl-sandbox", "python3", "-c", "1"), 8)
        by_exec = await timed(lambda: docker("exec", held, "python3", "-c", "1"), 10)
    finally:
        await docker("rm", "--force", held)
    async with Docker(runtime=runtime, warm=4).open() as backend:
        opened: list[Session] = []

        async def fresh(wanted: SandboxLimits) -> None:
            opened.append(await backend.session(wanted))
            await opened[-1].python("1")

        rows.append(("fresh, first answer", await timed(lambda: fresh(SandboxLimits(open_files=255)), 8), begun_by_hand))
        while len(backend._idle) < 4:  # type: ignore[attr-defined]  # noqa: ASYNC110 - nothing tells it
            await asyncio.sleep(0.05)
        rows.append(("from the pool", await timed(lambda: backend.session(limits), 4), begun_by_hand))
        session = opened[0]
        rows.append(("python in a session", await timed(lambda: session.python("1"), 300), by_exec))
        rows.append(("exec `true`", await timed(lambda: session.exec(Command(("true",))), 60), by_exec))
        rows.append(("write 1 kB", await timed(lambda: session.write("file", bytes(1000)), 100), by_exec))
        rows.append(("close", await timed(lambda: opened.pop().close(), len(opened)), begun_by_hand))
    for what, ours, floor in rows:
        middle, by_hand = statistics.median(ours), statistics.median(floor)
        print(f"{name:6} {what:20} {middle:9.3f} {min(ours):9.3f}   {by_hand:9.1f} {by_hand / middle:8.1f}x")


async def main() -> None:
    print(f"{'':6} {'':20} {'median':>9} {'min':>9}   {'docker':>9} {'ratio':>9}")
    for runtime in ("", "runsc"):
        await measured(runtime)


if __name__ == "__main__":
    try:
        asyncio.run(main())
    except UserError as error:
        print(f"not measured: {error}", file=sys.stderr)
