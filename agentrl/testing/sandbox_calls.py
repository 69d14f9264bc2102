"""Checks of `exec` and `python`. The docstring of each is its claim."""

from __future__ import annotations

import asyncio
import hashlib
from dataclasses import replace

from agentrl.sandbox import Command, Ran
from agentrl.testing.claims import require
from agentrl.testing.sandbox_subject import GROWING, Subject, cut_off, program, same, sh, stands_still, well, works

LARGE = bytes(range(256)) * 4000


async def an_argv_is_taken_as_it_is(s: Subject) -> None:
    """The words of an argv reach the program unchanged, empty ones and shell signs too."""
    code = "import sys; print(sys.argv[1:])"
    words = ["a b", "$HOME", "*", "", "'", "\n", "é"]
    ran = await (await s.session()).exec(Command(("python3", "-c", code, *words)))
    same(well(ran, "an argv"), f"{words}\n", "the words that arrived")


async def a_line_goes_through_the_shell(s: Subject) -> None:
    """A string is a line for `sh -c`; status and both streams come back, each its own."""
    ran = await sh(await s.session(), "x=3; echo out $((x+2)); echo err >&2; exit 7")
    same((ran.status, ran.stdout, ran.stderr, ran.ok), (7, b"out 5\n", b"err\n", False), "status and streams")


async def standard_input_comes_in_whole(s: Subject) -> None:
    """`stdin` reaches the command to its last byte, and then ends."""
    session = await s.session()
    code = "import hashlib, sys; print(hashlib.sha256(sys.stdin.buffer.read()).hexdigest())"
    for data in (LARGE, b""):
        ran = await session.exec(Command(("python3", "-c", code), stdin=data))
        same(well(ran, f"reading {len(data)} bytes of input").strip(), hashlib.sha256(data).hexdigest(), "the input's digest")


async def input_that_nobody_reads_does_not_hang(s: Subject) -> None:
    """A command that ends without reading its input ends the call."""
    well(await (await s.session()).exec(Command("exit 0", stdin=LARGE)), "a command that reads nothing")


async def commands_begin_in_work(s: Subject) -> None:
    """A command begins in /work, or in the `cwd` that is named, a relative one below /work."""
    session = await s.session()
    await session.write("/work/deep/here", b"deep")
    await session.write("here", b"top")
    same((await sh(session, "cat here")).text, "top", "what lies in the folder where a command begins")
    for cwd in ("deep", "/work/deep"):
        same((await sh(session, "cat here", cwd=cwd)).text, "deep", f"what lies in cwd={cwd!r}")


async def the_environment_is_what_is_given(s: Subject) -> None:
    """`env` stands beside PATH, HOME and LANG, and holds for one command."""
    session = await s.session()
    code = "import os; print([os.environ.get(n) for n in ('GIVEN', 'PATH', 'HOME', 'LANG')])"
    ran = await session.exec(Command(("python3", "-c", code), env={"GIVEN": "a\nb="}))
    given, *others = eval(well(ran, "a command with an environment"))
    same(given, "a\nb=", "the variable given")
    require(all(others), f"PATH, HOME, LANG are {others}; expected all three set")
    same((await sh(session, "echo ${GIVEN-none}")).text, "none\n", "the variable in the next command")


async def what_cannot_be_run_is_a_result(s: Subject) -> None:
    """A program or `cwd` that is not there is status 127; what cannot be run, and a NUL, 126; stderr says why."""
    session = await s.session()
    await session.write("data", b"no program")
    tried = {
        "a program that is not there": (Command(("no-such-program",)), 127),
        "a cwd that is not there": (Command("exit 0", cwd="no-such-folder"), 127),
        "a file that is no program": (Command(("./data",)), 126),
        "a NUL in an argument": (Command(("sh", "-c", "a\0b")), 126),
    }
    for what, (command, status) in tried.items():
        ran = await session.exec(command)
        same(ran.status, status, f"the status of {what}")
        require(len(ran.stderr) > 3, f"{what} gave no reason on stderr")


async def a_signal_is_a_negative_status(s: Subject) -> None:
    """A command that signal n ended has status -n."""
    same((await sh(await s.session(), "kill -TERM $$")).status, -15, "the status after SIGTERM")


async def a_timeout_is_a_result(s: Subject) -> None:
    """A command that takes too long is ended, whatever it ignores: status -9, `timed_out`, killed by "timeout", output kept."""
    session = await s.session()
    ran = await sh(session, "trap '' TERM INT HUP; echo begun; while :; do sleep 0.1; done", timeout=0.5)
    same((ran.status, ran.timed_out, ran.killed, ran.text, ran.ok), (-9, True, "timeout", "begun\n", False), "a timeout")
    require(0.4 <= ran.seconds < 15, f"a timeout of 0.5 s took {ran.seconds} s")
    await works(session, "a timeout")


async def the_sessions_timeout_holds_for_calls_that_name_none(s: Subject) -> None:
    """`SandboxLimits.timeout` bounds a command and a piece of Python that name no timeout of their own."""
    session = await s.session(replace(s.limits, timeout=0.5))
    require((await sh(session, "sleep 100")).timed_out, "a command of 100 s ended by itself within a limit of 0.5 s")
    require((await session.python("while True: pass")).timed_out, "endless Python ended by itself within a limit of 0.5 s")


async def what_a_command_leaves_running_ends_with_it(s: Subject) -> None:
    """A command's children end with it, daemons in sessions of their own too."""
    session = await s.session()
    daemon = f"import os, subprocess; subprocess.Popen(['sh', '-c', '{GROWING.format('daemon')}'], start_new_session=True)"
    await sh(session, f"touch child daemon; {GROWING.format('child')} > /dev/null 2>&1 &")
    well(await program(session, daemon), "a program that starts a daemon")
    await stands_still(session, ("child", "daemon"), "what a command left")


async def a_cancelled_command_ends(s: Subject) -> None:
    """Cancelling a call ends what it runs; the next call gets its own answer."""
    session = await s.session()
    await session.write("cancelled", b"")
    await cut_off(sh(session, GROWING.format("cancelled")), 0.5, "an endless command")
    await stands_still(session, ("cancelled",), "a cancelled command")
    await cut_off(sh(session, "sleep 0; echo wrong; sleep 9"), 0.0, "a command cancelled before it began")
    await works(session, "a cancelled call")


async def calls_come_one_after_the_other(s: Subject) -> None:
    """Calls that are made at once each get their own answer."""
    session = await s.session()

    async def call(number: int) -> Ran:
        return await (session.python(f"{number}") if number % 2 else sh(session, f"echo {number}"))

    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(call(number)) for number in range(12)]
    same([task.result().text for task in tasks], [f"{number}\n" for number in range(12)], "answers to calls made at once")


async def pythons_names_last(s: Subject) -> None:
    """Names and imports of one piece of Python are there in the next; a last value is printed as a REPL prints it."""
    session = await s.session()
    same(
        (await session.python("import math\nx = 20\ndef twice(n):\n    return 2 * n")).stdout, b"", "the output of definitions"
    )
    same((await session.python("print('so')\ntwice(x) + math.floor(2.5)")).text, "so\n42\n", "print, and a last value")
    same((await session.python("'a'")).text, "'a'\n", "a last value that is text")
    same((await session.python("None")).text, "", "a last value that is None")


async def a_python_exception_is_a_result(s: Subject) -> None:
    """An exception, and code that is no Python, is status 1 with a traceback on stderr; the names are kept."""
    session = await s.session()
    ran = await session.python("x = 1\nprint('before')\nraise KeyError('lost')")
    same((ran.status, ran.text, ran.ok), (1, "before\n", False), "an exception")
    require("Traceback" in ran.error_text and "KeyError: 'lost'" in ran.error_text, f"its traceback is {ran.error_text!r}")
    ran = await session.python("def f(:")
    require(ran.status == 1 and "SyntaxError" in ran.error_text, f"code that is no Python gave {ran}")
    same((await session.python("x")).text, "1\n", "a name after an exception")


async def an_end_of_python_begins_the_names_anew(s: Subject) -> None:
    """`exit(n)` is status n; after it, a crash or a timeout the names are gone and Python goes on."""
    session = await s.session()
    crash = "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"
    for code, status in (("exit(3)", 3), ("exit()", 0), ("import os; os._exit(5)", 5), (crash, -9)):
        await session.python("x = 1")
        ran = await session.python(f"print('last words', flush=True)\n{code}")
        same((ran.status, ran.text), (status, "last words\n"), f"{code!r}")
        require("NameError" in (await session.python("x")).error_text, f"a name lives on after {code!r}")
    await session.python("x = 1")
    ran = await session.python("print('begun', flush=True)\nwhile True: pass", timeout=0.5)
    same((ran.timed_out, ran.killed, ran.text, ran.ok), (True, "timeout", "begun\n", False), "Python that takes too long")
    require("NameError" in (await session.python("x")).error_text, "a name lives on after a timeout")


async def a_cancelled_python_ends(s: Subject) -> None:
    """Cancelling a piece of Python ends it; the next gets its own answer."""
    session = await s.session()
    await session.write("cancelled", b"")
    endless = "import time\nwhile True:\n    open('cancelled', 'a').write('x')\n    time.sleep(0.02)"
    await cut_off(session.python(endless), 0.7, "endless Python")
    await stands_still(session, ("cancelled",), "a cancelled piece of Python")
    await works(session, "a cancelled piece of Python")


async def pythons_streams_are_its_programs_too(s: Subject) -> None:
    """What Python's children and its descriptors write is its output, each stream its own; input is at its end."""
    code = "import os, subprocess, sys\nsubprocess.run(['sh', '-c', 'echo out; echo err >&2'])\n_ = os.write(1, b'raw')\n"
    code += "sys.stdin.read()"
    ran = await (await s.session()).python(code)
    same((ran.stdout, ran.stderr), (b"out\nraw''\n", b"err\n"), "the two streams")


async def python_and_commands_share_the_files(s: Subject) -> None:
    """Python begins in /work, and sees what commands and the host wrote there; they see what it wrote."""
    session = await s.session()
    await session.write("/work/by-host", b"1")
    await sh(session, "printf 2 > by-command")
    code = "open('by-python', 'w').write('3'); print(open('by-host').read(), open('by-command').read())"
    same((await session.python(code)).text, "1 2\n", "what Python sees")
    same(await session.read("by-python"), b"3", "what the host sees of Python's file")


CALL_CHECKS = (
    an_argv_is_taken_as_it_is, a_line_goes_through_the_shell, standard_input_comes_in_whole,
    input_that_nobody_reads_does_not_hang, commands_begin_in_work, the_environment_is_what_is_given,
    what_cannot_be_run_is_a_result, a_signal_is_a_negative_status, a_timeout_is_a_result,
    the_sessions_timeout_holds_for_calls_that_name_none, what_a_command_leaves_running_ends_with_it, a_cancelled_command_ends,
    calls_come_one_after_the_other, pythons_names_last, a_python_exception_is_a_result,
    an_end_of_python_begins_the_names_anew, a_cancelled_python_ends, pythons_streams_are_its_programs_too,
    python_and_commands_share_the_files,
)  # fmt: skip
