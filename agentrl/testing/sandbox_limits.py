"""Checks of what one session may use. The docstring of each is its claim."""

from __future__ import annotations

from agentrl.testing.claims import require
from agentrl.testing.sandbox_subject import Subject, program, same, sh, works

FORKS = """
import os, time
made = 0
try:
    while made < {most}:
        if not os.fork():
            time.sleep(60)
            os._exit(0)
        made += 1
except OSError:
    pass
print(made, flush=True)
"""
STORM = "import os, time\nend = time.time() + 60\nwhile time.time() < end:\n    try: os.fork()\n    except OSError: pass"


async def output_of_both_streams_is_bounded(s: Subject) -> None:
    """Of each stream the first `output` bytes are kept and the rest is read and thrown away: a flood on both ends by itself."""
    session = await s.session(s.small)
    flood = "import sys\nfor _ in range(200): sys.stdout.write('o' * 9999); sys.stderr.write('e' * 9999)\n"
    expected = (b"o" * s.small.output, b"e" * s.small.output, True, True)
    for what, ran in (("a command", await program(session, flood)), ("Python", await session.python(flood))):
        same((ran.stdout, ran.stderr, ran.truncated, ran.ok), expected, f"a flood of 2 MB on both streams of {what}")
    await works(session, "a flood")


async def output_up_to_the_bound_is_whole(s: Subject) -> None:
    """Output of exactly `output` bytes is not called truncated."""
    session = await s.session(s.small)
    ran = await program(session, f"import sys; sys.stdout.write('o' * {s.small.output}); sys.stdout.flush()")
    same((len(ran.stdout), ran.truncated, ran.ok), (s.small.output, False, True), "output up to the bound")


async def memory_of_one_process_is_bounded(s: Subject) -> None:
    """A process that takes more than `memory_mb` does not get it; the backend goes on."""
    session = await s.session(s.small)
    ran = await program(session, f"held = b'x' * ({s.small.memory_mb + 64} << 20); import time; time.sleep(1); print('held')")
    require(not ran.ok and not ran.stdout, f"{s.small.memory_mb + 64} MB were held, with a limit of {s.small.memory_mb}")
    await works(await s.session(s.small), "one that took too much memory")


async def memory_over_many_processes_is_bounded(s: Subject) -> None:
    """Processes that together take more than `memory_mb` do not get it."""
    session = await s.session(s.small)
    code = f"""if True:
        import os, time
        for _ in range(8):
            if not os.fork():
                held = b"x" * ({s.small.memory_mb // 3} << 20)
                time.sleep(3)
                os._exit(7)
        ended = [os.wait()[1] >> 8 for _ in range(8)]
        print(ended.count(7))
    """
    ran = await program(session, code, 15)
    require(not ran.ok or int(ran.text) <= 3, f"8 processes held a third of {s.small.memory_mb} MB each, at once")
    await works(await s.session(s.small), "many that took too much memory")


async def processes_are_bounded(s: Subject) -> None:
    """All processes together are no more than `processes`: a fork beyond fails, or ends the command."""
    ran = await program(await s.session(s.small), FORKS.format(most=20 * s.small.processes), 15)
    made = int(ran.stdout or 0)
    require(made < s.small.processes, f"{made} processes were forked, with a limit of {s.small.processes}")
    require(made > 0 or not ran.ok, "not one process could be forked")


async def a_storm_of_forks_ends_with_its_call(s: Subject) -> None:
    """Processes that fork without end are all ended with their call, and neither a neighbour nor the next session feels it."""
    session, neighbour = await s.session(s.small), await s.session(s.small)
    require(not (await program(session, STORM, 1.0)).ok, "a storm of forks ended well")
    await works(neighbour, "a storm of forks beside it")
    await works(await s.session(s.small), "a storm of forks before it")


async def cpu_seconds_are_bounded(s: Subject) -> None:
    """A process that computes for more than `cpu_seconds` is ended, killed by "cpu", though its call had time."""
    session = await s.session(s.small)
    for ran in (await sh(session, "while :; do :; done", timeout=40), await session.python("while True: pass", timeout=40)):
        same((ran.killed, ran.timed_out, ran.ok), ("cpu", False, False), f"{s.small.cpu_seconds} s of CPU")
    await works(session, "too much CPU")


async def open_files_are_bounded(s: Subject) -> None:
    """A process opens no more than `open_files`."""
    code = "import os\nn = 0\ntry:\n    while n < 9999: os.open('/dev/null', 0); n += 1\nexcept OSError: pass\nprint(n)"
    opened = int((await program(await s.session(s.small), code)).stdout)
    require(0 < opened <= s.small.open_files, f"{opened} files were opened, with a limit of {s.small.open_files}")


async def the_disk_is_bounded(s: Subject) -> None:
    """The files of one place hold no more than `disk_mb`, however many they are, and the session goes on."""
    session = await s.session(s.small)
    code = f"""if True:
        held = 0
        for n in range({4 * s.small.disk_mb}):
            try:
                with open(str(n), "wb", 0) as file:
                    for _ in range(32):
                        held += file.write(bytes(1 << 15))
            except OSError:
                pass
        print(held)
    """
    held = int((await program(session, code)).stdout)
    require(held <= s.small.disk_mb << 20, f"{held} bytes were written, with a limit of {s.small.disk_mb} MB")
    require(held >= s.small.disk_mb << 19, f"only {held} bytes could be written, with {s.small.disk_mb} MB allowed")
    await works(session, "a full disk")


LIMIT_CHECKS = (
    output_of_both_streams_is_bounded, output_up_to_the_bound_is_whole, memory_of_one_process_is_bounded,
    memory_over_many_processes_is_bounded, processes_are_bounded, a_storm_of_forks_ends_with_its_call,
    cpu_seconds_are_bounded, open_files_are_bounded, the_disk_is_bounded,
)  # fmt: skip
