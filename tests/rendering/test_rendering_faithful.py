"""History by the template alone: the path is kept up to the first token that differs, and the break is named."""

from __future__ import annotations

import pytest

from agentrl.episode import token_ids
from agentrl.rendering.compare import classify_break, count_deviation, shared_ids, shared_text

from .conftest import SEARCH, result, user

CALL = '<tool_call>\n{"name": "search", "arguments": {"query": "Peru"}}\n</tool_call><|im_end|>'


def test_faithful_and_append_paths_agree_on_an_append_only_template(renderer_of):
    paths = []
    for history in ("append", "faithful"):
        renderer = renderer_of("qwen2_5", history=history)
        conversation = renderer.open([user("Capital of Peru?")], [SEARCH])
        for answer, following in ((CALL, result("Lima.")), ("Lima.<|im_end|>", user("Sure?")), ("Yes<|im_end|>", user("Ok."))):
            before = len(conversation.path)
            rendered = renderer.extend(conversation)
            assert (rendered.kept, rendered.broken) == (before, "")
            renderer.sampled(conversation, renderer.encode(answer))
            conversation.messages.append(following)
        renderer.extend(conversation)
        paths.append(conversation.path)
    assert paths[0] == paths[1]


def test_stripped_thinking_breaks_by_the_template_where_the_thinking_began(renderer_of):
    renderer = renderer_of("qwen3", history="faithful")
    conversation = renderer.open([user("Capital of Peru?")])
    prompt = len(renderer.extend(conversation).ids)
    renderer.sampled(conversation, renderer.encode("<think>\nPeru.\n</think>\n\nLima.<|im_end|>"))
    conversation.messages.append(user("Sure?"))
    rendered = renderer.extend(conversation)
    assert (rendered.broken, rendered.kept) == ("template", prompt)
    assert conversation.path == renderer.fresh(conversation)
    roles = [part.role for part in rendered.segments]
    assert roles == ["assistant", "user", "generation"]
    assert (rendered.segments[0].start, rendered.segments[-1].end) == (0, len(rendered.ids))


def test_a_sample_in_other_tokens_breaks_as_retokenised_at_that_token(renderer_of):
    renderer = renderer_of("chatml", history="faithful")
    conversation = renderer.open([user("Capital of Peru?")])
    prompt = len(renderer.extend(conversation).ids)
    usual = renderer.encode("Lima the capital").tolist()
    odd = [*renderer.encode("Lima ").tolist(), *(int(renderer.encode(letter)[0]) for letter in "the capital")]
    assert renderer.decode(odd) == renderer.decode(usual)
    same = shared_ids(odd, usual)
    renderer.sampled(conversation, token_ids([*odd, renderer.stop_ids[0]]))
    conversation.messages.append(user("Sure?"))
    rendered = renderer.extend(conversation)
    assert (rendered.broken, rendered.kept) == ("retokenised", prompt + same)


def test_a_cut_answer_that_renders_otherwise_breaks_as_truncated(renderer_of):
    renderer = renderer_of("qwen3", history="faithful")
    conversation = renderer.open([user("Capital of Peru?")], [SEARCH])
    renderer.extend(conversation)
    renderer.sampled(conversation, renderer.encode("<think>\nPeru.\n</think>\n\nIt is Li"))
    conversation.messages.append(user("Too long."))
    assert renderer.extend(conversation).broken == "truncated"


def test_a_cut_plain_answer_only_gets_its_end(renderer_of):
    renderer = renderer_of("chatml", history="faithful")
    conversation = renderer.open([user("Capital of Peru?")])
    renderer.extend(conversation)
    renderer.sampled(conversation, renderer.encode("It is Li"))
    before = len(conversation.path)
    conversation.messages.append(user("Go on."))
    rendered = renderer.extend(conversation)
    assert (rendered.kept, rendered.broken) == (before, "")
    assert renderer.decode(rendered.ids).startswith("<|im_end|>\n<|im_start|>user\nGo on.")


def test_what_was_broken_once_is_context_from_then_on(renderer_of):
    renderer = renderer_of("qwen3", history="faithful")
    conversation = renderer.open([user("Capital of Peru?")])
    kept = []
    for _ in range(3):
        kept.append(renderer.extend(conversation).kept)
        start = len(conversation.path)
        renderer.sampled(conversation, renderer.encode("<think>\nPeru.\n</think>\n\nLima.<|im_end|>"))
        assert renderer.decode(conversation.path[start:]).endswith("Lima.<|im_end|>")
        conversation.messages.append(user("Sure?"))
    assert kept[0] == 0 < kept[1] < kept[2]


@pytest.mark.parametrize(
    ("path", "fresh", "cut", "broken"),
    [("ab", "abc", False, "retokenised"), ("ab", "ac", False, "template"), ("ab", "ac", True, "truncated")],
)
def test_breaks_are_classified_by_text(path, fresh, cut, broken):
    assert classify_break(path, fresh, cut) == broken


def test_deviation_counts_tokens_on_both_sides():
    assert count_deviation([1, 2, 3, 4], [1, 2, 3, 4]) == 0
    assert count_deviation([1, 9, 9, 2], [1, 2]) == 2
    assert count_deviation([1, 5, 2], [1, 6, 7, 2]) == 3
    assert count_deviation([], [1]) == 1


def test_shared_beginnings():
    assert [shared_text("", "a"), shared_text("ab", "abc"), shared_text("abd", "abc"), shared_text("b", "a")] == [0, 2, 2, 0]
    assert [shared_ids([1, 2], [1, 2, 3]), shared_ids([1, 4], [1, 2]), shared_ids([], [1])] == [2, 1, 0]
