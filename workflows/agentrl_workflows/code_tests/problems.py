"""A programming problem: what the agent reads, and the hidden tests that its program must pass."""

from __future__ import annotations

import re
from dataclasses import dataclass

from agentrl_tools.tests import Case, Check, Test

FENCED = re.compile(r"```(?:python|py)?\n(.*?)```", re.DOTALL)


@dataclass(frozen=True)
class Problem:
    """One task. Hidden tests are `calls` whose values must equal `expected` (Python literals), or one `check(candidate)`."""

    text: str
    setup: str = ""
    """Run in the agent's session before it begins."""
    calls: tuple[str, ...] = ()
    expected: tuple[str, ...] = ()
    entry: str = ""
    """The function that `check` tests."""
    check: str = ""
    given: str = ""
    """Code that stands in front of every answer and of the check: imports, helpers, the head of the function."""
    kind: str = ""
    """What figures are told apart by."""

    @property
    def tests(self) -> list[Test]:
        """The hidden tests."""
        if self.check:
            return [Check(self.check, self.entry, given=self.given)]
        return [Case(call, value) for call, value in zip(self.calls, self.expected, strict=True)]


def program_of(reply: str) -> str:
    """The program in a reply: its last fenced block, or all of it where there is none."""
    fenced = FENCED.findall(reply)
    return fenced[-1] if fenced else reply
