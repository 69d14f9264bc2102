"""Every attempt to get out of a sandbox of `Process`, one test each; and tricks on what the host does with its files."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator

import pytest

from agentrl.sandbox import Backend, Command, Session
from tests.sandboxes import escapes, process_backend
from tests.sandboxes.process_backend import LIMITS

backend, session = process_backend.backend, process_backend.session


@pytest.fixture(scope="module")
def host() -> Iterator[escapes.Host]:
    os.environ["OF_THE_HOST"] = "a secret"
    with escapes.host() as found:
        yield found
    del os.environ["OF_THE_HOST"]


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize("name", escapes.ATTEMPTS)
async def test_escape_is_stopped(session: Session, host: escapes.Host, name: str) -> None:
    ran = await session.exec(Command(("python3", "-c", escapes.program(escapes.ATTEMPTS[name], host)), timeout=10))
    assert "ESCAPED" not in ran.text + ran.error_text
    assert "SyntaxError" not in ran.error_text
    assert (await session.exec(Command(("echo", "whole")))).text == "whole\n"
    assert (await session.python("1")).text == "1\n"


@pytest.mark.parametrize("name", escapes.REACHES_ON_THE_HOST)
def test_escape_would_get_through_without_a_sandbox(host: escapes.Host, name: str) -> None:
    code = escapes.program(escapes.ATTEMPTS[name], host)
    assert "ESCAPED" in subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30).stdout


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize(
    "link", ["ln -s {} out", "mkdir -p d; ln -s {} d/out; ln -s d/out out", "ln -s /proc/1/root{} out", "ln {} out"]
)
async def test_escape_by_a_link_that_the_host_reads(session: Session, host: escapes.Host, link: str) -> None:
    await session.exec(Command(link.format(host.secret)))
    with pytest.raises(OSError):
        await session.read("out")


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize("link", ["ln -s {} out", "ln -s $(dirname {}) d; ln -s d/secret out"])
async def test_escape_by_a_link_that_the_host_writes(session: Session, host: escapes.Host, link: str) -> None:
    await session.exec(Command(link.format(host.secret)))
    with pytest.raises(OSError):
        await session.write("out", b"overwritten")
    with open(host.secret) as file:  # noqa: ASYNC230
        assert file.read() == "of the host"


@pytest.mark.asyncio(loop_scope="module")
async def test_escape_by_a_folder_that_becomes_a_link(session: Session, host: escapes.Host) -> None:
    await session.exec(Command(f"ln -s {os.path.dirname(host.secret)} results"))
    await session.write("/work/results-2/x", b"")
    for call in (session.list("results"), session.read("results/secret"), session.write("results/new", b"")):
        with pytest.raises(OSError):
            await call
    assert sorted(os.listdir(os.path.dirname(host.secret))) == ["secret", "unix"]


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize("name", ["../../../../../../{}", "/work/../../..{}", "..", "/proc/1/root{}", "/proc/self/root/..{}"])
async def test_escape_by_the_name_of_a_file(session: Session, host: escapes.Host, name: str) -> None:
    with pytest.raises(OSError):
        await session.read(name.format(host.secret))


@pytest.mark.asyncio(loop_scope="module")
async def test_escape_to_a_neighbour(backend: Backend) -> None:
    one, other = await backend.session(LIMITS), await backend.session(LIMITS)
    await one.exec(Command("echo secret > mine; echo secret > /tmp/mine; echo secret > /dev/shm/mine"))
    await one.python("import socket; s = socket.socket(); s.bind(('127.0.0.1', 4321)); s.listen()")
    ran = await other.exec(Command("cat /work/* /tmp/* /dev/shm/* /proc/*/root/work/mine; ls /proc | grep -c '^[0-9]'"))
    assert "secret" not in ran.text
    ran = await other.python("import socket; socket.create_connection(('127.0.0.1', 4321), 2)")
    assert "refused" in ran.error_text or "unreachable" in ran.error_text
    await one.close()
    await other.close()
