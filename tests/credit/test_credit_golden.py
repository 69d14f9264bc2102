"""Numbers that the authors' own functions gave on small inputs; see the `official_source` of each file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from agentrl.credit import GRPO, GiGPO, Needs, returns, to_batch

GOLDEN = Path(__file__).parent / "golden"


def golden(name: str) -> Any:
    return json.loads((GOLDEN / f"{name}.json").read_text())


@pytest.fixture
def grpo_batch(chain, grouped):
    inputs = golden("grpo_baseline")["inputs"]
    pairs = zip(inputs["rewards"], inputs["group"], strict=True)
    return to_batch(grouped([chain(f"e{i}", group, [0.0], outcome=reward) for i, (reward, group) in enumerate(pairs)]))


@pytest.fixture
def gigpo_batch(chain, grouped):
    rows = golden("gigpo")["inputs"]["rows"]
    episodes = []
    for name in ("A", "B"):
        mine = [row for row in rows if row["traj"] == name]
        episodes.append(chain(name, "g", [row["reward"] for row in mine], states=[row["state"] for row in mine]))
    return to_batch(grouped(episodes))


def test_grpo_with_raw_singletons_gives_verls_numbers(grpo_batch):
    data = golden("grpo_baseline")
    advantage = GRPO(singleton="raw")(grpo_batch).advantage
    np.testing.assert_allclose(advantage, data["expected"], atol=1e-6)
    np.testing.assert_allclose(advantage, data["official"], atol=3e-6)  # verl divides even a singleton by 1 + 1e-6


def test_grpo_gives_a_group_of_one_nothing(grpo_batch):
    np.testing.assert_allclose(GRPO()(grpo_batch).advantage, golden("grpo_baseline")["expected_zero_singleton"], atol=1e-6)


def test_gigpo_step_returns_are_the_authors(gigpo_batch):
    np.testing.assert_allclose(returns(gigpo_batch.turns, 0.95), golden("gigpo")["official_step_returns"], atol=1e-9)


@pytest.mark.parametrize(("std", "form"), [(None, "mean_norm"), ("sample", "mean_std_norm")])
def test_gigpo_gives_the_papers_numbers(gigpo_batch, std, form):
    expected = golden("gigpo")["expected_paper"][form]
    np.testing.assert_allclose(GiGPO(std=std, omega=0.0)(gigpo_batch).advantage, expected["A_E"], atol=1e-6)
    np.testing.assert_allclose(GiGPO(std=std)(gigpo_batch).advantage, expected["A"], atol=1e-6)


@pytest.mark.parametrize(("std", "form"), [(None, "mean_norm"), ("sample", "mean_std_norm")])
def test_gigpo_over_rows_gives_the_numbers_of_the_authors_code(gigpo_batch, std, form):
    advantage = GiGPO(std=std, statistics="rows")(gigpo_batch).advantage
    np.testing.assert_allclose(advantage, golden("gigpo")["expected_code"][form], atol=1e-6)
    np.testing.assert_allclose(advantage, golden("gigpo")["official"][form], atol=1e-6)


def test_a_lone_trajectory_gets_zero_over_rows_and_what_singleton_says_over_trajectories(chain, grouped):
    batch = to_batch(grouped([chain("A", "g", [0.0, 3.0], states=["x", "y"])]))
    assert GiGPO(statistics="rows")(batch).advantage.tolist() == [0.0, 0.0]
    assert GiGPO()(batch).advantage.tolist() == [0.0, 0.0]
    assert GiGPO(singleton="raw")(batch).advantage.tolist() == [3.0, 3.0]


def test_an_invalid_turn_loses_the_penalty_at_both_levels(chain, grouped, turn):
    good = chain("A", "g", [0.0], outcome=1.0, states=["s"])
    bad = chain("B", "g", [0.0], outcome=1.0, states=["s"])
    object.__setattr__(bad.turns[0], "valid", False)
    advantage = GiGPO(invalid_penalty=0.1)(to_batch(grouped([good, bad]))).advantage
    np.testing.assert_allclose(advantage, [0.1, -0.1], atol=1e-12)


def test_what_the_estimators_need_is_known_before_the_run():
    assert GiGPO().needs == Needs(state=True, group=2)
    assert GRPO().needs == Needs(group=2)


def test_an_empty_batch_gives_empty_credit(grouped):
    batch = to_batch([])
    assert len(GRPO()(batch).advantage) == 0
    assert len(GiGPO()(batch).advantage) == 0
