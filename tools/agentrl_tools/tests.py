"""Tests of code that a model wrote, in a sandbox, with a result for each: for a reward, or as a tool.

    results = await run_tests(box, code, [Case("f([1, 2])", "3"), Check(source, entry="f")])
    passed = sum(result.passed for result in results) / len(results)

What is expected of a `Case` never enters the sandbox: the call's value comes out as text and is compared here. A `Check` is
code and must go in. It runs beside the candidate, never with it: in a process that none of the candidate's code runs in and
that it cannot look into, and whose word is taken only with a token that it was not given. What this does not stop: code that an
agent left running in the same box before the tests began may read or change them as they start. Give checks a box of their own.
"""

from __future__ import annotations

import ast
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib import resources
from typing import Any, TypeAlias

from agentrl.box import Box
from agentrl.errors import SandboxError, UserError
from agentrl.tool import ToolOutput

UNREADABLE = (ValueError, SyntaxError, MemoryError, RecursionError, TypeError)
NOT_FOUND = (126, 127)
LINE = 512
"""Bytes of output that a result needs, short of long values."""


@dataclass(frozen=True, slots=True)
class Case:
    """`call`, an expression over the candidate's names, must equal `expected`, a Python literal."""

    call: str
    expected: str
    name: str = ""

    def __post_init__(self) -> None:
        try:
            ast.literal_eval(self.expected)
        except UNREADABLE as error:
            raise UserError(f"a test's expected value must be a Python literal as text, got {self.expected!r:.80}") from error


@dataclass(frozen=True, slots=True)
class Check:
    """Code that defines `check(candidate)`, which raises if the function `entry` is wrong; `given` is run before it.

    The candidate's arguments and values travel as literals; what it raises, and what it does to its arguments, do not.
    """

    code: str
    entry: str
    name: str = "check"
    given: str = ""


Test: TypeAlias = Case | Check


@dataclass(frozen=True, slots=True)
class Result:
    """What one test came to."""

    name: str
    passed: bool
    message: str = ""
    """Why not, in a line; empty = passed."""
    seconds: float = 0.0


async def run_tests(box: Box, code: str, tests: Sequence[Test], *, seconds: float = 5.0) -> list[Result]:
    """A result for each test, in their order; each has so many seconds, and the code to itself.

    Raises `SandboxError` where the sandbox has no `python3`.
    """
    if not tests:
        return []
    if not seconds > 0:
        raise UserError(f"a test needs seconds > 0, got {seconds}")
    if box.limits.output < LINE * len(tests):
        raise UserError(f"{len(tests)} tests need a sandbox with limits.output >= {LINE * len(tests)}, got {box.limits.output}")
    token = box.secret("tests")
    asked = {"token": token, "code": code, "timeout": seconds, "tests": [_asked(test) for test in tests]}
    command = ("python3", "-I", "-S", "-c", harness())
    ran = await box.exec(command, stdin=json.dumps(asked), timeout=seconds * len(tests) + 5)
    if ran.status in NOT_FOUND and not ran.stdout:
        raise SandboxError(f"tests need a python3 in the sandbox; it says {ran.error_text.strip()!r:.200}")
    lines = [line.removeprefix(token) for line in ran.text.rpartition("\n")[0].split("\n") if line.startswith(token)]
    told = [json.loads(line) for line in lines[: len(tests)]]
    why = ran.killed or (f"[exit status {ran.status}] {ran.error_text[-200:]}").strip()
    told += [{"error": f"no result: {why}"}] * (len(tests) - len(told))
    return [_result(test, each) for test, each in zip(tests, told, strict=True)]


class Tests:
    """A tool: the model gives its code, and reads what each of these tests says to it."""

    name = "tests"
    inside = True
    __test__ = False  # not pytest's

    def __init__(self, box: Box, tests: Sequence[Test], *, seconds: float = 5.0) -> None:
        self.timeout = seconds * len(tests) + 60.0
        self._box = box
        self._tests = tuple(tests)
        self._seconds = seconds

    async def __call__(self, code: str) -> ToolOutput:
        """Runs the tests against Python code; gives a line for each that does not pass, and how many do."""
        results = await run_tests(self._box, code, self._tests, seconds=self._seconds)
        passed = sum(result.passed for result in results)
        lines = [f"{result.name}: {result.message}" for result in results if not result.passed]
        text = "\n".join([*lines, f"{passed} of {len(results)} tests passed"])
        return ToolOutput(text, {"passed": passed, "of": len(results)}, failed=passed < len(results))


@lru_cache(maxsize=1)
def harness() -> str:
    """The program that runs inside."""
    return resources.files("agentrl_tools").joinpath("harness.py").read_text(encoding="utf-8")


def _asked(test: Test) -> dict[str, str]:
    if isinstance(test, Case):
        return {"call": test.call}
    return {"check": test.code, "entry": test.entry, "given": test.given}


def _result(test: Test, told: dict[str, Any]) -> Result:
    name = test.name or (test.call if isinstance(test, Case) else "check")
    seconds = float(told.get("seconds", 0.0))
    if "error" in told:
        return Result(name, False, str(told["error"]), seconds)
    if isinstance(test, Check):
        return Result(name, True, "", seconds)
    try:
        same = bool(ast.literal_eval(told["value"]) == ast.literal_eval(test.expected))
    except UNREADABLE:
        same = False
    return Result(name, same, "" if same else f"gave {told['value']:.200}", seconds)
