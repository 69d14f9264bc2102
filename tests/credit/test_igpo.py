"""IGPO against worked numbers and those of the authors' function."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from agentrl.credit import IGPO, Needs, assign, to_batch
from agentrl.episode import EMPTY_IDS, EMPTY_LOGPROBS, Episode, Parent, Probe, Reward, token_ids
from tests.credit.conftest import make_turn
from tests.credit.trees import one_group

GOLDEN = json.loads((Path(__file__).parent / "golden" / "igpo.json").read_text())


def searched(name: str, before: list[float | None], outcome: float) -> Episode:
    """An episode of two sampled tokens a turn, one token of a tool's between them, and p before each turn."""
    turns = []
    for t, p in enumerate(before):
        probes = () if p is None else (Probe("answer", 3, EMPTY_IDS, EMPTY_LOGPROBS, None, p),)
        parent, context = (Parent(str(t - 1), 5 + 3 * (t - 1)), [9]) if t else (None, [1, 2, 3])
        turns.append(make_turn(str(t), t, probes=probes, parent=parent, context_ids=token_ids(context)))
    return Episode(
        id=name, group="g", task=None, seed=0, workflow="", source="policy", status="done", turns=tuple(turns),
        rewards=(Reward("f1", outcome),),
    )  # fmt: skip


@pytest.fixture
def batch() -> Any:
    inputs = GOLDEN["inputs"]
    pairs = zip(inputs["gt_prob_before_turn"], inputs["outcome_f1"], strict=True)
    return to_batch(one_group([searched(f"e{i}", before, f1) for i, (before, f1) in enumerate(pairs)]))


@pytest.mark.parametrize(("gamma", "key"), [(1.0, "expected_advantage"), (0.9, "expected_advantage_gamma_0_9")])
def test_the_papers_form_gives_the_worked_numbers(batch: Any, gamma: float, key: str) -> None:
    advantage = IGPO(gamma=gamma, eps=0.0)(batch).advantage
    np.testing.assert_allclose(advantage, np.concatenate(GOLDEN[key]), atol=1e-6)


@pytest.mark.parametrize(("form", "key"), [("released", "advantages_tool_tokens_masked"), ("uncut", "advantages_no_mask")])
def test_the_released_form_gives_the_authors_numbers(batch: Any, form: Any, key: str) -> None:
    advantage = iter(IGPO(form=form)(batch).advantage)
    for spans, row in zip(GOLDEN["official_inputs"]["spans"], GOLDEN["official"][key], strict=True):
        for start, end in spans:
            np.testing.assert_allclose(next(advantage), row[start:end], atol=1e-6)


@pytest.mark.parametrize("form", ["paper", "released", "uncut"])
def test_equal_rewards_give_exactly_nothing(form: Any) -> None:
    batch = to_batch(one_group([searched(f"e{i}", [0.1, 0.1, 0.1], 0.0) for i in range(3)]))
    assert not np.any(np.array(IGPO(form=form)(batch).advantage))


def test_an_episode_that_is_not_wholly_probed_has_its_outcome_alone() -> None:
    whole, partly = searched("a", [0.1, 0.5], 1.0), searched("b", [0.1, None], 1.0)
    credit = IGPO(std=None)(to_batch(one_group([whole, partly])))
    rewards = np.array([0.4, 1.0, 0.0, 1.0])
    z = rewards - rewards.mean()
    np.testing.assert_allclose(credit.advantage, [z[0] + z[1], z[1], z[2] + z[3], z[3]], atol=1e-12)
    assert credit.metrics["credit/probed"] == 0.5


def test_the_likeliest_of_several_right_answers_counts() -> None:
    one = searched("a", [0.1, 0.5], 0.0)
    turn = one.turns[1]
    more = replace(turn, probes=(*turn.probes, Probe("answer", 3, EMPTY_IDS, EMPTY_LOGPROBS, None, 0.7)))
    batch = to_batch(one_group([replace(one, turns=(one.turns[0], more)), searched("b", [0.1, 0.1], 0.0)]))
    gain = IGPO(std=None)(batch).metrics["credit/gain"]
    assert gain == pytest.approx((0.7 - 0.1) / 4)


def test_a_lost_leaf_and_the_order_of_episodes_change_nothing() -> None:
    episodes = [searched("a", [0.1, 0.3, 0.25], 0.0), searched("b", [0.1, 0.5], 1.0), searched("c", [0.2], 0.3)]
    lost = replace(searched("d", [0.9, 0.1], 1.0), status="failed")
    batch, plain = assign(one_group(episodes), IGPO())
    other, turned = assign(one_group([lost, *episodes[::-1]], 5), IGPO())
    by_turn = [
        {(b.episodes[e].id, t.id): a for e, t, a in zip(b.turns.episode.tolist(), b.turns.turn, c.advantage, strict=True)}
        for b, c in ((batch, plain), (other, turned))
    ]
    assert by_turn[0] == by_turn[1] and other.lost == 2


def test_it_needs_the_probe() -> None:
    assert IGPO().needs == Needs(probes=("answer",), group=2)
