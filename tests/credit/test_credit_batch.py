from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest

from agentrl.credit import GRPO, assign, to_batch
from agentrl.credit.batch import MASKED
from agentrl.episode import Group, Reward, State
from agentrl.errors import UserError
from agentrl.learning.rows import to_rows


def test_only_episodes_that_ended_are_in_the_batch(chain, grouped):
    statuses = ("done", "overlong", "failed", "cancelled", "over_budget", "divergent")
    episodes = [chain(f"e-{status}", "g", [0.0], status=status) for status in statuses]
    batch = to_batch(grouped(episodes, wanted=8))
    assert [episode.status for episode in batch.episodes] == ["done", "overlong"]
    assert batch.lost == 6
    assert len(batch.turns) == 2


def test_overlong_episodes_stay_in_the_statistics_and_are_marked(chain, grouped):
    groups = grouped([chain("e1", "g", [0.0]), chain("e2", "g", [0.0, 0.0], status="overlong")])
    assert to_batch(groups).extras[MASKED].tolist() == [False, True, True]
    assert to_batch(groups, train_overlong=True).extras[MASKED].tolist() == [False, False, False]
    for train, trained in ((False, ["e1"]), (True, ["e1", "e2"])):
        batch, credit = assign(groups, GRPO(), train_overlong=train)
        assert [row.episode.id for row in to_rows(batch, credit)] == trained


def test_turns_that_cannot_be_trained_or_whose_policy_is_not_are_out(chain, grouped, turn):
    turns = (
        turn("0", 0, agent="a", policy="a"),
        turn("1", 0, agent="b", policy="b"),
        turn("2", 1, agent="a", policy="a", untrained="lost candidate"),
        turn("3", 1, agent="b", policy="b", forced=2),
        turn("4", 2, agent="a", policy="a", sampled=3, forced=1),
    )
    groups = grouped([replace(chain("e", "g", [0.0]), turns=turns)])
    assert [t.id for t in to_batch(groups).turns.turn] == ["0", "1", "4"]
    only = to_batch(groups, policies={"a"})
    assert [t.id for t in only.turns.turn] == ["0", "4"]
    assert only.turns.length.tolist() == [2, 2]
    assert only.turns.last.tolist() == [False, True]
    assert only.agents == ("a",)


def test_rewards_find_their_turns(chain, grouped, turn):
    own = (Reward("own", 1.0, turn="0"),)
    lost = (Reward("team", 4.0, turn="2"), Reward("b's", 8.0, turn="2", agent="b"), Reward("c's", 16.0, turn="2", agent="c"))
    turns = (
        turn("0", 0, agent="a", rewards=own),
        turn("1", 0, agent="b"),
        turn("2", 1, agent="a", rewards=lost, untrained="no ids"),
        turn("3", 2, agent="a"),
    )
    end = (Reward("team", 32.0), Reward("a's", 64.0, agent="a"), Reward("c's", 128.0, agent="c"))
    batch = to_batch(grouped([replace(chain("e", "g", [0.0]), turns=turns, rewards=end)]))
    assert batch.turns.reward.tolist() == [1.0, 12.0, 64.0]
    assert batch.turns.outcome.tolist() == [32.0, 32.0, 32.0]


def test_states_match_exactly_and_an_unknown_state_matches_none(chain, grouped, turn):
    states = ("x", "y", "", "x", "")
    turns = tuple(turn(str(i), i, state=State(before=key)) for i, key in enumerate(states))
    column = to_batch(grouped([replace(chain("e", "g", [0.0]), turns=(*turns, turn("5", 5)))])).turns.state
    assert column[0] == column[3] != column[1]
    assert len(set(column.tolist())) == 5
    assert column[[2, 4, 5]].tolist() == [-3, -5, -6]


def test_columns_follow_group_episode_and_turn(chain, grouped):
    batch = to_batch(grouped([chain("a", "g", [0.0, 0.0]), chain("b", "h", [0.0]), chain("c", "g", [0.0, 0.0])]))
    assert batch.turns.group.tolist() == [0, 0, 0, 0, 1]
    assert batch.turns.episode.tolist() == [0, 0, 1, 1, 2]
    assert [episode.id for episode in batch.episodes] == ["a", "c", "b"]
    assert batch.turns.last.tolist() == [False, True, False, True, True]
    assert batch.turns.reward.dtype == np.float64


def test_a_reward_that_is_no_number_is_refused_by_name(chain, grouped):
    with pytest.raises(UserError, match=r"episode bad: a reward of turn 0 is nan"):
        to_batch(grouped([chain("bad", "g", [float("nan")])]))
    with pytest.raises(UserError, match=r"episode bad: a reward of its team is inf"):
        to_batch(grouped([chain("bad", "g", [0.0], outcome=float("inf"))]))


def test_an_episode_or_group_given_twice_is_refused(chain):
    episode = chain("e", "g", [0.0])
    with pytest.raises(UserError, match="episode e occurs 2 times"):
        to_batch([Group("g", None, (episode,), 1), Group("h", None, (episode,), 1)])
    with pytest.raises(UserError, match="group g occurs 2 times"):
        to_batch([Group("g", None, (episode,), 1), Group("g", None, (), 1)])


def test_credit_objectives_and_learning_are_imported_without_torch():
    code = "import sys, agentrl.credit, agentrl.objectives, agentrl.learning; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=60).returncode == 0
