"""Sampled text read by each family's parser."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentrl.errors import UserError
from agentrl.rendering.contract import ToolRequest, ToolSpec
from agentrl.rendering.parsers import PARSERS, DeepSeek, Glm, Hermes, Llama3, Mistral, Plain, QwenCoder, Tags

from .conftest import SEARCH, user

ADD = ToolSpec("add", "Adds.", {"type": "object", "properties": {"a": {"type": "integer"}, "b": {"type": "integer"}}})
NOW = ToolSpec("now", "Time.", {"type": "object", "properties": {}})
TOOLS = [SEARCH, ADD, NOW]
PERU = ToolRequest("search", {"query": "Peru"}, "call_0")

READ = [
    (Hermes(), '<tool_call>\n{"name": "search", "arguments": {"query": "Peru"}}\n</tool_call>', "", [PERU]),
    (
        Hermes(),
        'I look.\n<tool_call>{"name": "search", "arguments": "{\\"query\\": \\"Peru\\"}"}</tool_call>',
        "I look.",
        [PERU],
    ),
    (
        Hermes(),
        '<tool_call>{"name": "search", "arguments": {"query": "Peru"}}</tool_call>\n'
        '<tool_call>{"name": "add", "arguments": {"a": 1, "b": 2}}</tool_call>',
        "",
        [PERU, ToolRequest("add", {"a": 1, "b": 2}, "call_1")],
    ),
    (Hermes(), "Lima. ", "Lima. ", []),
    (
        QwenCoder(),
        "<tool_call>\n<function=search>\n<parameter=query>\nPeru\n</parameter>\n</function>\n</tool_call>",
        "",
        [PERU],
    ),
    (
        QwenCoder(),
        "Two:<tool_call><function=add><parameter=a>1</parameter><parameter=b>2</parameter></function></tool_call>",
        "Two:",
        [ToolRequest("add", {"a": 1, "b": 2}, "call_0")],
    ),
    (Glm(), "<tool_call>search\n<arg_key>query</arg_key>\n<arg_value>Peru</arg_value>\n</tool_call>", "", [PERU]),
    (Glm(), "<tool_call>now</tool_call>", "", [ToolRequest("now", {}, "call_0")]),
    (Llama3(), '{"name": "search", "parameters": {"query": "Peru"}}', "", [PERU]),
    (
        Llama3(),
        '<|python_tag|>{"name": "search", "parameters": {"query": "Peru"}}; {"name": "now", "parameters": {}}',
        "",
        [PERU, ToolRequest("now", {}, "call_1")],
    ),
    (Llama3(), '{"capital": "Lima"}', '{"capital": "Lima"}', []),
    (Mistral(), '[TOOL_CALLS] [{"name": "search", "arguments": {"query": "Peru"}}]', "", [PERU]),
    (
        Mistral(),
        '[TOOL_CALLS][{"name": "search", "arguments": {"query": "Peru"}, "id": "abcDEF123"}]',
        "",
        [ToolRequest("search", {"query": "Peru"}, "abcDEF123")],
    ),
    (Mistral(), 'I look.[TOOL_CALLS]search[ARGS]{"query": "Peru"}', "I look.", [PERU]),
    (
        DeepSeek(),
        "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>search\n```json\n"
        '{"query": "Peru"}\n```<｜tool▁call▁end｜><｜tool▁calls▁end｜>',
        "",
        [PERU],
    ),
    (
        DeepSeek(),
        "I look.<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>search<｜tool▁sep｜>"
        '{"query": "Peru"}<｜tool▁call▁end｜><｜tool▁calls▁end｜>',
        "I look.",
        [PERU],
    ),
    (Tags(), "<search>Peru</search>", "", [PERU]),
    (Tags(), "First <search> Peru </search>", "First", [PERU]),
    (Tags(), '<add>{"a": 1, "b": 2}</add>', "", [ToolRequest("add", {"a": 1, "b": 2}, "call_0")]),
    (Tags(), "<now></now>", "", [ToolRequest("now", {}, "call_0")]),
    (Tags(), "<b>Lima</b>", "<b>Lima</b>", []),
    (Plain(), "<search>Peru</search>", "<search>Peru</search>", []),
]


@pytest.mark.parametrize(("parser", "raw", "text", "requests"), READ)
def test_calls_are_read(parser, raw, text, requests):
    parsed = parser(raw, TOOLS)
    assert (parsed.text, list(parsed.tool_calls), parsed.error, parsed.raw) == (text, requests, "", raw)


@pytest.mark.parametrize(("parser", "raw", "text", "requests"), READ)
def test_thinking_is_taken_off_before_calls_are_read(parser, raw, text, requests):
    parsed = parser(f'<think>\nIs it <tool_call> or {{"name"?\n</think>\n\n{raw}', TOOLS)
    assert parsed.reasoning == 'Is it <tool_call> or {"name"?'
    assert (parsed.text, list(parsed.tool_calls), parsed.error) == (text, requests, "")


MALFORMED = [
    (Hermes(), '<tool_call>{"name": "search", "arguments": {</tool_call>', "not JSON"),
    (Hermes(), '<tool_call>{"name": "search", "arguments": [1]}</tool_call>', "no JSON object"),
    (Hermes(), '<tool_call>{"arguments": {}}</tool_call>', "no name"),
    (Hermes(), "<tool_call>[]</tool_call>", "no JSON object"),
    (Hermes(), '<tool_call>{"name": "search"', "no </tool_call>"),
    (Hermes(), "<tool_call>" + "[" * 100_000 + "</tool_call>", "not JSON"),
    (QwenCoder(), "<tool_call>search(Peru)</tool_call>", "not <function=name>"),
    (QwenCoder(), "<tool_call><function=add><parameter=a>one</parameter></function></tool_call>", "must be integer"),
    (Glm(), "<tool_call><arg_key>a</arg_key></tool_call>", "no name"),
    (Llama3(), '<|python_tag|>search("Peru")', "not JSON"),
    (Llama3(), '{"name": "search", "parameters": "Peru"}', "not JSON"),
    (Mistral(), "[TOOL_CALLS] search", "not a JSON list"),
    (Mistral(), "[TOOL_CALLS][1]", "no JSON object"),
    (DeepSeek(), "<｜tool▁calls▁begin｜>search<｜tool▁calls▁end｜>", "no call can be read"),
    (Tags(), "<search>Peru", "no </search>"),
    (Tags(), "<add>1 and 2</add>", "takes a JSON object with a, b"),
]


@pytest.mark.parametrize(("parser", "raw", "message"), MALFORMED)
def test_a_malformed_call_is_a_request_with_an_error(parser, raw, message):
    parsed = parser(raw, TOOLS)
    [request] = parsed.tool_calls
    assert message in request.error
    assert request.arguments == {}
    assert request.call_id == "call_0"
    assert parsed.error == request.error


def test_thinking_that_is_not_closed_is_an_error_and_no_answer():
    parsed = Hermes()("<think>\nPeru, so", TOOLS)
    assert (parsed.reasoning, parsed.text, parsed.tool_calls) == ("Peru, so", "", ())
    assert "no </think>" in parsed.error


def test_thinking_that_the_prompt_opened_is_read(renderer_of):
    renderer = renderer_of("qwen3_6")
    conversation = renderer.open([user("Capital of Peru?")])
    renderer.extend(conversation)
    raw = "Peru, so Lima.\n</think>\n\nLima.<|im_end|>"
    parsed = renderer.sampled(conversation, renderer.encode(raw))
    assert (parsed.reasoning, parsed.text, parsed.raw, parsed.error) == ("Peru, so Lima.", "Lima.", raw, "")


def test_a_parser_is_found_by_the_template_s_markers(family, renderer_of):
    expected = {
        "qwen2_5": "hermes",
        "qwen3": "hermes",
        "qwen3_instruct_2507": "hermes",
        "qwen3_6": "qwen_coder",
        "glm4moe": "glm",
        "llama3_1": "llama3",
        "llama3_2": "llama3",
        "deepseek_r1_distill": "deepseek",
        "deepseekv3": "deepseek",
        "mistral_shaped": "mistral",
    }
    assert renderer_of(family).parser is PARSERS[expected.get(family, "tags")]


def test_a_parser_may_be_named_or_given(renderer_of):
    assert renderer_of("chatml", parser="hermes").parser == Hermes()
    assert isinstance(renderer_of("chatml", parser=Plain()).parser, Plain)
    with pytest.raises(UserError, match="hermes"):
        renderer_of("chatml", parser="claude")


MARKERS = """<think> </think> <tool_call> </tool_call> <search> </search> <add> [TOOL_CALLS] [ARGS] <|python_tag|> <function=a>
</function> <parameter=b> </parameter> <arg_key> </arg_key> <arg_value> </arg_value> <｜tool▁calls▁begin｜>
<｜tool▁call▁begin｜> <｜tool▁sep｜> <｜tool▁call▁end｜> <｜tool▁calls▁end｜>
{"name": "search", "arguments": "parameters": { } [ ] " ;
NaN 1e999 null é"""
PIECES = st.sampled_from([*MARKERS.split(), "\n"])


@given(st.lists(PIECES | st.text(max_size=5), max_size=12).map("".join), st.sampled_from(sorted(PARSERS)))
def test_no_output_makes_a_parser_raise(raw, name):
    parsed = PARSERS[name](raw, TOOLS)
    assert parsed.raw == raw
    assert all(request.error == "" or request.arguments == {} for request in parsed.tool_calls)
    assert all(isinstance(request.name, str) for request in parsed.tool_calls)
    assert len({request.call_id for request in parsed.tool_calls}) == len(parsed.tool_calls)


@given(st.dictionaries(st.text(max_size=5), st.integers() | st.text(max_size=9) | st.none(), max_size=3))
def test_a_hermes_call_written_is_the_call_read(arguments):
    request = ToolRequest("f", arguments, "call_0")
    if "</tool_call>" not in str(arguments):
        assert Hermes()(Hermes().write(request), ()).tool_calls == (request,)


@pytest.mark.parametrize("name", sorted(set(PARSERS) - {"plain"}))
def test_a_call_written_is_the_call_read(name):
    for request in (PERU, ToolRequest("add", {"a": 1, "b": 2}, "call_0"), ToolRequest("now", {}, "call_0")):
        assert PARSERS[name](PARSERS[name].write(request), TOOLS).tool_calls == (request,)
