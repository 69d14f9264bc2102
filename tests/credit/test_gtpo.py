"""GTPO and its shaping against worked numbers: no code of the authors exists, so these are the equation's."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from agentrl.credit import ESTIMATORS, GTPO, assign, returns, to_batch
from agentrl.episode import ToolCall
from agentrl.transforms import CodeSimilarity

GOLDEN = json.loads((Path(__file__).parent / "golden" / "gtpo.json").read_text())


def ran(code: str) -> ToolCall:
    return ToolCall("python", {"code": code}, "ok", "", 0.0, 0.0)


@pytest.fixture
def group(chain, grouped) -> Any:
    """The golden file's rollouts before shaping; a turn of the second and one of the third break the format."""
    episodes = []
    for number, (outcome, broken, turns) in enumerate([(1.0, (), 3), (0.0, (1,), 3), (0.0, (0,), 2)]):
        episode = chain(f"e{number}", "g", [0.0] * turns, outcome=outcome)
        calls = (ran(f"print({number})"),) if number < 2 else ()
        made = (replace(t, valid=t.index not in broken, tool_calls=calls if not t.index else ()) for t in episode.turns)
        episodes.append(replace(episode, turns=tuple(made)))
    return grouped(episodes)


def shaping() -> CodeSimilarity:
    (similarity,) = GOLDEN["inputs"]["code_similarity_of_rollout1_to_positives"]
    return CodeSimilarity(alpha=GOLDEN["params"]["alpha"], similarity=lambda a, b: similarity)


def by_rollout(values: Any, groups: Any) -> list[list[float]]:
    batch = to_batch(groups)
    return [np.asarray(values)[batch.turns.episode == n].tolist() for n in range(len(batch.episodes))]


def test_shaping_gives_the_partial_accuracy(group):
    batch, _ = assign(group, GTPO(), [shaping()])
    assert [episode.reward for episode in batch.episodes] == pytest.approx([1.0, 0.3, 0.0], abs=1e-12)


@pytest.mark.parametrize(
    ("over", "expected"), [("index", "expected_adv_normalised_per_turn_index"), ("group", "expected_adv_pooled")]
)
def test_gtpo_gives_the_worked_numbers(group, over, expected):
    _, credit = assign(group, GTPO(over=over), [shaping()])
    for got, wanted in zip(by_rollout(credit.advantage, group), GOLDEN[expected], strict=True):
        np.testing.assert_allclose(got, wanted, atol=1e-6)


def test_its_returns_are_the_worked_ones(group):
    batch, _ = assign(group, GTPO(), [shaping()])
    penalised = replace(batch.turns, reward=batch.turns.reward - np.where(batch.turns.valid, 0.0, 0.1))
    for got, wanted in zip(by_rollout(returns(penalised, 0.9), group), GOLDEN["expected_returns"], strict=True):
        np.testing.assert_allclose(got, wanted, atol=1e-12)


def test_a_turn_index_that_one_rollout_reaches_gives_zero(chain, grouped):
    batch = to_batch(grouped([chain("a", "g", [0.0, 0.0], outcome=1.0), chain("b", "g", [0.0])]))
    assert GTPO()(batch).advantage[1] == 0.0
    assert GTPO(singleton="raw")(batch).advantage[1] == 1.0


def test_gamma_one_without_penalty_over_one_turn_is_a_group_baseline(chain, grouped):
    batch = to_batch(grouped([chain(name, "g", [0.0], outcome=value) for name, value in (("a", 1.0), ("b", 0.0))]))
    np.testing.assert_allclose(GTPO(std=None)(batch).advantage, [0.5, -0.5])


def test_agents_are_not_compared_with_each_other(chain, grouped, turn):
    episodes = [
        replace(chain(name, "g", []), turns=(turn("x", 0, "planner"), turn("y", 0, "coder")), rewards=()) for name in ("a", "b")
    ]
    episodes[0] = replace(episodes[0], turns=(episodes[0].turns[0], replace(episodes[0].turns[1], valid=False)))
    _, credit = assign(grouped(episodes), GTPO(std=None, gamma=0.0))
    assert credit.advantage == pytest.approx([0.0, -0.05, 0.0, 0.05])


def test_it_is_known_by_its_full_name_only():
    assert ESTIMATORS["gtpo_turn"] is GTPO and "gtpo" not in ESTIMATORS
