"""Containers begin, wait, end and leave nothing, however they or their host end; and what is missing is said."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from agentrl import Team
from agentrl.errors import SandboxError, UserError
from agentrl.sandbox import Command
from agentrl_sandboxes.docker import Docker, owner
from agentrl_sandboxes.docker.attach import HEAD, Attached
from tests.boxes import experiment, running, store_at
from tests.sandboxes.process_backend import LIMITS
from tests.sandboxes.test_process_lives import alive, below
from tests.sandboxes_docker.engine import containers

ROOT = Path(__file__).resolve().parents[2]
HOST = """if True:
    import asyncio
    from agentrl.sandbox import Command
    from agentrl_sandboxes.docker import Docker
    async def main():
        async with Docker(warm=1).open() as backend:
            session = await backend.session(Docker().limits)
            async with asyncio.TaskGroup() as group:
                group.create_task(session.exec(Command("setsid sleep 1000 & sleep 1000")))
                await asyncio.sleep(0.2)
                print(backend._labels["agentrl.run"], flush=True)
    asyncio.run(main())
"""
RUNTIMES = pytest.mark.parametrize("runtime", ["", "runsc"])


def until(holds: Callable[[], bool], seconds: float = 10.0) -> float:
    """Seconds until something holds."""
    began = time.monotonic()
    while not holds():
        assert time.monotonic() - began < seconds, "it never came to hold"
        time.sleep(0.02)
    return time.monotonic() - began


@RUNTIMES
async def test_after_the_block_nothing_is_left(runtime: str) -> None:
    async with Docker(runtime=runtime, warm=2).open() as backend:
        label = f"agentrl.run={backend._labels[owner.RUN]}"  # type: ignore[attr-defined]
        await backend.session(LIMITS)
        assert containers(label)
    assert containers(label) == []


@RUNTIMES
async def test_a_closed_session_is_gone_within_a_second(runtime: str) -> None:
    async with Docker(runtime=runtime, warm=0, limits=LIMITS).open() as backend:
        session = await backend.session(LIMITS)
        async with asyncio.TaskGroup() as group:
            running = group.create_task(failure(session.exec(Command("trap '' TERM; sleep 1000"))))
            await asyncio.sleep(0.2)
            began = time.monotonic()
            await session.close()
            assert time.monotonic() - began < 1.5
        assert "closed" in str(running.result())
        label = f"agentrl.run={backend._labels[owner.RUN]}"  # type: ignore[attr-defined]
        until(lambda: containers(label) == [])


@RUNTIMES
async def test_a_container_that_vanishes_in_a_call_is_a_sandbox_error_that_names_it(runtime: str) -> None:
    async with Docker(runtime=runtime, warm=0, limits=LIMITS).open() as backend:
        session = await backend.session(LIMITS)
        (name,) = containers(f"agentrl.run={backend._labels[owner.RUN]}")  # type: ignore[attr-defined]
        async with asyncio.TaskGroup() as group:
            running = group.create_task(failure(session.exec(Command("sleep 1000"))))
            await asyncio.sleep(0.2)
            await asyncio.to_thread(subprocess.run, ["docker", "rm", "--force", name], check=True, capture_output=True)
        assert name in str(running.result())
        assert (await (await backend.session(LIMITS)).python("1")).text == "1\n"


async def failure(call: object) -> SandboxError:
    with pytest.raises(SandboxError) as caught:
        await call  # type: ignore[misc]
    return caught.value


HOLD = """if True:
    import array, fcntl, os, sys
    fd = os.open("/held/file", os.O_CREAT | os.O_RDONLY)
    flags = array.array("i", [0])
    fcntl.ioctl(fd, 0x80086601, flags)  # FS_IOC_GETFLAGS
    flags[0] = flags[0] | 0x10 if sys.argv[1] == "hold" else flags[0] & ~0x10  # FS_IMMUTABLE_FL
    fcntl.ioctl(fd, 0x40086602, flags)  # FS_IOC_SETFLAGS
"""


def held(folder: str, how: str) -> None:
    """A file that nobody can remove, in a folder of the engine's machine; or one that can be removed again."""
    run = ["docker", "run", "--rm", "--network=none", "--cap-add=LINUX_IMMUTABLE", f"--volume={folder}:/held"]
    subprocess.run([*run, "agentrl-sandbox", "python3", "-c", HOLD, how], check=True, capture_output=True)


async def test_a_container_whose_files_the_engine_cannot_remove_yet_is_removed_as_soon_as_it_can(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with Docker(warm=0, limits=LIMITS).open() as backend:
        session = await backend.session(LIMITS)
        (name,) = containers(f"agentrl.run={backend._labels[owner.RUN]}")  # type: ignore[attr-defined]
        (folder,) = inspected(name, "{{.GraphDriver.Data.UpperDir}}")
        await asyncio.to_thread(held, folder, "hold")
        try:
            await session.close()
            assert inspected(name, "{{.State.Status}}") == ["dead"]  # it has said 500, "failed to remove root filesystem"
        finally:
            await asyncio.to_thread(held, folder, "let go")
        await asyncio.to_thread(until, lambda: not inspected(name, "{{.Id}}"))
    assert "could not be removed" not in caplog.text


def inspected(container: str, form: str) -> list[str]:
    """What the engine says of a container; nothing, if there is none."""
    asked = ["docker", "container", "inspect", "--format", form, container]
    return subprocess.run(asked, capture_output=True, text=True).stdout.split()


@RUNTIMES
async def test_cancelling_an_episode_ends_all_that_it_started_within_a_second(runtime: str, tmp_path: Path) -> None:
    async def work(task: str, team: Team) -> None:
        async with team.sandbox() as box:
            await box.python("import subprocess; kept = subprocess.Popen(['sleep', '1000'])")
            await box.exec("sleep 1000 & (setsid sleep 1000 &); echo > begun; sleep 1000", timeout=100)

    with store_at(tmp_path) as store:
        async with running(experiment(work, Docker(runtime=runtime, warm=0)), store) as episodes:
            (name,) = containers(f"{owner.PID}={os.getpid()}")
            episode = asyncio.ensure_future(episodes.run("go", group="g"))
            while not holds(name, "/work/begun"):
                assert not episode.done(), await episode
                await asyncio.sleep(0.05)
            started = on_the_host(name)
            assert len(alive(started)) > 1
            began = time.monotonic()
            episodes.cancel("g.0")
            while left := alive(started):
                assert time.monotonic() - began < 1.0, left
                await asyncio.sleep(0.005)
            assert (await episode).status == "cancelled"
    assert inspected(name, "{{.Id}}") == []


def holds(container: str, path: str) -> bool:
    return subprocess.run(["docker", "exec", container, "test", "-e", path], capture_output=True).returncode == 0


def on_the_host(container: str) -> dict[int, str]:
    """A container's processes as the host numbers them, each with its start; gVisor's own for one of gVisor."""
    (first,) = inspected(container, "{{.State.Pid}}")
    return below(int(Path(f"/proc/{first}/stat").read_text().rpartition(")")[2].split()[1]))  # all that its supervisor started


async def test_an_error_of_the_block_leaves_as_it_came() -> None:
    with pytest.raises(KeyError, match="of the block"):
        async with Docker(warm=1).open():
            raise KeyError("of the block")


async def test_an_opening_that_nobody_waits_for_leaves_nothing() -> None:
    async with Docker(warm=0).open() as backend:
        label = f"agentrl.run={backend._labels[owner.RUN]}"  # type: ignore[attr-defined]
        for seconds in (0.0, 0.01, 0.05, 0.15):
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(seconds):
                    await backend.session(LIMITS)
    assert containers(label) == []


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_a_host_that_is_killed_leaves_nothing(how: signal.Signals) -> None:
    with subprocess.Popen([sys.executable, "-c", HOST], cwd=ROOT, stdout=subprocess.PIPE, text=True) as host:
        assert host.stdout is not None
        label = f"agentrl.run={host.stdout.readline().strip()}"
        assert containers(label)
        host.send_signal(how)
    assert until(lambda: containers(label) == []) < 5


def test_what_a_killed_host_left_is_removed_by_the_next_and_nothing_else() -> None:
    ended = subprocess.Popen([sys.executable, "-c", "import sys; sys.stdin.read()"], stdin=subprocess.PIPE)
    whose = {
        "gone": f"{owner._machine()} {ended.pid} {owner._began(ended.pid)}",
        "elsewhere": f"another-boot:1 {ended.pid} 1",
        "alive": f"{owner._machine()} {os.getpid()} {owner._began(os.getpid())}",
    }
    ended.kill()
    ended.communicate()
    made = {}
    for who, label in whose.items():
        start = ["docker", "create", "--network=none", f"--label={owner.OWNER}={label}", "agentrl-sandbox", "sleep", "100"]
        made[who] = subprocess.run(start, check=True, capture_output=True, text=True).stdout.strip()
    try:
        asyncio.run(opened_once())
        left = subprocess.run(["docker", "ps", "-aq", "--no-trunc"], capture_output=True, text=True, check=True).stdout.split()
        assert {who for who, name in made.items() if name in left} == {"elsewhere", "alive"}
    finally:
        subprocess.run(["docker", "rm", "--force", *made.values()], capture_output=True)


async def opened_once() -> None:
    async with Docker(warm=0).open():
        pass


async def test_timeouts_cancels_and_closes_leave_nothing() -> None:
    async def one(number: int) -> None:
        session = await backend.session(LIMITS)
        try:
            async with asyncio.timeout(0.3):
                await session.exec(Command("setsid sleep 1000 & sleep 1000", timeout=0.1 if number % 2 else 100))
        except TimeoutError:
            pass
        if number % 3:
            await session.close()

    async with Docker(warm=2, limits=LIMITS).open() as backend:
        label = f"agentrl.run={backend._labels[owner.RUN]}"  # type: ignore[attr-defined]
        async with asyncio.TaskGroup() as group:
            for number in range(12):
                group.create_task(one(number))
    assert containers(label) == []


# what is missing


async def refusal(spec: Docker) -> str:
    with pytest.raises(UserError) as caught:
        async with spec.open():
            pass
    return str(caught.value)


async def test_no_engine_is_said_with_what_to_do() -> None:
    assert "make sandboxes" in await refusal(Docker(host="unix:///no/such/socket"))


async def test_an_address_that_cannot_be_attached_to_is_said() -> None:
    assert "ssh://there" in await refusal(Docker(host="ssh://there"))


async def test_no_image_is_said_with_what_to_do() -> None:
    assert "docker pull" in await refusal(Docker(image="no-such-image"))


async def test_no_runtime_is_said_with_those_that_there_are() -> None:
    told = await refusal(Docker(runtime="no-such-runtime"))
    assert "no-such-runtime" in told
    assert "runc" in told


async def test_an_image_without_python_is_said() -> None:
    assert "needs a Python" in await refusal(Docker(python="no-such-python"))


@pytest.mark.parametrize(
    ("what", "told"),
    [
        ({"warm": -1}, "warm"),
        ({"cpus": 0}, "cpus"),
        ({"user": "0:0"}, "root"),
        ({"user": "nobody"}, "UID:GID"),
    ],
)
def test_bad_specs_are_refused(what: dict[str, object], told: str) -> None:
    with pytest.raises(UserError, match=told):
        Docker(**what)  # type: ignore[arg-type]


async def test_cpus_are_bounded_over_all_processes() -> None:
    async with Docker(warm=0, cpus=0.25).open() as backend:
        session = await backend.session(LIMITS)
        burn = "for i in 1 2 3 4; do timeout 2 sh -c 'while :; do :; done' & done; wait; cat /sys/fs/cgroup/cpu*/cpuacct.usage"
        ran = await session.exec(Command(f"{burn} || grep usage_usec /sys/fs/cgroup/cpu.stat | cut -d' ' -f2", timeout=20))
        used = int(ran.text.split()[0])
        assert used / (1e9 if used > 1e8 else 1e6) < 1.5


async def test_what_isolates_is_said_in_a_line() -> None:
    async with Docker(warm=0).open() as backend:
        assert "kernel is shared" in backend.isolation
    async with Docker(warm=0, runtime="runsc").open() as backend:
        assert "gVisor" in backend.isolation


# the stream


def test_frames_may_be_cut_anywhere() -> None:
    said = [(1, b"first"), (2, b"words\n"), (1, b""), (1, b"second" * 1000)]
    data = b"".join(bytes([which, 0, 0, 0]) + len(text).to_bytes(4, "big") + text for which, text in said)
    for size in (1, 3, HEAD, 1000, len(data)):
        near, far = socket.socketpair()
        with Attached(near, "c1") as stream, far:
            found = b""
            for at in range(0, len(data), size):
                far.sendall(data[at : at + size])
                try:
                    found += stream.recv(1 << 16)
                except BlockingIOError:
                    continue
            assert found == b"first" + b"second" * 1000
            far.close()
            with pytest.raises(ConnectionResetError, match="c1 is gone: words"):
                stream.recv(1)


def test_the_image_was_made_without_a_registry() -> None:
    told = subprocess.run(["docker", "image", "inspect", "agentrl-sandbox"], capture_output=True, text=True, check=True).stdout
    (image,) = json.loads(told)
    assert image["RepoDigests"] == []
    assert len(image["RootFS"]["Layers"]) == 1
