"""Sandboxes of `Process` begin, wait, end and leave nothing, however they or their host end."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from agentrl.errors import SandboxError, UserError
from agentrl.sandbox import Command, SandboxLimits
from agentrl_sandboxes.process import Process, cgroups
from agentrl_sandboxes.process.backend import ProcessBackend
from tests.sandboxes.process_backend import LIMITS

ROOT = Path(__file__).resolve().parents[2]
HOST = """if True:
    import asyncio
    from agentrl.sandbox import Command
    from agentrl_sandboxes.process import Process
    async def main():
        async with Process(warm=2).open() as backend:
            session = await backend.session(Process().limits)
            async with asyncio.TaskGroup() as group:
                group.create_task(session.exec(Command("setsid sleep 1000 & sleep 1000")))
                while "sleep" not in (await (await backend.session(Process().limits)).exec(Command("echo sleep"))).text:
                    pass
                print("running", flush=True)
    asyncio.run(main())
"""


def opened(warm: int = 1) -> Process:
    return Process(limits=LIMITS, warm=warm)


@pytest.fixture(autouse=True, scope="module")
def isolates() -> None:
    async def probe() -> None:
        async with opened(0).open():
            pass

    try:
        asyncio.run(probe())
    except UserError as error:
        pytest.skip(str(error))


def below(pid: int) -> dict[int, str]:
    """The processes that descend from one, each with its start time: a number may be given out again."""
    parents: dict[int, int] = {}
    began: dict[int, str] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        parents[int(folder.name)], began[int(folder.name)] = int(fields[1]), fields[19]
    found = {pid}
    while more := {child for child, parent in parents.items() if parent in found} - found:
        found |= more
    return {child: began[child] for child in found - {pid}}


def alive(processes: dict[int, str]) -> list[int]:
    found: list[int] = []
    for pid, began in processes.items():
        try:
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if fields[19] == began and fields[0] != "Z":
            found.append(pid)
    return found


def groups(launchers: dict[int, str]) -> list[Path]:
    """The cgroups that these launchers have made and not removed; others may run beside them, or have left theirs."""
    names = {f"agentrl-{cgroups._processes()}-{pid}-{began}" for pid, began in launchers.items()}
    found = [*cgroups.ROOT.glob("*/**/agentrl-*"), *cgroups.ROOT.glob("agentrl-*")]
    return [folder for folder in found if folder.name in names]


def until(holds: Callable[[], bool], seconds: float = 5.0) -> float:
    """Seconds until something holds."""
    began = time.monotonic()
    while not holds():
        assert time.monotonic() - began < seconds, "it never came to hold"
        time.sleep(0.005)
    return time.monotonic() - began


async def test_the_pool_gives_what_waits_and_fills_itself_again() -> None:
    async with opened(2).open() as backend:
        assert isinstance(backend, ProcessBackend)
        first = await backend.session(LIMITS)
        assert (await first.python("1")).ok
        await first.close()
        async with asyncio.timeout(20):
            while len(backend._idle) < 2:  # noqa: ASYNC110 - nothing tells it
                await asyncio.sleep(0.01)
        waiting = backend._idle[0]
        assert await backend.session(LIMITS) is waiting


async def test_a_waiting_sandbox_that_died_is_not_handed_out() -> None:
    async with opened(1).open() as backend:
        assert isinstance(backend, ProcessBackend)
        backend._idle[0].wire.fail("for the test")
        assert (await (await backend.session(LIMITS)).python("1")).ok


async def test_many_open_at_once() -> None:
    async with opened(0).open() as backend:
        async with asyncio.TaskGroup() as group:
            opening = [group.create_task(backend.session(LIMITS)) for _ in range(20)]
        for number, one in enumerate(opening):
            await one.result().python(f"x = {number}")
        assert [(await one.result().python("x")).text for one in opening] == [f"{number}\n" for number in range(20)]


async def test_after_the_block_nothing_is_left() -> None:
    descriptors, threads = len(os.listdir("/proc/self/fd")), len(os.listdir("/proc/self/task"))
    for _ in range(2):
        async with opened(2).open() as backend:
            kept = await backend.session(LIMITS)
            await kept.exec(Command("setsid sleep 1000 &"))
            await kept.python("import subprocess; subprocess.Popen(['sleep', '1000'])")
            processes = below(os.getpid())
            assert len(processes) > 3
            began = time.monotonic()
        assert time.monotonic() - began < 5
        assert alive(processes) == []
        assert len(os.listdir("/proc/self/fd")) <= descriptors + 3  # asyncio's own, once
        descriptors = len(os.listdir("/proc/self/fd"))
    assert len(os.listdir("/proc/self/task")) <= threads + 1
    assert groups(processes) == []
    with pytest.raises(SandboxError):
        await kept.python("1")
    with pytest.raises(SandboxError):
        await backend.session(LIMITS)


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_a_host_that_is_killed_leaves_nothing(how: signal.Signals) -> None:
    paths = {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    with subprocess.Popen(
        [sys.executable, "-c", HOST], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env={**os.environ, **paths}, cwd=ROOT
    ) as host:
        assert host.stdout is not None
        assert host.stdout.readline() == b"running\n"
        processes = below(host.pid)
        assert len(processes) >= 8
        host.send_signal(how)
        host.wait(10)
        until(lambda: not alive(processes))
        until(lambda: not groups(processes))


async def test_a_launcher_that_is_killed_ends_its_sandboxes_and_says_so() -> None:
    async with opened(1).open() as backend:
        session = await backend.session(LIMITS)
        processes = below(os.getpid())
        launcher = launcher_of(processes)
        os.kill(launcher, signal.SIGKILL)
        until(lambda: not alive(processes))
        with pytest.raises(SandboxError):
            await session.exec(Command("true"))
        with pytest.raises(SandboxError, match="launcher"):
            await backend.session(LIMITS)
    async with opened(0).open():  # which removes what that one left
        assert groups({launcher: processes[launcher]}) == []


@pytest.mark.parametrize("_again", range(6))
async def test_a_launcher_that_is_told_to_end_while_it_ends_removes_its_groups(_again: int) -> None:
    async with opened(1).open():
        processes = below(os.getpid())
        launcher = launcher_of(processes)
        while alive({launcher: processes[launcher]}):
            with suppress(ProcessLookupError):
                os.kill(launcher, signal.SIGTERM)
        assert groups(processes) == []
        until(lambda: not alive(processes))


def launcher_of(processes: dict[int, str]) -> int:
    """The one that this process has started."""
    (launcher,) = [pid for pid in processes if os.stat(f"/proc/{pid}").st_uid == os.getuid() and parent(pid) == os.getpid()]
    return launcher


def parent(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


async def test_a_sandbox_whose_processes_are_all_killed_is_lost_and_its_neighbours_are_not() -> None:
    async with opened(0).open() as backend:
        neighbour = await backend.session(LIMITS)
        before = below(os.getpid())
        lost = await backend.session(LIMITS)
        for pid in set(below(os.getpid())) - set(before):
            with suppress(ProcessLookupError):  # gone with the first
                os.kill(pid, signal.SIGKILL)
        with pytest.raises(SandboxError, match="lost"):
            await lost.python("1")
        await lost.close()
        assert (await neighbour.python("1")).text == "1\n"


@pytest.mark.parametrize("how", ["cancelled", "killed"])
async def test_a_sandbox_that_ends_while_it_begins_leaves_nothing(how: str) -> None:
    chance = random.Random(3)
    async with opened(0).open() as backend:
        before = below(os.getpid())
        for _ in range(20):
            opening = asyncio.ensure_future(backend.session(LIMITS))
            await asyncio.sleep(0)
            time.sleep(chance.uniform(0, 0.03))  # noqa: ASYNC251 - at any point of its way; the loop stands still, the kernel does not
            if how == "cancelled":
                opening.cancel()
            else:
                for pid in set(below(os.getpid())) - set(before):
                    with suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
            with suppress(asyncio.CancelledError, SandboxError):
                await (await opening).close()
        async with asyncio.timeout(10):
            while set(alive(below(os.getpid()))) - set(before):  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        assert (await (await backend.session(LIMITS)).python("1")).ok


async def test_timeouts_cancels_and_closes_in_any_order_leave_nothing() -> None:
    chance = random.Random(7)

    async def live(backend: ProcessBackend) -> None:
        session = await backend.session(LIMITS)
        for _ in range(3):
            how = chance.choice(["ok", "slow", "cancel", "python", "exit", "close"])
            try:
                async with asyncio.timeout(0.05 if how == "cancel" else 30):
                    if how == "ok":
                        assert (await session.exec(Command("echo x | cat"))).text == "x\n"
                    elif how in ("slow", "cancel"):
                        await session.exec(Command("setsid sleep 99 & sleep 99", timeout=0.05))
                    elif how == "python":
                        assert (await session.python("import os; os.fork(); 7")).ok
                    elif how == "exit":
                        assert (await session.python("exit(3)")).status == 3
                    else:
                        return
            except TimeoutError:
                pass
        if chance.random() < 0.7:
            await session.close()

    async with opened(2).open() as backend:
        assert isinstance(backend, ProcessBackend)
        for _ in range(10):
            async with asyncio.TaskGroup() as group:
                for _ in range(4):
                    group.create_task(live(backend))
        processes = below(os.getpid())
    assert alive(processes) == []


async def test_packages_can_be_imported_and_not_written(tmp_path: Path) -> None:
    os.chmod(tmp_path, 0o755)
    (tmp_path / "given.py").write_text("value = 42")
    async with Process(packages=str(tmp_path), warm=0).open() as backend:
        session = await backend.session(SandboxLimits())
        assert (await session.python("import given; given.value")).text == "42\n"
        assert (await session.exec(Command(("python3", "-c", "import given; print(given.value)")))).text == "42\n"
        with pytest.raises(OSError):
            await session.write("/packages/given.py", b"")


async def test_unsafe_local_warns_does_the_same_and_isolates_nothing() -> None:
    before = below(os.getpid())
    with pytest.warns(RuntimeWarning, match="isolates NOTHING"):
        async with Process(unsafe_local=True).open() as backend:
            session = await backend.session(LIMITS)
            await session.write("/work/a/b", b"bytes")
            assert await session.read("a/b") == b"bytes"
            assert [entry.name for entry in await session.list("/work/a")] == ["b"]
            assert (await session.exec(Command("cat b; id -u; sleep 1000 &", cwd="/work/a"))).text == f"bytes{os.getuid()}\n"
            assert (await session.python("x = 1; x")).text == "1\n"
            assert (await session.exec(Command("sleep 9", timeout=0.1))).timed_out
            assert "NONE" in backend.isolation
            assert await session.fork() is None
            folder = (await session.exec(Command("pwd"))).text.strip()
            assert os.path.isdir(folder)  # noqa: ASYNC240
    assert not os.path.exists(folder)  # noqa: ASYNC240
    assert set(alive(below(os.getpid()))) <= set(before)


REFUSED = """if True:
    import asyncio
    from agentrl_sandboxes.process import Process
    async def main():
        async with Process(warm=0).open():
            print("isolated")
    try:
        asyncio.run(main())
    except Exception as error:
        print(type(error).__name__, error)
"""


def test_where_user_namespaces_are_used_up_it_refuses_and_says_why() -> None:
    paths = {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    line = 'echo 0 > /proc/sys/user/max_user_namespaces; exec "$@"'
    ran = subprocess.run(
        ["unshare", "--user", "--map-root-user", "sh", "-c", line, "sh", sys.executable, "-c", REFUSED],
        capture_output=True,
        text=True,
        env={**os.environ, **paths},
        cwd=ROOT,
        timeout=60,
    )
    assert "UserError this machine cannot isolate sandboxes" in ran.stdout, ran
    assert "unsafe_local=True" in ran.stdout


NOBODY = 65534


def reachable(path: str) -> bool:
    return all(folder.stat().st_mode & 0o001 for folder in (Path(path).resolve(), *Path(path).resolve().parents))


@pytest.mark.timeout(280)  # several files of tests
@pytest.mark.skipif(os.getuid() != 0, reason="only root can become another user; this is an ordinary user's run already")
@pytest.mark.parametrize("names", [("process", "process_limits", "process_filter"), ("process_escapes",), ("network",)])
def test_the_calls_and_the_limits_hold_for_an_ordinary_user_too(names: tuple[str, ...]) -> None:
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    pythons = [path for path in (sys.executable, f"/usr/bin/{version}", f"/usr/local/bin/{version}") if Path(path).exists()]
    python = next(filter(reachable, pythons), None)
    packages = [path for path in sys.path if "-packages" in path]
    if python is None or not reachable(str(ROOT)) or not all(map(reachable, packages)):
        pytest.skip("neither this Python nor the system's, with its packages, can be run by an ordinary user here")
    folders = [str(ROOT), *(str(ROOT / name) for name in ("tools", "sandboxes", "workflows")), *packages]
    files = [str(Path(__file__).with_name(f"test_{name}.py")) for name in names]
    ran = subprocess.run(
        [python, "-m", "pytest", "-n", "0", "-q", *files],
        user=NOBODY,
        group=NOBODY,
        extra_groups=[],
        env={
            "PATH": os.environ["PATH"],
            "PYTHONPATH": os.pathsep.join(folders),
            "PYTHONDONTWRITEBYTECODE": "1",
            "HOME": "/tmp",
        },
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=250,
    )
    assert ran.returncode == 0, ran.stdout[-4000:] + ran.stderr[-2000:]
    assert "skipped" not in ran.stdout
