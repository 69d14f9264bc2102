"""Methods with a baseline over episodes or over the batch: RLOO, Dr. GRPO, REINFORCE++, pass@k, GAE, PVPO."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from itertools import combinations
from math import comb, sqrt
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentrl.credit import GAE, GRPO, PVPO, RLOO, Batch, DrGRPO, Needs, PassAtK, ReinforcePP, assign, sizes, to_batch
from agentrl.episode import Column, Probe, Reward, token_ids
from agentrl.errors import UserError
from tests.credit.conftest import make_chain, make_groups, make_turn

GOLDEN = Path(__file__).parent / "golden"


def golden(name: str) -> Any:
    return json.loads((GOLDEN / f"{name}.json").read_text())


def outcomes(values: Sequence[float], group: str = "g") -> Batch:
    return to_batch(make_groups([make_chain(f"{group}{i}", group, [0.0], outcome=value) for i, value in enumerate(values)]))


def valued(values: Sequence[float], rewards: Sequence[float], agents: Sequence[str] = (), outcome: float = 0.0) -> Batch:
    """One episode with a turn for each value and reward."""
    turns = tuple(
        make_turn(
            str(i), i, *agents[i : i + 1], sampled=1, columns={"value": Column("value", np.array([value]))},
            rewards=(Reward("r", rewards[i], turn=str(i)),),
        )
        for i, value in enumerate(values)
    )  # fmt: skip
    return to_batch(make_groups([replace(make_chain("e", "g", [], outcome=outcome), turns=turns)]))


def test_rloo_subtracts_the_mean_of_the_others():
    rewards = [1.0, 0.0, 0.5, 0.0]
    wanted = [r - (sum(rewards) - r) / 3 for r in rewards]
    np.testing.assert_allclose(RLOO()(outcomes(rewards)).advantage, wanted, atol=1e-12)


def test_rloo_divides_by_those_that_ended(chain, grouped):
    members = [chain(f"e{i}", "g", [0.0], outcome=r) for i, r in enumerate([1.0, 0.0, 0.0])]
    members[2] = replace(members[2], status="failed")
    assert RLOO()(to_batch(grouped(members))).advantage.tolist() == [1.0, -1.0]


def test_an_episode_that_its_sandbox_failed_is_in_no_statistic_as_autotriton_asks(chain, grouped):
    data = golden("autotriton")
    cases = zip(data["inputs"]["cases_rule_exec_infra"], data["expected"]["reward"], strict=True)
    members = [
        chain(f"e{i}", "g", [0.0], outcome=reward or 0.0, status="failed" if infra else "done")
        for i, ((_, _, infra), reward) in enumerate(cases)
    ]
    wanted = [advantage for advantage in data["expected"]["advantage"] if advantage is not None]
    np.testing.assert_allclose(GRPO()(to_batch(grouped(members))).advantage, wanted, atol=1e-6)


def test_dr_grpo_is_grpo_without_the_deviation():
    batch = outcomes([1.0, 0.0, 0.0, 0.5])
    assert DrGRPO()(batch).advantage.tolist() == GRPO(std=None)(batch).advantage.tolist()


def test_reinforce_whitens_over_all_groups_by_token(chain, grouped, turn):
    first = replace(chain("a", "x", [], outcome=1.0), turns=(turn("0", sampled=3),))
    second = replace(chain("b", "y", [], outcome=0.0), turns=(turn("0", sampled=1),))
    batch = to_batch(grouped([first, second]))
    by_token = np.array([1.0, 1.0, 1.0, 0.0])
    wanted = (np.array([1.0, 0.0]) - by_token.mean()) / (by_token.std(ddof=1) + 1e-6)
    np.testing.assert_allclose(ReinforcePP()(batch).advantage, wanted, atol=1e-12)
    by_turn = np.array([0.5, -0.5]) / (sqrt(0.5) + 1e-6)
    np.testing.assert_allclose(ReinforcePP(over="turn")(batch).advantage, by_turn, atol=1e-12)


def test_reinforce_credits_a_turn_with_its_return_to_go(chain, grouped):
    batch = to_batch(grouped([chain("a", "g", [1.0, 0.0], outcome=2.0)]))
    centred = np.array([2.5, 2.0]) - 2.25
    advantage = ReinforcePP(gamma=0.75, over="turn", eps=0.0)(batch).advantage
    np.testing.assert_allclose(advantage, centred / centred.std(ddof=1), atol=1e-12)


def test_reinforce_baseline_gives_a_lone_episode_nothing_and_keeps_it_out_of_the_statistics(chain, grouped):
    rewards = {"g": [1.0, 0.0, 0.0], "alone": [5.0]}
    members = [chain(f"{g}{i}", g, [0.0], outcome=r) for g, values in rewards.items() for i, r in enumerate(values)]
    advantage = ReinforcePP(baseline="group", over="turn")(to_batch(grouped(members))).advantage
    centred = np.array([2 / 3, -1 / 3, -1 / 3])
    np.testing.assert_allclose(advantage, [*(centred / (centred.std(ddof=1) + 1e-6)), 0.0], atol=1e-12)


def test_sizes_counts_values_or_units():
    group, unit = np.array([0, 0, 0, 1]), np.array([0, 0, 1, 2])
    assert sizes(by=(group,)).tolist() == [3, 3, 3, 1]
    assert sizes(by=(group,), once=unit).tolist() == [2, 2, 2, 1]


def by_enumeration(rewards: Sequence[float], k: int) -> list[float]:
    """Every k-subset is a member of a GRPO group, its reward its best, and each of its episodes gets its advantage."""
    subsets = list(combinations(range(len(rewards)), k))
    best = np.array([max(rewards[i] for i in subset) for subset in subsets])
    advantage = (best - best.mean()) / best.std() if best.std() > 1e-12 else np.zeros(len(best))
    return [
        float(np.mean([a for a, subset in zip(advantage, subsets, strict=True) if i in subset])) for i in range(len(rewards))
    ]


@given(st.lists(st.sampled_from([0.0, 0.25, 0.5, 1.0]), min_size=2, max_size=7), st.data())
def test_pass_at_k_is_the_mean_over_all_subsets(rewards, data):
    k = data.draw(st.integers(1, len(rewards) - 1))
    np.testing.assert_allclose(PassAtK(k=k, eps=0.0)(outcomes(rewards)).advantage, by_enumeration(rewards, k), atol=1e-9)


@pytest.mark.parametrize(("n", "wrong", "k"), [(8, 5, 4), (8, 2, 4), (16, 15, 8), (4, 3, 2)])
def test_pass_at_k_is_the_papers_closed_form_for_zero_and_one(n, wrong, k):
    p = 1 - comb(wrong, k) / comb(n, k)
    s = sqrt(p * (1 - p))
    right = (1 - p) / s if s else 0.0
    failing = (1 - p - comb(wrong - 1, k - 1) / comb(n - 1, k - 1)) / s if s else 0.0
    advantage = PassAtK(k=k, eps=0.0)(outcomes([0.0] * wrong + [1.0] * (n - wrong))).advantage
    if s:
        np.testing.assert_allclose(advantage, [failing] * wrong + [right] * (n - wrong), atol=1e-9)
    else:
        np.testing.assert_allclose(advantage, 0.0, atol=1e-9)


def test_pass_at_1_is_grpo_with_the_population_deviation():
    batch = outcomes([1.0, 0.0, 0.0, 0.5])
    np.testing.assert_allclose(PassAtK(k=1)(batch).advantage, GRPO(std="population")(batch).advantage, atol=1e-12)


def test_pass_at_k_counts_an_episode_once_and_gives_all_its_turns_the_same(chain, grouped):
    members = [chain("a", "g", [0.0, 0.0], outcome=1.0), chain("b", "g", [0.0]), chain("c", "g", [0.0, 0.0])]
    advantage = PassAtK(k=2, eps=0.0)(to_batch(grouped(members))).advantage
    a, b, c = by_enumeration([1.0, 0.0, 0.0], 2)
    np.testing.assert_allclose(advantage, [a, a, b, c, c], atol=1e-12)


def test_pass_at_k_of_what_is_left_of_a_group_gives_nothing_when_no_more_than_k_ended(chain, grouped):
    batch = to_batch(grouped([chain("a", "g", [0.0], outcome=1.0), chain("b", "g", [0.0])], wanted=4))
    assert PassAtK(k=2)(batch).advantage.tolist() == [0.0, 0.0]


def test_pass_at_k_refuses_groups_that_can_give_no_credit():
    with pytest.raises(UserError, match=r"pass@4 of group g, which has 4 episodes: .* rollout.size be above 4"):
        PassAtK(k=4)(outcomes([1.0, 0.0, 0.0, 0.0]))
    with pytest.raises(UserError, match=r"needs k >= 1, got PassAtK\(k=0\)"):
        PassAtK(k=0)


def test_gae_gives_flag_traders_numbers():
    data = golden("flag_trader")
    batch = valued(data["inputs"]["values"][:-1], data["expected"]["reward"])
    advantage = GAE(gamma=data["params"]["gamma"], lam=data["params"]["lam"])(batch).advantage
    np.testing.assert_allclose(advantage, data["expected"]["gae"], atol=2e-6)  # from rewards of six digits


def test_gae_of_lambda_0_gives_multiprompters_numbers():
    data = golden("multiprompter")
    inputs = data["inputs"]
    batch = valued(inputs["critic"], inputs["rewards"], agents=[f"p{agent}" for agent in inputs["agent"]])
    np.testing.assert_allclose(GAE(lam=0.0)(batch).advantage, data["expected"]["td_advantage"], atol=1e-9)


def test_gae_by_agent_goes_on_to_the_same_agents_next_turn():
    batch = valued([0.3, 0.6, 0.9], [0.0, 0.0, 1.2], agents=["a", "b", "a"])
    np.testing.assert_allclose(GAE(lam=0.0, by="agent")(batch).advantage, [0.6, -0.6, 0.3], atol=1e-12)


def test_gae_of_gamma_and_lambda_1_is_the_return_minus_the_value():
    batch = valued([0.3, -0.2], [0.5, 0.0], outcome=2.0)
    np.testing.assert_allclose(GAE(lam=1.0)(batch).advantage, [2.2, 2.2], atol=1e-12)


def test_gae_ends_with_the_episode(chain, grouped):
    probed = Probe("value", 0, token_ids([]), np.zeros(0, np.float32), value=0.25)
    members = [
        replace(chain(n, "g", []), turns=(make_turn("0", probes=(probed,)), make_turn("1", 1, probes=(probed,)))) for n in "ab"
    ]
    for by in ("episode", "agent"):
        assert GAE(lam=0.0, by=by)(to_batch(grouped(members))).advantage.tolist() == [0.0, -0.25, 0.0, -0.25]


def plain_gae(rewards: Sequence[float], values: Sequence[float], gamma: float, lam: float) -> list[float]:
    advantage, ahead, after = [], 0.0, 0.0
    for reward, value in zip(reversed(rewards), reversed(values), strict=True):
        ahead = reward + gamma * after - value + gamma * lam * ahead
        after = value
        advantage.append(ahead)
    return advantage[::-1]


@given(st.lists(st.lists(st.floats(-2, 2), min_size=1, max_size=4), min_size=1, max_size=4), st.floats(-2, 2))
def test_gae_over_tokens_is_the_recursion_through_all_turns(values, outcome):
    turns = tuple(
        make_turn(
            str(i), i, sampled=len(own) + i % 2, forced=i % 2, rewards=(Reward("r", float(i), turn=str(i)),),
            columns={"value": Column("value", np.array([9.0] * (i % 2) + own))},
        )
        for i, own in enumerate(values)
    )  # fmt: skip
    batch = to_batch(make_groups([replace(make_chain("e", "g", [], outcome=outcome), turns=turns)]))
    rewards = [0.0 if j < len(own) - 1 else float(i) for i, own in enumerate(values) for j in range(len(own))]
    rewards[-1] += outcome
    advantage = GAE(gamma=0.9, lam=0.8, over="token")(batch).advantage
    assert [len(part) for part in advantage] == [len(own) for own in values]
    np.testing.assert_allclose(
        np.concatenate(advantage), plain_gae(rewards, [v for own in values for v in own], 0.9, 0.8), atol=1e-9
    )


def test_gae_whitened_has_mean_0_and_deviation_1():
    advantage = np.asarray(GAE(whiten=True)(valued([0.3, 0.1, 0.9], [0.0, 1.0, 1.2])).advantage)
    assert advantage.mean() == pytest.approx(0.0, abs=1e-9) and advantage.std(ddof=1) == pytest.approx(1.0, abs=1e-4)


def test_gae_over_turns_takes_a_probe(chain, grouped, turn):
    probe = Probe("value", 0, token_ids([]), np.zeros(0, np.float32), value=0.25)
    episode = replace(chain("e", "g", [], outcome=1.0), turns=(turn("0", probes=(probe,)),))
    assert GAE()(to_batch(grouped([episode]))).advantage.tolist() == [0.75]


def test_gae_without_values_says_what_is_missing(chain, grouped, turn):
    assert GAE().needs == Needs(probes=("value",))
    with pytest.raises(UserError, match=r"turn 0 of agent a has no column 'value'; train a critic"):
        assign(grouped([chain("e", "g", [1.0])]), GAE())
    short = turn("0", columns={"value": Column("value", np.zeros(1))})
    with pytest.raises(UserError, match=r"must hold 2 finite numbers, one for each sampled token; got shape \(1,\)"):
        assign(grouped([replace(chain("e", "g", []), turns=(short,))]), GAE(over="token"))


def with_reference(rewards: Sequence[float], reference: Sequence[float]) -> Batch:
    ours = [make_chain(f"e{i}", "g", [0.0], outcome=r) for i, r in enumerate(rewards)]
    theirs = [make_chain(f"r{i}", "g", [0.0], outcome=r, source="reference") for i, r in enumerate(reference)]
    return to_batch(make_groups([*theirs, *ours]))


@pytest.mark.parametrize(("inputs", "expected"), [("inputs", "expected"), ("inputs_all_fail", "expected_all_fail")])
def test_pvpo_gives_the_worked_numbers_from_reference_members(inputs, expected):
    data = golden("pvpo")
    reference = data[inputs]["ref_rewards"]
    credit = PVPO()(with_reference(data[inputs]["rewards"], reference))
    np.testing.assert_allclose(np.asarray(credit.advantage)[len(reference) :], data[expected], atol=1e-9)
    assert credit.weight is not None and credit.weight.tolist() == [0.0] * len(reference) + [1.0] * len(data[expected])


def test_pvpo_takes_the_tasks_own_reference_rewards(chain, grouped):
    data = golden("pvpo")
    groups = grouped([chain(f"e{i}", "g", [0.0], outcome=r) for i, r in enumerate(data["inputs"]["rewards"])])
    groups[0] = replace(groups[0], task={"reference_rewards": data["inputs"]["ref_rewards"]})
    np.testing.assert_allclose(PVPO()(to_batch(groups)).advantage, data["expected"], atol=1e-9)


def test_pvpo_counts_turn_rewards_of_the_reference_too(chain, grouped):
    members = [chain("r", "g", [0.5, 0.0], outcome=0.5, source="reference"), chain("e", "g", [0.25], outcome=0.0)]
    assert np.asarray(PVPO()(to_batch(grouped(members))).advantage).tolist() == [0.0, 0.0, -0.75]


def test_pvpo_credits_a_demonstration_and_keeps_it_out_of_the_baseline(chain, grouped):
    rewards = {"reference": 0.5, "demonstration": 1.0, "policy": 0.0}
    members = [chain(source, "g", [0.0], outcome=reward, source=source) for source, reward in rewards.items()]
    assert np.asarray(PVPO()(to_batch(grouped(members))).advantage).tolist() == [0.0, 0.5, -0.5]


@pytest.mark.parametrize("told", [None, [], ["much"], 0.5, [float("nan")]])
def test_pvpo_without_reference_rewards_says_so(chain, grouped, told):
    groups = [replace(grouped([chain("e", "g", [1.0])])[0], task={"reference_rewards": told})]
    with pytest.raises(
        UserError, match=r"group g has no finished episode of source 'reference', and its task's reference_rewards is"
    ):
        assign(groups, PVPO())


def test_what_they_need_is_known_before_the_run():
    assert PVPO().needs == Needs(reference_rewards=True)
    assert RLOO().needs == DrGRPO().needs == PassAtK().needs == Needs(group=2)
    assert ReinforcePP().needs == Needs()
