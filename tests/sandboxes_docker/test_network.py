"""A network by list in containers: what holds for `Process` holds for Docker."""

from __future__ import annotations

import pytest

from agentrl.sandbox import Backend
from tests.sandboxes import escape_calls, escapes, test_network, test_process_escapes
from tests.sandboxes_docker import engine

pytestmark = pytest.mark.asyncio(loop_scope="module")
backend, host = engine.backend_of(""), test_process_escapes.host
OF_PROCESS = "test_escape_with_a_network_is_stopped test_unsafe_local_refuses_a_list test_a_list_that_cannot_be_kept_is_refused"
OF_NETWORKS = "tcp", "udp", "dns", "raw", "packet", "netlink", "vsock", "interfaces", "abstract", "path-socket", "docker"
ATTEMPTS = [name for name in escapes.ATTEMPTS if name.startswith(OF_NETWORKS)]
globals().update(engine.claims(test_network, without=OF_PROCESS))


async def test_escape_with_a_network_is_stopped(backend: Backend, host: escapes.Host) -> None:
    assert len(ATTEMPTS) >= 10
    async with test_network.networked(backend, "localhost:1") as session:
        found = [await escape_calls.got_through_program(session, host, name) for name in ATTEMPTS]
    assert found == [""] * len(ATTEMPTS)


async def test_the_relay_can_be_neither_ended_nor_looked_into(backend: Backend) -> None:
    code = """if True:
        import os
        found = [int(name) for name in os.listdir("/proc") if name.isdigit() and name != "1"]
        others = [pid for pid in found if os.stat(f"/proc/{pid}").st_uid != os.getuid()]
        def opened(pid):
            for fd in os.listdir(f"/proc/{pid}/fd"):  # gVisor lists them
                open(f"/proc/{pid}/fd/{fd}", "rb")
        for pid in others:
            for way in (lambda: os.kill(pid, 9), lambda: opened(pid), lambda: open(f"/proc/{pid}/mem", "rb+")):
                try:
                    way()
                    print("reached")
                except OSError:
                    pass
        print(len(others))
    """
    async with test_network.serving(test_network.echo) as port, test_network.networked(backend, f"localhost:{port}") as session:
        assert (await session.python(code)).text == "1\n"
        assert (await test_network.python(session, port, "s.sendall(b'x'); print(s.recv(1))")).text == "b'x'\n"
