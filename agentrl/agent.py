"""An agent: a role by name, with its system prompt, its tools and its limits. It has no weights; a policy serves it.

`AgentRun` is the model-tool loop, read top to bottom: render what is new, sample, read the reply, run its tool calls at the
same time, again; until it answers or a limit says stop.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

from agentrl.context import Context, Full
from agentrl.effect import digest_request
from agentrl.episode import StopReason, Turn, token_ids
from agentrl.errors import ContextOverflow, EngineError, UserError
from agentrl.rendering.contract import Conversation, Message, Parsed, Rendered, ToolRequest
from agentrl.tool import Tool, as_tools
from agentrl.toolcall import call_tool

if TYPE_CHECKING:
    from agentrl.team import Sampled, Team

LONG = 1 << 15
"""Characters from which rendering takes several milliseconds. A record depends on it: the thread stands in the journal."""


@dataclass(frozen=True)
class Agent:
    """A role. Sampling settings left None are the policy's."""

    name: str
    system: str = ""
    tools: Sequence[Any] = ()
    """Functions, callable objects or `Tool` values."""
    max_turns: int = 8
    max_tokens: int = 256
    """Sampled tokens of one turn."""
    max_total_tokens: int | None = None
    """Sampled tokens of one run of the agent."""
    max_tool_calls: int | None = None
    timeout: float | None = None
    """Seconds for one run of the agent; inside the episode's deadline."""
    no_progress: int = 3
    """So many equal rounds (the same calls with the same results) in a row end the run; 0 = never."""
    temperature: float | None = None
    context: Context = field(default_factory=Full)

    def __post_init__(self) -> None:
        if not self.name or ":" in self.name or "/" in self.name:
            raise UserError(f"an agent's name must be non-empty and have no ':' or '/', got {self.name!r}")
        for limit in ("max_turns", "max_tokens", "max_total_tokens"):
            value = getattr(self, limit)
            if value is not None and value < 1:
                raise UserError(f"agent {self.name}: {limit} must be >= 1, got {value}")
        assert self.toolbox is not None  # refuses what is no tool

    @cached_property
    def toolbox(self) -> Mapping[str, Tool]:
        """The tools by name."""
        return as_tools(self.tools)


@dataclass(frozen=True, slots=True)
class Reply:
    """What a run of an agent gave: the text of its last turn, the turn, and why it stopped."""

    text: str
    stop: StopReason
    turn: Turn | None
    messages: tuple[Message, ...]


_ONE = threading.Lock()


def _alone(extend: Callable[[Conversation], Rendered], conversation: Conversation) -> Rendered:
    """One at a time: beside several threads that want the interpreter the event loop would wait for each in turn."""
    with _ONE:
        return extend(conversation)


class AgentRun:
    """One run of an agent: a fresh context, from the first message to the stop."""

    def __init__(self, team: Team, agent: Agent, messages: Sequence[Message], tools: Mapping[str, Tool]) -> None:
        self._team = team
        self._agent = agent
        self._tools = tools
        self._seat = team.seat(agent.name)
        self._conversation = self._seat.renderer.open(messages, [tool.spec for tool in tools.values()])
        self._last: Sampled | None = None
        self._sampled = 0
        self._calls = 0
        self._state = digest_request([message.content for message in messages]).hex()
        self._rounds: list[bytes] = []
        self._text = ""

    async def run(self) -> Reply:
        """The loop, inside the agent's deadline."""
        deadline = asyncio.timeout(self._agent.timeout)
        try:
            async with deadline:
                stop = await self._loop()
        except TimeoutError:
            if not deadline.expired():
                raise
            stop = "deadline"
        except ContextOverflow:
            stop = "context_overflow"
        except EngineError as error:
            self._team.note_stop(self._agent.name, "engine_failure")
            raise error
        self._team.note_stop(self._agent.name, stop)
        return Reply(self._text, stop, self._last.turn if self._last else None, tuple(self._conversation.messages))

    async def _loop(self) -> StopReason:
        agent = self._agent
        for _ in range(agent.max_turns):
            left = agent.max_tokens if agent.max_total_tokens is None else agent.max_total_tokens - self._sampled
            parsed = await self._sample(min(agent.max_tokens, left))
            if parsed is None:
                return "context_overflow"
            assert self._last is not None
            turn = self._last.turn
            self._text = parsed.text
            if turn.finish == "abort":
                return "cancelled"
            if parsed.error or any(request.error for request in parsed.tool_calls):
                self._team.note_invalid(turn)
            if not parsed.tool_calls:
                if parsed.error:
                    return "parse_error"
                return "answered" if turn.finish == "stop" else "token_limit"
            if agent.max_tool_calls is not None and self._calls + len(parsed.tool_calls) > agent.max_tool_calls:
                return "tool_limit"
            replies = await self._call(turn, parsed.tool_calls)
            if self._stuck(parsed.tool_calls, replies):
                return "no_progress"
            if agent.max_total_tokens is not None and self._sampled >= agent.max_total_tokens:
                return "token_limit"
        return "turn_limit"

    async def _sample(self, max_tokens: int) -> Parsed | None:
        conversation = self._conversation
        seat = self._seat
        rendered = await self._extended()
        room = max_tokens
        if not seat.takes_messages:
            if not self._agent.context.fits(conversation, 0, max_tokens, seat.engine.info.max_context):
                return None
            room = min(max_tokens, seat.engine.info.max_context - len(conversation.path))
        prompt = token_ids(conversation.path)
        self._last = await self._team.sample(
            self._agent, rendered, prompt, after=self._last, max_tokens=room, state=self._state
        )
        sampled = self._last.turn.sampled_ids
        self._sampled += len(sampled)
        return seat.renderer.sampled(conversation, sampled)

    async def _extended(self) -> Rendered:
        """The path with the new messages. Much text is tokenised in a thread, which no other episode has to wait for."""
        conversation, extend = self._conversation, self._seat.renderer.extend
        if sum(len(message.content) for message in conversation.messages[conversation.rendered :]) < LONG:
            return extend(conversation)
        return await asyncio.to_thread(_alone, extend, conversation)

    async def _call(self, turn: Turn, requests: Sequence[ToolRequest]) -> list[Message]:
        """Runs the calls at the same time; their replies join the conversation in the order of the calls."""
        self._calls += len(requests)
        if len(requests) == 1:
            outputs = [await call_tool(self._team, self._tools, turn, requests[0])]
        else:
            async with asyncio.TaskGroup() as tasks:
                running = [
                    tasks.create_task(call_tool(self._team, self._tools, turn, request), name=request.call_id or None)
                    for request in requests
                ]
            outputs = [task.result() for task in running]
        replies = [
            Message("tool", output.text, name=request.name, call_id=request.call_id)
            for request, output in zip(requests, outputs, strict=True)
        ]
        self._state = digest_request([output.state or output.text for output in outputs]).hex()
        self._conversation.messages.extend(replies)
        return replies

    def _stuck(self, requests: Sequence[ToolRequest], replies: Sequence[Message]) -> bool:
        said = [
            [request.name, dict(request.arguments), reply.content] for request, reply in zip(requests, replies, strict=True)
        ]
        self._rounds.append(digest_request(said))
        last = self._rounds[-self._agent.no_progress :]
        return bool(self._agent.no_progress) and len(last) == self._agent.no_progress and len(set(last)) == 1
