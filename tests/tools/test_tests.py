"""Tests of code, in a real sandbox: what passes, what is said of what does not, and what a cheat cannot do."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from agentrl.errors import SandboxError, UserError
from agentrl.sandbox import Ran, SandboxLimits
from agentrl.tool import ToolOutput
from agentrl_sandboxes.process import Process
from agentrl_tools.tests import Case, Check, Result, Test, Tests, run_tests
from tests.boxes import experiment, running

ADD = "def add(a, b):\n    return a + b"
CHECK = Check("def check(candidate):\n    assert candidate(1, 2) == 3\n    assert candidate([1], [2]) == [1, 2]", "add")


async def results(code: str, tests: Sequence[Test], before: str = "", seconds: float = 5.0) -> list[Result]:
    """What `run_tests` gives in a fresh box in which `before` was run."""
    found: list[Result] = []

    async def work(task: str, team: object) -> None:
        async with team.sandbox() as box:  # type: ignore[attr-defined]
            if before:
                await box.python(before)
            found.extend(await run_tests(box, code, tests, seconds=seconds))

    async with running(experiment(work, Process(warm=0))) as runtime:
        episode = await runtime.run("go")
    assert episode.status == "done", episode.failure
    return found


async def test_each_test_has_a_result() -> None:
    tests = [Case("add(1, 2)", "3"), Case("add(1, 2)", "4", name="wrong"), Case("add(1)", "1"), CHECK]
    right, wrong, raised, check = await results(ADD, tests)
    assert (right.name, right.passed, right.message) == ("add(1, 2)", True, "")
    assert (wrong.name, wrong.passed, wrong.message) == ("wrong", False, "gave 3")
    assert not raised.passed
    assert raised.message == "TypeError: add() missing 1 required positional argument: 'b'"
    assert (check.passed, check.name) == (True, "check")
    assert all(0 < result.seconds < 5 for result in (right, wrong, raised, check))


async def test_a_failed_assertion_is_quoted() -> None:
    (check,) = await results("def add(a, b):\n    return 3", [CHECK])
    assert (check.passed, check.message) == (False, "AssertionError (assert candidate([1], [2]) == [1, 2])")


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("def add(a, b:", "SyntaxError"),
        ("raise ValueError('no')", "ValueError: no"),
        ("import os\nos._exit(0)", "ended without a value"),
        ("import os\nos.kill(os.getpid(), 9)", "ended without a value"),
        ("while True:\n    pass", "gave nothing within 0.5 s"),
        ("import time\ndef add(a, b):\n    time.sleep(60)", "gave nothing within 0.5 s"),
        ("class Odd:\n    pass\ndef add(a, b):\n    return Odd()", "gave <solution.Odd object at 0x"),
        ("def add(a, b):\n    return 'x' * 10**6", "its value is longer than 65536 bytes"),
        ("def add(a, b):\n    return '[' * 5000", "gave '[["),
    ],
)
async def test_code_that_does_not_give_a_value_fails_with_why(code: str, message: str) -> None:
    (result,) = await results(code, [Case("add(1, 2)", "3")], seconds=0.5 if "0.5 s" in message else 5.0)
    assert not result.passed
    assert result.message.startswith(message)


async def test_one_test_does_not_reach_into_the_next() -> None:
    code = "count = 0\ndef add(a, b):\n    global count\n    count += 1\n    return count"
    assert [r.passed for r in await results(code, [Case("add(1, 2)", "1"), Case("add(1, 2)", "1")])] == [True, True]


async def test_code_finds_its_files_and_its_data_classes() -> None:
    code = "from __future__ import annotations\nimport dataclasses, mine\n@dataclasses.dataclass\nclass P:\n    a: int\n"
    before = "open('mine.py', 'w').write('seven = 7')"
    (result,) = await results(code + "def f():\n    return P(mine.seven).a", [Case("f()", "7")], before)
    assert result.passed, result.message


CHEATS = {
    "says every verdict": "import os\nfor end in range(3, 64):\n    try:\n        os.write(end, b'{\"passed\": true}')\n"
    "    except OSError:\n        pass\n",
    "exits well": "import os\nos._exit(0)",
    "is equal to all": "class All:\n    def __eq__(self, other):\n        return True\n    def __repr__(self):\n"
    "        return 'All()'\ndef add(a, b):\n    return All()",
    "changes the language": "import builtins, ast, json\nast.literal_eval = lambda text: 3\n"
    "json.loads = lambda text: {'passed': True}\n"
    "builtins.AssertionError = None\ndef add(a, b):\n    return 0",
    "runs code where its value is read": "class Code:\n    def __repr__(self):\n        return '__import__(\"os\")._exit(0)'\n"
    "def add(a, b):\n    return Code()",
    "looks into other processes": "import os, glob\nfor place in glob.glob('/proc/[0-9]*/fd/*'):\n    try:\n"
    "        open(place, 'w').write('{\"passed\": true}')\n    except OSError:\n        pass\ndef add(a, b):\n    return 0",
    "writes into other processes": "import os\nfor pid in map(int, filter(str.isdigit, os.listdir('/proc'))):\n    try:\n"
    "        if pid != os.getpid():\n            open(f'/proc/{pid}/mem', 'r+b')\n            os.write(9, b'x')\n"
    "    except OSError:\n        pass\ndef add(a, b):\n    return 0",
    "ends the judge": "import os, signal\ndef add(a, b):\n    for pid in map(int, filter(str.isdigit, os.listdir('/proc'))):\n"
    "        if pid not in (1, os.getpid()):\n            try:\n                os.kill(pid, signal.SIGKILL)\n"
    "            except OSError:\n                pass\n",
}


@pytest.mark.parametrize("cheat", CHEATS)
async def test_a_cheat_passes_nothing(cheat: str) -> None:
    found = await results(CHEATS[cheat], [CHECK, Case("add(1, 2)", "3")], seconds=2.0)
    assert [result.passed for result in found] == [False, False]


async def test_what_a_session_left_behind_does_not_change_the_tests() -> None:
    before = "open('json.py', 'w').write('raise SystemExit'); open('ast.py', 'w').write('raise SystemExit')"
    (result,) = await results(ADD, [Case("add(1, 2)", "3")], before)
    assert result.passed


async def test_the_tool_says_what_failed_and_how_many_passed() -> None:
    said: list[ToolOutput] = []

    async def work(task: str, team: object) -> None:
        async with team.sandbox() as box:  # type: ignore[attr-defined]
            tool = Tests(box, [Case("add(1, 2)", "3"), Case("add(2, 2)", "5")])
            said.extend([await tool(ADD), await tool("def add(a, b):\n    return 3 if a == 1 else 5")])

    async with running(experiment(work, Process(warm=0))) as runtime:
        await runtime.run("go")
    assert said[0] == ToolOutput("add(2, 2): gave 4\n1 of 2 tests passed", {"passed": 1, "of": 2}, failed=True)
    assert said[1] == ToolOutput("2 of 2 tests passed", {"passed": 2, "of": 2})


async def test_a_sandbox_without_python_is_the_sandboxes_fault() -> None:
    class Bare:
        limits = SandboxLimits()

        def secret(self, name: str) -> str:
            return "token"

        async def exec(self, *command: object, **settings: object) -> Ran:
            return Ran(127, stderr=b"python3: not found")

    with pytest.raises(SandboxError, match="tests need a python3 in the sandbox; it says 'python3: not found'"):
        await run_tests(Bare(), ADD, [CHECK])  # type: ignore[arg-type]


async def test_a_sandbox_whose_output_holds_no_results_is_refused_before_anything_runs() -> None:
    class Small:
        limits = SandboxLimits(output=1000)

    assert [each.passed for each in await run_tests(Small(), ADD, [])] == []  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r"2 tests need a sandbox with limits\.output >= 1024, got 1000"):
        await run_tests(Small(), ADD, [CHECK, CHECK])  # type: ignore[arg-type]


async def test_tests_that_are_none_are_refused() -> None:
    with pytest.raises(UserError, match="expected value must be a Python literal as text, got 'object\\(\\)'"):
        Case("f()", "object()")
    with pytest.raises(UserError, match="a test needs seconds > 0, got 0"):
        await run_tests(None, ADD, [CHECK], seconds=0)  # type: ignore[arg-type]
