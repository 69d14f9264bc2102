"""What all parsers share: reasoning taken off, calls between two markers, calls written as JSON."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, TypeAlias, cast, runtime_checkable

from agentrl.rendering.contract import Parsed, ToolRequest, ToolSpec

THINK, THOUGHT = "<think>", "</think>"

UNREADABLE = (ValueError, RecursionError)
"""What JSON that a model wrote may raise, nested a thousand deep included."""

Read: TypeAlias = "Callable[[str, int], list[ToolRequest]]"
"""The calls in a text; the number is that of the calls before it."""


class Parser(Protocol):
    """Reads one sampled output. Must not raise, whatever the model wrote."""

    def __call__(self, raw: str, tools: Sequence[ToolSpec]) -> Parsed: ...


@runtime_checkable
class CallWriter(Protocol):
    """A parser that can also write a call as the model would, for templates that render no calls."""

    def write(self, request: ToolRequest) -> str: ...


def split_reasoning(raw: str) -> tuple[str, str, str]:
    """(reasoning, the rest, error). Only reasoning at the beginning counts, and `</think>` alone closes one."""
    head = raw.lstrip()
    opened = head.startswith(THINK)
    if not opened and (THOUGHT not in raw or THINK in raw):
        return "", raw, ""
    body = head[len(THINK) :] if opened else raw
    reasoning, closed, rest = body.partition(THOUGHT)
    if not closed:
        return reasoning.strip("\n"), "", f"reasoning has no {THOUGHT}: the output was cut, or the model never closed it"
    return reasoning.strip("\n"), rest.lstrip("\n"), ""


def read_json_request(text: str, index: int, arguments_key: str = "arguments") -> ToolRequest:
    """A call written as `{"name": ..., "arguments": {...}}`; arguments may also be JSON text."""
    try:
        value: Any = json.loads(text)
    except UNREADABLE as error:
        return ToolRequest("", {}, f"call_{index}", f"the call is not JSON ({error}): {excerpt(text)}")
    return read_request(value, index, arguments_key)


def read_request(value: Any, index: int, arguments_key: str) -> ToolRequest:
    """The call in a JSON value; anything else gives a request with an error."""
    call_id = f"call_{index}"
    if not isinstance(value, dict):
        return ToolRequest("", {}, call_id, f"the call is no JSON object: {excerpt(json.dumps(value))}")
    fields = cast("dict[str, Any]", value)
    name, arguments = fields.get("name"), fields.get(arguments_key)
    given = fields.get("id")
    if isinstance(given, str) and given:
        call_id = given
    if not isinstance(name, str) or not name:
        return ToolRequest("", {}, call_id, f"the call has no name: {excerpt(json.dumps(value))}")
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments)
        except UNREADABLE as error:
            return ToolRequest(name, {}, call_id, f"{arguments_key!r} is not JSON ({error}): {excerpt(arguments)}")
    if not isinstance(arguments, dict):
        return ToolRequest(name, {}, call_id, f"{arguments_key!r} is no JSON object: {excerpt(json.dumps(arguments))}")
    return ToolRequest(name, cast("dict[str, Any]", arguments), call_id)


def excerpt(text: str) -> str:
    """The text as an error message may quote it."""
    return text if len(text) <= 80 else text[:77] + "..."


def as_parsed(raw: str, reasoning: str, text: str, requests: Sequence[ToolRequest], error: str = "") -> Parsed:
    """The output as read; its error is the first of its calls' unless given."""
    error = error or next((request.error for request in requests if request.error), "")
    return Parsed(text.strip() if requests else text, raw, reasoning, tuple(requests), error)


def _blocks(text: str, opening: str, closing: str) -> Iterator[tuple[str, str | None]]:
    """(text before, block) of every `opening ... closing`, the last to the end if its `closing` lacks; then (text, None)."""
    at = 0
    while (start := text.find(opening, at)) >= 0:
        end = text.find(closing, start + len(opening))
        if end < 0:
            yield text[at:start], text[start:]
            return
        yield text[at:start], text[start : end + len(closing)]
        at = end + len(closing)
    yield text[at:], None


def read_blocks(raw: str, opening: str, closing: str, read: Read) -> Parsed:
    """Everything between the two markers read by `read(body, index)`, which gives requests; the rest is text."""
    reasoning, rest, error = split_reasoning(raw)
    outside: list[str] = []
    requests: list[ToolRequest] = []
    for before, block in _blocks(rest, opening, closing):
        outside.append(before)
        if block is None:
            continue
        body = block[len(opening) :]
        if body.endswith(closing):
            requests += read(body[: -len(closing)], len(requests))
        else:
            message = f"a call has no {closing}: {excerpt(body.strip())}"
            requests.append(ToolRequest("", {}, f"call_{len(requests)}", message))
    return as_parsed(raw, reasoning, "".join(outside), requests, error)


@dataclass(frozen=True, slots=True)
class Plain:
    """Text and reasoning only; nothing is a call."""

    name: ClassVar[str] = "plain"

    def __call__(self, raw: str, tools: Sequence[ToolSpec]) -> Parsed:
        reasoning, rest, error = split_reasoning(raw)
        return Parsed(rest, raw, reasoning, (), error)
