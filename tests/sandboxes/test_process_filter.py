"""The system call filter: as a program, on every architecture that it has a table for, and at work in a sandbox."""

from __future__ import annotations

import errno
import platform
import struct

import pytest

from agentrl.sandbox import Command, Session
from agentrl_sandboxes.process import seccomp
from tests.sandboxes import process_backend

backend, session = process_backend.backend, process_backend.session
DENIED, ABSENT, NO_FAMILY = (seccomp.ERRNO | number for number in (errno.EPERM, errno.ENOSYS, errno.EAFNOSUPPORT))
MACHINES = sorted(seccomp.MACHINES)


def answer(program: bytes, number: int, *arguments: int, audit: int) -> int:
    """What a classic BPF machine makes of a call: the instructions that the filter uses, as the kernel runs them."""
    data = struct.pack("=IIQ6Q", number, audit, 0, *(*arguments, 0, 0, 0, 0, 0, 0)[:6])
    at = value = 0
    while True:
        code, then, otherwise, k = struct.unpack_from("=HBBI", program, 8 * at)
        at += 1
        if code == seccomp.RETURN:
            return k
        if code == seccomp.LOAD:
            value = int(struct.unpack_from("=I", data, k)[0])
        else:
            tests = {seccomp.EQUAL: value == k, seccomp.GREATER_EQUAL: value >= k, seccomp.ANY_BIT: bool(value & k)}
            at += then if tests[code] else otherwise


@pytest.mark.parametrize("machine", MACHINES)
def test_every_named_call_is_denied_and_what_is_not_known_is_absent(machine: str) -> None:
    of = seccomp.MACHINES[machine]
    program = seccomp.program(machine, bounded=True)
    answers = {number: answer(program, number, audit=of.audit) for number in range(600)}
    conditional = {of.socket}  # family 0
    expected_absent = {*seccomp.ABSENT.values(), *range(*of.gap), *range(seccomp.LAST + 1, 600)}
    assert {number for number, found in answers.items() if found == DENIED} == set(of.denied.values())
    assert {number for number, found in answers.items() if found == ABSENT} == expected_absent
    assert {number for number, found in answers.items() if found == NO_FAMILY} == conditional


@pytest.mark.parametrize("machine", MACHINES)
def test_other_architectures_numbers_end_the_process(machine: str) -> None:
    of = seccomp.MACHINES[machine]
    program = seccomp.program(machine, bounded=True)
    others = {0x40000003, 0xC000003E, 0xC00000B7, 0x40000028} - {of.audit}
    assert {answer(program, 1, audit=other) for other in others} == {seccomp.KILL}
    if machine == "x86_64":
        assert answer(program, seccomp.X32 | 1, audit=of.audit) == seccomp.KILL


@pytest.mark.parametrize("machine", MACHINES)
def test_arguments_decide(machine: str) -> None:
    of = seccomp.MACHINES[machine]
    program = seccomp.program(machine, bounded=True)

    def asked(number: int, *arguments: int) -> int:
        return answer(program, number, *arguments, audit=of.audit)

    new_user, thread = 0x10000000, 0x3D0F00
    assert [asked(of.clone, flags) for flags in (thread, 17, new_user | 17, 0x20000)] == [seccomp.ALLOW] * 2 + [DENIED] * 2
    assert {asked(of.socket, family) for family in seccomp.FAMILIES} == {seccomp.ALLOW}
    assert {asked(of.socket, family) for family in range(64) if family not in seccomp.FAMILIES} == {NO_FAMILY}
    assert asked(of.socket, (1 << 32) | 16) == NO_FAMILY  # the upper half is not the kernel's
    assert [asked(of.ioctl, 0, request) for request in (0x5401, 0x5412, (7 << 32) | 0x5412, 0x541C)] == [seccomp.ALLOW] + [
        DENIED
    ] * 3
    assert [asked(of.personality, kind) for kind in (0, 0xFFFFFFFF, 0x40000, 8)] == [seccomp.ALLOW] * 2 + [DENIED] * 2
    assert [asked(of.prlimit64, pid) for pid in (0, 1, 7)] == [seccomp.ALLOW, DENIED, DENIED]


@pytest.mark.parametrize("machine", MACHINES)
def test_memory_that_no_process_maps_is_denied_where_nothing_bounds_it(machine: str) -> None:
    of = seccomp.MACHINES[machine]
    for number in of.unbounded:
        assert answer(seccomp.program(machine, bounded=True), number, audit=of.audit) == seccomp.ALLOW
        assert answer(seccomp.program(machine, bounded=False), number, audit=of.audit) == DENIED


@pytest.mark.asyncio(loop_scope="module")
async def test_the_kernel_answers_as_the_table_says(session: Session) -> None:
    of = seccomp.MACHINES[platform.machine()]
    numbers = [*of.denied.values(), *seccomp.ABSENT.values(), seccomp.LAST + 1, 999]
    code = f"""if True:
        import ctypes
        call = ctypes.CDLL(None, use_errno=True).syscall
        def errno(*what):
            ctypes.set_errno(0)
            return ctypes.get_errno() if call(*map(ctypes.c_long, what)) == -1 else 0
        print([errno(number, 0, 0, 0, 0, 0, 0) for number in {numbers}])
        print([errno(*what) for what in {[(of.clone, 0x10000000 | 17), (of.socket, 16, 3, 0), (of.personality, 8)]}])
    """
    first, second = map(eval, (await session.exec(Command(("python3", "-c", code)))).text.splitlines())
    absent = 2 + len(seccomp.ABSENT)
    assert first == [errno.EPERM] * len(of.denied) + [errno.ENOSYS] * absent
    assert second == [errno.EPERM, errno.EAFNOSUPPORT, errno.EPERM]


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.skipif(platform.machine() != "x86_64", reason="x86 alone has other calling conventions within it")
@pytest.mark.parametrize(
    "instructions",
    [b"\xb8\x14\x00\x00\x00\xcd\x80\xc3", b"\xb8\x27\x00\x00\x40\x0f\x05\xc3"],
    ids=["i386 getpid by int 0x80", "x32 getpid"],
)
async def test_another_calling_convention_ends_the_process(session: Session, instructions: bytes) -> None:
    code = f"""if True:
        import ctypes, mmap
        page = mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
        page.write({instructions!r})
        ctypes.CFUNCTYPE(ctypes.c_int)(ctypes.addressof(ctypes.c_char.from_buffer(page)))()
        print("went on")
    """
    ran = await session.exec(Command(("python3", "-c", code)))
    assert (ran.status, ran.text) == (-31, "")  # SIGSYS


@pytest.mark.asyncio(loop_scope="module")
async def test_programs_live_with_it(session: Session) -> None:
    code = """if True:
        import asyncio, concurrent.futures, multiprocessing, socket, subprocess, tempfile, threading
        with multiprocessing.Pool(2) as pool:
            assert pool.map(abs, [-1, -2]) == [1, 2]
        with concurrent.futures.ThreadPoolExecutor(2) as pool:
            assert list(pool.map(abs, [-1])) == [1]
        async def talk():
            server = await asyncio.start_server(lambda r, w: w.close(), "127.0.0.1", 0)
            reader, _ = await asyncio.open_connection(*server.sockets[0].getsockname())
            assert await reader.read() == b""
        asyncio.run(talk())
        print(subprocess.run(["sh", "-c", "echo $0 | cat"], capture_output=True, text=True).stdout, end="")
    """
    ran = await session.exec(Command(("python3", "-c", code), timeout=20))
    assert (ran.text, ran.error_text) == ("sh\n", "")
