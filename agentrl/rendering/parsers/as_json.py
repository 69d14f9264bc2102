"""Families whose calls are JSON: Hermes and Qwen, Llama 3, Mistral, DeepSeek."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, cast

from agentrl.rendering.contract import Parsed, ToolRequest, ToolSpec
from agentrl.rendering.parsers.shared import (
    UNREADABLE,
    as_parsed,
    excerpt,
    read_blocks,
    read_json_request,
    read_request,
    split_reasoning,
)


@dataclass(frozen=True, slots=True)
class Hermes:
    """Hermes and Qwen 2.5 / 3: `<tool_call>{"name": ..., "arguments": {...}}</tool_call>`, any number."""

    name: ClassVar[str] = "hermes"

    def __call__(self, raw: str, tools: Sequence[ToolSpec]) -> Parsed:
        def read(body: str, index: int) -> list[ToolRequest]:
            return [read_json_request(body.strip(), index)]

        return read_blocks(raw, "<tool_call>", "</tool_call>", read)

    def write(self, request: ToolRequest) -> str:
        """The call as Qwen's templates write it."""
        body = json.dumps({"name": request.name, "arguments": dict(request.arguments)}, ensure_ascii=False)
        return f"<tool_call>\n{body}\n</tool_call>"


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
            return as_parsed(raw, reasoning, rest, [], error)
        requests: list[ToolRequest] = []
        at = 0
        while at < len(body):
            try:
                value, at = _DECODER.raw_decode(body, at)
            except UNREADABLE as failure:
                message = f"the call is not JSON ({failure}): {excerpt(body[at:])}"
                requests.append(ToolRequest("", {}, f"call_{len(requests)}", message))
                break
            requests.append(read_request(value, len(requests), "parameters"))
            at += len(body[at:]) - len(body[at:].lstrip("; \n"))
        return as_parsed(raw, reasoning, text if tagged else "", requests, error)

    def write(self, request: ToolRequest) -> str:
        """The call as the templates write it."""
        return json.dumps({"name": request.name, "parameters": dict(request.arguments)}, ensure_ascii=False)


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
                requests.append(read_json_request(fields, len(requests)))
                continue
            try:
                values: Any = json.loads(call)
            except UNREADABLE as failure:
                message = f"the calls are not a JSON list ({failure}): {excerpt(call.strip())}"
                requests.append(ToolRequest("", {}, f"call_{len(requests)}", message))
                continue
            for value in cast("list[Any]", values if isinstance(values, list) else [values]):
                requests.append(read_request(value, len(requests), "arguments"))
        return as_parsed(raw, reasoning, text, requests, error)

    def write(self, request: ToolRequest) -> str:
        """The call as a list of one."""
        return "[TOOL_CALLS]" + json.dumps([{"name": request.name, "arguments": dict(request.arguments)}], ensure_ascii=False)


DEEPSEEK_CALL = re.compile(
    r"<｜tool▁call▁begin｜>(?:function<｜tool▁sep｜>)?(.*?)(?:\n```json\n|<｜tool▁sep｜>)(.*?)(?:\n```)?<｜tool▁call▁end｜>",
    re.DOTALL,
)


@dataclass(frozen=True, slots=True)
class DeepSeek:
    """DeepSeek V3, R1 (a JSON block after the name) and V3.1 (JSON after a separator)."""

    name: ClassVar[str] = "deepseek"

    def __call__(self, raw: str, tools: Sequence[ToolSpec]) -> Parsed:
        def read(body: str, index: int) -> list[ToolRequest]:
            found = DEEPSEEK_CALL.findall(body)
            if not found:
                return [ToolRequest("", {}, f"call_{index}", f"no call can be read in {excerpt(body.strip())}")]
            return [
                read_request({"name": name.strip(), "arguments": arguments}, index + offset, "arguments")
                for offset, (name, arguments) in enumerate(found)
            ]

        return read_blocks(raw, "<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>", read)

    def write(self, request: ToolRequest) -> str:
        """The call as V3 and R1 write one."""
        body = json.dumps(dict(request.arguments), ensure_ascii=False)
        call = f"<｜tool▁call▁begin｜>function<｜tool▁sep｜>{request.name}\n```json\n{body}\n```<｜tool▁call▁end｜>"
        return f"<｜tool▁calls▁begin｜>{call}<｜tool▁calls▁end｜>"
