"""Every claim that is made of `Process` holds for gVisor, but for those that name its own parts and what is listed here.

gVisor is a kernel of its own: what it lets through, as a device node that leads nowhere, reaches that kernel alone.
"""

from __future__ import annotations

from dataclasses import replace

import pytest

from agentrl.sandbox import Backend, Command, Session
from tests.sandboxes import escapes, test_process, test_process_escapes, test_process_limits
from tests.sandboxes.process_backend import LIMITS
from tests.sandboxes_docker import engine

pytestmark = pytest.mark.asyncio(loop_scope="module")
backend, session, host = engine.backend_of("runsc"), engine.session, test_process_escapes.host
globals().update(
    engine.claims(
        test_process,
        test_process_limits,
        test_process_escapes,
        without="""
        test_bad_specs_are_refused test_what_isolates_is_said_in_a_line
        test_a_process_1_that_speaks_nonsense_is_a_sandbox_error test_a_process_1_that_is_silent_is_a_sandbox_error
        test_a_listing_that_breaks_off_is_a_sandbox_error test_escape_would_get_through_without_a_sandbox
        test_escape_is_stopped test_cpu_seconds test_a_flood_of_empty_files_ends
        test_a_command_that_finds_no_room_for_a_process_is_a_result
        """,
    )
)


WITHIN = ("proc-1-environ", "proc-1-fd", "device-node", "device-open", "priority", "i386-calls")


@pytest.mark.parametrize("name", [name for name in escapes.ATTEMPTS if name not in WITHIN])
async def test_escape_is_stopped(session: Session, host: escapes.Host, name: str) -> None:
    await test_process_escapes.test_escape_is_stopped(session, host, name)


async def test_escape_over_the_streams_of_process_1_is_stopped(session: Session) -> None:
    ran = await session.exec(Command("for n in 0 1 2; do echo x > /proc/1/fd/$n && echo ESCAPED; cat < /proc/1/fd/$n; done"))
    assert ran.text == ""
    assert ran.error_text.count("Permission denied") == 6


async def test_escape_by_the_environment_of_process_1_which_can_be_seen_is_stopped(session: Session) -> None:
    names = {line.split("=")[0] for line in (await session.exec(Command("tr '\\0' '\\n' < /proc/1/environ"))).text.split()}
    assert names <= {"PATH", "HOSTNAME", "HOME"}


async def test_a_flood_of_empty_files_ends(backend: Backend) -> None:
    """By memory: it does not count files."""
    session = await backend.session(replace(LIMITS, cpu_seconds=20))
    code = "n = 0\nwhile n < 10**6: open(f'/tmp/{n}', 'x').close(); n += 1"
    ran = await session.exec(Command(("python3", "-c", code), timeout=30))
    assert not ran.ok
    await session.close()
