"""`shell`: shell lines in a sandbox."""

from __future__ import annotations

from agentrl.box import Box
from agentrl.sandbox import Ran
from agentrl.tool import ToolOutput


class Shell:
    """A tool over one box. Every line is a shell of its own: files last, variables and the working folder do not."""

    name = "shell"
    inside = True

    def __init__(self, box: Box, *, seconds: float = 10.0) -> None:
        self.timeout = seconds + 30.0  # as for `Python`
        self._box = box
        self._seconds = seconds

    async def __call__(self, command: str) -> ToolOutput:
        """Runs a line of shell in /work; gives its output, and its exit status if that is not 0."""
        return told(await self._box.exec(command, timeout=self._seconds))


def told(ran: Ran) -> ToolOutput:
    """What a model reads of what it ran: both streams, and how it ended if not well."""
    parts = [ran.text.rstrip(), ran.error_text.rstrip()]
    if ran.truncated:
        parts.append("[more output was thrown away]")
    if ran.timed_out:
        parts.append(f"[stopped after {ran.seconds:.0f} s]")
    elif ran.killed:
        parts.append(f"[ended: it used more {ran.killed} than it may]")
    elif ran.status:
        parts.append(f"[exit status {ran.status}]")
    text = "\n".join(part for part in parts if part)
    return ToolOutput(text or "[no output]", {"status": ran.status}, failed=not ran.ok)
