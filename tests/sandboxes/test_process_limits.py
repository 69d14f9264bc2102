"""What one session of `Process` may use, and that the host believes nothing that comes out of it."""

from __future__ import annotations

import asyncio
import socket

import pytest

from agentrl.errors import SandboxError
from agentrl.sandbox import Backend, Command, Ran, SandboxLimits, Session
from agentrl_sandboxes.process.session import ProcessSession
from agentrl_sandboxes.process.wire import Wire
from tests.sandboxes import process_backend
from tests.sandboxes.process_backend import LIMITS

pytestmark = pytest.mark.asyncio(loop_scope="module")
backend, session = process_backend.backend, process_backend.session


async def run(session: Session, code: str, seconds: float = 15.0) -> Ran:
    """A program of its own."""
    return await session.exec(Command(("python3", "-c", code), timeout=seconds))


async def test_memory_of_one_process(session: Session) -> None:
    ran = await run(session, f"held = bytearray({LIMITS.memory_mb + 64} << 20); import time; time.sleep(1); print('held')")
    assert not ran.ok
    assert ran.stdout == b""
    assert "MemoryError" in ran.error_text or ran.killed == "memory"
    assert (await session.exec(Command("true"))).ok


async def test_memory_over_many_processes(session: Session) -> None:
    code = f"""if True:
        import os, time
        for _ in range(12):
            if not os.fork():
                held = bytearray(b"x") * ({LIMITS.memory_mb // 2} << 20)
                time.sleep(60)
        print(os.wait()[1])
    """
    ran = await run(session, code, seconds=8)
    assert ran.text == "9\n" or ran.killed == "memory"
    assert (await session.exec(Command("true"))).ok


async def test_memory_of_the_python_session_ends_it_and_not_the_sandbox(session: Session) -> None:
    await session.write("kept", b"1")
    code = """if True:
        import os, time
        for _ in range(20):
            if not os.fork():
                break
        held = bytearray(b"x") * (40 << 20)
        time.sleep(60)
    """
    assert not (await session.python(code, timeout=8)).ok
    assert (await session.python("1")).text == "1\n"
    assert await session.read("kept") == b"1"


async def test_memory_in_shared_mappings(session: Session) -> None:
    code = """if True:
        import mmap, time
        held = []
        for _ in range(200):
            held.append(mmap.mmap(-1, 4 << 20))
            held[-1].write(b"x" * (4 << 20))
        time.sleep(1)
        print("held")
    """
    ran = await run(session, code, seconds=8)
    assert not ran.ok
    assert "held" not in ran.text


async def test_processes_and_threads(session: Session) -> None:
    code = (
        "import os, time\nn = 0\ntry:\n  while n < 200:\n    if not os.fork(): time.sleep(60); os._exit(0)\n    n += 1\n"
        "except OSError as error: print(n, error.errno)"
    )
    made, errno = map(int, (await run(session, code)).text.split())
    assert errno == 11
    assert LIMITS.processes - 4 <= made < LIMITS.processes
    code = (
        "import threading, time\nn = 0\ntry:\n  while n < 200:\n"
        "    threading.Thread(target=time.sleep, args=(60,), daemon=True).start(); n += 1\nexcept RuntimeError: print(n)"
    )
    assert LIMITS.processes - 4 <= int((await run(session, code)).text) < LIMITS.processes


async def test_one_users_processes_do_not_count_against_a_neighbours(backend: Backend) -> None:
    one, other = await backend.session(LIMITS), await backend.session(LIMITS)
    full = "import os, time\ntry:\n  while True:\n    if not os.fork(): time.sleep(60); os._exit(0)\nexcept OSError: pass"
    await one.python(full)
    assert (await other.exec(Command("true | true | true"))).ok
    assert (await other.python("1")).text == "1\n"
    await one.close()
    await other.close()


async def test_a_command_that_finds_no_room_for_a_process_is_a_result(session: Session) -> None:
    await session.python(
        "import os, time\ntry:\n  while True:\n    if not os.fork(): time.sleep(60); os._exit(0)\nexcept OSError: pass"
    )
    ran = await session.exec(Command("true | true"))
    assert not ran.ok
    assert "fork" in ran.error_text.lower()


@pytest.mark.parametrize(
    "line", ["while :; do :; done", "trap '' XCPU; while :; do :; done", "sh -c 'while :; do :; done'; exit $?"]
)
async def test_cpu_seconds(backend: Backend, line: str) -> None:
    one = await backend.session(SandboxLimits(cpu_seconds=1))
    ran = await one.exec(Command(line, timeout=30))
    assert (ran.killed, ran.timed_out) == ("cpu", False)
    await one.close()


async def test_cpu_seconds_of_the_python_session(backend: Backend) -> None:
    one = await backend.session(SandboxLimits(cpu_seconds=1))
    assert (await one.python("while True: pass", timeout=30)).killed == "cpu"
    assert (await one.python("1")).text == "1\n"
    await one.close()


async def test_limits_cannot_be_raised(session: Session) -> None:
    code = """if True:
        import resource as r
        for name in ("CPU", "NPROC", "NOFILE", "FSIZE", "CORE", "DATA"):
            kind = getattr(r, f"RLIMIT_{name}")
            try:
                r.setrlimit(kind, (r.RLIM_INFINITY, r.RLIM_INFINITY))
                print(name)
            except (OSError, ValueError):
                pass
    """
    assert well(await run(session, code)) == ""


def well(ran: Ran) -> str:
    assert ran.ok, ran
    return ran.text


async def test_process_1_cannot_be_given_limits_or_signals(session: Session) -> None:
    code = (
        "import os, resource, signal\nfor name in [n for n in dir(signal) if n.startswith('SIG') and '_' not in n]:\n"
        "  try: os.kill(1, getattr(signal, name))\n  except OSError: pass\n"
        "try: resource.prlimit(1, resource.RLIMIT_CPU, (0, 0)); print('limited')\nexcept PermissionError: pass"
    )
    assert well(await run(session, code)) == ""
    assert (await session.exec(Command("true"))).ok


async def test_open_files(session: Session) -> None:
    code = (
        "import os\nn = 0\ntry:\n  while True: os.open('/dev/null', 0); n += 1\nexcept OSError as error: print(n, error.errno)"
    )
    opened, errno = map(int, (await run(session, code)).text.split())
    assert errno == 24
    assert opened <= LIMITS.open_files - 3


async def test_disk_is_one_bound_over_all_writable_places(session: Session) -> None:
    code = """if True:
        total = 0
        for n in range(27):
            try:
                with open(f"{('/work', '/tmp', '/dev/shm')[n % 3]}/{n}", "wb", 0) as file:
                    for _ in range(64):
                        total += file.write(b"x" * 65536)
            except OSError:
                pass
        print(total)
    """
    total = int((await run(session, code)).text)
    assert (LIMITS.disk_mb - 1) << 20 <= total <= LIMITS.disk_mb << 20


async def test_a_flood_of_empty_files_ends(session: Session) -> None:
    code = (
        "n = 0\ntry:\n  while n < 10**6: open(f'/tmp/{n}', 'x').close(); n += 1\nexcept OSError as error: print(n, error.errno)"
    )
    made, errno = map(int, (await run(session, code)).text.split())
    assert errno == 28
    assert made <= LIMITS.disk_mb * 256
    with pytest.raises(OSError):
        await session.write("one-more", b"")


async def test_nothing_else_can_be_written(session: Session) -> None:
    folders = "find / -type d -writable 2>/dev/null | grep -v '^/proc/[0-9]'"
    ran = await session.exec(Command(f"for d in $({folders}); do touch $d/probe 2>/dev/null && echo $d; done"))
    assert set(ran.text.split()) == {"/work", "/tmp", "/dev/shm"}


# what comes out is not believed


@pytest.mark.parametrize(
    "frame",
    [
        b"\xff\xff\xff\xff\x00\x00\x00\x00",
        b"\x05\x00\x00\x00\xff\xff\xff\xff",
        b"\x0a\x00\x00\x00\x00\x00\x00\x001 ran x y z",
        b"\x15\x00\x00\x00\x00\x00\x00\x001 ran 0 0 0.1 0.1 9 -",
        b"\x15\x00\x00\x00\x00\x00\x00\x001 ran 0 0 nan 0.1 0 -",
        b"\x15\x00\x00\x00\x00\x00\x00\x001 ran 0 0 0.1 inf 0 -",
        b"\x13\x00\x00\x00\x00\x00\x00\x001 ran 0 0 0.1 0.1 0",
        b"\x05\x00\x00\x00\x00\x00\x00\x001 ran",
        b"\x0b\x00\x00\x00\x00\x00\x00\x001 error 1e9",
        b"",
    ],
)
async def test_a_process_1_that_speaks_nonsense_is_a_sandbox_error(frame: bytes) -> None:
    end, other = socket.socketpair()
    wire = Wire(end, 1000)
    limits = SandboxLimits(timeout=1)
    lying = ProcessSession(wire, limits, events="", python="", fresh=None, release=lambda: asyncio.sleep(0))
    with other:
        other.sendall(frame)
        if not frame:
            other.shutdown(socket.SHUT_WR)
        with pytest.raises(SandboxError):
            await lying.exec(Command("true"))
    wire.fail("over")


async def test_a_process_1_that_is_silent_is_a_sandbox_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("agentrl_sandboxes.process.session.GRACE", 0.05)
    end, other = socket.socketpair()
    silent = ProcessSession(
        Wire(end, 1000), SandboxLimits(), events="", python="", fresh=None, release=lambda: asyncio.sleep(0)
    )
    with other, pytest.raises(SandboxError, match="no answer"):
        await silent.exec(Command("true", timeout=0.05))
    with pytest.raises(SandboxError):
        await silent.read("x")


async def test_a_listing_that_breaks_off_is_a_sandbox_error() -> None:
    end, other = socket.socketpair()
    wire = Wire(end, 1000)
    lying = ProcessSession(wire, SandboxLimits(), events="", python="", fresh=None, release=lambda: asyncio.sleep(0))
    with other:
        other.sendall(b"\x06\x00\x00\x00\x0c\x00\x00\x001 data" + b"f" + bytes(8) + b"\xff\x00x")
        with pytest.raises(SandboxError, match="breaks off"):
            await lying.list("/work")
    wire.fail("over")
