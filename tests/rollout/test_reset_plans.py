"""What the plans with references and resets ask for, told by a group of made-up episodes."""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from agentrl.effect import EffectKey
from agentrl.engines.contract import Offers
from agentrl.episode import Episode
from agentrl.errors import UserError
from agentrl.rollout import Candidates, DatasetReset, EntropyTree, Independent, Referenced
from tests.credit.conftest import make_chain, make_turn

SAID = (3, 1, 4)
"""Tokens of the demonstration's turns."""


def demonstration() -> Episode:
    turns = [
        replace(make_turn(f"/:{3 * at}", at, seed=at), sampled_ids=np.arange(size, dtype=np.int32), branch="/", policy=policy)
        for at, (size, policy) in enumerate(zip((*SAID, 2), ("p", "p", "p", "judge"), strict=True))
    ]
    return replace(make_chain("demonstration-1.0", "demonstration-1", []), turns=tuple(turns))


class Group:
    """Takes note of what a plan asks for."""

    trained = frozenset({"p"})

    def __init__(self, shown: Episode | None = None, seed: int = 0) -> None:
        self.shown, self.seed = shown, seed
        self.plain: list[int] = []
        self.measured: list[tuple[int, int]] = []
        self.forks: dict[int, tuple[int, Any]] = {}

    async def run(self, member: int) -> Episode:
        self.plain.append(member)
        return make_chain(f"g.{member}", "g", [])

    async def reference(self, member: int, refresh: int = 0) -> Episode:
        self.measured.append((member, refresh))
        return replace(make_chain(f"g.{member}", "g", []), source="reference")

    async def demonstration(self, episodes: str, least: float | None = None) -> Episode | None:
        assert (episodes, least) == ("runs/warm", 0.5)
        return self.shown

    async def cut_before(self, of: Episode, turn: Any) -> int:
        return of.turns.index(turn)

    async def fork(self, member: int, of: Episode, cut: int, forced: Any = None) -> Episode:
        self.forks[member] = (cut, forced)
        return replace(make_chain(f"g.{member}", "g", []), fork_of=of.id)


def asked(plan: Any, **settings: Any) -> Group:
    run = Group(**settings)
    episodes = asyncio.run(plan(run))
    assert [episode.id for episode in episodes] == [f"g.{member}" for member in range(plan.size)]
    return run


def resets(**settings: Any) -> DatasetReset:
    return DatasetReset("runs/warm", least=0.5, **settings)


def kept(run: Group) -> dict[int, int]:
    """How many tokens of the demonstration each fork is given."""
    return {
        member: sum(SAID[:cut]) + len(next(iter((forced or {"": ()}).values()))) for member, (cut, forced) in run.forks.items()
    }


def test_references_stand_behind_the_plans_own_members() -> None:
    run = asked(Referenced(Independent(3), samples=2, refresh=5))
    assert sorted(run.plain) == [0, 1, 2] and sorted(run.measured) == [(3, 5), (4, 5)]
    assert (Referenced(Independent(3), samples=2).size, Referenced(Independent(3), samples=2).references) == (5, 2)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: Referenced(samples=0), "Referenced: samples must be >= 1, got 0"),
        (lambda: Referenced(refresh=-1), "Referenced: refresh must be >= 0, got -1"),
        (
            lambda: Referenced(EntropyTree()),
            "Referenced takes a plan of whole rollouts that needs no columns, got EntropyTree; --set rollout.plan=independent",
        ),
        (
            lambda: Referenced(Candidates()),
            "Referenced takes a plan of whole rollouts that needs no columns, got Candidates; --set rollout.plan=independent",
        ),
        (lambda: DatasetReset(size=0), "DatasetReset: size must be >= 1, got 0"),
        (lambda: DatasetReset(share=1.5), "DatasetReset: share is a probability, got 1.5"),
    ],
)
def test_numbers_that_mean_nothing_are_refused(make: Any, said: str) -> None:
    with pytest.raises(UserError) as error:
        make()
    assert str(error.value) == said


def test_what_a_reset_needs() -> None:
    with_prefix = Offers(forced_prefix=True)
    assert "--set rollout.episodes=RUN" in DatasetReset().needs(with_prefix)
    assert resets().needs(with_prefix) == resets(cuts="each").needs(Offers(forced_prefix=False)) == ""
    assert "takes no forced prefix; --set rollout.cuts=each" in resets().needs(Offers(forced_prefix=False))


def test_a_task_without_a_demonstration_has_plain_rollouts() -> None:
    run = asked(resets(size=3))
    assert run.plain == [0, 1, 2] and not run.forks


@pytest.mark.parametrize("cuts", ["same", "random"])
def test_every_length_but_the_whole_is_given_equally_often(cuts: str) -> None:
    lengths = Counter(
        length
        for seed in range(700)
        for length in kept(asked(resets(size=1, cuts=cuts), shown=demonstration(), seed=seed)).values()
    )
    assert lengths.keys() == {1, 2, 3, 4, 5, 6, 7}, "never none and never all 8 of the trained role"
    assert all(65 < count < 140 for count in lengths.values()), lengths


def test_a_group_shares_its_cut_unless_each_rollout_draws_its_own() -> None:
    same = [set(kept(asked(resets(size=6), shown=demonstration(), seed=seed)).values()) for seed in range(20)]
    assert all(len(lengths) == 1 for lengths in same) and len({min(lengths) for lengths in same}) > 3
    random = [set(kept(asked(resets(size=6, cuts="random"), shown=demonstration(), seed=seed)).values()) for seed in range(20)]
    assert all(len(lengths) > 1 for lengths in random)


def test_a_cut_inside_a_turn_forces_what_is_before_it_and_one_between_turns_nothing() -> None:
    found = {
        length: fork
        for seed in range(100)
        for run in [asked(resets(size=1), shown=demonstration(), seed=seed)]
        for length, fork in [(kept(run)[0], run.forks[0])]
    }
    assert found[2] == (0, {EffectKey("/", 0, 0): (0, 1)})
    assert found[3] == (1, {}) and found[4] == (2, {})
    assert found[7] == (2, {EffectKey("/", 0, 6): (0, 1, 2)})


def test_prefixes_of_each_depth_come_in_turn() -> None:
    run = asked(resets(size=7, cuts="each"), shown=demonstration())
    assert [run.forks[member] for member in range(7)] == [(member % 3, {}) for member in range(7)]


def test_only_the_share_that_was_asked_for_begins_inside() -> None:
    begun = [
        asked(resets(size=20, cuts=cuts, share=0.3), shown=demonstration(), seed=seed)
        for seed in range(20)
        for cuts in ("random", "each")
    ]
    assert 190 < sum(len(run.forks) for run in begun) < 290, "of 800"
    whole = [len(asked(resets(size=4, share=0.5), shown=demonstration(), seed=seed).forks) for seed in range(60)]
    assert set(whole) == {0, 4} and 15 < whole.count(4) < 45


def test_a_demonstration_of_one_token_gives_none() -> None:
    shown = replace(demonstration(), turns=demonstration().turns[1:2])
    assert asked(resets(size=2), shown=shown).plain == [0, 1]
