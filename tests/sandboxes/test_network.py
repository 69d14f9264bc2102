"""A network by list, in real sandboxes against real servers: what is on the list is reached, and nothing else."""

from __future__ import annotations

import asyncio
import hashlib
import os
import socket
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import pytest

from agentrl.errors import UserError
from agentrl.sandbox import Backend, Command, Ran, SandboxLimits, Session
from agentrl_sandboxes.network import MOST
from agentrl_sandboxes.process import Process
from tests.sandboxes import escape_calls, escapes, process_backend, test_process_escapes
from tests.sandboxes.process_backend import LIMITS

backend, host = process_backend.backend, test_process_escapes.host
pytestmark = pytest.mark.asyncio(loop_scope="module")
Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Coroutine[Any, Any, None]]
SENT = 3_000_000


@asynccontextmanager
async def serving(work: Serve) -> AsyncIterator[int]:
    """A server on the loopback, until the block ends: its port."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await work(reader, writer)
        except ConnectionError:
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()


@asynccontextmanager
async def networked(backend: Backend, *hosts: str, **limits: Any) -> AsyncIterator[Session]:
    session = await backend.session(replace(LIMITS, network=hosts, **limits))
    try:
        yield session
    finally:
        await session.close()


async def python(session: Session, port: int, code: str) -> Ran:
    """A program that begins with a connection `s`."""
    begin = f"import socket, time, hashlib\ns = socket.create_connection(('localhost', {port}), 10)\n"
    return await session.exec(Command(("python3", "-c", begin + code), timeout=15))


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(1 << 16):
        writer.write(data)
        await writer.drain()


async def test_what_is_sent_and_received_comes_whole(backend: Backend) -> None:
    code = f"""if True:
        import threading
        data = bytes(range(256)) * ({SENT} // 256)
        threading.Thread(target=lambda: (s.sendall(data), s.shutdown(socket.SHUT_WR))).start()
        found = b"".join(iter(lambda: s.recv(1 << 16), b""))
        print(len(found), hashlib.sha256(found).hexdigest())
    """
    data = bytes(range(256)) * (SENT // 256)
    async with serving(echo) as port, networked(backend, f"localhost:{port}") as session:
        ran = await python(session, port, code)
    assert ran.text == f"{len(data)} {hashlib.sha256(data).hexdigest()}\n", ran


async def test_a_name_leads_to_its_host_and_to_no_other(backend: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    resolve = socket.getaddrinfo  # a name server is the one thing that is not real here
    monkeypatch.setattr(
        socket, "getaddrinfo", lambda name, *a, **b: resolve("127.0.0.1" if name == "files.example" else name, *a, **b)
    )
    code = """if True:
        import socket
        for name, port in (("files.example", PORT), ("files.example", PORT + 1), ("other.example", PORT), ("localhost", PORT)):
            try:
                s = socket.create_connection((name, port), 5)
                s.sendall(b"x")
                print(name, s.recv(1))
            except OSError as error:
                print(name, type(error).__name__)
    """
    async with serving(echo) as port, networked(backend, f"files.example:{port}") as session:
        ran = await session.exec(Command(("python3", "-c", code.replace("PORT", str(port)))))
    assert ran.text.splitlines() == [
        "files.example b'x'",
        "files.example ConnectionRefusedError",
        "other.example gaierror",
        "localhost ConnectionRefusedError",
    ], ran


async def test_two_ports_of_two_names_are_told_apart(backend: Backend) -> None:
    def saying(word: bytes) -> Serve:
        async def serve(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(word)

        return serve

    async with (
        serving(saying(b"one")) as one,
        serving(saying(b"two")) as two,
        networked(backend, f"localhost:{one}", f"127.0.0.1:{two}") as session,
    ):
        code = f"print(s.recv(9), socket.create_connection(('127.0.0.1', {two})).recv(9))"
        assert (await python(session, one, code)).text == "b'one' b'two'\n"


async def test_one_direction_may_end_before_the_other(backend: Backend) -> None:
    async def count(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"%d" % len(await reader.read()))

    async with serving(count) as port, networked(backend, f"localhost:{port}") as session:
        ran = await python(session, port, "s.sendall(b'x' * 1000); s.shutdown(socket.SHUT_WR); print(s.recv(99), s.recv(99))")
    assert ran.text == "b'1000' b''\n", ran


async def test_what_is_not_read_is_not_taken(backend: Backend) -> None:
    given = 0

    async def flood(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal given
        while True:
            writer.write(bytes(1 << 16))
            await writer.drain()
            given += 1 << 16

    async with serving(flood) as port, networked(backend, f"localhost:{port}") as session:
        ran = await python(session, port, "time.sleep(1.5); print(len(s.recv(9)))")
    assert ran.text == "9\n", ran
    assert given < 16 << 20  # the kernel's buffers of three sockets among it


async def test_an_end_that_breaks_is_heard_of_on_the_other_side(backend: Backend) -> None:
    heard = asyncio.get_running_loop().create_future()

    async def wait(reader: asyncio.StreamReader, _: asyncio.StreamWriter) -> None:
        heard.set_result(await reader.read())

    async def reset(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")

    async with (
        serving(wait) as one,
        serving(reset) as two,
        networked(backend, f"localhost:{one}", f"localhost:{two}") as session,
    ):
        assert (await python(session, one, "s.close()")).ok
        async with asyncio.timeout(5):
            assert await heard == b""
        ran = await python(session, two, "try: print(s.recv(9))\nexcept ConnectionError: print(b'')")
        assert ran.text == "b''\n", ran


async def test_a_host_that_is_not_there_is_a_connection_that_ends(backend: Backend, caplog: pytest.LogCaptureFixture) -> None:
    with socket.socket() as bound:  # and not listened on
        bound.bind(("127.0.0.1", 0))
        port = bound.getsockname()[1]
        async with networked(backend, f"localhost:{port}") as session:
            ran = await python(session, port, "try: print(s.recv(9))\nexcept ConnectionError: print(b'')")
    assert ran.text == "b''\n", ran
    assert f"asked for localhost:{port}" in caplog.text


async def test_connections_over_the_most_are_closed_and_the_others_are_not(backend: Backend) -> None:
    code = f"""if True:
        held, found = [s, *(socket.create_connection(s.getpeername(), 10) for _ in range({MOST} + 5))], []
        for one in held:
            try:
                one.sendall(b"x")
                found.append(one.recv(1))
            except ConnectionError:
                found.append(b"")
        print(found.count(b"x"), found.count(b""))
    """
    async with serving(echo) as port, networked(backend, f"localhost:{port}", open_files=256) as session:
        assert (await python(session, port, code)).text == f"{MOST} 6\n"
        again = f"""if True:
            while True:  # those of the program before count until their ends have been seen
                try:
                    s.sendall(b"y")
                    if found := s.recv(1):
                        break
                except ConnectionError:
                    pass
                time.sleep(0.02)
                s = socket.create_connection(("localhost", {port}), 10)
            print(found)
        """
        assert (await python(session, port, again)).text == "b'y'\n"


async def test_closing_a_session_ends_its_connections(backend: Backend) -> None:
    begun, heard = (asyncio.get_running_loop().create_future() for _ in range(2))

    async def wait(reader: asyncio.StreamReader, _: asyncio.StreamWriter) -> None:
        begun.set_result(await reader.read(1))
        try:
            heard.set_result(await reader.read())
        except ConnectionError:
            heard.set_result(b"")

    async with serving(wait) as port:
        async with networked(backend, f"localhost:{port}") as session:
            code = f"import socket; s = socket.create_connection(('localhost', {port})); s.sendall(b'x')"
            assert (await session.python(code)).ok
            assert await begun == b"x"
        async with asyncio.timeout(2):
            assert await heard == b""


async def test_nothing_of_a_network_is_left(backend: Backend) -> None:
    def open_here() -> int:
        return len(os.listdir("/proc/self/fd"))

    async with serving(echo) as port:
        async with networked(backend, f"localhost:{port}") as session:
            await python(session, port, "s.sendall(b'x'); s.recv(1)")
        before = open_here()
        for _ in range(2):
            async with networked(backend, f"localhost:{port}", "localhost:1") as session:
                await python(session, port, "s.sendall(b'x'); s.recv(1)")
            async with networked(backend, f"localhost:{port}"):
                pass
        for _ in range(250):
            if open_here() <= before:
                return
            await asyncio.sleep(0.02)
        assert open_here() <= before


async def test_its_files_and_its_network_cannot_be_changed(backend: Backend) -> None:
    async with networked(backend, "localhost:1") as session:
        ran = await session.exec(
            Command(
                "echo 1.2.3.4 example.org >> /etc/hosts && echo changed; echo 1 > /proc/sys/net/ipv4/ip_forward && "
                "echo changed; "
                'python3 -c "import fcntl, socket, struct; '
                "fcntl.ioctl(socket.socket(socket.AF_INET, socket.SOCK_DGRAM), 0x8914, struct.pack('16sh22x', b'lo', 0))\""
                " && echo changed"
            )
        )
        assert ran.text == ""
        assert len(ran.error_text.strip().splitlines()) >= 3


@pytest.mark.parametrize("name", [name for name in escapes.ATTEMPTS if name != "cgroup-files"])
async def test_escape_with_a_network_is_stopped(backend: Backend, host: escapes.Host, name: str) -> None:
    async with networked(backend, "localhost:1") as session:
        assert await escape_calls.got_through_program(session, host, name) == ""


async def test_what_a_session_may_reach_is_said(backend: Backend) -> None:
    assert "no network" in backend.isolation


@pytest.mark.parametrize(
    "network",
    [
        (), ("example.org",), ("example.org:",), ("example.org:0",), ("example.org:65536",), ("example.org:080",), (":80",),
        ("10.0.0.1:80",), ("[::1]:80",), ("a b:80",), ("a..b:80",), ("a\n127.0.0.1 b:80",), ("x" * 64 + ":80",), (80,),
        ("a:1", "a:1"), tuple(f"a:{port}" for port in range(1, 130)), "example.org", "",
    ],
)  # fmt: skip
async def test_a_list_that_cannot_be_kept_is_refused(network: Any) -> None:
    with pytest.raises(UserError, match="network"):
        SandboxLimits(network=network)


async def test_one_host_may_be_a_string_and_a_list_is_a_tuple() -> None:
    assert SandboxLimits(network="example.org:80").network == ("example.org:80",)  # type: ignore[arg-type]
    assert SandboxLimits(network=["a:1", "b-c.d_e:65535"]).network == ("a:1", "b-c.d_e:65535")  # type: ignore[arg-type]


@pytest.mark.filterwarnings("ignore:Process.unsafe_local:RuntimeWarning")
async def test_unsafe_local_refuses_a_list() -> None:
    async with Process(unsafe_local=True).open() as unsafe:
        with pytest.raises(UserError, match="keeps nothing from the network"):
            await unsafe.session(SandboxLimits(network=("localhost:1",)))
