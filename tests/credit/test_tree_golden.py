"""The tree estimators against the numbers that the authors' own functions gave."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from agentrl.credit import ARPO, Forest, SPOChain, SPOTree, TreeGRPO, TreeOPO, TreePO, to_batch
from agentrl.episode import Column, Episode, Group, token_ids
from agentrl.rollout import EntropyTree, MonteCarlo
from agentrl.rollout.entropy import entropy
from tests.credit.conftest import make_chain, make_turn
from tests.credit.trees import make_leaf as leaf

GOLDEN = Path(__file__).parent / "golden"


def golden(name: str) -> Any:
    return json.loads((GOLDEN / f"{name}.json").read_text())


@pytest.fixture
def tree_grpo_batch() -> Any:
    inputs = golden("tree_grpo")["inputs"]
    episodes = []
    for i, (reward, tree) in enumerate(zip(inputs["leaf_rewards"], inputs["tree"], strict=True)):
        of = None if i % 3 == 0 else f"e{i - i % 3}"
        episodes.append(leaf(f"e{i}", [tree, f"{i}"], reward, of))
    return to_batch([Group("g", None, tuple(episodes), 6)])


@pytest.mark.parametrize(
    ("form", "key"),
    [("sum", "official"), ("sum", "expected"), ("intra", "expected_intra"), ("inter", "expected_inter"),
     ("nested", "official_tree_2norm")],
)  # fmt: skip
def test_tree_grpo_gives_the_authors_numbers(tree_grpo_batch: Any, form: Any, key: str) -> None:
    advantage = TreeGRPO(form=form)(tree_grpo_batch).advantage
    np.testing.assert_allclose(advantage[::2], golden("tree_grpo")[key], atol=1e-6)
    np.testing.assert_array_equal(advantage[1::2], advantage[::2])


@pytest.fixture
def treepo_batch() -> Any:
    """Two trained tokens a leaf, as in the authors' call; the leaf's own turn is there, and is not trained."""
    inputs = golden("treepo")["inputs"]
    episodes = []
    for i, (path, reward) in enumerate(zip(inputs["tree_path"], inputs["rewards"], strict=True)):
        _, first, second, last = path.split("#")
        episode = leaf(f"e{i}", [first, second, last], reward, None if i == 0 else "e0")
        episodes.append(replace(episode, turns=(*episode.turns[:2], replace(episode.turns[2], untrained="the leaf"))))
    return to_batch([Group("u", None, tuple(episodes), 6)])


@pytest.mark.parametrize(("average", "key"), [("depths", "average"), ("group_size", "group_size")])
def test_treepo_gives_the_authors_numbers(treepo_batch: Any, average: Any, key: str) -> None:
    for kind in ("expected", "official"):
        expected = golden("treepo")[kind][key]
        raw = TreePO(average=average, whiten=False)(treepo_batch).advantage
        np.testing.assert_allclose(raw[::2], expected["raw"], atol=1e-6)
        np.testing.assert_allclose(TreePO(average=average)(treepo_batch).advantage[::2], expected["white"], atol=2e-6)


def test_tree_opo_gives_the_papers_heuristic_and_trains_no_prefix() -> None:
    data = golden("tree_opo")
    teacher = [replace(leaf(f"teacher-{p}", [p, "end"], 0.0), status="cancelled") for p in ("pa", "pb")]
    paths = {"p": [], "pa": ["pa"], "pb": ["pb"]}
    episodes = [
        leaf(f"e{i}", [*paths[prefix], f"{i}"], reward, None if prefix == "p" else f"teacher-{prefix}")
        for i, (reward, prefix) in enumerate(zip(data["inputs"]["rewards"], data["inputs"]["prefix"], strict=True))
    ]
    credit = TreeOPO()(to_batch([Group("g", None, (*teacher, *episodes), 6)]))
    assert credit.weight.tolist() == [1.0, 1.0, 0.0, 1.0, 0.0, 1.0]
    for key in ("expectation_heuristic", "centred"):
        np.testing.assert_allclose(credit.advantage[credit.weight > 0], data["expected"][key], atol=1e-6)


def test_tree_opos_programme_never_binds_on_rewards_of_0_and_1() -> None:
    """Its solution without the order is that of the worked case, and keeps the order."""
    data = golden("tree_opo")
    rewards, pairs = data["inputs"]["rewards"], data["inputs"]["order_constraints"]
    batch = to_batch([Group("g", None, tuple(leaf(f"e{i}", [f"{i}"], reward) for i, reward in enumerate(rewards)), 4)])
    soft, hard = (TreeOPO(form=form)(batch).advantage for form in ("soft", "hard"))
    np.testing.assert_allclose(soft, data["expected"]["soft_sae"], atol=1e-9)
    assert soft.sum() == hard.sum() == 0 and (soft**2).sum() <= 4 and (hard**2).sum() == pytest.approx(4)
    for worse, better in pairs:
        assert min(soft[better] - soft[worse], hard[better] - hard[worse]) >= data["params"]["delta"]


@pytest.mark.parametrize(("value", "advantage"), [("max", [0.25, -0.75, 0.25, 0.25]), ("min", [0.5, -0.5, 0.5, -0.5])])
def test_tree_opo_may_be_optimistic_or_pessimistic(value: Any, advantage: list[float]) -> None:
    paths = {"e0": ["a"], "e1": ["b"], "e2": ["c", "d"], "e3": ["c", "e"]}
    rewards = [1.0, 0.0, 1.0, 1.0 if value == "max" else 0.0]
    episodes = [leaf(n, path, r, "e2" if n == "e3" else None) for (n, path), r in zip(paths.items(), rewards, strict=True)]
    credit = TreeOPO(value=value)(to_batch([Group("g", None, tuple(episodes), 4)]))
    np.testing.assert_allclose(credit.advantage[[0, 1, 2, 4]], advantage, atol=1e-12)


def spo_leaves(node: Any, path: list[str]) -> list[tuple[list[str], float]]:
    if node["leaf"]:
        return [(path, node["reward"])]
    return [found for child in node["children"] for found in spo_leaves(child, [*path, child["text"]])]


@pytest.mark.parametrize(("std", "key"), [(None, "rloo"), ("population", "grpo")])
def test_spo_tree_gives_the_authors_numbers_to_each_segment_once(std: Any, key: str) -> None:
    data = golden("spo_tree")
    found = spo_leaves(data["inputs"]["tree"], [])
    episodes = [leaf(f"e{i}", path, reward, "e0" if i else None) for i, (path, reward) in enumerate(found)]
    episodes = [replace(e, turns=tuple(replace(t, logprobs=np.full(1, -1.0, np.float32)) for t in e.turns)) for e in episodes]
    batch = to_batch([Group("g", None, tuple(episodes), 4)])
    credit = SPOTree(std=std)(batch)
    got = {}
    for t, (number, weight) in enumerate(zip(batch.turns.episode.tolist(), credit.weight.tolist(), strict=True)):
        path = found[number][0][: batch.turns.index[t] + 1]
        if weight:
            assert tuple(path) not in got, "a segment is trained once"
            got[tuple(path)] = credit.advantage[t].item()
    for kind in ("expected", "official"):
        wanted = {tuple(query[1:] + text): value for query, text, value in data[kind][key]}
        assert got.keys() == wanted.keys()
        np.testing.assert_allclose([got[path] for path in wanted], list(wanted.values()), atol=1e-5)


def test_spo_gives_certain_tokens_nothing() -> None:
    sure = np.log(np.array([0.95, 0.5], np.float32))
    episodes = [leaf("e0", ["a"], 1.0), leaf("e1", ["b"], 0.0, "e0")]
    episodes = [replace(e, turns=(replace(e.turns[0], logprobs=sure, sampled_ids=token_ids([1, 2])),)) for e in episodes]
    credit = SPOTree()(to_batch([Group("g", None, tuple(episodes), 2)]))
    assert credit.advantage.tolist() == [0.5, -0.5]
    assert [mask.tolist() for mask in credit.mask] == [[False, True], [False, True]]


def cut_chain(turns: int) -> tuple[Episode, list[Episode]]:
    """The chain of the worked case over one or two turns, and for each cut two continuations with its value as mean reward."""
    data = golden("spo_chain")["inputs"]
    logprobs = np.log(np.array(data["token_prob"], np.float32))
    parts = np.split(logprobs, [6]) if turns == 2 else [logprobs]
    own = tuple(make_turn(f":{n}", n, seed=n, sampled=len(part), logprobs=part) for n, part in enumerate(parts))
    chain = replace(make_chain("c", "g", [], outcome=data["final_score"]), turns=own)
    forks = []
    for cut in data["cutpoints"]:
        at = int(turns == 2 and cut >= 6)
        again = make_turn(f":{at}", at, seed=100 + cut, sampled=12, forced=cut - 6 * at)
        for sign in (-0.1, 0.1):
            fork = make_chain(f"{cut}{sign}", "g", [], outcome=data["mc_values"][str(cut)] + sign)
            forks.append(replace(fork, turns=(*own[:at], again), fork_of="c"))
    return chain, forks


@pytest.mark.parametrize("turns", [1, 2])
def test_spo_chain_gives_the_authors_numbers_over_any_number_of_turns(turns: int) -> None:
    chain, forks = cut_chain(turns)
    batch = to_batch([Group("g", None, (chain, *forks), 9)])
    credit = SPOChain()(batch)
    mine = [values for e, values in zip(batch.turns.episode, credit.advantage, strict=True) if e == 0]
    for kind in ("expected", "official"):
        np.testing.assert_allclose(np.concatenate(mine), golden("spo_chain")[kind], atol=1e-6)
    assert credit.weight.tolist() == [float(e == 0) for e in batch.turns.episode]


def test_spo_chain_without_what_it_needs_to_know_gives_nothing() -> None:
    chain, forks = cut_chain(1)
    lost = [replace(fork, status="failed") for fork in forks]
    credit = SPOChain()(to_batch([Group("g", None, (chain, *lost), 9)]))
    assert credit.weight.tolist() == [0.0] and not np.any(credit.advantage[0])
    credit = SPOChain()(to_batch([Group("g", None, (replace(chain, status="failed"), *forks), 9)]))
    assert not credit.weight.any()
    first = SPOChain(certain=1.0)(to_batch([Group("g", None, (chain, *lost[:2], *forks[2:]), 9)])).advantage[0]
    np.testing.assert_allclose(first, [0, 0, 0, 0, -0.1, -0.1, -0.1, 0.4, 0.4, 0.4, 0.1, 0.1], atol=1e-12)


def test_the_plan_cuts_before_uncertain_tokens() -> None:
    chain, _ = cut_chain(1)
    places = MonteCarlo(cuts=7).places(chain)
    assert [kept for _, kept in places] == [0, 2, 4, 5, 7, 8, 10]
    assert set(golden("spo_chain")["inputs"]["cutpoints"]) <= {kept for _, kept in places}
    assert [kept for _, kept in MonteCarlo(cuts=2).places(chain)] == [0, 5]
    sure = replace(chain, turns=(replace(chain.turns[0], logprobs=np.zeros(12, np.float32)),))
    assert [kept for _, kept in MonteCarlo().places(sure)] == [0]


def test_arpo_soft_is_grpo_over_the_leaves_and_hard_the_mean_over_branches() -> None:
    data = golden("arpo_agentic")
    shared = data["inputs"]["shared_prefix_leaves"]
    episodes = [
        leaf(f"e{i}", ["shared" if i in shared else f"s{i}", f"{i}"], reward, "e0" if i == 1 else None)
        for i, reward in enumerate(data["inputs"]["leaf_rewards"])
    ]
    batch = to_batch([Group("g", None, tuple(episodes), 4)])
    soft = ARPO()(batch).advantage
    np.testing.assert_allclose(soft[::2], data["expected"]["soft_advantage"], atol=1e-6)
    hard = ARPO(shared="hard")(batch).advantage
    np.testing.assert_allclose(hard[[0, 2]], data["expected"]["hard_shared_prefix_advantage"], atol=1e-12)
    np.testing.assert_array_equal(hard[[1, 3, 4, 5, 6, 7]], soft[[1, 3, 4, 5, 6, 7]])


def test_entropy_branches_are_decided_as_in_the_authors_code_and_paper(turn: Any) -> None:
    data = golden("arpo_agentic")
    heights = []
    for name in ("top_logprobs_first_segment", "top_logprobs_after_tool"):
        rows = np.array(data["inputs"][name])
        column = replace_column(turn("0"), -(np.exp(rows) * rows).sum(1))
        heights.append(entropy(column, data["params"]["k_tokens"], data["inputs"]["vocab"]))
    wanted = data["expected"]
    np.testing.assert_allclose(heights, [wanted["H_initial"], wanted["H_now"]], atol=1e-6)
    rise = heights[1] - heights[0]
    assert rise == pytest.approx(wanted["delta_H"], abs=1e-6)
    drawn = EntropyTree()
    assert [drawn.branches(rise, uniform) for uniform in data["inputs"]["uniforms"]] == wanted["code_branch"]
    paper = EntropyTree(rule="threshold")
    assert paper.branches(rise, 0.99) is wanted["paper_branch"] and not paper.branches(-rise, 0.0)


def replace_column(turn: Any, values: Any) -> Any:
    return replace(turn, columns={"entropy": Column("entropy", values)})


def test_a_node_is_a_turn_with_all_before_it() -> None:
    episodes = [
        leaf("a", ["x", "y", "z"], 0.0),
        leaf("b", ["x", "y", "w"], 0.0, "a"),
        leaf("c", ["x", "v"], 0.0, "b"),
        leaf("d", ["x", "y"], 0.0),
    ]
    forest = Forest.of(to_batch([Group("g", None, tuple(episodes), 4)]))
    assert forest.tree.tolist() == [0, 0, 0, 1]
    assert [path.tolist() for path in forest.paths] == [[0, 1, 2], [0, 1, 3], [0, 4], [5, 6]]
    assert forest.node.tolist() == [0, 1, 2, 0, 1, 3, 0, 4, 5, 6]
    assert forest.prefixes()[0].tolist() == [-1, 1, 0, -1]
    assert forest.first_sight().tolist() == [True, True, True, False, False, True, False, True, True, True]
