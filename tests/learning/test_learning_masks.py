"""Tokens that an estimator takes out of the loss: they are in no mean, and a stored step says so."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentrl.credit import Batch, Credit, DecisionMasked, Estimator, Needs, to_batch
from agentrl.episode import Group
from agentrl.errors import UserError
from agentrl.learning import Row, TrainedTurn, from_stored, to_rows, to_stored
from agentrl.learning.local import LocalLearner
from agentrl.learning.packing import plan
from agentrl.objectives import NLL, Clipped
from agentrl.store.contract import StoredStep
from agentrl.store.sqlite import SQLiteStore
from agentrl.view.credit import recorded_credit
from tests.learning.test_learning_replay import named, record


def batch_of(*episodes):
    return to_batch([Group("g", None, episodes, len(episodes))])


def masked_rows(batch, masks, **changes):
    return to_rows(batch, Credit(batch.turns, np.arange(1.0, len(batch.turns) + 1), mask=masks, **changes))


def some(batch, seed=0, share=0.6):
    rng = np.random.default_rng(seed)
    return [rng.random(len(turn.sampled_ids)) < share for turn in batch.turns.turn]


@pytest.mark.parametrize(
    "objective", [Clipped(), Clipped(aggregate="row", length=9), Clipped(ratio="turn", aggregate="episode"), NLL()]
)
def test_a_masked_token_is_as_if_it_had_been_forced(model, turn, episode, objective):
    """The first two drawn tokens masked, or forced: the same loss, the same gradient, the same number of trained tokens."""
    made = [turn(str(i), [i + 1, 5], [3 + i, 4, 6, 7 + i], index=0) for i in range(2)]
    masked = batch_of(*(episode(f"e{i}", (each,)) for i, each in enumerate(made)))
    forced = batch_of(*(episode(f"e{i}", (replace(each, forced=2),)) for i, each in enumerate(made)))
    learners = [LocalLearner("p", model, objective) for _ in range(2)]
    rows = masked_rows(masked, [np.array([False, False, True, True])] * 2), masked_rows(forced, None)
    one, other = (learner.step(given) for learner, given in zip(learners, rows, strict=True))
    assert one == other and one.trained_tokens == 4
    assert learners[0].version == learners[1].version


def test_a_masked_token_is_in_no_mean_and_an_advantage_of_zero_is(model, tree):
    batch = batch_of(tree("e", 0, (None, 0, 1)), tree("f", 1, (None, 0)))
    masks = some(batch)
    zeros = to_rows(batch, Credit(batch.turns, [m * float(t + 1) for t, m in enumerate(masks)]))
    masked = masked_rows(batch, masks)
    trained = sum(int(mask.sum()) for mask in masks)
    one, other = (LocalLearner("p", model, Clipped()).step(rows) for rows in (masked, zeros))
    assert one.trained_tokens == trained < other.trained_tokens
    assert one.loss * one.trained_tokens == pytest.approx(other.loss * other.trained_tokens, rel=1e-6)


def test_entries_are_those_of_the_tokens_that_are_left(tree):
    batch = batch_of(tree("e", 3, (None, 0, 0)), tree("f", 4, (None, None)))
    masks = some(batch)
    whole, left = plan(masked_rows(batch, None), 1000).entries, plan(masked_rows(batch, masks), 1000).entries
    of_turn = {turn.id + str(t): mask for t, (turn, mask) in enumerate(zip(batch.turns.turn, masks, strict=True))}
    keep = np.concatenate([
        of_turn[trained.turn.id + str(next(t for t, turn in enumerate(batch.turns.turn) if turn is trained.turn))]
        for row in masked_rows(batch, None) for trained in row.trained
    ])  # fmt: skip
    for name in ("position", "target", "temperature", "behaviour", "advantage", "weight", "episode"):
        assert getattr(left, name).tolist() == getattr(whole, name)[keep].tolist(), name


def test_a_turn_of_which_nothing_is_left_is_not_trained(turn, episode):
    run = episode("e", (turn("0", [1], [2, 3]), turn("1", [4], [5, 6], forced=1)))
    batch = batch_of(run)
    both, none = np.array([True, True]), np.array([False, False])
    assert [t.turn.id for row in masked_rows(batch, [none, both]) for t in row.trained] == ["1"]
    assert masked_rows(batch, [none, np.array([True, False])]) == []
    assert masked_rows(batch, [both, np.array([True])])[-1].trained[0].mask is None


def test_a_mask_holds_in_every_row_whatever_the_advantage_there(tree):
    batch = batch_of(tree("e", 6, (None, 0, 0)))
    width = len(batch.turns.turn[0].sampled_ids)
    first = np.arange(width) == width - 1
    masks = [first, *(np.ones(len(turn.sampled_ids), bool) for turn in batch.turns.turn[1:])]
    rows = masked_rows(batch, masks, by_row={(0, "2"): 9.0}, weight=np.array([1.0, 2.0, 2.0]))
    assert [row.trained[0].mask.tolist() for row in rows] == [first.tolist()] * 2
    assert [row.trained[0].advantage.tolist() for row in rows] == [(first * value).tolist() for value in (1.0, 9.0)]


def test_a_mask_of_another_shape_is_refused(tree):
    batch = batch_of(tree("e", 0, (None,)))
    for mask in (np.ones(17, bool), np.ones(len(batch.turns.turn[0].sampled_ids))):
        with pytest.raises(UserError, match=r"a mask of turn 0 has dtype \w+ and shape .*, wanted bool of shape"):
            masked_rows(batch, [mask])


def test_logprobs_are_of_all_drawn_tokens(model, tree):
    batch = batch_of(tree("e", 0, (None, 0)))
    learner = LocalLearner("p", model, Clipped())
    last = [np.arange(len(turn.sampled_ids)) == len(turn.sampled_ids) - 1 for turn in batch.turns.turn]
    masked, whole = (learner.logprobs(masked_rows(batch, masks)) for masks in (last, None))
    for one, other in zip(masked, whole, strict=True):
        assert [values.tolist() for values in one] == [values.tolist() for values in other]


numbers = st.floats(width=32, allow_nan=False, allow_infinity=False)


@given(st.lists(st.lists(st.tuples(numbers, st.booleans()), min_size=1, max_size=5), min_size=1, max_size=3))
def test_a_stored_mask_comes_back_to_the_bit(turn, episode, tokens):
    turns = tuple(turn(str(i), [1], [2] * len(line), index=i) for i, line in enumerate(tokens))
    run = episode("e", turns)
    trained: list[TrainedTurn] = []
    for each, line in zip(turns, tokens, strict=True):
        values, mask = np.array([v if m else 0.0 for v, m in line], np.float32), np.array([m for _, m in line])
        trained.append(TrainedTurn(each, values, None if mask.all() else mask))
    stored = to_stored([Row(run, turns[-1], tuple(trained))])
    (back,) = from_stored(stored, {"e": run})
    for one, other in zip(trained, back.trained, strict=True):
        assert one.advantage.tobytes() == other.advantage.tobytes()
        assert (one.mask is None) == (other.mask is None)
        assert one.mask is None or one.mask.tolist() == other.mask.tolist()
    assert to_stored([back]) == stored


async def test_the_store_keeps_a_mask_and_people_see_zero(model, tree, tmp_path):
    run = named(tree("e0", 2, (None, 0)))
    batch = batch_of(run)
    masks = [np.arange(len(turn.sampled_ids)) > 0 for turn in batch.turns.turn]
    rows = masked_rows(batch, masks)
    learner = LocalLearner("p", model, Clipped())
    with SQLiteStore(tmp_path / "store.db") as store:
        record(store, run)
        store.commit_step(StoredStep("p", 0, to_stored(rows), learner.version))
        await store.flush()
        (step,) = store.steps("p")
        again = from_stored(step.rows, [store.episode("e0")])
        assert LocalLearner("p", model, Clipped()).step(again) == learner.step(rows)
        seen = recorded_credit(store, [store.episode("e0")])["e0"]
    for trained in rows[0].trained:
        assert seen[trained.turn.id].advantage_S.tolist() == trained.advantage.tolist()


@dataclass(frozen=True)
class Uncertain:
    """A base's credit on the tokens that were no foregone conclusion."""

    base: Estimator
    needs: ClassVar[Needs] = Needs()

    def __call__(self, batch: Batch) -> Credit:
        return replace(self.base(batch), mask=[turn.logprobs < -4.4 for turn in batch.turns.turn])


@dataclass(frozen=True)
class Constant:
    needs: ClassVar[Needs] = Needs()

    def __call__(self, batch: Batch) -> Credit:
        return Credit(batch.turns, np.ones(len(batch.turns)))


def test_masks_of_estimators_inside_each_other_meet(turn, episode):
    logprobs = np.array([-5.0, -5.0, -1.0, -5.0], np.float32)
    batch = batch_of(episode("e", (turn("0", [1], [8, 9, 9, 9], logprobs=logprobs),)))
    credit = DecisionMasked(base=Uncertain(Constant()), after=(8,))(batch)
    assert credit.mask is not None and credit.mask[0].tolist() == [True, False, False, True]
