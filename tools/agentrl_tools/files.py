"""`files`: reading, writing and listing a sandbox's files."""

from __future__ import annotations

from dataclasses import replace

from agentrl.box import Box
from agentrl.tool import Tool, as_tool


def files(box: Box) -> list[Tool]:
    """The tools `read_file`, `write_file` and `list_files` over one box."""

    async def read_file(path: str) -> str:
        """Reads a text file."""
        return (await box.read(path)).decode("utf-8", "backslashreplace")

    async def write_file(path: str, text: str) -> str:
        """Writes a text file; folders above it are made."""
        await box.write(path, text)
        return f"wrote {len(text)} characters to {path}"

    async def list_files(path: str = "/work") -> str:
        """Lists a folder: a name and a size in bytes a line; folders end with a slash."""
        entries = await box.list(path)
        return "\n".join(f"{e.name}/" if e.kind == "folder" else f"{e.name} {e.size}" for e in entries) or "[empty]"

    return [replace(as_tool(function), inside=True, timeout=60.0) for function in (read_file, write_file, list_files)]
