"""The tiny model's files: tokenizer, chat template, weights."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer

from agentrl.errors import UserError
from agentrl.rendering.contract import Conversation, Message
from agentrl.rendering.template import TemplateRenderer
from agentrl.tool import as_tool
from agentrl.transformer.config import ModelConfig
from agentrl.transformer.tiny import END, SPECIAL, tokenizer_json
from agentrl.transformer.weights import EMBEDDING, load_weights
from agentrl_workflows.search_qa import World, make_model, search_of
from agentrl_workflows.search_qa.atlas import CITY_FIELDS, COUNTRY_FIELDS
from agentrl_workflows.search_qa.model import CLOSE, OPEN, TOOLS, pieces

TOKENIZER = Tokenizer.from_str(json.dumps(tokenizer_json(pieces(), TOOLS)))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("model") / "tiny")


def encode(text: str) -> list[int]:
    return TOKENIZER.encode(text, add_special_tokens=False).ids


def walk(folder: Path, outputs: Sequence[str]) -> tuple[TemplateRenderer, Conversation]:
    """A conversation in which the model said `outputs` and the tool answered."""
    search = search_of(0)
    renderer = TemplateRenderer.from_folder(folder)
    conversation = renderer.open([Message("user", "currency of the country of Lima?")], [as_tool(search).spec])
    for output in outputs:
        renderer.extend(conversation)
        parsed = renderer.sampled(conversation, renderer.encode(output + END))
        for call in parsed.tool_calls:
            found = search.find(call.arguments["query"])
            conversation.messages.append(Message("tool", search.render(found), name=call.name, call_id=call.call_id))
    return renderer, conversation


@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=40))
def test_every_text_survives_encoding(text: str):
    assert TOKENIZER.decode(encode(text), skip_special_tokens=False) == text


def test_every_title_field_value_and_tag_is_one_token():
    words = set(World(0).facts) | {value for fields in World(0).facts.values() for value in fields.values()}
    several = [word for word in [*words, *COUNTRY_FIELDS, *CITY_FIELDS, *SPECIAL, OPEN, CLOSE] if len(encode(word)) != 1]
    assert several == []


def test_no_document_is_longer_than_a_title_and_two_tokens_a_field():
    for entry in World(0).documents():
        fields = entry["text"].count("\n") + 1
        assert len(encode(f"{entry['title']}\n{entry['text']}")) == 1 + 2 * fields


def test_the_vocabulary_is_a_multiple_of_64_without_repeats():
    assert len(pieces()) == len(set(pieces())) == 3264


def test_transformers_gives_the_same_ids_and_the_same_prompt(folder: Path):
    transformers = pytest.importorskip("transformers")
    other = transformers.AutoTokenizer.from_pretrained(folder)
    renderer, conversation = walk(folder, ["<search>Lima</search>", "<search>Peru</search>"])
    text = renderer.decode(renderer.extend(conversation).ids)
    assert text.startswith("<|tool|>Peru\ncapital: Lima\n")
    for sample in (renderer.decode(conversation.path), "São Paulo 😀\n\tx", "Romeo and Lima", ""):
        assert other.encode(sample, add_special_tokens=False) == encode(sample)
    messages = [
        {"role": "user", "content": "currency of the country of Lima?"},
        {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "search", "arguments": {"query": "Lima"}}}]},
        {"role": "tool", "content": search_of(0).render(search_of(0).find("Lima"))},
        {"role": "assistant", "content": "<search>Peru</search>"},
        {"role": "tool", "content": search_of(0).render(search_of(0).find("Peru"))},
    ]
    assert other.apply_chat_template(messages, tokenize=False, add_generation_prompt=True) == renderer.decode(conversation.path)


def test_the_path_of_an_episode_is_what_the_template_makes_of_its_messages(folder: Path):
    renderer, conversation = walk(folder, ["<search>Lima</search>", "<search>Peru</search>", "Sol"])
    assert conversation.messages[-1].content == "Sol"
    assert conversation.path == renderer.fresh(conversation, prompt=False)
    assert len(conversation.path) <= 48


def test_a_call_of_the_tool_is_read_from_its_tags_and_text_is_an_answer(folder: Path):
    _, conversation = walk(folder, ["<search>São Paulo</search>"])
    (call,) = conversation.messages[1].tool_calls
    assert (call.name, dict(call.arguments), call.error) == ("search", {"query": "São Paulo"}, "")
    renderer, conversation = walk(folder, ["Sol"])
    assert conversation.messages[1] == Message("assistant", "Sol")
    assert renderer.stop_ids == (pieces().index(END),)


def test_the_weights_are_a_function_of_the_seed_with_wide_embeddings(folder: Path, tmp_path: Path):
    weights = load_weights(folder)
    same = load_weights(make_model(tmp_path / "same"))
    other = load_weights(make_model(tmp_path / "other", seed=1))
    assert all(weights[name].equal(same[name]) for name in weights)
    assert not weights[EMBEDDING].equal(other[EMBEDDING])
    assert 0.09 < float(weights[EMBEDDING].std()) < 0.11
    assert 0.019 < float(weights["model.layers.0.mlp.gate_proj.weight"].std()) < 0.021


def test_sizes_are_as_asked(tmp_path: Path):
    config = ModelConfig.from_folder(make_model(tmp_path / "m", hidden=64, layers=2, heads=2, ff=96, max_positions=128))
    assert (config.hidden_size, config.layers, config.heads, config.intermediate_size) == (64, 2, 2, 96)
    assert (config.head_dim, config.max_positions, config.tied, config.qk_norm) == (32, 128, True, True)


def test_transformers_loads_the_model(folder: Path):
    transformers = pytest.importorskip("transformers")
    model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    assert sum(parameter.numel() for parameter in model.parameters()) == 1_057_856
    assert model.config.eos_token_id == pieces().index(END)


def test_a_folder_that_holds_a_model_is_not_overwritten(folder: Path):
    with pytest.raises(UserError, match="already holds a model"):
        make_model(folder)
