"""Families whose calls are tags: Qwen3-Coder, GLM, and plain tags named as the tools."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, cast

from agentrl.rendering.contract import Parsed, ToolRequest, ToolSpec
from agentrl.rendering.parsers.shared import UNREADABLE, as_parsed, excerpt, read_blocks, split_reasoning

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
                error = f"a call is not <function=name>...</function>: {excerpt(body.strip())}"
                return [ToolRequest("", {}, f"call_{index}", error)]
            name = match[1].strip()
            return [_typed(name, PARAMETER.findall(match[2]), specs.get(name), index)]

        return read_blocks(raw, "<tool_call>", "</tool_call>", read)

    def write(self, request: ToolRequest) -> str:
        """The call as the templates write it."""
        pairs = (f"<parameter={key}>\n{_plain(value)}\n</parameter>\n" for key, value in request.arguments.items())
        return f"<tool_call>\n<function={request.name}>\n{''.join(pairs)}</function>\n</tool_call>"


def _plain(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


PAIR = re.compile(r"<arg_key>(.*?)</arg_key>\s*<arg_value>(.*?)</arg_value>", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Glm:
    """GLM 4.5 and later: `<tool_call>f<arg_key>p</arg_key><arg_value>value</arg_value></tool_call>`."""

    name: ClassVar[str] = "glm"

    def __call__(self, raw: str, tools: Sequence[ToolSpec]) -> Parsed:
        specs = {tool.name: tool for tool in tools}

        def read(body: str, index: int) -> list[ToolRequest]:
            name = body.partition("<arg_key>")[0].strip()
            if not name or "<" in name:
                return [ToolRequest("", {}, f"call_{index}", f"the call has no name: {excerpt(body.strip())}")]
            return [_typed(name, PAIR.findall(body), specs.get(name), index)]

        return read_blocks(raw, "<tool_call>", "</tool_call>", read)

    def write(self, request: ToolRequest) -> str:
        """The call as the templates write it."""
        pairs = (
            f"<arg_key>{key}</arg_key>\n<arg_value>{_plain(value)}</arg_value>\n" for key, value in request.arguments.items()
        )
        return f"<tool_call>{request.name}\n{''.join(pairs)}</tool_call>"


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
            error = f"parameter {key.strip()!r} must be {kind}, got {excerpt(text)}"
            return ToolRequest(name, {}, f"call_{index}", error)
    return ToolRequest(name, arguments, f"call_{index}")


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
            return as_parsed(raw, reasoning, rest, [], error)
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
                message = f"<{match[1]}> has no </{match[1]}>: {excerpt(match[2].strip())}"
                requests.append(ToolRequest(match[1], {}, call_id, message))
        return as_parsed(raw, reasoning, "".join((*outside, rest[at:])), requests, error)

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
    return ToolRequest(spec.name, {}, call_id, f"<{spec.name}> takes a JSON object with {expected}, got {excerpt(body)}")
