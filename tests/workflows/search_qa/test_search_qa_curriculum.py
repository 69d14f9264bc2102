"""The order of learning: lookups before demonstrations, easy questions before hard ones."""

from __future__ import annotations

import json
from collections import Counter
from types import SimpleNamespace
from typing import Any, cast

import pytest

from agentrl.episode import Group
from agentrl.errors import UserError
from agentrl_workflows.search_qa.curriculum import (
    DEMONSTRATIONS,
    DRILLS,
    LATER_DRILLS,
    MOST_DRILLS,
    Rising,
    rising,
    warm_up_questions,
)
from agentrl_workflows.search_qa.questions import Question, train_questions


def groups(success: dict[int, float], *, times: int = 40) -> list[Group]:
    """`times` groups of each number of hops, all of one episode with this reward."""
    made = [
        SimpleNamespace(task=Question("?", hops=hops), finished=(SimpleNamespace(reward=reward),))
        for hops, reward in success.items()
        for _ in range(times)
    ]
    return cast(list[Group], made)


def asked(source: Rising, count: int = 200) -> Counter[int]:
    return Counter(question.hops for question in source.take(count))


def test_a_warm_start_begins_with_lookups_and_keeps_some():
    steps, batch = 20, 16
    questions = warm_up_questions(steps, batch)
    first = round(DRILLS * steps) * batch
    assert len(questions) == steps * batch
    assert {question.hops for question in questions[:first]} == {1}
    for at in range(first, len(questions), batch):
        assert sum(question.hops == 1 for question in questions[at : at + batch]) == LATER_DRILLS * batch


def test_lookups_are_fresh_and_demonstrations_come_again_only_after_all_of_them():
    questions = warm_up_questions(320, 64)
    longer = [question for question in questions if question.hops > 1]
    assert len(longer) > DEMONSTRATIONS
    assert Counter(longer[:DEMONSTRATIONS]) == Counter(train_questions(DEMONSTRATIONS, hops=(2, 3, 4), seed=1))
    assert set(longer[DEMONSTRATIONS:]) <= set(longer[:DEMONSTRATIONS])


def test_drills_end_where_they_teach_nothing_new():
    questions = warm_up_questions(2 * MOST_DRILLS, 4) + warm_up_questions(10 * MOST_DRILLS, 4)
    first = next(at for at, question in enumerate(questions[8 * MOST_DRILLS :]) if question.hops > 1)
    assert MOST_DRILLS * 4 < first <= MOST_DRILLS * 4 + 4


def test_a_warm_start_is_a_function_of_its_seed():
    assert warm_up_questions(6, 8, seed=1) == warm_up_questions(6, 8, seed=1)
    assert warm_up_questions(6, 8, seed=1) != warm_up_questions(6, 8, seed=2)
    assert len(warm_up_questions(1, 64)) == 64


def test_harder_questions_are_asked_once_easier_ones_succeed():
    source = rising(count=20)
    source.update(groups({1: 0.1}))
    assert asked(source) == {1: 200}
    source.update(groups({1: 0.9, 2: 0.1}))
    assert set(asked(source)) == {1, 2}
    source.update(groups({1: 0.9, 2: 0.9, 3: 0.9}))
    assert set(asked(source)) == {1, 2, 3, 4}
    source.update(groups({2: 0.1}))
    assert set(asked(source)) == {1, 2}


def test_what_sometimes_succeeds_is_asked_most_and_nothing_open_is_forgotten():
    source = rising((1, 2, 3), count=20)
    source.update(groups({1: 1.0, 2: 0.95, 3: 0.5}))
    shares = source.shares()
    assert sum(shares.values()) == pytest.approx(1.0)
    assert shares[3] > shares[2] > shares[1] > 0.05
    counted = asked(source, 400)
    assert all(abs(counted[hops] - 400 * share) <= 1 for hops, share in shares.items())


def test_lost_groups_change_nothing():
    source, other = rising(count=20), rising(count=20)
    source.update(cast(list[Group], [SimpleNamespace(task=Question("?", hops=1), finished=())]))
    assert source.state() == other.state()


def test_it_goes_on_from_its_state_exactly():
    source = rising(count=20)
    source.take(7)
    source.update(groups({1: 0.8, 2: 0.7}))
    state: Any = json.loads(json.dumps(source.state()))
    following = source.take(30)
    again = rising(count=20)
    again.load(state)
    assert again.take(30) == following


def test_a_hop_without_questions_is_refused():
    with pytest.raises(UserError, match="of every number of hops"):
        Rising({1: []})
    with pytest.raises(UserError, match="of every number of hops"):
        Rising({})
