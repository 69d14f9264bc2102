"""Sampled text read as answer, reasoning and tool calls, one parser per format.

A parser is a value: `parser(raw, tools) -> Parsed`. It never raises: a call it cannot read becomes a `ToolRequest` whose
`error` says why, which an agent loop can send back to the model. `raw` is without the stop token; if the prompt opened
`<think>`, the renderer puts that in front. Call ids are those the model wrote, else `call_0`, `call_1`, ... in each turn.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from agentrl.rendering.parsers.as_json import PYTHON_TAG, DeepSeek, Hermes, Llama3, Mistral
from agentrl.rendering.parsers.as_tags import Glm, QwenCoder, Tags
from agentrl.rendering.parsers.shared import THINK, THOUGHT, CallWriter, Parser, Plain

__all__ = [
    "PARSERS",
    "THINK",
    "THOUGHT",
    "CallWriter",
    "DeepSeek",
    "Glm",
    "Hermes",
    "Llama3",
    "Mistral",
    "Parser",
    "Plain",
    "QwenCoder",
    "Tags",
    "detect_parser",
]

PARSERS: Mapping[str, Parser] = {
    parser.name: parser for parser in (Plain(), Hermes(), QwenCoder(), Glm(), Llama3(), Mistral(), DeepSeek(), Tags())
}
"""The parsers by short name, for configuration; any callable of the same form may be passed instead."""


def detect_parser(template: str, tokens: Sequence[str] = ()) -> Parser:
    """The parser of a model family by the markers in its chat template and added tokens; `Tags` if there are none."""
    if "[TOOL_CALLS]" in template or "[TOOL_CALLS]" in tokens:
        return PARSERS["mistral"]
    if "<function=" in template and "<parameter=" in template:
        return PARSERS["qwen_coder"]
    if "<arg_key>" in template:
        return PARSERS["glm"]
    if "<tool_call>" in template:
        return PARSERS["hermes"]
    if "<｜tool▁calls▁begin｜>" in template:
        return PARSERS["deepseek"]
    if PYTHON_TAG in template or ('"parameters": ' in template and "<|start_header_id|>" in template):
        return PARSERS["llama3"]
    return PARSERS["tags"]
