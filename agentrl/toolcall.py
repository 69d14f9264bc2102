"""One call of one tool: checked, timed, capped, retried, and recorded whatever comes of it."""

from __future__ import annotations

import asyncio
import inspect
import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from agentrl.effect import digest_request
from agentrl.episode import ToolStatus, Turn
from agentrl.errors import ReplayDiverged, SandboxError, ToolError, capture, describe
from agentrl.rendering.contract import ToolRequest
from agentrl.tool import Tool, ToolOutput
from agentrl.workflow import Ask, Asked, Outcome

if TYPE_CHECKING:
    from agentrl.team import Team


async def call_tool(team: Team, tools: Mapping[str, Tool], turn: Turn, request: ToolRequest) -> ToolOutput:
    """What the model gets to read. A bad call, an error, a timeout and a flood are outputs with a status, not raised.

    A `ToolError` that the tool itself raises is: it ends the episode, with fault "tool".
    """
    tool = tools.get(request.name)
    refused: tuple[ToolStatus, str] | None = None
    if request.error:
        refused = ("bad_arguments", request.error)
    elif tool is None:
        refused = ("unknown_tool", f"there is no tool {request.name!r}; there are: {', '.join(tools) or 'none'}")
    elif problem := tool.check(request.arguments):
        refused = ("bad_arguments", problem)
    said = json.dumps(dict(request.arguments))

    async def told(key: str, started: float, clock: Callable[[], float]) -> dict[str, Any]:
        if refused is not None or tool is None:
            status, output, attempts = refused[0] if refused else "unknown_tool", ToolOutput(refused[1] if refused else ""), 0
        else:
            status, output, attempts = await _attempts(team, tool, said, key)
        text = cut_middle(output.text, tool.max_output if tool is not None else 8192)
        return {
            "turn": turn.id,
            "arguments": json.loads(said),
            "status": status,
            "output": text,
            "started": started,
            "ended": clock(),
            "attempts": attempts,
            "truncated": len(text) != len(output.text),
            "call_id": request.call_id,
            "data": dict(output.data),
            "state": output.state,
        }

    async def run(asked: Asked) -> Outcome:
        return Outcome(await told(asked.idempotency_key, asked.issued_at, asked.clock))

    if tool is not None and tool.inside:
        value = team.world.record("tool", request.name, await told("", team.now(), team.now))
        return ToolOutput(value["output"], value["data"], value["state"])
    ask = Ask(
        kind="tool",
        name=request.name,
        request=digest_request(turn.id, request.name, said.encode(), request.error),
        note=said[:120],
        run=run,
        outlives=tool is not None and refused is None and tool.outlives,
        idempotent=tool is None or tool.idempotent,
    )
    value = (await team.world.perform(ask)).value
    return ToolOutput(value["output"], value["data"], value["state"])


async def _attempts(team: Team, tool: Tool, said: str, key: str) -> tuple[ToolStatus, ToolOutput, int]:
    """Runs a tool until it gives something; each try has the arguments to itself. Raises what is no fault of the call alone."""
    status: ToolStatus = "error"
    output = ToolOutput("")
    for attempt in range(tool.retries + 1):
        with capture() as caught:
            status, output = await _try(team, tool, json.loads(said), key)
        if isinstance(caught.error, ToolError | SandboxError | ReplayDiverged) and attempt == tool.retries:
            raise caught.error  # what the tool stands on is broken: the episode is lost, and no model is to blame
        if caught.error is not None:
            status, output = "error", ToolOutput(f"{tool.name} failed: {describe(caught.error)}")
        if status == "ok":
            return status, output, attempt + 1
    return status, output, tool.retries + 1


async def _try(team: Team, tool: Tool, arguments: dict[str, Any], key: str) -> tuple[ToolStatus, ToolOutput]:
    if tool.keyed:
        arguments["idempotency_key"] = key
    deadline = asyncio.timeout(tool.timeout)
    try:
        async with deadline:
            given = tool.call(**arguments) if tool.is_async else await team.thread(lambda: tool.call(**arguments))
            output = _as_output(await given if inspect.isawaitable(given) else given)
            return "error" if output.failed else "ok", output
    except TimeoutError:
        if not deadline.expired():
            raise
        return "timeout", ToolOutput(f"{tool.name} gave nothing within {tool.timeout:g} s")
    except asyncio.CancelledError:
        task = asyncio.current_task()
        if task is None or task.cancelling():
            raise
        return "cancelled", ToolOutput(f"{tool.name} was cancelled from inside")
    except SystemExit as error:
        return "error", ToolOutput(f"{tool.name} called sys.exit({error.code})")


def _as_output(given: Any) -> ToolOutput:
    if isinstance(given, ToolOutput):
        return replace(given, data=json.loads(json.dumps(dict(given.data)))) if given.data else given
    if isinstance(given, str):
        return ToolOutput(given)
    return ToolOutput(json.dumps(given, ensure_ascii=False, default=str))


def cut_middle(text: str, limit: int) -> str:
    """At most about `limit` characters: the head and the tail, and between them how much is missing."""
    if len(text) <= limit:
        return text
    half = max(1, limit // 2)
    return f"{text[:half]}\n[... {len(text) - 2 * half} characters cut ...]\n{text[-half:]}"
