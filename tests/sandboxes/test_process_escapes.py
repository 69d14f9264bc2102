"""Every attempt to get out of a sandbox of `Process`, one test each; and tricks on what the host does with its files."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator

import pytest

from agentrl.sandbox import Backend, Session
from tests.sandboxes import escape_calls, escapes, process_backend

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
    assert await escape_calls.got_through_program(session, host, name) == ""


@pytest.mark.parametrize("name", escapes.REACHES_ON_THE_HOST)
def test_escape_would_get_through_without_a_sandbox(host: escapes.Host, name: str) -> None:
    code = escapes.program(escapes.ATTEMPTS[name], host)
    assert "ESCAPED" in subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30).stdout


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize("name", escape_calls.CALLS)
async def test_escape_by_calls_is_stopped(backend: Backend, session: Session, host: escapes.Host, name: str) -> None:
    assert await escape_calls.got_through(backend, session, host, name) == ""
