"""GiGPO over states that are alike instead of equal."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from agentrl.credit import GiGPO, to_batch
from agentrl.episode import State, ToolCall
from agentrl.errors import UserError

GOLDEN = json.loads((Path(__file__).parent / "golden" / "gigpo.json").read_text())


@pytest.mark.parametrize("similarity", [0.9, 1.0])
def test_states_that_differ_enough_are_compared_as_if_by_key(chain: Any, grouped: Any, similarity: float) -> None:
    rows = GOLDEN["inputs"]["rows"]
    episodes = []
    for name in ("A", "B"):
        mine = [row for row in rows if row["traj"] == name]
        episodes.append(chain(name, "g", [row["reward"] for row in mine], states=[row["state"] for row in mine]))
    # the first turn is shown its state, later ones no tool's result: the key stands in
    advantage = GiGPO(std="sample", similarity=similarity)(to_batch(grouped(episodes))).advantage
    np.testing.assert_allclose(advantage, GOLDEN["expected_paper"]["mean_std_norm"]["A"], atol=1e-6)


def shown(episode: Any, texts: list[str]) -> Any:
    """The episode whose turns were shown these texts: each but the first as the result of a tool."""
    turns = list(episode.turns)
    turns[0] = replace(turns[0], state=State(before="hash", raw=texts[0]))
    for t, text in enumerate(texts[1:]):
        turns[t] = replace(turns[t], tool_calls=(ToolCall("search", {}, "ok", text, 0.0, 0.0),))
    return replace(episode, turns=tuple(turns))


def test_turns_that_were_shown_nearly_the_same_are_compared(chain: Any, grouped: Any) -> None:
    page = "Malanje is a city in Angola, founded in 1852. Population: 486 870."
    a = shown(chain("a", "g", [0.0, 0.0], outcome=1.0), ["question", page])
    b = shown(chain("b", "g", [0.0, 0.0]), ["question", page.replace("1852", "1857")])
    c = shown(chain("c", "h", [0.0, 0.0], outcome=5.0), ["question", page])
    estimator = GiGPO(gamma=1.0, similarity=0.9)
    batch = to_batch(grouped([a, b, c]))
    advantage = estimator(batch).advantage
    np.testing.assert_allclose(advantage, [1.0, 1.0, -1.0, -1.0, 0.0, 0.0])
    assert estimator(batch).metrics["credit/anchored"] == pytest.approx(4 / 6)
    exact = replace(estimator, similarity=1.0)(batch).advantage
    np.testing.assert_allclose(exact, [1.0, 0.5, -1.0, -0.5, 0.0, 0.0])


def test_a_turn_that_was_shown_nothing_is_a_state_of_its_own(chain: Any, grouped: Any) -> None:
    batch = to_batch(grouped([chain("a", "g", [0.0], outcome=1.0), chain("b", "g", [0.0])]))
    assert GiGPO(omega=5.0, similarity=0.5)(batch).advantage.tolist() == [0.5, -0.5]


@pytest.mark.parametrize("similarity", [0.0, -1.0, 1.5])
def test_a_similarity_that_is_none_is_refused(similarity: float) -> None:
    with pytest.raises(UserError, match=r"GiGPO: similarity must be above 0 and at most 1, or None for equal states; got"):
        GiGPO(similarity=similarity)
