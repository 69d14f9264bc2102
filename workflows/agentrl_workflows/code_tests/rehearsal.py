"""A sandbox for demonstrations: runs the lines of `pipelines` in this process, and refuses everything else.

A demonstrator's programs are ours: nothing has to be kept away from them, and a process for each would cost more than what is
learned. Whatever is not made of the known lines is a `SandboxError`. Never give it to a model.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

from agentrl.errors import SandboxError
from agentrl.sandbox import Backend, Command, Entry, Ran, SandboxLimits, Session
from agentrl_tools.tests import harness
from agentrl_workflows.code_tests.pipelines import FAILURES, HEAD, STAGES, TRIAL, Program, outcome, source, value

LINE = re.compile(r"    x = (.*)\n")
SETUP = re.compile(r"a, u = (.*)\nnotes = (.*)")
LOOKUP = re.compile(r"notes\['(.*)'\]")


@dataclass(frozen=True)
class Rehearsal:
    """The spec."""

    limits: SandboxLimits = field(default_factory=SandboxLimits)
    fork: Literal["replay"] = "replay"
    isolation: str = "none: runs known lines in this process, and nothing else"

    @asynccontextmanager
    async def open(self) -> AsyncGenerator[Backend]:
        """It is its own backend."""
        yield self

    async def session(self, limits: SandboxLimits) -> Session:
        """See `Backend`."""
        del limits
        return Lines()


class Lines:
    """See the module, and `Session`."""

    def __init__(self) -> None:
        self._shown: tuple[list[int], Any] = ([], None)
        self._notes: dict[str, str] = {}

    async def python(self, code: str, timeout: float | None = None) -> Ran:  # noqa: ASYNC109 - the contract's
        """Takes a problem's setup, looks up a word, or tries a program on the example."""
        del timeout
        setup, word = SETUP.fullmatch(code), LOOKUP.fullmatch(code)
        if setup:
            self._shown, self._notes = (ast.literal_eval(text) for text in setup.groups())
            return Ran(0)
        if word and word[1] in self._notes:
            return Ran(0, f"{self._notes[word[1]]!r}\n".encode())
        program, (given, wanted) = stages(code.removesuffix(TRIAL)), self._shown
        try:
            return Ran(0, f"{value(program, given) == wanted}\n".encode())
        except FAILURES as error:
            return Ran(1, stderr=f"{type(error).__name__}: {error}".encode())

    async def exec(self, command: Command) -> Ran:
        """Runs hidden tests as their harness would."""
        if harness() not in command.argv:
            raise SandboxError(f"a rehearsal runs tests alone, got {command.argv!r:.80}")
        asked = json.loads(command.stdin)
        program = stages(asked["code"])
        calls = (ast.literal_eval(test["call"].removeprefix("f")) for test in asked["tests"])
        told = ({"value": repr(outcome(program, given)), "seconds": 0.0} for given in calls)
        return Ran(0, "".join(f"{asked['token']}{json.dumps(each)}\n" for each in told).encode())

    async def read(self, path: str) -> bytes:
        """There are no files."""
        raise FileNotFoundError(2, "No such file or directory", path)

    async def write(self, path: str, data: bytes) -> None:
        """There are no files."""
        raise PermissionError(13, "Permission denied", path)

    async def list(self, path: str) -> Sequence[Entry]:
        """There are no files."""
        return ()

    async def fork(self) -> Session | None:
        """Its calls are made again."""
        return None

    async def close(self) -> None:
        """Nothing is held."""


def stages(code: str) -> Program:
    """The stages of a program; `SandboxError` if it is made of anything else."""
    found = tuple(LINE.findall(code))
    if not set(STAGES).issuperset(found) or source(found).strip() != code.strip():
        raise SandboxError(f"a rehearsal runs programs of {HEAD.strip()!r} and known lines alone, got {code!r:.120}")
    return found
