"""Every claim that is made of `Process` holds for Docker, but for those that name its own parts."""

from __future__ import annotations

import pytest

from agentrl.sandbox import Command, Session
from tests.sandboxes import escapes, test_process, test_process_escapes, test_process_limits
from tests.sandboxes.process_backend import LIMITS
from tests.sandboxes_docker import engine

pytestmark = pytest.mark.asyncio(loop_scope="module")
backend, session, host = engine.backend_of(""), engine.session, test_process_escapes.host
globals().update(
    engine.claims(
        test_process,
        test_process_limits,
        test_process_escapes,
        without="""
        test_bad_specs_are_refused test_what_isolates_is_said_in_a_line
        test_a_process_1_that_speaks_nonsense_is_a_sandbox_error test_a_process_1_that_is_silent_is_a_sandbox_error
        test_a_listing_that_breaks_off_is_a_sandbox_error test_escape_would_get_through_without_a_sandbox
        test_escape_is_stopped test_a_command_that_finds_no_room_for_a_process_is_a_result test_a_flood_of_empty_files_ends
        """,
    )
)


@pytest.mark.parametrize("name", [name for name in escapes.ATTEMPTS if name != "cgroup-files"])
async def test_escape_is_stopped(session: Session, host: escapes.Host, name: str) -> None:
    await test_process_escapes.test_escape_is_stopped(session, host, name)


async def test_escape_by_its_own_cgroup_files_which_can_be_seen_is_stopped(session: Session) -> None:
    raise_it = "for f in $(find /sys/fs/cgroup -name '*max*' -o -name '*limit*'); do echo 99999999999 > $f && echo raised; done"
    ran = await session.exec(Command(f"{raise_it}; mkdir /sys/fs/cgroup/memory/own /sys/fs/cgroup/own && echo made"))
    assert ran.text == ""
    assert "Read-only file system" in ran.error_text


async def test_a_command_that_finds_no_room_for_its_own_process_is_a_result(session: Session) -> None:
    await session.python(
        "import os, time\ntry:\n  while True:\n    if not os.fork(): time.sleep(60); os._exit(0)\nexcept OSError: pass"
    )
    assert not (await session.exec(Command("true"))).ok
    assert (await session.python("exit()")).ok
    assert (await session.exec(Command("true"))).ok


@pytest.mark.parametrize("place", ["/work", "/tmp", "/dev/shm"])
async def test_a_flood_of_empty_files_ends_in_each_place(session: Session, place: str) -> None:
    code = (
        f"n = 0\ntry:\n  while n < 10**6: open(f'{place}/{{n}}', 'x').close(); n += 1\n"
        "except OSError as error: print(n, error.errno)"
    )
    made, errno = map(int, (await session.exec(Command(("python3", "-c", code)))).text.split())
    assert (errno, made <= LIMITS.disk_mb * 256) == (28, True)
