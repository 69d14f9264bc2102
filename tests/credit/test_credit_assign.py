"""What an estimator must not give, and how it is told."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import pytest

from agentrl.credit import GRPO, Batch, Credit, Needs, assign, normalise, to_batch
from agentrl.errors import UserError


@dataclass(frozen=True)
class Mine:
    give: Any
    needs: ClassVar[Needs] = Needs()

    def __call__(self, batch: Batch) -> Any:
        return self.give(batch)


def advantage(make: Any) -> Any:
    return lambda batch: Credit(batch.turns, make(len(batch.turns)))


def put(value: float) -> Any:
    def make(count: int) -> Any:
        array = np.zeros(count)
        array[[1, 3]] = value
        return array

    return advantage(make)


@pytest.fixture
def groups(chain, grouped) -> Any:
    """Two episodes of two turns, two sampled tokens each."""
    return grouped([chain("e0", "g", [0.0, 0.0], outcome=1.0), chain("e1", "g", [0.0, 0.0])])


BAD = {
    "no credit": (lambda b: b.turns.reward, "gave an array of shape (4,), wanted a Credit; end it with `return Credit("),
    "nothing": (lambda b: None, "gave None, wanted a Credit"),
    "too few": (advantage(lambda n: np.zeros(n - 1)), "advantage of shape (3,), wanted (4,), one number for each turn"),
    "a column vector": (advantage(lambda n: np.zeros((n, 1))), "advantage of shape (4, 1), wanted (4,)"),
    "a number": (advantage(lambda n: 0.5), "advantage as a float, wanted a float64 array of shape (4,)"),
    "text": (advantage(lambda n: np.array(["a"] * n)), "advantage of dtype <U1, wanted float64"),
    "truth values": (advantage(lambda n: np.zeros(n, bool)), "advantage of dtype bool, wanted float64"),
    "complex": (advantage(lambda n: np.zeros(n, complex)), "dtype complex128"),
    "nan": (put(np.nan), "gave advantage nan for turn 1 of agent a (1) in episode e0 and of 1 more turns"),
    "infinity": (put(-np.inf), "gave advantage -inf for turn 1 of agent a (1) in episode e0"),
    "a short list": (advantage(lambda n: [np.zeros(2)] * (n - 1)), "advantage for 3 turns, wanted one for each"),
    "tokens": (advantage(lambda n: [np.zeros(2)] * (n - 1) + [np.zeros(5)]), "of shape (5,) for turn 1 of agent a"),
    "a nan token": (advantage(lambda n: [np.array([0.0, np.nan])] * n), "advantage nan at token 1 for turn 0 of agent a (0)"),
    "a list of text": (advantage(lambda n: ["good"] * n), "advantage of dtype <U4 for turn 0"),
    "short weights": (lambda b: Credit(b.turns, np.zeros(4), weight=np.zeros(2)), "weight of shape (2,), wanted (4,)"),
    "negative weights": (lambda b: Credit(b.turns, np.zeros(4), weight=np.full(4, -1.0)), "weight -1.0 for turn 0"),
    "nan weights": (lambda b: Credit(b.turns, np.zeros(4), weight=np.full(4, np.nan)), "weight nan for turn 0"),
    "a row of no turn": (lambda b: Credit(b.turns, np.zeros(4), by_row={(9, "1"): 0.0}), "by_row[9, '1'], wanted the index"),
    "a nan in a row": (lambda b: Credit(b.turns, np.zeros(4), by_row={(0, "1"): np.nan}), "by_row[0, '1'] nan for turn 0"),
    "rows by number": (lambda b: Credit(b.turns, np.zeros(4), by_row={5: 0.0}), "a Credit that cannot be read: TypeError"),
    "ragged tokens": (advantage(lambda n: [[[0.0], [0.0, 1.0]]] * n), "a Credit that cannot be read: ValueError"),
    "short masks": (lambda b: Credit(b.turns, np.zeros(4), mask=[np.ones(2, bool)]), "masks for 1 turns, wanted one for each"),
    "a wide mask": (lambda b: Credit(b.turns, np.zeros(4), mask=[np.ones(3, bool)] * 4), "a mask for turn 0 of agent a (0) in"),
    "numbers as a mask": (lambda b: Credit(b.turns, np.zeros(4), mask=[np.ones(2)] * 4), "has dtype float64 and shape"),
    "metrics": (lambda b: Credit(b.turns, np.zeros(4), metrics={"m": np.nan}), "metric 'm' = nan"),
    "numpy's metrics": (lambda b: Credit(b.turns, np.zeros(4), metrics={"m": np.float32(1)}), "give float(...)"),
}  # fmt: skip


@pytest.mark.parametrize(("give", "said"), BAD.values(), ids=BAD)
def test_what_an_estimator_must_not_give_is_named(groups, give, said):
    with pytest.raises(UserError) as raised:
        assign(groups, Mine(give))
    assert str(raised.value).startswith("estimator Mine gave ") and said in str(raised.value)
    assert "\n" not in str(raised.value)


def test_an_estimator_that_raises_is_named_with_its_line(groups):
    def give(batch: Batch) -> Any:
        return {}["gamma"]

    line = give.__code__.co_firstlineno + 1
    with pytest.raises(
        UserError, match=rf"estimator Mine failed at .*test_credit_assign.py:{line}: KeyError: 'gamma'; mend it"
    ):
        assign(groups, Mine(give))


def test_our_own_functions_complaints_carry_the_estimators_name(groups):
    with pytest.raises(UserError, match=r"estimator Mine failed .*: normalise\(by=...\) needs columns"):
        assign(groups, Mine(lambda b: Credit(b.turns, normalise(b.turns.reward, by=(b.turns.group[:2],)))))


@pytest.mark.parametrize(
    "make",
    [
        lambda n: np.zeros(n, np.float32),
        lambda n: np.zeros(n, np.int64),
        lambda n: [0.5] * n,
        lambda n: [np.zeros(2)] * n,
        lambda n: [np.zeros(2), 1.0] * (n // 2),
    ],
)
def test_numbers_and_arrays_of_all_plain_kinds_pass(groups, make):
    batch, credit = assign(groups, Mine(advantage(make)))
    assert len(credit.advantage) == len(batch.turns)


def test_forced_tokens_may_be_left_out_of_a_turns_array(chain, grouped, turn):
    episode = replace(chain("e", "g", []), turns=(turn("x", sampled=5, forced=2),))
    assert len(assign(grouped([episode]), Mine(advantage(lambda n: [np.ones(3)])))[1].advantage) == 1


def test_a_batch_without_turns_asks_no_estimator():
    batch, credit = assign([], Mine(lambda b: 1 / 0))
    assert len(batch.turns) == len(credit.advantage) == 0


def test_a_group_of_too_few_finished_members_is_left_out(chain, grouped):
    lost = replace(chain("b", "g", [0.0]), status="failed")
    groups = grouped([chain("a", "g", [0.0]), lost, chain("c", "h", [0.0]), chain("d", "h", [0.0])])
    assert [group.id for group in assign(groups, GRPO(), min_group=2)[0].groups] == ["h"]
    assert [group.id for group in assign(groups, GRPO())[0].groups] == ["g", "h"]
    assert len(assign(grouped([chain("a", "g", [0.0])]), GRPO(), min_group=2)[0].groups) == 1, "a group of one was asked for"


def test_it_is_what_batch_and_estimator_give_one_after_the_other(groups):
    batch, credit = assign(groups, GRPO())
    assert credit.advantage.tolist() == GRPO()(to_batch(groups)).advantage.tolist()
    assert batch.groups == tuple(groups)
