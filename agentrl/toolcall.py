"""One call of one tool: checked, timed, capped, retried, and recorded whatever comes of it."""

from __future__ import annotations

import asyncio
import inspect
import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from agentrl.effect import digest_request
from agentrl.episode import ToolStatus, Turn
from agentrl.errors import capture, describe
from agentrl.rendering.contract import ToolRequest
from agentrl.tool import Tool, ToolOutput
from agentrl.workflow import Ask, Asked, Outcome

if TYPE_CHECKING:
    from agentrl.team import Team


async def call_tool(team: Team, tools: Mapping[str, Tool], turn: Turn, request: ToolRequest) -> ToolOutput:
    """What the model gets to read. A bad call, an error, a timeout and a flood are outputs with a status, never raised."""
    tool = tools.get(request.name)
    refused: tuple[ToolStatus, str] | None = None
    if request.error:
        refused = ("bad_arguments", request.error)
    elif tool is None:
        refused = ("unknown_tool", f"there is no tool {request.name!r}; there are: {', '.join(tools) or 'none'}")
    elif problem := tool.check(request.arguments):
        refused = ("bad_arguments", problem)
    arguments = dict(request.arguments)

    async def run(asked: Asked) -> Outcome:
        status, output, attempts = (
            (refused[0], ToolOutput(refused[1]), 0) if refused or tool is None else ("ok", ToolOutput(""), 0)
        )
        if refused is None and tool is not None:
            status, output, attempts = await _attempts(team, tool, arguments, asked)
        limit = tool.max_output if tool is not None else 8192
        text = cut_middle(output.text, limit)
        value: dict[str, Any] = {
            "turn": turn.id,
            "arguments": arguments,
            "status": status,
            "output": text,
            "started": asked.issued_at,
            "ended": asked.clock(),
            "attempts": attempts,
            "truncated": len(text) != len(output.text),
            "call_id": request.call_id,
            "data": dict(output.data),
            "state": output.state,
        }
        return Outcome(value)

    ask = Ask(
        kind="tool",
        name=request.name,
        request=digest_request(turn.id, request.name, arguments, request.error),
        note=json.dumps(arguments)[:120],
        run=run,
        outlives=tool is not None and refused is None and tool.outlives,
        idempotent=tool is None or tool.idempotent,
    )
    value = (await team.world.perform(ask)).value
    return ToolOutput(value["output"], value["data"], value["state"])


async def _attempts(team: Team, tool: Tool, arguments: dict[str, Any], asked: Asked) -> tuple[ToolStatus, ToolOutput, int]:
    last: tuple[ToolStatus, ToolOutput] = ("error", ToolOutput(""))
    for attempt in range(tool.retries + 1):
        with capture() as caught:
            try:
                async with asyncio.timeout(tool.timeout) as deadline:
                    given = await _run(team, tool, arguments, asked)
            except TimeoutError:
                if not deadline.expired():
                    raise
                last = ("timeout", ToolOutput(f"{tool.name} gave nothing within {tool.timeout:g} s"))
                continue
            return "ok", _as_output(given), attempt + 1
        assert caught.error is not None
        last = ("error", ToolOutput(f"{tool.name} failed: {describe(caught.error)}"))
    return *last, tool.retries + 1


async def _run(team: Team, tool: Tool, arguments: dict[str, Any], asked: Asked) -> Any:
    if "idempotency_key" in inspect.signature(tool.call).parameters if tool.outlives else False:
        arguments = arguments | {"idempotency_key": asked.idempotency_key}
    if tool.is_async:
        return await tool.call(**arguments)
    return await team.thread(lambda: tool.call(**arguments))


def _as_output(given: Any) -> ToolOutput:
    if isinstance(given, ToolOutput):
        return given
    if isinstance(given, str):
        return ToolOutput(given)
    return ToolOutput(json.dumps(given, ensure_ascii=False, default=str))


def cut_middle(text: str, limit: int) -> str:
    """At most about `limit` characters: the head and the tail, and between them how much is missing."""
    if len(text) <= limit:
        return text
    half = max(1, limit // 2)
    return f"{text[:half]}\n[... {len(text) - 2 * half} characters cut ...]\n{text[-half:]}"
