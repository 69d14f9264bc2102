"""What is added behind a sampled turn, and that nothing sampled is ever touched."""

from __future__ import annotations

import pytest

from agentrl.episode import token_ids
from agentrl.errors import UserError
from agentrl.rendering.contract import Message
from agentrl.rendering.template import TemplateRenderer

from .conftest import SEARCH, result, user

# What a model of the family samples for a call of search, and the token that ends its turn.
SAMPLED_CALL = {
    "qwen2_5": '<tool_call>\n{"name": "search", "arguments": {"query": "Peru"}}\n</tool_call><|im_end|>',
    "qwen3": '<think>\nHm\n</think>\n\n<tool_call>\n{"name":"search","arguments":{"query": "Peru"}}\n</tool_call><|im_end|>',
    "qwen3_instruct_2507": 'Well.\n<tool_call>\n{"name": "search", "arguments": {"query": "Peru"}}\n</tool_call><|im_end|>',
    "qwen3_6": "I look.\n</think>\n\n<tool_call>\n<function=search>\n<parameter=query>\nPeru\n</parameter>\n</function>\n"
    "</tool_call><|im_end|>",
    "llama3_1": '{"name": "search", "parameters": {"query": "Peru"}}<|eot_id|>',
    "llama3_2": '<|python_tag|>{"name": "search", "parameters": {"query": "Peru"}}<|eot_id|>',
    "deepseek_r1_distill": "</think><｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>search\n```json\n"
    '{"query": "Peru"}\n```<｜tool▁call▁end｜><｜tool▁calls▁end｜><｜end▁of▁sentence｜>',
    "deepseekv3": "</think><｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>search\n```json\n"
    '{"query": "Peru"}\n```<｜tool▁call▁end｜><｜tool▁calls▁end｜><｜end▁of▁sentence｜>',
    "glm4moe": "<think>I look.</think>\n<tool_call>search\n<arg_key>query</arg_key>\n<arg_value>Peru</arg_value>\n</tool_call>"
    "<|observation|>",
    "mistral_shaped": '[TOOL_CALLS][{"name": "search", "arguments": {"query": "Peru"}, "id": "abcDEF123"}]</s>',
}
TAGGED = "<search>Peru</search>"

LLAMA_RESULT = (
    '<|start_header_id|>ipython<|end_header_id|>\n\n"Lima."<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n'
)
# The whole text behind the call: end of turn, result "Lima.", generation prompt.
BEHIND_CALL = {
    "chatml": "\n<|im_start|>tool\nLima.<|im_end|>\n<|im_start|>assistant\n",
    "few_shot": "\n\nResult: Lima.\nAnswer: ",
    "qwen2_5": "\n<|im_start|>user\n<tool_response>\nLima.\n</tool_response><|im_end|>\n<|im_start|>assistant\n",
    "qwen3": "\n<|im_start|>user\n<tool_response>\nLima.\n</tool_response><|im_end|>\n<|im_start|>assistant\n",
    "qwen3_instruct_2507": "\n<|im_start|>user\n<tool_response>\nLima.\n</tool_response><|im_end|>\n<|im_start|>assistant\n",
    "qwen3_6": "\n<|im_start|>user\n<tool_response>\nLima.\n</tool_response><|im_end|>\n<|im_start|>assistant\n<think>\n",
    "llama3_1": LLAMA_RESULT,
    "llama3_2": LLAMA_RESULT,
    "glm4moe": "\n<tool_response>\nLima.\n</tool_response><|assistant|>",
    "smolvlm": "\nTool: Lima.<end_of_utterance>\nAssistant:",
    "gemma": "\n<start_of_turn>user\nLima.<end_of_turn>\n<start_of_turn>model\n",
    "gemma3": "\n<start_of_turn>user\nLima.<end_of_turn>\n<start_of_turn>model\n",
    # <|end|> and <|user|> take the white space behind them, so that it is no token
    "phi3_5": "<|user|>\nLima.<|end|><|assistant|>\n",
    "deepseek_r1_distill": "<｜tool▁outputs▁begin｜><｜tool▁output▁begin｜>Lima.<｜tool▁output▁end｜><｜tool▁outputs▁end｜>",
    "deepseekv3": "<｜tool▁outputs▁begin｜><｜tool▁output▁begin｜>Lima.<｜tool▁output▁end｜><｜tool▁outputs▁end｜>",
    "mistral_shaped": '[TOOL_RESULTS]{"content": "Lima.", "call_id": "abcDEF123"}[/TOOL_RESULTS]',
}


def sampled_call(renderer: TemplateRenderer, family: str) -> str:
    return SAMPLED_CALL.get(family) or TAGGED + renderer.decode(renderer.stop_ids[:1])


def begin(renderer: TemplateRenderer, *, system: bool = False):
    messages = [Message("system", "Search, then answer.")] if system else []
    conversation = renderer.open([*messages, user("Capital of Peru?")], [SEARCH])
    renderer.extend(conversation)
    return conversation


@pytest.mark.parametrize("system", [False, True])
def test_behind_a_call_comes_exactly_what_the_template_writes(family, renderer_of, system):
    renderer = renderer_of(family)
    conversation = begin(renderer, system=system)
    parsed = renderer.sampled(conversation, renderer.encode(sampled_call(renderer, family)))
    [request] = parsed.tool_calls
    assert (request.name, request.arguments, parsed.error) == ("search", {"query": "Peru"}, "")
    conversation.messages.append(result("Lima.", request.call_id))
    assert renderer.decode(renderer.extend(conversation).ids) == BEHIND_CALL[family]


def test_a_cut_sample_gets_the_end_of_turn_it_lacks(family, renderer_of):
    renderer = renderer_of(family)
    conversation = begin(renderer)
    renderer.sampled(conversation, renderer.encode("It is Li"))
    conversation.messages.append(user("Go on."))
    text = renderer.decode(renderer.extend(conversation).ids)
    if family == "few_shot":
        assert text == "\n\nQuestion: Go on.\nAnswer: "
    elif family == "glm4moe":  # the next message's header is the end of the turn
        assert text == "<|user|>\nGo on.<|assistant|>"
    else:
        stop = renderer.decode(renderer.stop_ids[:1])
        assert text.startswith(stop)
        assert text.count(stop) == (1 if family.startswith(("deepseek", "mistral")) else 2)


def test_path_is_the_added_and_the_sampled_ids_joined(family, renderer_of):
    renderer = renderer_of(family)
    conversation = renderer.open([user("Capital of Peru?")], [SEARCH])
    parts: list[int] = []
    for answer in (sampled_call(renderer, family), "Lima. ", "no end"):
        rendered = renderer.extend(conversation)
        assert rendered.kept == len(parts)
        parts += rendered.ids.tolist()
        covered = [index for part in rendered.segments for index in range(part.start, part.end)]
        assert covered == list(range(len(rendered.ids)))
        ids = renderer.encode(answer)
        parsed = renderer.sampled(conversation, ids)
        parts += ids.tolist()
        assert conversation.path == parts
        call_id = parsed.tool_calls[0].call_id if parsed.tool_calls else ""
        conversation.messages.append(result("Lima.", call_id) if parsed.tool_calls else user("Sure?"))
    assert renderer.extend(conversation).kept == len(parts)


def test_sampled_ids_are_never_tokenised_again(renderer_of):
    renderer = renderer_of("qwen3")
    conversation = begin(renderer)
    odd = [renderer.encode(letter)[0] for letter in "the capital"] + [renderer.stop_ids[0]]
    assert odd[:-1] != renderer.encode("the capital").tolist()
    start = len(conversation.path)
    renderer.sampled(conversation, token_ids(odd))
    conversation.messages.append(user("Sure?"))
    renderer.extend(conversation)
    assert conversation.path[start : start + len(odd)] == odd


def test_the_newline_behind_a_call_is_kept_in_every_round(renderer_of):
    """verl#6501: a newline token lost at each boundary between the assistant and a tool."""
    renderer = renderer_of("qwen2_5")
    conversation = begin(renderer)
    for _ in range(5):
        renderer.sampled(conversation, renderer.encode(SAMPLED_CALL["qwen2_5"]))
        conversation.messages.append(result("Lima."))
        assert renderer.extend(conversation).ids[0] == renderer.encode("\n")[0]
    assert renderer.decode(conversation.path) == renderer.text(conversation)
    assert conversation.path == renderer.fresh(conversation)


def test_another_stop_token_than_the_template_s_also_ends_the_turn(renderer_of, folder_of, tmp_path):
    renderer = renderer_of("gemma3")  # the template ends turns with <end_of_turn>, the folder declares <eos>
    conversation = begin(renderer)
    renderer.sampled(conversation, renderer.encode("Lima.<eos>"))
    conversation.messages.append(user("Sure?"))
    text = renderer.decode(renderer.extend(conversation).ids)
    assert text == "\n<start_of_turn>user\nSure?<end_of_turn>\n<start_of_turn>model\n"


def test_results_that_come_one_after_another_render_as_if_together(family, renderer_of):
    renderer = renderer_of(family)
    together, apart = begin(renderer), begin(renderer)
    call_id = ""
    for conversation in (together, apart):
        parsed = renderer.sampled(conversation, renderer.encode(sampled_call(renderer, family)))
        call_id = parsed.tool_calls[0].call_id
    together.messages += [result("One.", call_id), result("Two.", call_id)]
    renderer.extend(together)
    for text in ("One.", "Two."):
        apart.messages.append(result(text, call_id))
        renderer.extend(apart)
    assert renderer.decode(apart.path) == renderer.decode(together.path)


def test_extending_twice_adds_nothing(renderer_of):
    renderer = renderer_of("qwen3")
    conversation = begin(renderer)
    path = list(conversation.path)
    rendered = renderer.extend(conversation)
    assert (rendered.kept, len(rendered.ids), conversation.path) == (len(path), 0, path)


def test_sampling_again_behind_a_cut_answer_opens_a_new_turn(renderer_of):
    renderer = renderer_of("chatml")
    conversation = begin(renderer)
    renderer.sampled(conversation, renderer.encode("Li"))
    assert renderer.decode(renderer.extend(conversation).ids) == "<|im_end|>\n<|im_start|>assistant\n"


def test_a_given_example_answer_is_context(renderer_of):
    renderer = renderer_of("chatml")
    conversation = renderer.open([user("Capital of Chile?"), Message("assistant", "Santiago.")])
    renderer.extend(conversation)
    conversation.messages.append(user("Of Peru?"))
    renderer.extend(conversation)
    assert renderer.decode(conversation.path) == renderer.text(conversation)


def test_kept_thinking_is_the_deviation(renderer_of):
    renderer = renderer_of("qwen3", measure_deviation=True)
    conversation = renderer.open([user("Capital of Peru?")])
    assert renderer.extend(conversation).deviation == 0
    thinking = "<think>\nPeru, so Lima.\n</think>\n\n"
    renderer.sampled(conversation, renderer.encode(f"{thinking}Lima.<|im_end|>"))
    conversation.messages.append(user("Sure?"))
    assert renderer.extend(conversation).deviation == len(renderer.encode(thinking))


def test_a_turn_renders_no_more_than_two_stub_messages_and_the_new_one(renderer_of, monkeypatch):
    renderer = renderer_of("qwen3")
    conversation = begin(renderer)
    counts: list[int] = []
    call = type(renderer._form)._call

    def counted(self, entries, *rest):
        counts.append(len(entries))
        return call(self, entries, *rest)

    for turn in range(20):
        renderer.sampled(conversation, renderer.encode(SAMPLED_CALL["qwen3"]))
        conversation.messages.append(result("Lima."))
        if turn == 19:
            monkeypatch.setattr(type(renderer._form), "_call", counted)
        renderer.extend(conversation)
    assert counts == [3]


def test_a_template_that_looks_at_the_history_gets_all_of_it(renderer_of):
    """DeepSeek writes the opening of tool outputs only once in a conversation; stub messages would repeat it."""
    renderer = renderer_of("deepseekv3")
    conversation = begin(renderer)
    texts = []
    for _ in range(2):
        renderer.sampled(conversation, renderer.encode(SAMPLED_CALL["deepseekv3"]))
        conversation.messages.append(result("Lima."))
        texts.append(renderer.decode(renderer.extend(conversation).ids))
    assert texts[0] == BEHIND_CALL["deepseekv3"]
    assert texts[1] == "<｜tool▁output▁begin｜>Lima.<｜tool▁output▁end｜><｜tool▁outputs▁end｜>"


def test_sampling_before_messages_are_rendered_is_refused(renderer_of):
    renderer = renderer_of("chatml")
    conversation = begin(renderer)
    conversation.messages.append(user("More."))
    with pytest.raises(UserError, match="call extend"):
        renderer.sampled(conversation, renderer.encode("Lima."))


def test_a_refused_conversation_is_a_user_error(renderer_of):
    renderer = renderer_of("gemma3")
    with pytest.raises(UserError, match="must alternate"):
        renderer.extend(renderer.open([user("One."), user("Two.")]))
