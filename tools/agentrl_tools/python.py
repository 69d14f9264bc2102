"""`python`: a Python whose names last from call to call, in a sandbox.

async with team.sandbox() as box:
    reply = await team["coder"].run(task.text, tools=[Python(box)])
"""

from __future__ import annotations

from dataclasses import replace

from agentrl.box import Box
from agentrl.tool import ToolOutput
from agentrl_tools.shell import told


class Python:
    """A tool over one box; two agents that are given the same one share its names.

    `brief`: of a traceback the model reads the last line alone.
    """

    name = "python"
    inside = True

    def __init__(self, box: Box, *, seconds: float = 10.0, brief: bool = False) -> None:
        self.timeout = seconds + 30.0  # opening the box, and what a resumed episode makes again, included
        self._box = box
        self._seconds = seconds
        self._brief = brief

    async def __call__(self, code: str) -> ToolOutput:
        """Runs Python code. Names last from call to call; gives what was printed, and the value of a last expression."""
        ran = await self._box.python(code, timeout=self._seconds)
        if self._brief and ran.status == 1:
            ran = replace(ran, stderr=ran.stderr.rstrip().rpartition(b"\n")[2])
        return told(ran)
