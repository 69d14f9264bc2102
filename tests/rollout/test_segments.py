"""Which places the trees by segments branch at, told by a group of made-up episodes."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from random import Random
from typing import Any

import pytest

from agentrl.engines.contract import Offers
from agentrl.episode import Episode, token_ids
from agentrl.errors import UserError
from agentrl.rollout import FixedTree, MonteCarlo, SegmentTree
from agentrl.rollout.segments import place
from tests.credit.conftest import make_chain, make_turn


class Grown:
    """Episodes of two turns of `length` tokens in all, the first of `split`; a fork draws its own tokens behind the cut."""

    vocab_size = 1000

    def __init__(self, length: Any = 12, *, split: int = 5, lost: Sequence[int] = (), vocabulary: int = 1000) -> None:
        self.length = length if callable(length) else lambda member: length
        self.split, self.lost, self.vocabulary = split, lost, vocabulary
        self.roots: list[int] = []
        self.forks: dict[int, tuple[str, int]] = {}

    def episode(self, member: int, head: Sequence[int] = ()) -> Episode:
        random = Random(member)
        length = max(self.length(member), len(head) + 1)
        ids = [*head, *(random.randrange(self.vocabulary) for _ in range(length - len(head)))]
        parts = [part for part in (ids[: self.split], ids[self.split :]) if part]
        turns = tuple(
            make_turn(f":{n}", n, sampled=len(part), sampled_ids=token_ids(part), seed=member) for n, part in enumerate(parts)
        )
        status = "failed" if member in self.lost else "done"
        return replace(make_chain(f"g.{member}", "g", [], status=status, seed=member + 1), turns=turns)

    async def run(self, member: int) -> Episode:
        self.roots.append(member)
        return self.episode(member)

    async def cut_before(self, of: Episode, turn: Any) -> int:
        return of.turns.index(turn)

    async def fork(self, member: int, of: Episode, cut: int, forced: Any = None) -> Episode:
        head = [token for turn in of.turns[:cut] for token in turn.sampled_ids.tolist()]
        for key, tokens in (forced or {}).items():
            assert (key.branch, key.position) == ("", cut) and tokens == tuple(
                of.turns[cut].sampled_ids[: len(tokens)].tolist()
            )
            head.extend(tokens)
        self.forks[member] = (of.id, len(head))
        return replace(self.episode(member, head), fork_of=of.id)


def grown(plan: Any, size: int | None = None, **settings: Any) -> Grown:
    run = Grown(**settings)
    episodes = asyncio.run(plan(run))
    assert [episode.id for episode in episodes] == [f"g.{member}" for member in range(plan.size if size is None else size)]
    return run


def test_paths_double_at_the_end_of_each_segment_until_there_is_no_room() -> None:
    run = grown(SegmentTree(size=7, segment=3, first=(2, 2)), length=12)
    assert run.roots == [0, 1]
    assert run.forks == {2: ("g.0", 3), 3: ("g.1", 3), 4: ("g.0", 6), 5: ("g.1", 6), 6: ("g.2", 6)}


def test_a_divergence_of_three_gives_each_path_two_branches_spread_evenly() -> None:
    run = grown(SegmentTree(size=7, segment=4, first=(2, 2), divergence=3, depth=2), length=12)
    assert [run.forks[member] for member in range(2, 6)] == [("g.0", 4), ("g.0", 4), ("g.1", 4), ("g.1", 4)]
    run = grown(SegmentTree(size=5, segment=4, first=(2, 2), divergence=9), length=12)
    assert list(run.forks.values()) == [("g.0", 4), ("g.0", 4), ("g.1", 4)]


def test_the_first_divergence_is_drawn_from_its_range_and_the_same_again() -> None:
    def roots(seed: int) -> int:
        run = Grown(12)
        run.episode = lambda member, head=(), one=run.episode, seed=seed: replace(one(member, head), seed=seed)  # type: ignore[method-assign]
        asyncio.run(SegmentTree(size=16, segment=3)(run))
        return len(run.roots)

    counts = [roots(seed) for seed in range(120)]
    assert set(counts) == set(range(2, 9)) and counts == [roots(seed) for seed in range(120)]
    assert grown(SegmentTree(size=3, first=(4, 4))).roots == [0, 1, 2], "never more than the group"


def test_an_ended_path_does_not_branch() -> None:
    run = grown(SegmentTree(size=6, segment=4, first=(2, 2), depth=3), length=lambda member: 4 if member == 0 else 12)
    assert [run.forks[member] for member in (2, 3, 4)] == [("g.1", 4), ("g.1", 8), ("g.2", 8)]


def test_a_path_that_repeats_itself_does_not_branch() -> None:
    plan = SegmentTree(size=4, segment=6, first=(2, 2), ngram=2, depth=2)
    run = Grown(12, vocabulary=1)
    assert plan.repeats(run.episode(0), 6) and not replace(plan, distinct=0.0).repeats(run.episode(0), 6)
    assert not plan.repeats(Grown(12).episode(0), 6)
    assert not replace(plan, ngram=7).repeats(run.episode(0), 6), "shorter than an n-gram"
    mixed = Grown(12)
    mixed.episode = lambda member, head=(): (run if member == 0 else Grown(12)).episode(member, head)  # type: ignore[method-assign]
    asyncio.run(replace(plan, size=3)(mixed))
    assert mixed.forks == {2: ("g.1", 6)}


def test_room_that_is_left_is_for_branches_from_earlier_segments_of_finished_paths() -> None:
    places = set()
    for seed in range(40):
        run = Grown(6)
        run.episode = lambda member, head=(), one=run.episode, seed=seed: replace(one(member, head), seed=seed)  # type: ignore[method-assign]
        asyncio.run(SegmentTree(size=9, segment=4, first=(1, 1), depth=2)(run))
        assert run.forks[1] == ("g.0", 4) and len(run.forks) == 8
        places |= set(list(run.forks.values())[1:])
    assert places == {("g.0", 0), ("g.0", 4), ("g.1", 0), ("g.1", 4)}


def test_without_a_finished_path_rollouts_are_fresh() -> None:
    run = grown(SegmentTree(size=5, segment=3, first=(2, 2)), lost=range(5))
    assert run.roots == [0, 1, 2, 3, 4] and not run.forks


def test_a_turn_shorter_than_a_segment_is_passed_over() -> None:
    """Turns of 5 tokens and more; segments of 8: the first cut is inside the second turn."""
    run = grown(SegmentTree(size=2, segment=8, first=(1, 1)), length=12)
    assert run.forks == {1: ("g.0", 8)}
    episode = Grown(12).episode(0)
    found = [place(episode, tokens) for tokens in (0, 4, 5, 11, 12)]
    assert [at and (at[0].id, at[1]) for at in found] == [(":0", 0), (":0", 4), (":1", 0), (":1", 6), None]


def test_a_tree_no_path_of_which_has_a_segment_is_filled_from_the_root() -> None:
    run = grown(SegmentTree(size=4, segment=50, first=(2, 2)), length=6)
    assert run.roots == [0, 1] and [cut for _, cut in run.forks.values()] == [0, 0]


def test_a_fixed_tree_has_the_shape_that_it_says() -> None:
    run = grown(FixedTree(branching=(2, 3, 2), segment=4), length=12)
    assert run.roots == [0, 1] and len(run.forks) == 10
    assert [at for _, at in run.forks.values()] == [4] * 4 + [8] * 6


def test_in_a_fixed_tree_a_path_that_ends_stays_a_leaf() -> None:
    run = grown(FixedTree(branching=(2, 3, 2), segment=4), size=7, length=lambda member: 3 if member == 0 else 12)
    assert [run.forks[member] for member in range(2, 7)] == [("g.1", 4)] * 2 + [("g.1", 8), ("g.2", 8), ("g.3", 8)]


@pytest.mark.parametrize("plan", [SegmentTree(), FixedTree(), MonteCarlo()], ids=repr)
def test_an_engine_without_forced_prefix_is_refused(plan: Any) -> None:
    said = plan.needs(Offers(forced_prefix=False))
    assert said.startswith("it goes on from inside a turn, and the engine takes no forced prefix; --set rollout=random_tree")
    assert plan.needs(Offers()) == ""


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: SegmentTree(segment=0), "SegmentTree: segment must be >= 1, got 0"),
        (lambda: SegmentTree(first=(3, 2)), "SegmentTree: first is a range such as (2, 8), or (4, 4) for always 4, got (3, 2)"),
        (lambda: SegmentTree(distinct=2.0), "SegmentTree: distinct is a share from 0 (off) to 1, got 2.0"),
        (lambda: FixedTree(branching=()), "FixedTree: branching is a number >= 1 for each depth, such as (6, 6, 6), got ()"),
        (lambda: FixedTree(segment=0), "FixedTree: segment must be >= 1, got 0"),
    ],
)
def test_numbers_that_give_no_tree_are_refused(make: Any, said: str) -> None:
    with pytest.raises(UserError) as error:
        make()
    assert str(error.value) == said


def test_the_papers_trees_have_the_papers_size() -> None:
    assert FixedTree().size == 216 and SegmentTree().size == 16
