"""What the tree estimators claim of every tree."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agentrl.credit import ARPO, GRPO, Forest, SPOTree, TreeGRPO, TreeOPO, TreePO, assign, to_batch
from agentrl.episode import Episode
from agentrl.learning.rows import to_rows
from tests.credit.trees import make_leaf, one_group

FORMS = [
    TreeGRPO(), TreeGRPO(form="intra"), TreeGRPO(form="inter"), TreeGRPO(form="nested"), TreeGRPO(std=None),
    TreePO(), TreePO(average="group_size", whiten=False), ARPO(), ARPO(shared="hard"), TreeOPO(), TreeOPO(value="max"),
    SPOTree(certain=2.0), SPOTree(std="population", certain=2.0),
]  # fmt: skip
rewards = st.sampled_from([0.0, 0.1, 0.2, 1.0])


@st.composite
def trees(draw: Any) -> list[Episode]:
    """One to three trees of one to four leaves; a fork keeps some turns of a leaf before it and has turns of its own."""
    leaves: list[tuple[str, list[str], str | None]] = []
    for tree in range(draw(st.integers(1, 3))):
        first = len(leaves)
        for number in range(draw(st.integers(1, 4))):
            name = f"t{tree}.{number}"
            of, kept = None, []
            if number:
                of, path, _ = leaves[draw(st.integers(first, len(leaves) - 1))]
                kept = path[: draw(st.integers(0, len(path) - 1))]
            leaves.append((name, [*kept, *(f"{name}/{n}" for n in range(draw(st.integers(1, 3))))], of))
    given_rewards = draw(st.lists(rewards, min_size=len(leaves), max_size=len(leaves)))
    return [make_leaf(name, path, reward, of) for (name, path, of), reward in zip(leaves, given_rewards, strict=True)]


def by_turn(estimator: Any, episodes: list[Episode]) -> dict[tuple[str, str], float]:
    batch, credit = assign(one_group(episodes), estimator)
    pairs = zip(batch.turns.episode.tolist(), batch.turns.turn, credit.advantage, strict=True)
    return {(batch.episodes[e].id, turn.id): float(np.mean(a)) for e, turn, a in pairs}


@pytest.mark.parametrize("estimator", FORMS, ids=repr)
@settings(deadline=None)
@given(episodes=trees(), random=st.randoms(use_true_random=False))
def test_the_order_of_the_leaves_changes_nothing(estimator: Any, episodes: list[Episode], random: Any) -> None:
    turned = episodes[:]
    random.shuffle(turned)
    one, other = by_turn(estimator, episodes), by_turn(estimator, turned)
    assert one.keys() == other.keys()
    np.testing.assert_allclose([other[key] for key in one], list(one.values()), atol=1e-9)


@pytest.mark.parametrize("estimator", FORMS, ids=repr)
@settings(deadline=None)
@given(episodes=trees(), reward=st.sampled_from([0.0, 0.1, 1.0, -3.7]))
def test_equal_rewards_give_exactly_nothing(estimator: Any, episodes: list[Episode], reward: float) -> None:
    same = [replace(e, rewards=tuple(replace(r, value=reward) for r in e.rewards)) for e in episodes]
    assert set(by_turn(estimator, same).values()) == {0.0}


@pytest.mark.parametrize("estimator", FORMS, ids=repr)
@settings(deadline=None)
@given(episodes=trees(), lost=st.integers(0, 11))
def test_a_lost_leaf_counts_as_if_it_had_never_been_asked_for(estimator: Any, episodes: list[Episode], lost: int) -> None:
    lost %= len(episodes)
    failed = [replace(e, status="failed") if n == lost else e for n, e in enumerate(episodes)]
    kept = [e for n, e in enumerate(episodes) if n != lost]
    # without the lost one its forks still name it: they stay one tree
    by_loss = by_turn(estimator, failed)
    assert not kept or by_loss.keys() == by_turn(estimator, kept).keys()
    if kept and not any(e.fork_of == episodes[lost].id for e in episodes):
        assert by_loss == by_turn(estimator, kept)


def test_a_tree_with_one_leaf_left_gets_nothing_from_itself() -> None:
    lost = replace(make_leaf("a", ["x", "y"], 0.0), status="failed")
    left = make_leaf("b", ["x", "z"], 1.0, "a")
    other = [make_leaf("c", ["u", "v"], 0.0), make_leaf("d", ["u", "w"], 1.0, "c")]
    batch = to_batch(one_group([lost, left, *other]))
    assert TreeGRPO(form="intra")(batch).advantage[:2].tolist() == [0.0, 0.0]
    assert TreeGRPO(form="intra", singleton="raw")(batch).advantage[:2].tolist() == [1.0, 1.0]
    alone = to_batch(one_group([lost, left]))
    for estimator in FORMS:
        assert not np.any(np.array(estimator(alone).advantage)), estimator


def test_forks_of_a_lost_episode_are_one_tree() -> None:
    lost = replace(make_leaf("a", ["x", "y"], 0.0), status="failed")
    forks = [make_leaf("b", ["x", "z"], 1.0, "a"), make_leaf("c", ["x", "w"], 0.0, "a"), make_leaf("d", ["q"], 0.0)]
    assert Forest.of(to_batch(one_group([lost, *forks]))).tree.tolist() == [0, 0, 1]


def test_of_two_episodes_of_equal_ids_and_seeds_only_forks_share_a_turn() -> None:
    one, other = make_leaf("a", ["x"], 1.0), make_leaf("b", ["x"], 0.0)
    assert Forest.of(to_batch(one_group([one, other]))).node.tolist() == [0, 1]
    assert Forest.of(to_batch(one_group([one, replace(other, fork_of="a")]))).node.tolist() == [0, 0]


@settings(deadline=None)
@given(episodes=trees())
def test_inter_and_soft_are_grpo(episodes: list[Episode]) -> None:
    expected = by_turn(GRPO(), episodes)
    assert by_turn(TreeGRPO(form="inter"), episodes) == by_turn(ARPO(), episodes) == expected


@settings(deadline=None)
@given(episodes=trees())
def test_hard_gives_a_shared_turn_one_advantage(episodes: list[Episode]) -> None:
    batch = to_batch(one_group(episodes))
    forest, advantage = Forest.of(batch), ARPO(shared="hard")(batch).advantage
    for node in set(forest.node.tolist()):
        mine = advantage[forest.node == node]
        np.testing.assert_allclose(mine, mine[0], atol=1e-12)


@settings(deadline=None)
@given(episodes=trees())
def test_spo_trains_each_segment_once_and_none_without_advantage(episodes: list[Episode]) -> None:
    batch, credit = assign(one_group(episodes), SPOTree(certain=2.0))
    node = {
        (e, turn.id): n
        for e, turn, n in zip(batch.turns.episode.tolist(), batch.turns.turn, Forest.of(batch).node, strict=True)
    }
    number = {episode.id: n for n, episode in enumerate(batch.episodes)}
    trained = [node[number[row.episode.id], t.turn.id] for row in to_rows(batch, credit) for t in row.trained]
    assert len(trained) == len(set(trained))
    nonzero = {n for n, a in zip(Forest.of(batch).node.tolist(), credit.advantage, strict=True) if np.any(a)}
    assert set(trained) == nonzero


def test_an_overlong_leaf_leaves_its_shared_turns_to_be_trained_by_others() -> None:
    overlong = make_leaf("a", ["x", "y"], 1.0, status="overlong")
    batch, credit = assign(
        one_group([overlong, make_leaf("b", ["x", "z"], 0.5, "a"), make_leaf("c", ["q"], 0.0)]), SPOTree(certain=2.0)
    )
    assert [[t.turn.id for t in row.trained] for row in to_rows(batch, credit)] == [["0"], ["1"], ["0"]]


@pytest.mark.parametrize("estimator", FORMS, ids=repr)
def test_an_empty_batch_gives_empty_credit(estimator: Any) -> None:
    assert len(estimator(to_batch([])).advantage) == 0
