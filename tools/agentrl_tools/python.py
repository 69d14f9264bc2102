"""`python`: a Python whose names last from call to call, in a sandbox.

async with team.sandbox() as box:
    reply = await team["coder"].run(task.text, tools=[Python(box)])
"""

from __future__ import annotations

from agentrl.box import Box
from agentrl.tool import ToolOutput
from agentrl_tools.shell import told


class Python:
    """A tool over one box; two agents that are given the same one share its names."""

    name = "python"
    inside = True

    def __init__(self, box: Box, *, seconds: float = 10.0) -> None:
        self.timeout = seconds + 30.0  # opening the box, and what a resumed episode makes again, included
        self._box = box
        self._seconds = seconds

    async def __call__(self, code: str) -> ToolOutput:
        """Runs Python code. Names last from call to call; gives what was printed, and the value of a last expression."""
        return told(await self._box.python(code, timeout=self._seconds))
