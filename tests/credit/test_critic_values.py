"""Returns that a critic learns, and values put on turns."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from agentrl.credit import GAE, GRPO, DecisionMasked, ReinforcePP, to_batch
from agentrl.credit.values import value_based, with_values
from agentrl.episode import Reward
from tests.credit.conftest import make_turn
from tests.credit.test_group_family import valued


@pytest.mark.parametrize("lam", [0.0, 0.95, 1.0])
def test_the_return_is_advantage_plus_value_whitened_or_not(lam: float) -> None:
    values, rewards = [0.3, 0.6, 0.9], [0.0, 0.5, 1.2]
    batch = valued(values, rewards)
    wanted = np.asarray(GAE(lam=lam)(batch).advantage) + values
    for whiten in (False, True):
        np.testing.assert_allclose(GAE(lam=lam, whiten=whiten).returns(batch), wanted, atol=1e-12)


def test_with_lambda_1_it_is_the_discounted_return_whatever_the_values() -> None:
    for values in ([0.0, 0.0], [5.0, -3.0]):
        np.testing.assert_allclose(GAE(gamma=0.5, lam=1.0).returns(valued(values, [1.0, 4.0])), [3.0, 4.0], atol=1e-12)


def test_over_tokens_a_turn_has_a_return_for_each_drawn_token(chain, grouped) -> None:
    episode = replace(
        chain("e", "g", []),
        turns=(make_turn("0", sampled=3, forced=1, rewards=(Reward("r", 1.0, turn="0"),)), make_turn("1", 1, sampled=2)),
    )
    groups = with_values(grouped([episode]), {("e", "0"): np.array([0, 0.25, 0.5]), ("e", "1"): np.array([2.0])})
    returns = GAE(lam=0.0, over="token").returns(to_batch(groups))
    assert [each.tolist() for each in returns] == [[0.5, 3.0], [2.0, 0.0]]


def test_values_are_put_on_their_turns_and_one_number_is_that_of_all_tokens(chain, grouped) -> None:
    groups = grouped([chain("e", "g", [0.0, 1.0])])
    ids = [turn.id for turn in groups[0].episodes[0].turns]
    (group,) = with_values(groups, {("e", ids[1]): np.array([0.5], np.float32)})
    without, turn = group.episodes[0].turns
    assert "value" not in without.columns
    assert turn.columns["value"].values.tolist() == [0.5] * len(turn.sampled_ids)


def test_a_critic_learns_for_gae_also_where_another_estimator_is_built_on_it() -> None:
    assert value_based(GAE()) == GAE()
    assert value_based(DecisionMasked(base=GAE(over="token"))) == GAE(over="token")
    assert value_based(GRPO()) is None and value_based(ReinforcePP()) is None and value_based(DecisionMasked()) is None
