"""Which episodes a plan asks for, told by a group of made-up ones."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from agentrl.engines.contract import Offers
from agentrl.episode import Column, Episode, Parent, ToolCall
from agentrl.errors import UserError
from agentrl.rollout import EntropyTree, Independent, RandomTree
from agentrl.rollout.tree import branch_points
from tests.credit.conftest import make_chain, make_turn

VOCAB = 1000


class Grown:
    """A group whose episodes have four turns: three that search, one that answers. Turn `at` of a fork is its first own one."""

    vocab_size = VOCAB

    def __init__(self, *, heights: Sequence[float] = (1.0, 1.0, 1.0, 1.0), lost: Sequence[int] = (), seed: int = 0) -> None:
        self.heights, self.lost, self.seed = heights, lost, seed
        self.forks: dict[int, tuple[str, int]] = {}
        self.fresh: list[int] = []

    def episode(self, member: int, shared: Sequence[Any] = ()) -> Episode:
        turns = list(shared)
        for at in range(len(shared), 4):
            column = Column("entropy", np.full(3, self.heights[at]))
            calls = (ToolCall("search", {}, "ok", "found", 0.0, 0.0),) if at < 3 else ()
            parent = Parent(str(at - 1), 5 * at) if at else None
            seed = hash((self.seed, member, at)) & 0xFFFF_FFFF
            turns.append(make_turn(str(at), at, seed=seed, columns={"entropy": column}, tool_calls=calls, parent=parent))
        status = "failed" if member in self.lost else "done"
        return replace(make_chain(f"g.{member}", "g", [], status=status, seed=self.seed + member), turns=tuple(turns))

    async def run(self, member: int) -> Episode:
        self.fresh.append(member)
        return self.episode(member)

    async def cut_before(self, of: Episode, turn: Any) -> int:
        return of.turns.index(turn)

    async def fork(self, member: int, of: Episode, cut: int, forced: Any = None) -> Episode:
        self.forks[member] = (of.id, cut)
        return replace(self.episode(member, of.turns[:cut]), fork_of=of.id)


def grown(plan: Any, **settings: Any) -> tuple[Grown, tuple[Episode, ...]]:
    run = Grown(**settings)
    episodes = asyncio.run(plan(run))
    assert [episode.id for episode in episodes] == [f"g.{member}" for member in range(plan.size)]
    return run, episodes


@pytest.mark.parametrize("plan", [RandomTree(), RandomTree(trees=3, expand=1, rounds=4), RandomTree(trees=1, expand=5)])
def test_a_random_tree_has_as_many_leaves_as_it_says_and_forks_its_own_tree_alone(plan: RandomTree) -> None:
    run, _ = grown(plan)
    assert run.fresh == [tree * plan.leaves for tree in range(plan.trees)]
    for member, (of, _) in run.forks.items():
        assert int(of[2:]) // plan.leaves == member // plan.leaves and int(of[2:]) < member


def test_every_place_of_a_chain_is_drawn_equally_often() -> None:
    cuts = Counter(
        cut for seed in range(400) for _, cut in grown(RandomTree(trees=1, expand=2), seed=seed * 7)[0].forks.values()
    )
    assert cuts.keys() == {0, 1, 2, 3}
    assert all(150 < count < 250 for count in cuts.values()), cuts


def test_the_places_of_a_tree_are_its_root_and_its_inner_turns_once_each() -> None:
    run = Grown()
    first = run.episode(0)
    fork = replace(run.episode(1, first.turns[:2]), fork_of="g.0")
    places = [(episode.id, turn.id) for episode, turn in branch_points([first, fork])]
    assert places == [("g.0", "0"), ("g.0", "1"), ("g.0", "2"), ("g.0", "3"), ("g.1", "3")]
    assert branch_points([replace(first, status="failed")]) == []


def test_a_tree_whose_rollouts_are_lost_begins_anew() -> None:
    run, episodes = grown(RandomTree(trees=1, expand=2, rounds=2), lost=[0])
    assert run.fresh == [0, 1, 2] and sorted(run.forks) == [3, 4]
    assert all(of in ("g.1", "g.2") for of, _ in run.forks.values()) and episodes[0].status == "failed"


def test_rising_entropy_branches_after_tool_results_the_earliest_first() -> None:
    run, _ = grown(EntropyTree(size=8, initial=3, rule="threshold"), heights=[1.0, 0.5, 2.0, 2.0])
    assert run.fresh == [0, 1, 2]
    assert [run.forks[member] for member in range(3, 8)] == [("g.0", 2), ("g.1", 2), ("g.2", 2), ("g.0", 3), ("g.1", 3)]


def test_a_branch_goes_on_branching_behind_its_first_own_turn() -> None:
    run, _ = grown(EntropyTree(size=5, initial=1, rule="threshold"), heights=[1.0, 0.5, 2.0, 2.0])
    assert run.fresh == [0, 4]
    assert [run.forks[member] for member in range(1, 4)] == [("g.0", 2), ("g.0", 3), ("g.1", 3)]


def test_room_that_nothing_branches_into_is_for_fresh_rollouts() -> None:
    run, _ = grown(EntropyTree(size=6, initial=2, rule="threshold"), heights=[1.0, 0.5, 0.5, 0.5])
    assert run.fresh == [0, 1, 2, 3, 4, 5] and not run.forks
    run, _ = grown(EntropyTree(size=3, initial=2, rule="threshold"), heights=[1.0, 2.0, 2.0, 2.0], lost=[0, 1])
    assert run.fresh == [0, 1, 2], "a lost episode does not branch"


def test_a_wider_beam_gives_a_turn_more_branches() -> None:
    run, _ = grown(EntropyTree(size=4, initial=1, beam=3, rule="threshold"), heights=[1.0, 2.0, 0.1, 0.1])
    assert [run.forks[member] for member in (1, 2)] == [("g.0", 1), ("g.0", 1)]


def test_drawn_branches_come_about_as_often_as_they_should() -> None:
    plan = EntropyTree(size=4, initial=1)
    at_first = sum(("g.0", 1) in grown(plan, seed=seed * 11)[0].forks.values() for seed in range(300))
    assert 110 < at_first < 190  # probability 0.5


def test_what_plans_need_of_an_engine() -> None:
    assert RandomTree().needs(Offers()) == Independent().needs(Offers()) == ""
    assert EntropyTree().needs(Offers(columns=frozenset({"entropy"}))) == ""
    assert EntropyTree().needs(Offers()).endswith("--set rollout=random_tree, or engine=local")


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: RandomTree(trees=0), "RandomTree: trees must be >= 1, got 0"),
        (lambda: RandomTree(expand=0), "RandomTree: expand must be >= 1, got 0"),
        (lambda: EntropyTree(beam=1), "EntropyTree: beam must be >= 2, got 1"),
        (lambda: EntropyTree(tokens=0), "EntropyTree: tokens must be >= 1, got 0"),
    ],
)
def test_numbers_that_give_no_group_are_refused(make: Any, said: str) -> None:
    with pytest.raises(UserError) as error:
        make()
    assert str(error.value) == said
