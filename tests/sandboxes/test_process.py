"""Every call of the contract, in real sandboxes of `Process`."""

from __future__ import annotations

import asyncio
import hashlib
import os

import pytest

from agentrl.errors import SandboxError, UserError
from agentrl.sandbox import Backend, Command, Entry, Ran, SandboxLimits, Session
from agentrl_sandboxes.process import Process
from tests.sandboxes import process_backend
from tests.sandboxes.process_backend import LIMITS

pytestmark = pytest.mark.asyncio(loop_scope="module")
backend, session = process_backend.backend, process_backend.session
ODD = os.fsdecode(b"a\n\xff b..")
EVERY_BYTE = bytes(range(256)) * 300


async def sh(session: Session, line: str, **more: object) -> Ran:
    return await session.exec(Command(line, **more))  # type: ignore[arg-type]


# exec


async def test_an_argv_is_taken_as_it_is(session: Session) -> None:
    ran = await session.exec(Command(("printf", "%s|", "a b", "$HOME", "*", "")))
    assert (ran.text, ran.ok) == ("a b|$HOME|*||", True)


async def test_a_line_goes_through_the_shell(session: Session) -> None:
    assert (await sh(session, "printf ab | tr a x; echo $((2+3)) >&2; exit 7")) == Ran(
        7, b"xb", b"5\n", seconds=pytest.approx(0, abs=20), cpu_seconds=pytest.approx(0, abs=20)
    )


async def test_standard_input_comes_in_whole(session: Session) -> None:
    ran = await session.exec(Command(("sha256sum",), stdin=EVERY_BYTE * 20))
    assert ran.text.split()[0] == hashlib.sha256(EVERY_BYTE * 20).hexdigest()


async def test_standard_input_ends_if_none_is_given(session: Session) -> None:
    assert (await session.exec(Command(("cat",), timeout=5))).ok


async def test_input_that_nobody_reads_does_not_hang(session: Session) -> None:
    assert (await session.exec(Command(("true",), stdin=EVERY_BYTE * 20))).ok


async def test_both_streams_are_drained_at_once_and_cut(session: Session) -> None:
    code = "import sys\nfor _ in range(200): sys.stdout.write('o' * 9999); sys.stderr.write('e' * 9999)"
    ran = await session.exec(Command(("python3", "-c", code)))
    assert ran.ok
    assert ran.truncated
    assert (ran.stdout, ran.stderr) == (b"o" * LIMITS.output, b"e" * LIMITS.output)


async def test_output_up_to_the_bound_is_not_called_cut(session: Session) -> None:
    ran = await session.exec(Command(("head", "-c", str(LIMITS.output), "/dev/zero")))
    assert (len(ran.stdout), ran.truncated) == (LIMITS.output, False)


async def test_the_folder_begins_in_work_and_can_be_named(session: Session) -> None:
    await session.write("deep/file", b"")
    assert (await sh(session, "pwd")).text == "/work\n"
    assert (await sh(session, "pwd", cwd="deep")).text == "/work/deep\n"
    assert (await sh(session, "pwd", cwd="/tmp")).text == "/tmp\n"


async def test_a_folder_that_is_not_there_is_the_commands_failure(session: Session) -> None:
    ran = await sh(session, "true", cwd="nowhere")
    assert (ran.status, ran.error_text) == (127, "nowhere: No such file or directory\n")


async def test_the_environment_is_the_sandboxes_and_what_is_given(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET", "of the host")
    ran = await session.exec(Command(("env",), env={"GIVEN": "a\nb"}))
    names = {line.split("=")[0] for line in ran.text.splitlines() if "=" in line}
    assert names == {"PATH", "HOME", "LANG", "GIVEN"}
    assert "GIVEN=a\nb\n" in ran.text


async def test_a_program_that_is_not_there_is_status_127(session: Session) -> None:
    ran = await session.exec(Command(("no-such-program",)))
    assert (ran.status, ran.error_text) == (127, "no-such-program: No such file or directory\n")


async def test_a_file_that_cannot_be_run_is_status_126(session: Session) -> None:
    await session.write("data", b"x")
    assert (await session.exec(Command(("./data",)))).status == 126


async def test_a_nul_in_an_argument_is_the_commands_failure(session: Session) -> None:
    assert (await session.exec(Command(("echo", "a\0b")))).status == 126


async def test_a_signal_is_a_negative_status(session: Session) -> None:
    assert (await sh(session, "kill -TERM $$")).status == -15


async def test_a_command_that_takes_too_long_is_ended(session: Session) -> None:
    ran = await sh(session, "trap '' TERM INT; echo begun; while :; do sleep 1; done", timeout=1.5)
    assert (ran.status, ran.timed_out, ran.killed, ran.text, ran.ok) == (-9, True, "timeout", "begun\n", False)
    assert 1.5 <= ran.seconds < 10


async def test_cpu_seconds_are_those_of_the_call_and_of_all_that_it_ran(session: Session) -> None:
    busy = "import time\nwhile time.process_time() < 0.3: pass"
    assert (await session.exec(Command(("sleep", "0.3")))).cpu_seconds < 0.2
    assert 0.25 <= (await sh(session, f'python3 -c "{busy}"; true')).cpu_seconds < 5
    assert (await session.python("import time; time.sleep(0.3)")).cpu_seconds < 0.2
    assert (
        0.25
        <= (
            await session.python(
                busy.replace("time.process_time()", "time.process_time() - begun").replace(
                    "import time", "import time; begun = time.process_time()"
                )
            )
        ).cpu_seconds
        < 5
    )
    assert (await session.python("1")).cpu_seconds < 0.2


async def test_a_cancelled_call_ends_what_it_runs(session: Session) -> None:
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.3):
            await sh(session, "sleep 1000")
    assert "sleep" not in (await sh(session, "cat /proc/[0-9]*/comm")).text


async def test_a_call_cancelled_before_it_began_is_not_answered_to_the_next(session: Session) -> None:
    running = asyncio.timeout(0)
    with pytest.raises(TimeoutError):
        async with running:
            await sh(session, "echo wrong")
    assert (await sh(session, "echo right")).text == "right\n"


@pytest.mark.parametrize("how", ["sleep 1000 &", "setsid sleep 1000 &", "setsid sh -c 'sleep 1000 & sleep 1000 &' &"])
async def test_what_a_command_leaves_running_ends_with_it(session: Session, how: str) -> None:
    assert (await sh(session, how)).ok
    assert "sleep" not in (await sh(session, "cat /proc/[0-9]*/comm")).text


async def test_a_daemon_ends_though_the_python_session_lives_on(session: Session) -> None:
    await session.python("import subprocess; own = subprocess.Popen(['sleep', '999'])")
    assert (await sh(session, "setsid sleep 1000 &")).ok
    assert (await sh(session, "cat /proc/[0-9]*/comm")).text.count("sleep") == 1
    assert (await session.python("own.poll() is None")).text == "True\n"


async def test_a_storm_of_forks_is_ended(session: Session) -> None:
    await session.python("1")
    await session.write(
        "storm.py",
        b"import os, time\nend = time.time() + 60\nwhile time.time() < end:\n try: os.fork()\n except OSError: pass\n",
    )
    ran = await session.exec(Command(("python3", "storm.py"), timeout=1))
    assert ran.timed_out or ran.killed == "memory", "it may have more than memory_mb before the second is over"
    assert (await sh(session, "echo /proc/[0-9]*")).text.count("/proc/") <= 3


async def test_programs_see_pid_1_and_themselves_alone(session: Session) -> None:
    assert (await sh(session, "echo /proc/[0-9]*/exe")).text.count("/proc/") == 2


async def test_a_command_holds_no_descriptor_but_its_streams(session: Session) -> None:
    code = "import os; print(sorted(int(n) for n in os.listdir('/proc/self/fd'))[:-1])"  # without the listing's own
    assert (await session.exec(Command(("python3", "-c", code)))).text == "[0, 1, 2]\n"


# python


async def test_names_last_and_the_last_value_is_printed(session: Session) -> None:
    assert (await session.python("x = 20\ndef twice(n):\n    return 2 * n")).stdout == b""
    assert (await session.python("print('so')\ntwice(x) + 2")).text == "so\n42\n"
    assert (await session.python("_")).text == "42\n"
    assert (await session.python("None")).text == ""


async def test_an_exception_is_status_1_with_its_traceback_and_keeps_the_names(session: Session) -> None:
    ran = await session.python("x = 1\nraise KeyError('lost')")
    assert ran.status == 1
    assert ran.error_text == "Traceback (most recent call last):\n  File \"<python>\", line 2, in <module>\nKeyError: 'lost'\n"
    assert (await session.python("x")).text == "1\n"


async def test_code_that_is_no_python_is_status_1(session: Session) -> None:
    ran = await session.python("def f(:")
    assert ran.status == 1
    assert "SyntaxError" in ran.error_text


@pytest.mark.parametrize(
    ("code", "status"),
    [("exit()", 0), ("exit(3)", 3), ("quit(4)", 4), ("raise SystemExit('why')", 1), ("import os; os._exit(5)", 5)],
)
async def test_exit_gives_its_status_and_begins_the_names_anew(session: Session, code: str, status: int) -> None:
    await session.python("x = 1")
    ran = await session.python(f"print('last words')\n{code}")
    assert (ran.status, ran.text) == (status, "last words\n")
    assert "NameError" in (await session.python("x")).error_text


async def test_a_crash_is_a_result_and_begins_the_names_anew(session: Session) -> None:
    assert (await session.python("import ctypes; ctypes.string_at(0)")).status == -11
    assert (await session.python("1 + 1")).text == "2\n"


async def test_python_that_takes_too_long_begins_the_names_anew(session: Session) -> None:
    await session.python("x = 1")
    ran = await session.python("print('begun')\nwhile True: pass", timeout=0.3)
    assert (ran.status, ran.timed_out, ran.killed, ran.text) == (-9, True, "timeout", "begun\n")
    assert "NameError" in (await session.python("x")).error_text


async def test_a_cancelled_python_ends(session: Session) -> None:
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.3):
            await session.python("while True: pass")
    assert (await session.python("1")).text == "1\n"


async def test_output_of_its_commands_is_pythons_output(session: Session) -> None:
    ran = await session.python(
        "import os, subprocess, sys\nsubprocess.run(['sh', '-c', 'echo out; echo err >&2'])\nos.write(1, b'\\xff');"
    )
    assert ran.stdout.startswith(b"out\n")
    assert b"\xff" in ran.stdout
    assert ran.stderr == b"err\n"


async def test_a_flood_on_both_streams_of_python_is_cut(session: Session) -> None:
    ran = await session.python(
        "import sys\nfor _ in range(99):\n    a = sys.stdout.write('o' * 9999); b = sys.stderr.write('e' * 9999)"
    )
    assert ran.truncated
    assert (len(ran.stdout), len(ran.stderr), ran.status) == (LIMITS.output, LIMITS.output, 0)
    assert (await session.python("1")).text == "1\n"


async def test_a_fork_that_the_code_forgets_answers_only_once(session: Session) -> None:
    await session.python("import os\nchild = os.fork()")
    assert (await session.python("child > 0 and os.waitpid(child, 0)[0] == child")).text == "True\n"


async def test_python_holds_no_way_to_process_1(session: Session) -> None:
    there = "os.path.exists(f'/proc/self/fd/{n}')"
    code = f"import os, stat; [n for n in range(3, 999) if {there} and stat.S_ISSOCK(os.stat(n).st_mode)]"
    assert (await session.python(code)).text == "[]\n"


async def test_its_names_live_in_main(session: Session) -> None:
    await session.python("from __future__ import annotations\nimport pickle\nclass A:\n    x: Undefined = 1")
    assert (await session.python("pickle.loads(pickle.dumps(A())).x, A.__module__, A.__annotations__")).text == (
        "(1, '__main__', {'x': 'Undefined'})\n"
    )


async def test_files_are_the_same_for_python_commands_and_the_host(session: Session) -> None:
    await session.python("open('made', 'w').write('by python')")
    assert (await sh(session, "cat made")).text == "by python"
    assert await session.read("made") == b"by python"


# files


@pytest.mark.parametrize("path", ["plain", "a/b/c", "/work/x", "/tmp/x", ODD, f"{ODD}/{ODD}", "-rf"])
async def test_bytes_come_back_as_they_went(session: Session, path: str) -> None:
    await session.write(path, EVERY_BYTE)
    assert await session.read(path) == EVERY_BYTE
    await session.write(path, b"less")
    assert await session.read(path) == b"less"


async def test_a_folder_is_listed_with_kinds_and_sizes_whatever_the_names(session: Session) -> None:
    await session.write(f"d/{ODD}", b"12345")
    await sh(session, "cd d; mkdir f; ln -s /nowhere l; mkfifo p; touch 'new\nline'")
    found = await session.list("d")
    assert [entry.name for entry in found] == sorted([ODD, "f", "l", "new\nline", "p"], key=os.fsencode)
    assert {entry.name: entry.kind for entry in found} == {
        ODD: "file",
        "f": "folder",
        "l": "link",
        "p": "other",
        "new\nline": "file",
    }
    assert Entry(ODD, "file", 5) in found


@pytest.mark.parametrize(
    ("path", "error"),
    [
        ("missing", FileNotFoundError),
        ("folder", IsADirectoryError),
        ("fifo", OSError),
        ("/dev/zero", OSError),
        ("/proc/1/environ", OSError),
        ("/proc/cpuinfo", OSError),
        ("closed", PermissionError),
        ("loop", OSError),
        ("to-proc", OSError),
        ("a\0b", OSError),
    ],
)
async def test_what_is_no_file_to_read_is_an_os_error_at_once(session: Session, path: str, error: type[OSError]) -> None:
    await sh(session, "mkdir folder; mkfifo fifo; touch closed; chmod 0 closed; ln -s loop loop; ln -s /proc/self/maps to-proc")
    with pytest.raises(error) as raised:
        async with asyncio.timeout(5):
            await session.read(path)
    assert raised.value.filename == path


async def test_a_file_larger_than_the_disk_is_not_read(backend: Backend) -> None:
    small = await backend.session(SandboxLimits(disk_mb=1))
    large = (await sh(small, "find /usr/ -size +2M -type f | head -n 1")).text.strip()
    with pytest.raises(OSError, match="more than"):
        await small.read(large)
    await small.close()


async def test_a_link_leads_to_what_the_sandbox_sees_and_no_further(session: Session) -> None:
    await sh(session, "ln -s /etc/passwd names; ln -s /work/target link; echo inside > target")
    assert await session.read("link") == b"inside\n"
    assert b"user:x:1000" in await session.read("names")


async def test_a_file_is_not_written_through_a_link(session: Session) -> None:
    await sh(session, "touch kept; ln -s kept link; ln -s /nowhere dangling; mkfifo fifo")
    for path in ("link", "dangling", "fifo", "/etc/passwd", "/usr/x", "/proc/self/comm"):
        with pytest.raises(OSError):
            await session.write(path, b"x")
    assert await session.read("kept") == b""


async def test_a_full_disk_is_an_os_error(session: Session) -> None:
    with pytest.raises(OSError, match="No space left"):
        await session.write("large", bytes(LIMITS.disk_mb << 20))
        await session.write("/tmp/more", bytes(1 << 20))


# the rest


async def test_a_fork_has_the_same_files_exactly(session: Session) -> None:
    await session.write(f"d/{ODD}", EVERY_BYTE)
    await sh(session, "cd d; echo x > a; ln a b; ln -s a c; chmod 751 a; touch -d @1234567 a; mkdir -m 700 e; echo t > /tmp/t")
    look = "cd /; find work tmp -printf '%p %y %m %n %l %T@\\n' | sort; cat work/d/* /tmp/t < /dev/null"
    other = await session.fork()
    assert other is not None
    assert (await sh(other, look)).stdout == (await sh(session, look)).stdout
    await sh(other, "echo changed > d/a")
    assert await session.read("d/a") == b"x\n"
    await other.close()


async def test_a_live_python_is_not_forked(session: Session) -> None:
    await session.python("x = 1")
    assert await session.fork() is None


async def test_each_session_is_fresh_and_sees_no_other(backend: Backend) -> None:
    one, other = await backend.session(LIMITS), await backend.session(LIMITS)
    listen = "import socket; s = socket.socket(socket.AF_UNIX); s.bind('\\0abstract'); s.listen()"
    assert (await one.python(f"open('mine', 'w').write('x'); open('/tmp/mine', 'w').write('x')\n{listen}")).status == 0
    assert await other.list("/work") == await other.list("/tmp") == ()
    assert (await sh(other, "echo /proc/[0-9]*/exe; cat /proc/net/unix")).text.count("/proc/") == 2
    assert (
        "ConnectionRefusedError"
        in (await other.python("import socket; socket.socket(socket.AF_UNIX).connect('\\0abstract')")).error_text
    )
    await one.close()
    await other.close()


async def test_limits_of_its_own_open_a_session_of_its_own(backend: Backend) -> None:
    own = await backend.session(SandboxLimits(disk_mb=1, output=64))
    assert (await sh(own, "printf %065d 0")).stdout == b"0" * 64
    await own.close()


async def test_a_closed_session_says_so(backend: Backend) -> None:
    closed = await backend.session(LIMITS)
    await closed.close()
    await closed.close()
    with pytest.raises(SandboxError, match="closed"):
        await sh(closed, "true")


async def test_closing_ends_a_call_that_runs(backend: Backend) -> None:
    closing = await backend.session(LIMITS)
    async with asyncio.TaskGroup() as group:
        running = group.create_task(outcome(closing))
        await asyncio.sleep(0)
        await closing.close()
    assert isinstance(running.result(), SandboxError)


async def outcome(session: Session) -> Ran | SandboxError:
    try:
        return await sh(session, "sleep 100")
    except SandboxError as error:
        return error


async def test_bad_specs_are_refused() -> None:
    with pytest.raises(UserError, match="warm"):
        Process(warm=-1)
    with pytest.raises(UserError, match="packages"):
        Process(packages="/no/such/folder")


async def test_what_isolates_is_said_in_a_line(backend: Backend) -> None:
    assert backend.fork == "replay"
    assert "seccomp" in backend.isolation
    assert "kernel is shared" in backend.isolation
