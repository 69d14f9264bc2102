from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from agentrl.credit import Credit, to_batch
from agentrl.episode import Group, Parent
from agentrl.errors import UserError
from agentrl.learning import Row, TrainedTurn, to_rows
from agentrl.learning.packing import plan
from agentrl.learning.rows import trace


def batch_of(*episodes, **options):
    return to_batch([Group("g", None, episodes, len(episodes))], **options)


def credited(batch, policy=None, weight=None, **options):
    advantage = np.arange(1, len(batch.turns) + 1, dtype=np.float64)
    return to_rows(batch, Credit(batch.turns, advantage, weight), policy, **options)


def shape(rows):
    return [(row.leaf.id, [trained.turn.id for trained in row.trained]) for row in rows]


def test_a_chain_is_one_row(tree):
    batch = batch_of(tree("e", 0, (None, 0, 1)), tree("f", 1, (None, 0)))
    rows = credited(batch)
    assert shape(rows) == [("2", ["0", "1", "2"]), ("1", ["0", "1"])]
    assert [row.episode.id for row in rows] == ["e", "f"]
    assert [trained.advantage.tolist()[0] for row in rows for trained in row.trained] == [1.0, 2.0, 3.0, 4.0, 5.0]
    assert all(len(t.advantage) == len(t.turn.sampled_ids) for row in rows for t in row.trained)


def test_a_shared_turn_is_in_the_row_of_every_leaf_or_only_of_the_first(tree):
    batch = batch_of(tree("e", 0, (None, 0, 0, 2, 2)))
    assert shape(credited(batch)) == [("1", ["0", "1"]), ("3", ["0", "2", "3"]), ("4", ["0", "2", "4"])]
    assert shape(credited(batch, shared="once")) == [("1", ["0", "1"]), ("3", ["2", "3"]), ("4", ["4"])]


def test_a_context_that_keeps_only_the_prompt_begins_another_row(turn, episode):
    turns = (
        turn("0", [1, 2, 3], [4, 5]),
        turn("summary", [6], [7, 8], Parent("0", 5), kind="summary"),
        turn("1", [9], [10], Parent("0", 3)),
    )
    run = episode("e", turns)
    assert shape(credited(batch_of(run))) == [("summary", ["0", "summary"]), ("1", ["1"])]
    assert trace(run, turns[2]).ids.tolist() == [1, 2, 3, 9, 10]


def test_a_turn_kept_in_part_is_trained_on_its_own_path_alone(turn, episode):
    turns = (turn("0", [1, 2], [3, 4, 5]), turn("1", [6], [7], Parent("0", 3)))
    run = episode("e", turns)
    assert shape(credited(batch_of(run))) == [("0", ["0"]), ("1", ["1"])]
    spans = trace(run, turns[1]).spans
    assert [(span.turn.id, span.start, span.end, span.whole) for span in spans] == [("0", 2, 3, False), ("1", 4, 5, True)]


def test_paths_are_the_episodes_own(tree):
    run = tree("e", 3, (None, 0, 0, 1, 3))
    for leaf in run.turns:
        path = trace(run, leaf)
        assert path.ids.tolist() == run.path(leaf).tolist()
        for span in path.spans:
            assert path.ids[span.start : span.end].tolist() == span.turn.sampled_ids.tolist()


def test_only_turns_of_the_policy_are_trained(tree):
    run = tree("e", 0, (None, 0, 1))
    mixed = replace(run, turns=(run.turns[0], replace(run.turns[1], policy="q"), run.turns[2]))
    batch = batch_of(mixed)
    assert shape(credited(batch, "p")) == [("2", ["0", "2"])]
    assert shape(credited(batch, "q")) == [("2", ["1"])]
    assert credited(batch, "r") == []


def test_overlong_episodes_are_not_trained_unless_asked(tree):
    run = replace(tree("e", 0, (None, 0)), status="overlong")
    assert credited(batch_of(run)) == []
    assert shape(credited(batch_of(run, train_overlong=True))) == [("1", ["0", "1"])]


def test_a_weight_is_the_rows_or_goes_into_the_advantages(tree):
    batch = batch_of(tree("e", 0, (None, 0)), tree("f", 1, (None, 0)), tree("h", 2, (None, 0)))
    rows = credited(batch, weight=np.array([0.5, 0.5, 2.0, 1.0, 0.0, 3.0]))
    assert [row.weight for row in rows] == [0.5, 1.0, 3.0]
    assert [[t.advantage.tolist()[0] for t in row.trained] for row in rows] == [[1.0, 2.0], [6.0, 4.0], [6.0]]


def test_advantages_by_token_cover_sampled_or_drawn_tokens(turn, episode):
    run = episode("e", (turn("0", [1], [2, 3, 4], forced=1),))
    batch = batch_of(run)
    for given, expected in (([1.0, 2.0, 3.0], [1.0, 2.0, 3.0]), ([2.0, 3.0], [0.0, 2.0, 3.0])):
        rows = to_rows(batch, Credit(batch.turns, [np.array(given)]))
        assert rows[0].trained[0].advantage.tolist() == expected
        assert plan(rows, 100).entries.advantage.tolist() == expected[1:]
    with pytest.raises(UserError, match="turn 0 has 3 sampled tokens but advantages of shape"):
        to_rows(batch, Credit(batch.turns, [np.zeros(4)]))


def test_credit_that_does_not_fit_the_batch_is_refused(tree):
    batch = batch_of(tree("e", 0, (None, 0)))
    with pytest.raises(UserError, match="each of the batch's 2 turns, got 1"):
        to_rows(batch, Credit(batch.turns, np.zeros(1)))
    with pytest.raises(UserError, match="turn 1 is not finite"):
        to_rows(batch, Credit(batch.turns, np.array([0.0, np.nan])))
    with pytest.raises(UserError, match=r"turn 0 has weight -1\.0"):
        to_rows(batch, Credit(batch.turns, np.zeros(2), np.array([-1.0, 1.0])))


def test_records_that_contradict_themselves_are_refused_by_name(turn, episode):
    broken = episode("e", (turn("0", [1], [2]), turn("1", [3], [4], Parent("0", 9))))
    with pytest.raises(UserError, match="keeps 9 tokens of turn 0, whose path has 2"):
        trace(broken, broken.turns[1])
    bare = episode("e", (turn("0", [], [2]),))
    with pytest.raises(UserError, match="turn 0 was drawn from an empty prompt"):
        plan([Row(bare, bare.turns[0], (TrainedTurn(bare.turns[0], np.zeros(1, np.float32)),))], 100)
    short = episode("e", (turn("0", [1], [2, 3], logprobs=np.zeros(1, np.float32)),))
    with pytest.raises(UserError, match="2 sampled tokens but 1 behaviour log-probs"):
        plan([Row(short, short.turns[0], (TrainedTurn(short.turns[0], np.zeros(2, np.float32)),))], 100)


def test_a_shared_turn_may_carry_another_advantage_in_each_row(tree):
    batch = batch_of(tree("e", 0, (None, 0, 0)))
    turns = batch.turns
    plain = to_rows(batch, Credit(turns, np.arange(1.0, len(turns) + 1)))
    shared = next(name for name in (t.turn.id for t in plain[0].trained) if name in {t.turn.id for t in plain[1].trained})
    at = next(t for t, turn in enumerate(turns.turn) if turn.id == shared)
    rows = to_rows(batch, Credit(turns, np.arange(1.0, len(turns) + 1), by_row={(at, plain[1].leaf.id): -5.0}))
    found = [next(t.advantage for t in row.trained if t.turn.id == shared) for row in rows[:2]]
    assert (found[0] == at + 1).all()
    assert (found[1] == -5.0).all()
