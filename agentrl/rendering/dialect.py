"""How one chat template wants its messages: found by rendering probes at load, never by the model's name.

Templates differ in whether they render tool calls and reasoning at all, whether a call's arguments are a mapping or JSON text,
whether content beside calls is empty or none, and what a call id looks like. What a template cannot render stays in
`content` as the model wrote it, so that nothing of a sample is lost when it is rendered again.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import jinja2

from agentrl.rendering.contract import Message, ToolRequest
from agentrl.rendering.encoding import SENTINEL, Encoder
from agentrl.rendering.jinja import ChatTemplate

NINE = re.compile(r"[A-Za-z0-9]{9}")

RENDER_ERRORS = (jinja2.TemplateError, TypeError, KeyError, AttributeError, ValueError, IndexError)
"""What a template raises that cannot render what it is given: its own `raise_exception`, or a slip in its expressions."""


@dataclass(frozen=True, slots=True)
class Dialect:
    """What a template renders, and in which form."""

    calls: Literal["", "mapping", "json"]
    """Form of a call's arguments; empty = the template renders no tool calls."""
    bare_content: Literal["empty", "none"]
    """Content of a message that holds calls alone."""
    nine: bool
    """Call ids must be nine letters or digits."""
    mixed: bool
    """The template renders content beside calls."""
    several: bool
    """The template renders more than one call of a message."""
    reasoning: bool
    """The template renders `reasoning_content` of the newest message."""
    tool_role: bool
    system_role: bool
    lists_tools: bool
    parts: bool
    """Content is a list of parts (`{"type": "text", ...}`) and no string."""

    def content(self, text: str) -> Any:
        """Text in the form the template takes."""
        return [{"type": "text", "text": text}] if self.parts else text

    def call_id(self, call_id: str) -> str:
        """The id in the form the template takes; the same id always gives the same form."""
        if not self.nine or NINE.fullmatch(call_id):
            return call_id
        return hashlib.blake2b(call_id.encode(), digest_size=5).hexdigest()[:9]

    def holds(self, message: Message) -> bool:
        """Whether the template renders all parts of the assistant message from its fields."""
        calls = message.tool_calls
        if message.reasoning and not self.reasoning:
            return False
        if not calls:
            return True
        fits = (self.mixed or not message.content) and (self.several or len(calls) == 1)
        return bool(self.calls) and fits and not any(request.error for request in calls)

    def template_message(self, message: Message, encoder: Encoder) -> dict[str, Any]:
        """The mapping that the template reads. Text is shielded against forged control tokens."""
        own = message.role in ("assistant", "system")
        content = encoder.shield(message.content, own=own)
        entry: dict[str, Any] = {"role": message.role, "content": self.content(content)}
        if message.role == "tool":
            entry["name"] = encoder.shield(message.name, own=False)
            entry["tool_call_id"] = self.call_id(encoder.shield(message.call_id, own=False))
        elif message.name:
            entry["name"] = encoder.shield(message.name, own=False)
        if message.reasoning:
            reasoning = encoder.shield(message.reasoning, own=True)
            # Templates read reasoning under one of these names.
            entry.update(reasoning_content=reasoning, thinking=reasoning)
        if message.tool_calls:
            entry["tool_calls"] = self.template_calls(message.tool_calls)
            if not content and self.bare_content == "none":
                entry["content"] = None
        return entry

    def template_calls(self, requests: Sequence[ToolRequest]) -> list[dict[str, Any]]:
        """The calls in OpenAI's form, arguments as the template wants them."""
        calls: list[dict[str, Any]] = []
        for request in requests:
            arguments: Any = dict(request.arguments)
            if self.calls == "json":
                arguments = json.dumps(arguments, ensure_ascii=False)
            function = {"name": request.name, "arguments": arguments}
            calls.append({"type": "function", "id": self.call_id(request.call_id), "function": function})
        return calls


def probe(template: ChatTemplate, args: Mapping[str, Any]) -> Dialect:
    """The dialect of a template."""

    def shows(wanted: Sequence[str], messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]] = ()) -> bool:
        try:
            text = template(messages, tools or None, prompt=False, args=args)
        except RENDER_ERRORS:
            return False
        return all(want in text for want in wanted)

    listed: Any = [{"type": "text", "text": SENTINEL}]
    spoken = [{"role": "user", "content": SENTINEL}]
    parts = not shows([SENTINEL], spoken) and shows([SENTINEL], [{"role": "user", "content": listed}])
    user = {"role": "user", "content": [{"type": "text", "text": "u"}] if parts else "u"}
    calls, bare, nine = _call_form(shows, user)
    blank = Dialect(calls, bare, nine, True, True, False, True, True, False, parts)
    requests = blank.template_calls([ToolRequest("one", {"a": "b"}, "call_0"), ToolRequest(SENTINEL, {"a": "b"}, "call_1")])
    caller = {"role": "assistant", "content": None if bare == "none" else "", "tool_calls": requests[:1]}
    if not calls:
        caller = {"role": "assistant", "content": blank.content("a")}
    result = {"role": "tool", "name": "one", "tool_call_id": requests[0]["id"], "content": blank.content(SENTINEL)}
    parameters = {"type": "object", "properties": {"a": {"type": "string", "description": "d"}}, "required": ["a"]}
    spec = {"type": "function", "function": {"name": SENTINEL, "description": "d", "parameters": parameters}}
    thought = {"role": "assistant", "content": blank.content("a"), "reasoning_content": SENTINEL, "thinking": SENTINEL}
    return Dialect(
        calls,
        bare,
        nine,
        mixed=bool(calls)
        and shows([SENTINEL, "spoken"], [user, {**caller, "content": blank.content("spoken"), "tool_calls": requests[1:]}]),
        several=bool(calls) and shows(["one", SENTINEL], [user, {**caller, "tool_calls": requests}]),
        reasoning=shows([SENTINEL], [user, thought]),
        tool_role=shows([SENTINEL], [user, caller, result]),
        system_role=shows([SENTINEL], [{"role": "system", "content": blank.content(SENTINEL)}, user]),
        lists_tools=shows([SENTINEL], [user], [spec]),
        parts=parts,
    )


def _call_form(
    shows: Callable[[Sequence[str], Sequence[Mapping[str, Any]]], bool], user: Mapping[str, Any]
) -> tuple[Literal["", "mapping", "json"], Literal["empty", "none"], bool]:
    name, value = f"n{SENTINEL}", f"v{SENTINEL}"
    forms: tuple[Literal["mapping", "json"], ...] = ("mapping", "json")
    bares: tuple[Literal["empty", "none"], ...] = ("empty", "none")
    for call_id, form, bare in itertools.product(("call_0", "c00000000"), forms, bares):
        arguments = json.dumps({"a": value}) if form == "json" else {"a": value}
        call = {"type": "function", "id": call_id, "function": {"name": name, "arguments": arguments}}
        message = {"role": "assistant", "content": "" if bare == "empty" else None, "tool_calls": [call]}
        if shows([name, value], [user, message]):
            return form, bare, len(call_id) == 9
    return "", "empty", False
