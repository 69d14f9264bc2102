"""The check of a template, and the digest that catches a renderer which loses or remakes tokens."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agentrl.episode import digest_ids, token_ids
from agentrl.rendering.compare import count_deviation
from agentrl.rendering.contract import Message
from agentrl.rendering.template import TemplateRenderer
from agentrl.rendering.token_check import check_template, path_digest

from .conftest import SEARCH, called, result, user

APPEND_ONLY = ["chatml", "few_shot", "qwen2_5", "qwen3_instruct_2507", "llama3_1", "gemma3", "phi3_5"]
WORDS = st.text(st.characters(blacklist_categories=("Cs",)), min_size=1, max_size=12).map(lambda text: f"w{text}w")


@pytest.mark.parametrize("name", APPEND_ONLY)
def test_append_only_templates_are_told(name, folder_of):
    report = check_template(folder_of(name))
    assert report.append_only, str(report)
    assert "append-only" in str(report)


@pytest.mark.parametrize(
    ("name", "kinds"), [("qwen3", {"history"}), ("deepseek_r1_distill", {"prompt"}), ("mistral_shaped", {"history"})]
)
def test_templates_that_rewrite_what_stands_are_told_with_the_place(name, kinds, folder_of):
    report = check_template(folder_of(name))
    assert not report.append_only
    assert {part.kind for part in report.breaks} == kinds
    assert all(part.before != part.after for part in report.breaks)


@pytest.mark.parametrize(
    ("name", "case", "where"),
    [
        ("qwen3", "thinking", "message 2 (assistant) changes when message 3 (user) follows"),
        ("qwen3", "tools", "message 3 (assistant) changes when message 4 (tool) follows"),
        ("deepseek_r1_distill", "chat", "message 2 (assistant) is not what its prompt began"),
        ("mistral_shaped", "system", "message 2 (user) changes when message 4 (user) follows"),
    ],
)
def test_a_break_names_the_message_that_changes_and_the_one_that_changes_it(name, case, where, folder_of):
    report = check_template(folder_of(name))
    assert [part.where for part in report.breaks if part.case == case] == [where]
    assert f"({case}), {where}: " in str(report)


def test_the_report_warns_of_what_a_template_cannot_show(folder_of):
    assert any("tools are not shown" in warning for warning in check_template(folder_of("chatml")).warnings)
    assert any("no role 'tool'" in warning for warning in check_template(folder_of("gemma")).warnings)
    assert any("no role 'system'" in warning for warning in check_template(folder_of("gemma")).warnings)
    assert check_template(folder_of("qwen3")).warnings == ()


def test_smollm2_is_append_only(smollm2):
    assert check_template(smollm2).append_only


def written(renderer: TemplateRenderer, messages: list[Message]) -> str:
    """What the template writes for the last message, an assistant's, behind the generation prompt, its end included."""
    prompted = renderer.text(renderer.open(messages[:-1], [SEARCH]))
    whole = renderer.text(renderer.open(messages, [SEARCH]), prompt=False)
    assert whole.startswith(prompted)
    answer = whole[len(prompted) :]
    stop = renderer.decode(renderer.stop_ids[:1])
    return answer[: answer.index(stop) + len(stop)] if stop in answer else answer.rstrip()


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=60)
@given(
    st.sampled_from(APPEND_ONLY),
    st.none() | WORDS,
    st.lists(st.tuples(st.sampled_from(["user", "tool"]), WORDS, WORDS), min_size=1, max_size=5),
)
def test_incremental_is_from_scratch_where_the_template_is_append_only(renderer_of, name, system, turns):
    """Path = added + sampled ids = the ids of one rendering of everything, turn after turn."""
    renderer = renderer_of(name, measure_deviation=True)
    messages = [Message("system", system)] if system else []
    conversation = renderer.open([*messages, user("Begin.")], [SEARCH])
    parts: list[int] = []
    for kind, answer, following in turns:
        rendered = renderer.extend(conversation)
        assert (rendered.kept, rendered.deviation) == (len(parts), 0)
        parts += rendered.ids.tolist()
        calls = kind == "tool" and renderer.dialect.calls
        reply = called(answer) if calls else Message("assistant", answer)
        ids = renderer.encode(written(renderer, [*conversation.messages, reply]))
        parsed = renderer.sampled(conversation, ids)
        assert [request.arguments for request in parsed.tool_calls] == ([{"query": answer}] if calls else [])
        parts += ids.tolist()
        conversation.messages.append(result(following) if calls else user(following))
    renderer.extend(conversation)
    assert conversation.path[: len(parts)] == parts
    assert conversation.path == renderer.fresh(conversation)
    assert renderer.decode(conversation.path) == renderer.decode(renderer.fresh(conversation))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=40)
@given(
    st.sampled_from(["qwen3", "qwen3_6", "deepseek_r1_distill", "glm4moe", "mistral_shaped", "chatml"]),
    st.lists(st.tuples(WORDS, WORDS, st.booleans(), st.booleans()), min_size=1, max_size=4),
)
def test_whatever_is_sampled_stands_in_the_path_and_the_deviation_is_what_differs(renderer_of, name, turns):
    renderer = renderer_of(name, measure_deviation=True)
    conversation = renderer.open([user("Begin.")], [SEARCH])
    parts: list[int] = []
    for thought, answer, thinks, stops in turns:
        rendered = renderer.extend(conversation)
        parts += rendered.ids.tolist()
        opened = renderer.decode(conversation.path[-4:]).rstrip().endswith("<think>")
        raw = f"{'' if opened else '<think>'}{thought}</think>{answer}" if thinks else answer
        ids = token_ids([*renderer.encode(raw), *(renderer.stop_ids[:1] if stops else ())])
        renderer.sampled(conversation, ids)
        parts += ids.tolist()
        conversation.messages.append(user("And?"))
    rendered = renderer.extend(conversation)
    assert conversation.path == parts + rendered.ids.tolist()
    assert rendered.deviation == count_deviation(conversation.path, renderer.fresh(conversation))
    segments = [index for part in rendered.segments for index in range(part.start, part.end)]
    assert segments == list(range(len(rendered.ids)))


class LosesNewline(TemplateRenderer):
    """The bug of verl#6501: the newline behind the end of turn is lost."""

    def extend(self, conversation):
        start = len(conversation.path)
        rendered = super().extend(conversation)
        if start:
            del conversation.path[start]
        return rendered


class Retokenises(TemplateRenderer):
    """The bug of trl#5224: a sample goes through text."""

    def sampled(self, conversation, ids):
        return super().sampled(conversation, self.encode(self.decode(ids)))


@pytest.mark.parametrize(("kind", "caught"), [(TemplateRenderer, False), (LosesNewline, True), (Retokenises, True)])
def test_the_digest_catches_a_renderer_that_loses_or_remakes_tokens(folder_of, kind, caught):
    """The engine digests what it saw and gave; the conversation must agree with it turn by turn."""
    renderer = kind.from_folder(folder_of("qwen2_5"))
    conversation = renderer.open([user("Capital of Peru?")], [SEARCH])
    letters = [int(renderer.encode(letter)[0]) for letter in "the capital"] + [renderer.stop_ids[0]]
    seen = [renderer.extend(conversation).ids]
    agreed = True
    for _ in range(2):
        seen.append(token_ids(letters))
        renderer.sampled(conversation, seen[-1])
        agreed &= path_digest(conversation) == digest_ids(*seen)
        conversation.messages.append(user("Sure?"))
        seen.append(renderer.extend(conversation).ids)
        agreed &= path_digest(conversation) == digest_ids(np.concatenate(seen))
    assert agreed is not caught
