"""One rendering of all messages, against transformers."""

from __future__ import annotations

import pytest
from transformers import AutoTokenizer
from transformers.utils.chat_template_utils import render_jinja_template

from agentrl.errors import UserError
from agentrl.rendering.contract import Message
from agentrl.rendering.template import TemplateRenderer

from .conftest import SEARCH, called, result, said, user

SYSTEM = Message("system", "Answer briefly: é, 日本, 🙂.")
CASES = {
    "chat": ([user("Capital of Peru?"), said("Lima."), user(" And  of Chile? ")], []),
    "system": ([SYSTEM, user("Capital of Peru?"), said("Lima."), user("Why?")], []),
    "thinking": ([user("Capital?"), said("Lima.", "Peru, so\nLima"), user("Sure?"), said("Yes", "hm"), user("ok")], []),
    "tools": ([SYSTEM, user("Capital?"), called("Peru"), result('{"a": "Lima"}'), said("Lima."), user("Thanks")], [SEARCH]),
    "two rounds": ([user("Capital?"), called("Peru"), result("none"), called("Lima"), result("yes")], [SEARCH]),
}


def reference_messages(renderer: TemplateRenderer, messages: list[Message]) -> list[dict[str, object]]:
    """The messages as a careful user would write them for transformers."""
    entries: list[dict[str, object]] = []
    for message in messages:
        content = [{"type": "text", "text": message.content}] if renderer.dialect.parts else message.content
        entry: dict[str, object] = {"role": message.role, "content": content}
        if message.tool_calls:
            entry["tool_calls"] = renderer.dialect.template_calls(message.tool_calls)
            if renderer.dialect.bare_content == "none":
                entry["content"] = None
        if message.reasoning:
            entry["reasoning_content"] = message.reasoning
        if message.role == "tool":
            entry |= {"name": message.name, "tool_call_id": renderer.dialect.call_id(message.call_id)}
        entries.append(entry)
    return entries


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("prompt", [True, False])
def test_rendering_is_that_of_transformers(family, renderer_of, folder_of, case, prompt):
    renderer = renderer_of(family)
    messages, tools = CASES[case]
    if any(message.tool_calls for message in messages) and not renderer.dialect.calls:
        pytest.skip("the template renders no tool calls")
    if any(message.reasoning for message in messages) and not renderer.dialect.reasoning:
        pytest.skip("the template renders no reasoning")
    tokenizer = AutoTokenizer.from_pretrained(folder_of(family))
    wanted = reference_messages(renderer, messages)
    schemas = [tool.as_openai() for tool in tools] or None
    if any(message.role == "tool" for message in messages) and not renderer.dialect.tool_role:
        pytest.skip("the template has no role 'tool'")
    if any(message.role == "system" for message in messages) and not renderer.dialect.system_role:
        pytest.skip("the template has no role 'system'")
    try:
        # apply_chat_template drops content that is None, which some templates ask for
        template = {"chat_template": tokenizer.chat_template, "add_generation_prompt": prompt}
        [text], _ = render_jinja_template([wanted], schemas, **template, **tokenizer.special_tokens_map)
    except Exception as error:  # noqa: BLE001 - whatever the template raises there, it must raise here
        with pytest.raises(UserError) as caught:
            renderer.text(renderer.open(messages, tools), prompt=prompt)
        assert str(error) in str(caught.value)
        return
    ids = tokenizer.encode(text, add_special_tokens=False)
    if all(entry["content"] is not None for entry in wanted):
        options = {"add_generation_prompt": prompt, "return_dict": False}
        assert ids == tokenizer.apply_chat_template(wanted, tools=schemas, **options)
    conversation = renderer.open(messages, tools)
    assert renderer.text(conversation, prompt=prompt) == text
    assert renderer.fresh(conversation, prompt=prompt) == ids


def test_rendering_of_smollm2_is_that_of_transformers(smollm2):
    renderer = TemplateRenderer.from_folder(smollm2)
    tokenizer = AutoTokenizer.from_pretrained(smollm2)
    for messages in ([user("Capital of Peru?")], [SYSTEM, user("Capital?"), said("Lima."), user("Why?")]):
        wanted = [{"role": message.role, "content": message.content} for message in messages]
        conversation = renderer.open(messages)
        rendered = renderer.extend(conversation)
        assert rendered.ids.tolist() == tokenizer.apply_chat_template(wanted, add_generation_prompt=True, return_dict=False)
        assert conversation.path == rendered.ids.tolist()
    assert [renderer.decode([stop]) for stop in renderer.stop_ids] == ["<|im_end|>"]


def test_segments_tell_which_message_each_token_renders(renderer_of):
    renderer = renderer_of("qwen3")
    rendered = renderer.extend(renderer.open([Message("system", "Be brief."), user("Hi"), said("Lo"), user("So?")]))
    parts = [(part.role, renderer.decode(rendered.ids[part.start : part.end])) for part in rendered.segments]
    assert parts == [
        ("system", "<|im_start|>system\nBe brief.<|im_end|>\n"),
        ("user", "<|im_start|>user\nHi<|im_end|>\n"),
        ("assistant", "<|im_start|>assistant\nLo<|im_end|>\n"),
        ("user", "<|im_start|>user\nSo?<|im_end|>\n"),
        ("generation", "<|im_start|>assistant\n"),
    ]


def test_template_args_reach_the_template(renderer_of):
    renderer = renderer_of("qwen3", template_args={"enable_thinking": False})
    assert renderer.text(renderer.open([user("Hi")])).endswith("<think>\n\n</think>\n\n")
    assert renderer.text(renderer.open([user("Hi")], enable_thinking=True)).endswith("<|im_start|>assistant\n")


def test_template_ids_differ_by_use(renderer_of):
    ids = {
        renderer_of("qwen3").template_id,
        renderer_of("qwen3", history="faithful").template_id,
        renderer_of("qwen3", template_args={"enable_thinking": False}).template_id,
        renderer_of("qwen3_6").template_id,
    }
    assert len(ids) == 4
    assert renderer_of("qwen3").template_id in ids
