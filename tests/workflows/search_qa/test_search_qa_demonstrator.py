"""The scripted policy: what it does with a prompt, and how often it is right."""

from __future__ import annotations

import random

import pytest

from agentrl.errors import UserError
from agentrl_workflows.search_qa import Question, World, demonstrator, exact_match, search_of, train_questions
from agentrl_workflows.search_qa.demonstrator import read_prompt, read_question, right_action, teacher, valid_actions

ASKED = "<|user|>currency of the country of Lima?<|assistant|>"
LIMA = "<|tool|>Lima\ncountry: Peru\ntime zone: America/Lima\nnearest city: Callao<|assistant|>"
PERU = "<|tool|>Peru\ncapital: Lima\ncurrency: Sol<|assistant|>"


def said(action: str) -> str:
    return f"{action}<|end|>"


def play(
    question: Question, skill: float, rng: random.Random, *, haste: float = 0.0, max_turns: int = 6
) -> tuple[float, list[str]]:
    """(reward, actions) of one episode with the real search tool."""
    act = demonstrator(skill, haste=haste)
    prompt, actions = f"<|user|>{question.text}<|assistant|>", []
    for _ in range(max_turns):
        actions.append(act(prompt, rng))
        if not actions[-1].startswith("<search>"):
            return exact_match(actions[-1], question.answer), actions
        search = search_of(question.world)
        found = search.find(actions[-1].removeprefix("<search>").removesuffix("</search>"))
        prompt += f"{said(actions[-1])}<|tool|>{search.render(found)}<|assistant|>"
    return 0.0, actions


def success(skill: float, *, haste: float = 0.0, count: int = 400) -> float:
    rng = random.Random(0)
    return sum(play(question, skill, rng, haste=haste)[0] for question in train_questions(count, seed=5)) / count


def test_it_searches_along_the_chain_and_answers_at_its_end():
    act, rng = demonstrator(1.0), random.Random(0)
    prompt = ASKED
    assert act(prompt, rng) == "<search>Lima</search>"
    prompt += said("<search>Lima</search>") + LIMA
    assert act(prompt, rng) == "<search>Peru</search>"
    prompt += said("<search>Peru</search>") + PERU
    assert act(prompt, rng) == "Sol"


def test_it_finds_back_from_a_wrong_search():
    prompt = ASKED + said("<search>Peru</search>") + PERU
    assert demonstrator(1.0)(prompt, random.Random(0)) == "<search>Lima</search>"
    assert demonstrator(1.0)(prompt + said("<search>Lima</search>") + LIMA, random.Random(0)) == "Sol"


def test_with_full_skill_every_question_is_answered_by_its_gold_documents():
    for question in train_questions(300, hops=(1, 2, 3, 4), seed=2):
        reward, actions = play(question, 1.0, random.Random(0))
        assert reward == 1.0
        assert actions == [*(f"<search>{title}</search>" for title in question.gold), question.answer]


def test_every_question_that_can_be_asked_is_read_as_it_was_made():
    for title, fields in World(0).facts.items():
        for field in fields:
            assert read_question(f"{field} of {title}?") == (title, (field,))
            assert read_question(f"capital of the country of {title}?") == (title, ("country", "capital"))


def test_less_skill_succeeds_less_often():
    low, middle, high = success(0.0), success(0.4), success(0.8)
    assert low < 0.25
    assert 0.35 < middle < 0.6
    assert 0.75 < high < 0.95


def test_haste_answers_with_the_name_that_should_be_searched_next():
    prompt = ASKED + said("<search>Lima</search>") + LIMA
    assert demonstrator(0.0, haste=1.0)(prompt, random.Random(0)) == "Peru"
    assert success(0.4, haste=1.0) < success(0.4)


def test_without_skill_every_valid_action_is_taken_and_no_other():
    prompt = ASKED + said("<search>Lima</search>") + LIMA
    act, rng = demonstrator(0.0), random.Random(1)
    wanted = ["<search>Lima</search>", "<search>Peru</search>", "<search>Callao</search>", "Peru", "America/Lima", "Callao"]
    assert valid_actions(read_prompt(prompt)) == wanted
    assert {act(prompt, rng) for _ in range(200)} == set(wanted)


def test_before_any_document_the_only_valid_action_is_to_search_the_name_asked_about():
    assert valid_actions(read_prompt(ASKED)) == ["<search>Lima</search>"]
    nothing = ASKED + said("<search>x</search>") + "<|tool|>no document<|assistant|>"
    assert right_action(read_prompt(nothing)) == "<search>Lima</search>"


def test_the_same_generator_gives_the_same_demonstration():
    (question,) = train_questions(1, hops=(2,))
    assert play(question, 0.3, random.Random(7)) == play(question, 0.3, random.Random(7))


@pytest.mark.parametrize(
    "prompt", ["", "currency of Peru?", "<|user|>hello<|assistant|>", "<|user|>currency of ?<|assistant|>"]
)
def test_a_prompt_without_a_question_of_the_atlas_is_refused(prompt: str):
    with pytest.raises(UserError, match="demonstrator"):
        demonstrator(1.0)(prompt, random.Random(0))


def test_probabilities_outside_their_range_are_refused():
    with pytest.raises(UserError, match="probabilities"):
        demonstrator(1.5)
    with pytest.raises(UserError, match="probabilities"):
        demonstrator(0.5, haste=-0.1)


def test_a_teacher_does_lookups_right_and_longer_questions_as_often_as_its_skill_allows():
    teach, rng = teacher(0.0), random.Random(0)
    lookup = "<|user|>time zone of Lima?<|assistant|>" + said("<search>Lima</search>") + LIMA
    assert {teach(lookup, rng) for _ in range(20)} == {"America/Lima"}
    longer = ASKED + said("<search>Lima</search>") + LIMA
    assert len({teacher(0.0, seed=seed)(longer, rng) for seed in range(40)}) > 3


def test_a_teacher_gives_one_demonstration_of_a_longer_question():
    longer = ASKED + said("<search>Lima</search>") + LIMA
    assert len({teacher(0.0, seed=3)(longer, random.Random(seed)) for seed in range(20)}) == 1
