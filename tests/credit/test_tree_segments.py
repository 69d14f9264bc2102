"""Trees that branch inside turns: a stretch of a turn is a node, and inherited tokens are trained as who drew them did."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agentrl.credit import ARPO, GRPO, Forest, SPOTree, TreeGRPO, TreeOPO, TreePO, assign, to_batch
from agentrl.credit.tree import as_drawn
from agentrl.episode import Version, VersionSpan
from agentrl.errors import UserError
from agentrl.learning.packing import plan
from agentrl.learning.replay import from_stored, to_stored
from agentrl.learning.rows import to_rows, trace
from tests.credit.segments import Fork, by_stretch, by_turn, drawn, logprob
from tests.credit.trees import one_group

GOLDEN = Path(__file__).parent / "golden"
FORMS = [
    TreeGRPO(), TreeGRPO(form="nested"), TreePO(), TreePO(average="group_size", whiten=False), ARPO(), ARPO(shared="hard"),
    TreeOPO(), TreeOPO(value="min"), TreeOPO(form="hard"), SPOTree(certain=2.0), SPOTree(std="population", certain=0.2),
]  # fmt: skip


@st.composite
def forks(draw: Any, lost: bool = False) -> list[Fork]:
    """One to seven leaves; each goes on from the beginning, or from inside one before it."""
    found: list[Fork] = []
    lengths: list[int] = []
    for number in range(draw(st.integers(1, 7))):
        of = draw(st.none() | st.integers(0, number - 1)) if number else None
        kept = 0 if of is None else draw(st.integers(1, lengths[of] - 1))
        own = draw(st.integers(2, 6))
        status = draw(st.sampled_from(["done", "failed"])) if lost else "done"
        found.append(Fork(of, kept, own, draw(st.sampled_from([0.0, 0.1, 0.2, 1.0])), status))
        lengths.append(kept + own)
    return found


def trained(episodes: Any, estimator: Any) -> dict[tuple[str, int], tuple[float, float]]:
    """(leaf, place on its path) of each trained token -> its advantage and behaviour log-prob, as the learner sees them."""
    batch, credit = assign(one_group(episodes), estimator)
    rows = to_rows(batch, credit)
    entries = plan(rows, 100_000).entries
    names = [row.episode.id for row in rows]
    places = zip(entries.path.tolist(), entries.position.tolist(), strict=True)
    numbers = zip((entries.advantage * entries.weight).tolist(), entries.behaviour.tolist(), strict=True)
    return {(names[path], at - 3): both for (path, at), both in zip(places, numbers, strict=True)}


@pytest.mark.parametrize("estimator", FORMS, ids=repr)
@settings(deadline=None, max_examples=40)
@given(forks=forks(lost=True))
def test_a_tree_of_stretches_is_trained_as_one_of_turns(estimator: Any, forks: list[Fork]) -> None:
    one, other = trained(by_turn(forks), estimator), trained(by_stretch(forks), estimator)
    assert one.keys() == other.keys()
    np.testing.assert_allclose([one[key] for key in other], list(other.values()), atol=1e-6)


@settings(deadline=None, max_examples=40)
@given(forks=forks())
def test_inherited_tokens_have_the_log_probs_and_versions_of_who_drew_them(forks: list[Fork]) -> None:
    def version(number: int) -> Version:
        return Version("run", "p", number)

    episodes = by_turn(forks)
    episodes = [
        replace(e, turns=(replace(t := e.turns[0], versions=(VersionSpan(version(n), 0, len(t.sampled_ids)),)),))
        for n, e in enumerate(episodes)
    ]
    known = {episode.id: episode for episode in episodes}
    for episode, tokens in zip(episodes, drawn(forks), strict=True):
        turn = as_drawn(episode.turns[0], episode, known)
        assert turn.forced == 0
        assert turn.logprobs.tolist() == np.array([logprob(token) for token in tokens], np.float32).tolist()
        spans = [span.version for span in turn.versions for _ in range(span.start, span.end)]
        assert spans == [version(leaf) for leaf, _ in tokens]


@settings(deadline=None, max_examples=40)
@given(forks=forks(), estimator=st.sampled_from(FORMS))
def test_a_stored_step_trains_the_same_inherited_tokens_again(forks: list[Fork], estimator: Any) -> None:
    episodes = by_turn(forks)
    batch, credit = assign(one_group(episodes), estimator)
    rows = to_rows(batch, credit)
    again = from_stored(to_stored(rows), episodes)
    assert to_stored(again) == to_stored(rows)
    if rows:
        one, other = plan(rows, 1000).entries, plan(again, 1000).entries
        for name in ("path", "position", "target", "behaviour", "advantage", "weight", "turn"):
            assert getattr(one, name).tolist() == getattr(other, name).tolist(), name


def test_a_stored_step_without_the_parents_is_refused_by_name() -> None:
    episodes = by_turn([Fork(None, 0, 4, 1.0), Fork(0, 2, 2, 0.0)])
    batch, credit = assign(one_group(episodes), TreePO())
    stored = to_stored(to_rows(batch, credit))
    with pytest.raises(UserError, match="tokens of turn 0 that episode e1 inherited from e0, which was not given; pass the"):
        from_stored(stored[1:], episodes[1:])


def golden(name: str) -> Any:
    return json.loads((GOLDEN / f"{name}.json").read_text())


@pytest.mark.parametrize(("average", "key"), [("depths", "average"), ("group_size", "group_size")])
def test_treepo_gives_the_authors_numbers_inside_one_turn(average: Any, key: str) -> None:
    """u#1 is the first two tokens of the first tree, u#1#1 two more; u#2 and u#2#2 in the second tree."""
    kept = [(None, 0), (0, 4), (0, 2), (None, 0), (3, 2), (4, 4)]
    rewards = golden("treepo")["inputs"]["rewards"]
    made = by_turn([Fork(of, keep, 6 - keep, reward) for (of, keep), reward in zip(kept, rewards, strict=True)])
    expected = golden("treepo")["official"][key]
    raw = TreePO(average=average, whiten=False)(to_batch(one_group(made))).advantage
    np.testing.assert_allclose(raw, expected["raw"], atol=1e-6)
    tokens = np.repeat(raw, 6)
    white = TreePO(average=average)(to_batch(one_group(made))).advantage
    np.testing.assert_allclose(white, (raw - tokens.mean()) / np.sqrt(tokens.var(ddof=1) + 1e-8), atol=1e-12)


@pytest.mark.parametrize(("std", "key"), [(None, "rloo"), ("population", "grpo")])
def test_spo_tree_gives_the_authors_numbers_inside_one_turn(std: Any, key: str) -> None:
    """The worked case: q has a and b below it, a has x, y and z."""
    made = by_turn([Fork(None, 0, 4, 1.0), Fork(0, 2, 2, 0.0), Fork(0, 2, 2, 1.0), Fork(None, 0, 2, 0.0)])
    found = {place: advantage for place, (advantage, _) in trained(made, SPOTree(std=std)).items()}
    edges = {text: value for _, text, value in golden("spo_tree")["official"][key]}
    wanted = {("e0", 0): "a", ("e0", 1): "a", ("e0", 2): "x", ("e0", 3): "x", ("e1", 2): "y", ("e1", 3): "y",
              ("e2", 2): "z", ("e2", 3): "z", ("e3", 0): "b", ("e3", 1): "b"}  # fmt: skip
    assert found.keys() == wanted.keys(), "each segment once, where it was drawn first"
    np.testing.assert_allclose([found[place] for place in wanted], [edges[text] for text in wanted.values()], atol=1e-5)


def test_arpo_hard_gives_the_shared_stretch_of_a_turn_the_mean_over_its_leaves() -> None:
    data = golden("arpo_agentic")
    rewards = data["inputs"]["leaf_rewards"]
    made = by_turn([Fork(0 if i == 1 else None, 2 if i == 1 else 0, 3, reward) for i, reward in enumerate(rewards)])
    values = [values.tolist() for values in ARPO(shared="hard")(to_batch(one_group(made))).advantage]
    soft = data["expected"]["soft_advantage"]
    shared = data["expected"]["hard_shared_prefix_advantage"]
    np.testing.assert_allclose(values[0][:2] + values[1][:2], [shared] * 4, atol=1e-6)
    np.testing.assert_allclose(values[0][2:] + values[1][2:] + values[2], [soft[0], *[soft[1]] * 3, *[soft[2]] * 3], atol=1e-6)


def test_stretches_are_recognised_across_leaves_of_leaves_and_of_lost_ones() -> None:
    """e1 leaves e0 at 4; e2, lost, at 2; e3 leaves e2 at 5 and e4 leaves e3 at 3, both inside what e2 drew."""
    made = [Fork(None, 0, 6, 0.0), Fork(0, 4, 2, 0.0), Fork(0, 2, 5, 0.0, "failed"), Fork(2, 5, 2, 0.0), Fork(3, 3, 2, 0.0)]
    forest = Forest.of(to_batch(one_group(by_turn(made))))
    # e0: [0:2) [2:4) [4:6); e1: its own end; e3: [0:2) of e0, [2:3) and [3:5) of e2, its own; e4: [0:2), [2:3), its own
    assert [path.tolist() for path in forest.paths] == [[0, 1, 2], [0, 1, 3], [0, 4, 5, 6], [0, 4, 7]]
    starts = [forest.stretches.start[forest.stretches.turn == t].tolist() for t in range(4)]
    assert starts == [[0, 2, 4], [0, 2, 4], [0, 2, 3, 5], [0, 2, 3]]
    assert forest.trained.tolist() == [6, 6, 7, 5] and forest.tree.tolist() == [0, 0, 0, 0]


def test_forced_tokens_are_not_trained_by_an_estimator_that_does_not_ask() -> None:
    made = by_turn([Fork(None, 0, 4, 1.0), Fork(0, 3, 2, 0.0)])
    assert sorted(trained(made, GRPO())) == [("e0", 0), ("e0", 1), ("e0", 2), ("e0", 3), ("e1", 3), ("e1", 4)]
    assert len(trained(made, TreeGRPO())) == 4 + 5


def test_a_fork_whose_parent_is_not_in_the_batch_trains_what_it_drew_and_is_counted() -> None:
    """Its forced tokens are taken as given from outside; siblings still are of one tree; TreeOPO compares it with the task."""
    made = by_turn([Fork(None, 0, 4, 1.0), Fork(0, 3, 2, 0.0), Fork(0, 2, 2, 1.0), Fork(None, 0, 3, 0.0)])[1:]
    batch = to_batch(one_group(made))
    assert Forest.of(batch).tree.tolist() == [0, 0, 1]
    for estimator in FORMS:
        credit = estimator(batch)
        assert credit.metrics["credit/orphans"] == 1.0, estimator
        places = {at for at in trained(made, estimator) if at[0] != "e3"}
        assert places <= {("e1", 3), ("e1", 4), ("e2", 2), ("e2", 3)}, estimator
    assert len(trained(made, TreePO())) == 2 + 2 + 3
    rewards = np.array([0.0, 1.0, 0.0])
    np.testing.assert_allclose(TreeOPO()(batch).advantage, rewards - rewards.mean(), atol=1e-12)


def test_tokens_that_were_given_from_outside_are_no_ones() -> None:
    """The fork begins with tokens that its parent never drew; or in a place that its parent reached in another way."""
    parent, fork = by_turn([Fork(None, 0, 4, 1.0), Fork(0, 3, 2, 0.0)])
    turn = fork.turns[0]
    for changed in (
        replace(turn, sampled_ids=turn.sampled_ids + np.int32(1)),
        replace(turn, context_ids=turn.context_ids + np.int32(1)),
        replace(turn, policy="another"),
    ):
        other = replace(fork, turns=(changed,))
        assert as_drawn(changed, other, {"e0": parent, "e1": other}).forced == 3
        assert [path.tolist() for path in Forest.of(to_batch(one_group([parent, other]))).paths] == [[0], [1]]
    by_another = replace(parent, source="demonstration")
    assert as_drawn(turn, fork, {"e0": by_another, "e1": fork}).forced == 3


@pytest.mark.parametrize("estimator", FORMS, ids=repr)
def test_one_surviving_leaf_gets_nothing(estimator: Any) -> None:
    made = by_turn([Fork(None, 0, 4, 1.0, "failed"), Fork(0, 3, 2, 1.0), Fork(0, 2, 2, 1.0, "failed")])
    assert all(advantage == 0.0 for advantage, _ in trained(made, estimator).values())


def test_a_fork_goes_on_inside_a_later_turn() -> None:
    """Two turns; the fork shares the first, and the second from inside. A fork of it holds its second turn whole."""
    first, second = by_stretch([Fork(None, 0, 3, 1.0), Fork(0, 2, 2, 0.0)])[0].turns
    longer = replace(second, seed=99, forced=0, sampled_ids=np.array([5, 6, 7], np.int32), logprobs=np.full(3, -1, np.float32))
    chain = replace(by_turn([Fork(None, 0, 1, 1.0)])[0], turns=(first, longer))
    again = replace(
        longer, seed=77, forced=2, sampled_ids=np.array([5, 6, 8, 9], np.int32), logprobs=np.full(4, -2, np.float32)
    )
    fork = replace(chain, id="f", fork_of=chain.id, turns=(first, again))
    copy = replace(fork, id="h", fork_of="f")
    forest = Forest.of(to_batch(one_group([chain, fork, copy])))
    assert [path.tolist() for path in forest.paths] == [[0, 1, 2], [0, 1, 3], [0, 1, 3]]
    known = {episode.id: episode for episode in (chain, fork, copy)}
    assert as_drawn(again, copy, known).logprobs.tolist() == [-1, -1, -2, -2]
    assert [len(trace(row.episode, row.leaf).ids) for row in to_rows(forest.batch, TreePO()(forest.batch))] == [8, 9, 9]
