"""Sampled text read as answer, reasoning and tool calls, one parser per format.

A parser is a value: `parser(raw, tools) -> Parsed`. It never raises: a call it cannot read becomes a `ToolRequest` whose
`error` says why, which an agent loop can send back to the model. `raw` is without the stop token; if the prompt opened
`<think>`, the renderer puts that in front. Call ids are those the model wrote, else `call_0`, `call_1`, ... in each turn.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, cast

from agentrl.rendering.contract import Parsed, ToolRequest, ToolSpec

THINK, THOUGHT = "<think>", "</think>"

UNREADABLE = (ValueError, RecursionError)
"""What JSON that a model wrote may raise, nested a thousand deep included."""


class Parser(Protocol):
    """Reads one sampled output. Must not raise, whatever the model wrote."""

    def __call__(self, raw: str, tools: Sequence[ToolSpec]) -> Parsed: ...


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


def request_from_json(text: str, index: int, arguments_key: str = "arguments") -> ToolRequest:
    """A call written as `{"name": ..., "arguments": {...}}`; arguments may also be JSON text."""
    try:
        value: Any = json.loads(text)
    except UNREADABLE as error:
        return ToolRequest("", {}, f"call_{index}", f"the call is not JSON ({error}): {_excerpt(text)}")
    return _request(value, index, arguments_key)


def _request(value: Any, index: int, arguments_key: str) -> ToolRequest:
    call_id = f"call_{index}"
    if not isinstance(value, dict):
        return ToolRequest("", {}, call_id, f"the call is no JSON object: {_excerpt(json.dumps(value))}")
    fields = cast("dict[str, Any]", value)
    name, arguments = fields.get("name"), fields.get(arguments_key)
    given = fields.get("id")
    if isinstance(given, str) and given:
        call_id = given
    if not isinstance(name, str) or not name:
        return ToolRequest("", {}, call_id, f"the call has no name: {_excerpt(json.dumps(value))}")
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments)
        except UNREADABLE as error:
            return ToolRequest(name, {}, call_id, f"{arguments_key!r} is not JSON ({error}): {_excerpt(arguments)}")
    if not isinstance(arguments, dict):
        return ToolRequest(name, {}, call_id, f"{arguments_key!r} is no JSON object: {_excerpt(json.dumps(arguments))}")
    return ToolRequest(name, cast("dict[str, Any]", arguments), call_id)


def _excerpt(text: str) -> str:
    return text if len(text) <= 80 else text[:77] + "..."


def _parsed(raw: str, reasoning: str, text: str, requests: Sequence[ToolRequest], error: str = "") -> Parsed:
    error = error or next((request.error for request in requests if request.error), "")
    return Parsed(text.strip() if requests else text, raw, reasoning, tuple(requests), error)


def _blocks(text: str, opening: str, closing: str) -> Iterator[tuple[str, str | None]]:
    """(text before, body) of every `opening body closing`; a last pair has body None, and `closing` missing gives all that is left."""
    at = 0
    while (start := text.find(opening, at)) >= 0:
        end = text.find(closing, start + len(opening))
        if end < 0:
            yield text[at:start], text[start:]
            return
        yield text[at:start], text[start : end + len(closing)]
        at = end + len(closing)
    yield text[at:], None


def _read_blocks(raw: str, opening: str, closing: str, read: Any) -> Parsed:
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
            message = f"a call has no {closing}: {_excerpt(body.strip())}"
            requests.append(ToolRequest("", {}, f"call_{len(requests)}", message))
    return _parsed(raw, reasoning, "".join(outside), requests, error)


@dataclass(frozen=True, slots=True)
class Plain:
    """Text and reasoning only; nothing is a call."""

    name: ClassVar[str] = "plain"

    def __call__(self, raw: str, tools: Sequence[ToolSpec]) -> Parsed:
        reasoning, rest, error = split_reasoning(raw)
        return Parsed(rest, raw, reasoning, (), error)


@dataclass(frozen=True, slots=True)
class Hermes:
    """Hermes and Qwen 2.5 / 3: `<tool_call>{"name": ..., "arguments": {...}}</tool_call>`, any number."""

    name: ClassVar[str] = "hermes"

    def __call__(self, raw: str, tools: Sequence[ToolSpec]) -> Parsed:
        def read(body: str, index: int) -> list[ToolRequest]:
            return [request_from_json(body.strip(), index)]

        return _read_blocks(raw, "<tool_call>", "</tool_call>", read)

    def write(self, request: ToolRequest) -> str:
        """The call as Qwen's templates write it."""
        body = json.dumps({"name": request.name, "arguments": dict(request.arguments)}, ensure_ascii=False)
        return f"<tool_call>\n{body}\n</tool_call>"


FUNCTION = re.compile(r"\s*<function=([^>\n]+)>(.*)</function>\s*", re.DOTALL)
PARAMETER = re.compile(r"<parameter=([^>\n]+)>\n?(.*?)\n?</parameter>", re.DOTALL)


@dataclass(frozen=True, slots=True)
class QwenCoder:
    """Qwen3-Coder and Qwen 3.5: `<tool_call><function=f><parameter=p>value</parameter></function></tool_call>`.

    Values are text; one whose schema is no string is read as JSON.
    """

    name: ClassVar[str] = "qwen_coder"

    def __call__(self, raw: str, tools: Sequence[ToolSpec]) -> Parsed:
        specs = {tool.name: tool for tool in tools}

        def read(body: str, index: int) -> list[ToolRequest]:
            match = FUNCTION.fullmatch(body)
            if match is None:
                error = f"a call is not <function=name>...</function>: {_excerpt(body.strip())}"
                return [ToolRequest("", {}, f"call_{index}", error)]
            name = match[1].strip()
            return [_typed(name, PARAMETER.findall(match[2]), specs.get(name), index)]

        return _read_blocks(raw, "<tool_call>", "</tool_call>", read)


def _typed(name: str, pairs: Sequence[tuple[str, str]], spec: ToolSpec | None, index: int) -> ToolRequest:
    properties: Mapping[str, Any] = {} if spec is None else spec.parameters.get("properties") or {}
    arguments: dict[str, Any] = {}
    for key, text in pairs:
        kind = (properties.get(key.strip()) or {}).get("type", "string")
        if kind == "string":
            arguments[key.strip()] = text
            continue
        try:
            arguments[key.strip()] = json.loads(text)
        except UNREADABLE:
            error = f"parameter {key.strip()!r} must be {kind}, got {_excerpt(text)}"
            return ToolRequest(name, {}, f"call_{index}", error)
    return ToolRequest(name, arguments, f"call_{index}")


PYTHON_TAG = "<|python_tag|>"
_DECODER = json.JSONDecoder()


@dataclass(frozen=True, slots=True)
class Llama3:
    """Llama 3.x: the output is `{"name": ..., "parameters": {...}}`, several joined by `;`, after an optional `<|python_tag|>`.

    Without the tag, JSON that has no `name` and `parameters` is an answer, not a call.
    """

    name: ClassVar[str] = "llama3"

    def __call__(self, raw: str, tools: Sequence[ToolSpec]) -> Parsed:
        reasoning, rest, error = split_reasoning(raw)
        text, tagged, tail = rest.partition(PYTHON_TAG)
        body = (tail if tagged else rest).strip()
        if not tagged and not (body.startswith("{") and '"name"' in body and '"parameters"' in body):
            return _parsed(raw, reasoning, rest, [], error)
        requests: list[ToolRequest] = []
        at = 0
        while at < len(body):
            try:
                value, at = _DECODER.raw_decode(body, at)
            except UNREADABLE as failure:
                message = f"the call is not JSON ({failure}): {_excerpt(body[at:])}"
                requests.append(ToolRequest("", {}, f"call_{len(requests)}", message))
                break
            requests.append(_request(value, len(requests), "parameters"))
            at += len(body[at:]) - len(body[at:].lstrip("; \n"))
        return _parsed(raw, reasoning, text if tagged else "", requests, error)


@dataclass(frozen=True, slots=True)
class Mistral:
    """Mistral: `[TOOL_CALLS][{"name": ..., "arguments": {...}, "id": ...}, ...]`, or newer `[TOOL_CALLS]name[ARGS]{...}`."""

    name: ClassVar[str] = "mistral"

    def __call__(self, raw: str, tools: Sequence[ToolSpec]) -> Parsed:
        reasoning, rest, error = split_reasoning(raw)
        text, *calls = rest.split("[TOOL_CALLS]")
        requests: list[ToolRequest] = []
        for call in calls:
            name, newer, arguments = call.partition("[ARGS]")
            if newer:
                name, _, call_id = name.partition("[CALL_ID]")
                fields = json.dumps({"name": name.strip(), "arguments": arguments.strip(), "id": call_id.strip()})
                requests.append(request_from_json(fields, len(requests)))
                continue
            try:
                values: Any = json.loads(call)
            except UNREADABLE as failure:
                message = f"the calls are not a JSON list ({failure}): {_excerpt(call.strip())}"
                requests.append(ToolRequest("", {}, f"call_{len(requests)}", message))
                continue
            for value in cast("list[Any]", values if isinstance(values, list) else [values]):
                requests.append(_request(value, len(requests), "arguments"))
        return _parsed(raw, reasoning, text, requests, error)


DEEPSEEK_CALL = re.compile(
    r"<｜tool▁call▁begin｜>(?:function<｜tool▁sep｜>)?(.*?)(?:\n```json\n|<｜tool▁sep｜>)(.*?)(?:\n```)?<｜tool▁call▁end｜>", re.DOTALL
)


@dataclass(frozen=True, slots=True)
class DeepSeek:
    """DeepSeek V3, R1 (a JSON block after the name) and V3.1 (JSON after a separator)."""

    name: ClassVar[str] = "deepseek"

    def __call__(self, raw: str, tools: Sequence[ToolSpec]) -> Parsed:
        def read(body: str, index: int) -> list[ToolRequest]:
            found = DEEPSEEK_CALL.findall(body)
            if not found:
                return [ToolRequest("", {}, f"call_{index}", f"no call can be read in {_excerpt(body.strip())}")]
            return [
                _request({"name": name.strip(), "arguments": arguments}, index + offset, "arguments")
                for offset, (name, arguments) in enumerate(found)
            ]

        return _read_blocks(raw, "<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>", read)


@dataclass(frozen=True, slots=True)
class Tags:
    """`<search>Lima currency</search>` calls the tool `search` with its one string argument; for tiny and few-shot models.

    The tags are the names of the conversation's tools. A tool that takes another number of arguments gets a JSON object:
    `<add>{"a": 1, "b": 2}</add>`; one that takes none gets nothing. Text outside the tags is the answer.
    """

    name: ClassVar[str] = "tags"

    def __call__(self, raw: str, tools: Sequence[ToolSpec]) -> Parsed:
        reasoning, rest, error = split_reasoning(raw)
        specs = {tool.name: tool for tool in tools}
        if not specs or "<" not in rest:
            return _parsed(raw, reasoning, rest, [], error)
        names = "|".join(re.escape(name) for name in specs)
        requests: list[ToolRequest] = []
        outside: list[str] = []
        at = 0
        for match in re.finditer(rf"<({names})>(.*?)(</\1>|\Z)", rest, re.DOTALL):
            outside.append(rest[at : match.start()])
            at = match.end()
            call_id = f"call_{len(requests)}"
            if match[3]:
                requests.append(_tagged(specs[match[1]], match[2].strip(), call_id))
            else:
                message = f"<{match[1]}> has no </{match[1]}>: {_excerpt(match[2].strip())}"
                requests.append(ToolRequest(match[1], {}, call_id, message))
        return _parsed(raw, reasoning, "".join((*outside, rest[at:])), requests, error)

    def write(self, request: ToolRequest) -> str:
        """The call as its reader takes it."""
        values = list(request.arguments.values())
        body = values[0] if len(values) == 1 and isinstance(values[0], str) else json.dumps(dict(request.arguments))
        return f"<{request.name}>{body if values else ''}</{request.name}>"


def _tagged(spec: ToolSpec, body: str, call_id: str) -> ToolRequest:
    properties = cast("Mapping[str, Any]", spec.parameters.get("properties") or {})
    required = cast("Sequence[str]", spec.parameters.get("required") or ())
    strings = [key for key, schema in properties.items() if schema.get("type") == "string"]
    wanted = list(required) or strings
    if len(wanted) == 1 and wanted[0] in strings and not body.startswith("{"):
        return ToolRequest(spec.name, {wanted[0]: body}, call_id)
    try:
        arguments: Any = json.loads(body or "{}")
    except UNREADABLE:
        arguments = None
    if isinstance(arguments, dict):
        return ToolRequest(spec.name, cast("dict[str, Any]", arguments), call_id)
    if len(wanted) == 1 and wanted[0] in strings:
        return ToolRequest(spec.name, {wanted[0]: body}, call_id)
    expected = ", ".join(properties) or "nothing"
    return ToolRequest(spec.name, {}, call_id, f"<{spec.name}> takes a JSON object with {expected}, got {_excerpt(body)}")


PARSERS: Mapping[str, Parser] = {
    parser.name: parser for parser in (Plain(), Hermes(), QwenCoder(), Llama3(), Mistral(), DeepSeek(), Tags())
}
"""The parsers by short name, for configuration; any callable of the same form may be passed instead."""


def detect_parser(template: str, tokens: Sequence[str] = ()) -> Parser:
    """The parser of a model family by the markers in its chat template and added tokens; `Tags` if there are none."""
    if "[TOOL_CALLS]" in template or "[TOOL_CALLS]" in tokens:
        return PARSERS["mistral"]
    if "<function=" in template and "<parameter=" in template:
        return PARSERS["qwen_coder"]
    if "<tool_call>" in template:
        return PARSERS["hermes"]
    if "<｜tool▁calls▁begin｜>" in template:
        return PARSERS["deepseek"]
    if PYTHON_TAG in template or ('"parameters": ' in template and "<|start_header_id|>" in template):
        return PARSERS["llama3"]
    return PARSERS["tags"]
