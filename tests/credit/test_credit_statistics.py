from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentrl.credit import GRPO, Batch, Credit, GiGPO, Needs, combine, normalise, returns, sizes, to_batch, totals
from agentrl.errors import UserError

rewards = st.floats(-10, 10, allow_nan=False).map(lambda x: round(x, 3))
rows = st.lists(st.tuples(rewards, st.integers(0, 3), st.integers(0, 2)), min_size=1, max_size=20)
stds = st.sampled_from([None, "sample", "population"])


def columns(drawn):
    values, first, second = zip(*drawn, strict=True)
    return np.array(values), np.array(first), np.array(second)


@given(rows, stds, st.randoms(use_true_random=False))
def test_the_order_of_rows_changes_no_bit(drawn, std, random):
    values, first, second = columns(drawn)
    order = list(range(len(values)))
    random.shuffle(order)
    expected = normalise(values, by=(first, second), std=std)[order]
    assert normalise(values[order], by=(first[order], second[order]), std=std).tolist() == expected.tolist()


@given(rows, stds, rewards)
def test_a_shift_of_all_values_changes_nothing(drawn, std, shift):
    values, first, second = columns(drawn)
    # eps is large here: beside a nearly equal group, rounding of the shift is all there is to divide.
    plain, moved = (normalise(v, by=(first, second), std=std, eps=1e-3) for v in (values, values + shift))
    np.testing.assert_allclose(moved, plain, atol=1e-9)


@given(rows, st.floats(0.1, 10))
def test_a_scale_goes_through_without_std_and_drops_out_with_it(drawn, scale):
    values, first, _ = columns(drawn)
    centred = normalise(values, by=(first,))
    np.testing.assert_allclose(normalise(values * scale, by=(first,)), centred * scale, atol=1e-9)
    scored = normalise(values, by=(first,), std="sample", eps=1e-12)
    np.testing.assert_allclose(normalise(values * scale, by=(first,), std="sample", eps=1e-12), scored, atol=1e-6)


@given(rows)
def test_groups_sum_to_zero_and_do_not_see_each_other(drawn):
    values, first, _ = columns(drawn)
    result = normalise(values, by=(first,), std="sample")
    for key in set(first.tolist()):
        mine = first == key
        assert abs(result[mine].sum()) < 1e-6
        assert normalise(values[mine], by=(first[mine],), std="sample").tolist() == result[mine].tolist()


@given(st.floats(-1e6, 1e6, allow_nan=False), st.integers(2, 17), stds)
def test_equal_values_give_exactly_zero(value, count, std):
    assert normalise(np.full(count, value), by=(np.zeros(count, np.int64),), std=std).tolist() == [0.0] * count


def test_sample_and_population_std_differ_by_their_divisor():
    group = np.zeros(4, np.int64)
    values = np.array([0.0, 0.0, 0.0, 2.0])
    assert normalise(values, by=(group,), std="sample", eps=0)[3] == pytest.approx(1.5 / 1.0)
    assert normalise(values, by=(group,), std="population", eps=0)[3] == pytest.approx(1.5 / np.sqrt(0.75))


def test_a_singleton_gets_what_is_asked_for():
    values, group = np.array([3.0, 1.0, 2.0]), np.array([0, 1, 1])
    assert normalise(values, by=(group,)).tolist() == [0.0, -0.5, 0.5]
    assert normalise(values, by=(group,), singleton="raw").tolist() == [3.0, -0.5, 0.5]
    assert normalise(values, by=(group,), singleton=-1.0).tolist() == [-1.0, -0.5, 0.5]


def test_once_lets_each_unit_vote_once():
    values, group, unit = np.array([10.0, 10.0, 10.0, 0.0]), np.zeros(4, np.int64), np.array([7, 7, 7, 2])
    assert normalise(values, by=(group,), once=unit).tolist() == [5.0, 5.0, 5.0, -5.0]
    assert normalise(values, by=(group,)).tolist() == [2.5, 2.5, 2.5, -7.5]
    alone = normalise(values[:3], by=(group[:3],), once=unit[:3], singleton="raw")
    assert alone.tolist() == [10.0, 10.0, 10.0]


def test_columns_of_another_length_are_refused():
    with pytest.raises(UserError, match="length"):
        normalise([1.0, 2.0], by=(np.zeros(3, np.int64),))
    with pytest.raises(UserError, match="one length"):
        combine([1.0], [1.0, 2.0])


def test_combine_is_a_weighted_sum():
    assert combine([1.0, 2.0], [10.0, 20.0]).tolist() == [11.0, 22.0]
    assert combine([1.0, 2.0], [10.0, 20.0], weights=(1.0, 0.5)).tolist() == [6.0, 12.0]


@given(st.lists(rewards, min_size=1, max_size=6), rewards, st.floats(0, 1))
def test_return_to_go_is_the_discounted_sum_of_what_follows(chain, grouped, own, outcome, gamma):
    turns = to_batch(grouped([chain("e", "g", own, outcome=outcome)])).turns
    got = returns(turns, gamma)
    full = [*own[:-1], own[-1] + outcome]
    for t in range(len(own)):
        assert got[t] == pytest.approx(sum(gamma ** (k - t) * full[k] for k in range(t, len(own))), abs=1e-9)
    assert returns(turns, gamma, outcome=False)[-1] == own[-1]
    assert totals(turns)[0] == pytest.approx(sum(own) + outcome, abs=1e-9)


def test_by_agent_the_return_skips_the_others_rewards_and_holds_the_outcome(chain, grouped):
    episode = chain("e", "g", [1.0, 2.0, 4.0], outcome=8.0)
    object.__setattr__(episode.turns[1], "agent", "b")
    turns = to_batch(grouped([episode])).turns
    assert returns(turns, 0.5).tolist() == [1 + 0.5 * (2 + 0.5 * 12), 2 + 0.5 * 12, 12.0]
    assert returns(turns, 0.5, by="agent").tolist() == [1 + 0.5 * 12, 10.0, 12.0]


@given(st.lists(st.tuples(rewards, st.integers(1, 3)), min_size=3, max_size=8), st.integers(0, 7))
def test_a_lost_member_counts_as_if_it_had_never_been_asked_for(chain, grouped, members, lost):
    lost %= len(members)
    built = [chain(f"e{i}", "g", [0.0] * turns, outcome=reward) for i, (reward, turns) in enumerate(members)]
    failed = [replace(episode, status="failed") if i == lost else episode for i, episode in enumerate(built)]
    with_failure, without = to_batch(grouped(failed)), to_batch(grouped(built[:lost] + built[lost + 1 :]))
    assert with_failure.lost == 1
    for estimator in (GRPO(), GiGPO(std="sample")):
        assert list(estimator(with_failure).advantage) == list(estimator(without).advantage)


@given(st.permutations(range(5)))
def test_the_order_of_episodes_changes_no_advantage(chain, grouped, order):
    built = [chain(f"e{i}", "g", [0.1 * i] * (1 + i % 3), outcome=i**2 / 7, states=["s", "t", "s"]) for i in range(5)]
    expected, got = {}, {}
    for into, episodes in ((expected, built), (got, [built[i] for i in order])):
        batch = to_batch(grouped(episodes))
        for turn, number, value in zip(batch.turns.turn, batch.turns.episode, GiGPO()(batch).advantage, strict=True):
            into[batch.episodes[number].id, turn.id] = value
    assert got == expected


def plain_normalise(values, keys, std, eps, singleton, once):
    """The definition, one value after the other, sums exact."""
    result = []
    for value, key in zip(values, keys, strict=True):
        voters = {unit: v for v, k, unit in reversed(list(zip(values, keys, once, strict=True))) if k == key}  # the first
        sample = list(voters.values())
        if len(sample) == 1:
            result.append(value if singleton == "raw" else singleton)
            continue
        mean = sample[0] if len(set(sample)) == 1 else math.fsum(sample) / len(sample)
        squares = math.fsum((v - mean) ** 2 for v in sample)
        below = 1.0 if std is None else math.sqrt(squares / (len(sample) - (std == "sample"))) + eps
        result.append((value - mean) / below)
    return result


units = st.lists(st.tuples(rewards, st.integers(0, 3), st.integers(0, 2), st.integers(0, 3)), max_size=24)


@given(units, stds, st.sampled_from([0.0, "raw", -2.0]), st.booleans())
def test_normalise_gives_what_the_definition_gives(drawn, std, singleton, by_unit):
    values, first, second, unit = (np.array(column) for column in zip(*drawn, strict=True)) if drawn else [np.zeros(0)] * 4
    once = unit if by_unit else None
    got = normalise(values, by=(first, second), std=std, eps=1e-3, singleton=singleton, once=once)
    keys, names = [(a, b) for _, a, b, _ in drawn], unit.tolist() if by_unit else range(len(drawn))
    wanted = plain_normalise(values.tolist(), keys, std, 1e-3, singleton, names)
    np.testing.assert_allclose(got, wanted, rtol=1e-12, atol=1e-12)
    counted = [len({name for k, name in zip(keys, names, strict=True) if k == key}) for key in keys]
    assert sizes(by=(first, second), once=once).tolist() == counted


members = st.lists(st.tuples(rewards, st.integers(0, 2)), min_size=1, max_size=6)


@given(st.lists(st.tuples(members, rewards), min_size=1, max_size=4), st.floats(0, 1), st.booleans(), st.booleans())
def test_returns_give_what_the_definition_gives(chain, grouped, drawn, gamma, by_agent, outcome):
    built = []
    for e, (own, end) in enumerate(drawn):
        episode = chain(f"e{e}", "g", [value for value, _ in own], outcome=end)
        for turn, (_, agent) in zip(episode.turns, own, strict=True):
            object.__setattr__(turn, "agent", f"agent-{agent}")
        built.append(episode)
    batch = to_batch(grouped(built))
    wanted = []
    for own, end in drawn:
        for t, (_, agent) in enumerate(own):
            sequence = [value for value, other in own[t:] if not by_agent or other == agent]
            later = math.fsum(gamma**k * value for k, value in enumerate(sequence))
            wanted.append(later + gamma ** (len(sequence) - 1) * end * outcome)
    got = returns(batch.turns, gamma, by="agent" if by_agent else "episode", outcome=outcome)
    np.testing.assert_allclose(got, wanted, rtol=1e-12, atol=1e-12)


def test_of_nothing_there_is_nothing():
    none = to_batch([]).turns
    for column in (returns(none), totals(none), normalise([], by=(none.group,)), sizes(by=(none.group,))):
        assert column.shape == (0,)


@dataclass(frozen=True, slots=True)
class RoleCentred:
    """Return-to-go of a turn, centred over the same agent and turn index of its group."""

    gamma: float = 0.95
    needs: ClassVar[Needs] = Needs()

    def __call__(self, batch: Batch) -> Credit:
        turns = batch.turns
        return_T = returns(turns, gamma=self.gamma)
        return Credit(turns, normalise(return_T, by=(turns.group, turns.agent, turns.index), std=None, singleton=0.0))


def test_an_estimator_of_ones_own_is_a_few_lines(chain, grouped):
    batch = to_batch(grouped([chain("a", "g", [0.0, 0.0], outcome=1.0), chain("b", "g", [0.0, 0.0, 0.0], outcome=0.0)]))
    assert RoleCentred()(batch).advantage == pytest.approx([0.475, 0.5, -0.475, -0.5, 0.0])
