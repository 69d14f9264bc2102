"""`ChatRenderer`: for an engine that takes messages and keeps its tokenizer to itself.

Its ids are the bytes of the conversation, one JSON line for the tools and one for each message, in the form of the
chat completions API. So such a conversation is recorded, replayed and forked as any other; but its ids are no tokens of the
model, and nothing can be trained on them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from agentrl.episode import IntArray, Segment, token_ids
from agentrl.errors import UserError
from agentrl.rendering.contract import Conversation, Message, Parsed, Rendered, ToolRequest, ToolSpec

FORM = "chat-completions-1"
"""Changes when the same messages give other lines."""


class ChatRenderer:
    """See the module, and `agentrl.rendering.contract.Renderer`."""

    tokenizer_id = ""
    template_id = FORM
    stop_ids: tuple[int, ...] = ()

    def open(self, messages: Sequence[Message], tools: Sequence[ToolSpec] = (), **template_args: Any) -> Conversation:
        """A conversation of which nothing is rendered yet."""
        if template_args:
            raise UserError(f"an engine that takes messages has no template to give {', '.join(template_args)} to")
        return Conversation(list(messages), tuple(tools))

    def extend(self, conversation: Conversation) -> Rendered:
        """A line for each message that is not yet in the path."""
        tools = [tool.as_openai() for tool in conversation.tools] if not conversation.path else []
        lines = [("tools", _line({"tools": tools}))] if tools else []
        lines += [(message.role, _line(as_openai(message))) for message in conversation.messages[conversation.rendered :]]
        kept, segments, begin = len(conversation.path), list[Segment](), 0
        for role, line in lines:
            segments.append(Segment(role, begin, begin + len(line)))
            begin += len(line)
        ids = as_ids(b"".join(line for _, line in lines))
        conversation.path.extend(ids.tolist())
        conversation.rendered = len(conversation.messages)
        return Rendered(kept, ids, tuple(segments))

    def sampled(self, conversation: Conversation, ids: IntArray) -> Parsed:
        """Takes the reply's line into the path, and reads it; a reply that was aborted has none."""
        raw = self.decode(ids)
        said: Mapping[str, Any] = json.loads(raw) if raw else {"content": ""}
        text = said["content"] or ""
        requests = tuple(_request(call) for call in said["tool_calls"]) if "tool_calls" in said else ()
        conversation.path.extend(ids.tolist())
        conversation.messages.append(Message("assistant", text, tool_calls=requests))
        conversation.rendered += 1
        return Parsed(text, raw, tool_calls=requests)

    def decode(self, ids: IntArray | Sequence[int]) -> str:
        """The text of the bytes."""
        return np.asarray(ids, np.uint8).tobytes().decode(errors="replace")

    def encode(self, text: str) -> IntArray:
        """The bytes of the text."""
        return as_ids(text.encode())


def as_ids(data: bytes) -> IntArray:
    """Bytes as ids."""
    return token_ids(np.frombuffer(data, np.uint8))


def _line(value: Mapping[str, Any]) -> bytes:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode(errors="replace") + b"\n"


def reply_ids(content: str, calls: Sequence[Mapping[str, Any]]) -> IntArray:
    """The line of a reply, with its tool calls as the endpoint gave them."""
    return as_ids(_line({"role": "assistant", "content": content, **({"tool_calls": calls} if calls else {})}))


def read_prompt(ids: IntArray) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The messages and the tools of a path; `UserError` for ids that are none of this renderer's."""
    try:
        lines = [json.loads(line) for line in np.asarray(ids).astype(np.uint8).tobytes().splitlines()]
        tools = lines.pop(0)["tools"] if "tools" in lines[0] else []
        if not lines or any("role" not in line for line in lines):
            raise ValueError("no messages")
    except (ValueError, TypeError, IndexError) as error:
        raise UserError(
            f"a prompt of {len(ids)} ids is no conversation of ChatRenderer ({error}); an engine that takes messages needs "
            "it as the policy's renderer, which its spec gives"
        ) from error
    return lines, tools


def as_openai(message: Message) -> dict[str, Any]:
    """A message in the form of the chat completions API."""
    told: dict[str, Any] = {"role": message.role, "content": message.content}
    if message.role == "tool":
        told["tool_call_id"] = message.call_id
    if message.tool_calls:
        told["tool_calls"] = [
            {
                "id": call.call_id,
                "type": "function",
                "function": {"name": call.name, "arguments": json.dumps(dict(call.arguments))},
            }
            for call in message.tool_calls
        ]
    return told


def _request(call: Mapping[str, Any]) -> ToolRequest:
    name, given = call["function"]["name"], call["function"]["arguments"]
    try:
        arguments = json.loads(given or "{}")
    except ValueError as error:
        return ToolRequest(name, {}, call["id"], f"the arguments are no JSON: {error}")
    if not isinstance(arguments, dict):
        return ToolRequest(name, {}, call["id"], f"the arguments must be a JSON object, got {given[:80]!r}")
    return ToolRequest(name, arguments, call["id"])  # pyright: ignore[reportUnknownArgumentType]
