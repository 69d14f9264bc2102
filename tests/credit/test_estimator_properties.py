"""What holds for all the group, turn and multi-agent methods, on drawn batches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agentrl.credit import (
    ATGRPO,
    PVPO,
    RLOO,
    SALT,
    SUPO,
    THOR,
    Credit,
    DecisionMasked,
    DrGRPO,
    Estimator,
    MasHostHRPO,
    PassAtK,
    ReinforcePP,
    assign,
)
from agentrl.episode import Episode, Group, State
from tests.credit.conftest import make_chain

OF_A_GROUP: list[Estimator] = [
    RLOO(),
    DrGRPO(),
    PassAtK(k=1),
    SUPO(),
    SALT(),
    MasHostHRPO(),
    THOR(min_tokens=0),
    DecisionMasked(),
]
"""A group's credit follows from the group alone, and is 0 without contrast."""
ALL: list[Estimator] = [*OF_A_GROUP, ATGRPO(), ReinforcePP(), ReinforcePP(baseline="group"), PVPO()]

outcome = st.sampled_from([0.0, 0.25, 0.5, 1.0])
group = st.lists(st.tuples(outcome, st.integers(1, 3)), min_size=2, max_size=4)
groups = st.lists(group, min_size=1, max_size=3)


def made(drawn: Sequence[Sequence[tuple[float, int]]]) -> list[Group]:
    """Groups of episodes with an outcome and so many turns; first turns begin in one state, and then ways part."""
    result: list[Group] = []
    for g, members in enumerate(drawn):
        episodes = []
        for e, (value, count) in enumerate(members):
            episode = make_chain(f"{g}.{e}", f"g{g}", [0.0] * count, outcome=value)
            turns = tuple(
                replace(turn, state=State(before=f"{t}" if t == 0 else f"{e}.{t}", action=f"{e % 2}", after=f"{e % 2}.{t}"))
                for t, turn in enumerate(episode.turns)
            )
            episodes.append(replace(episode, turns=turns))
        result.append(Group(f"g{g}", {"reference_rewards": [0.25, 0.5]}, tuple(episodes), len(episodes)))
    return result


def by_turn(groups: Sequence[Group], estimator: Estimator) -> dict[tuple[str, str], Any]:
    batch, credit = assign(groups, estimator)
    return told(batch.episodes, credit)


def told(episodes: Sequence[Episode], credit: Credit) -> dict[tuple[str, str], Any]:
    """(episode, turn) -> advantage and weight."""
    weight = np.ones(len(credit.turns)) if credit.weight is None else credit.weight
    return {
        (episodes[int(credit.turns.episode[t])].id, turn.id): np.append(credit.advantage[t], weight[t])
        for t, turn in enumerate(credit.turns.turn)
    }


def same(a: dict[Any, Any], b: dict[Any, Any]) -> None:
    assert a.keys() == b.keys()
    for key, value in a.items():
        np.testing.assert_allclose(value, b[key], atol=1e-9, err_msg=str(key))


name = pytest.mark.parametrize("estimator", ALL, ids=repr)
name_of_a_group = pytest.mark.parametrize("estimator", OF_A_GROUP, ids=repr)


@name
@settings(max_examples=20)
@given(drawn=groups, random=st.randoms(use_true_random=False))
def test_the_order_of_groups_and_members_does_not_matter(estimator, drawn, random):
    plain = made(drawn)
    mixed = [replace(g, episodes=tuple(random.sample(g.episodes, len(g.episodes)))) for g in random.sample(plain, len(plain))]
    same(by_turn(plain, estimator), by_turn(mixed, estimator))


@name_of_a_group
@settings(max_examples=20)
@given(drawn=groups, shift=st.floats(-5, 5))
def test_a_shift_of_a_groups_outcomes_changes_nothing(estimator, drawn, shift):
    moved = [[(value + shift, count) for value, count in members] for members in drawn]
    plain, other = by_turn(made(drawn), estimator), by_turn(made(moved), estimator)
    for key, value in plain.items():
        np.testing.assert_allclose(value[:-1], other[key][:-1], atol=1e-4)  # 1e-6 beside a deviation; rounding of the shift


@pytest.mark.parametrize("estimator", [RLOO(), DrGRPO(), SALT(base=RLOO()), SUPO(std=None), ATGRPO(std=None)], ids=repr)
@settings(max_examples=20)
@given(drawn=groups, scale=st.floats(0.1, 10))
def test_a_scale_goes_through_where_nothing_is_divided(estimator, drawn, scale):
    plain = by_turn(made(drawn), estimator)
    scaled = by_turn(made([[(value * scale, count) for value, count in members] for members in drawn]), estimator)
    for key, value in plain.items():
        np.testing.assert_allclose(scaled[key][:-1], value[:-1] * scale, atol=1e-9)


@pytest.mark.parametrize("estimator", [SUPO(eps=0.0), PassAtK(k=1, eps=0.0), ReinforcePP(eps=0.0)], ids=repr)
@settings(max_examples=20)
@given(drawn=groups, scale=st.floats(0.1, 10))
def test_a_scale_drops_out_where_the_deviation_divides(estimator, drawn, scale):
    plain = by_turn(made(drawn), estimator)
    scaled = by_turn(made([[(value * scale, count) for value, count in members] for members in drawn]), estimator)
    same(plain, scaled)


@pytest.mark.parametrize("estimator", [each for each in ALL if not isinstance(each, PVPO)], ids=repr)
@settings(max_examples=20)
@given(shape=groups, value=st.floats(-10, 10))
def test_equal_rewards_give_exactly_nothing(estimator, shape, value):
    equal = [[(value, count) for _, count in members] for members in shape]
    assert all(not advantage[:-1].any() for advantage in by_turn(made(equal), estimator).values())


@name
@settings(max_examples=20)
@given(drawn=groups, value=outcome)
def test_a_lost_episode_is_as_if_it_had_never_been(estimator, drawn, value):
    plain = made(drawn)
    lost = [
        replace(g, episodes=(*g.episodes, replace(make_chain(f"{g.id}.lost", g.id, [0.0], outcome=value), status="failed")))
        for g in plain
    ]
    same(by_turn(plain, estimator), by_turn(lost, estimator))


@name_of_a_group
@settings(max_examples=20)
@given(drawn=st.lists(group, min_size=2, max_size=3))
def test_a_groups_credit_is_its_own(estimator, drawn):
    together = by_turn(made(drawn), estimator)
    apart: dict[tuple[str, str], Any] = {}
    for g in made(drawn):
        apart |= by_turn([g], estimator)
    same(together, apart)


@pytest.mark.parametrize("estimator", [each for each in ALL if not isinstance(each, PVPO) and each != ReinforcePP()], ids=repr)
@given(value=outcome, count=st.integers(1, 3), other=group)
@settings(max_examples=20)
def test_a_lone_survivor_gets_no_credit(estimator, value, count, other):
    both = made([[(value, count), (0.5, 1)], other])
    first, second = both[0].episodes
    alone = [replace(both[0], episodes=(first, replace(second, status="failed"))), both[1]]
    assert all(not advantage[:-1].any() for key, advantage in by_turn(alone, estimator).items() if key[0] == first.id)
