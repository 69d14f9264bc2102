"""StepSearch's rewards against those of the authors' functions."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from agentrl.credit import to_batch
from agentrl.episode import Episode, Group, ToolCall
from agentrl.errors import UserError
from agentrl.transforms import StepSearch, transformed
from agentrl.transforms.stepsearch import similarities
from tests.credit.conftest import make_chain

GOLDEN = json.loads((Path(__file__).parent / "golden" / "stepsearch.json").read_text())
RETRIEVED = GOLDEN["inputs"]["retrieved_docs_per_turn"]
GOLD = [document["paragraph_text"] for document in GOLDEN["inputs"]["golden_docs"]]


def search(name: str, documents: list[str], **fields: Any) -> ToolCall:
    return replace(ToolCall(name, {}, "ok", "", 0.0, 0.0, data={"documents": documents}), **fields)


def searching(*calls: tuple[ToolCall, ...]) -> Episode:
    """A turn for each tuple of calls, then one that answers."""
    episode = make_chain("e", "g", [0.0] * (len(calls) + 1), outcome=1.0)
    turns = [replace(turn, tool_calls=each) for turn, each in zip(episode.turns, (*calls, ()), strict=True)]
    return replace(episode, turns=tuple(turns))


@pytest.fixture
def episode() -> Episode:
    return searching(*((search("search", documents),) for documents in RETRIEVED))


def test_similarities_are_those_of_the_authors() -> None:
    got = [[similarities(document, GOLD) for document in documents] for documents in RETRIEVED]
    np.testing.assert_allclose(got, GOLDEN["inputs"]["similarity_matrix"], atol=1e-6)


def test_gains_and_redundancy_are_those_of_the_authors(episode: Episode) -> None:
    names, gains, redundancy = zip(*StepSearch().steps(episode, GOLD), strict=True)
    assert names == ("0", "1", "2")
    np.testing.assert_allclose(gains, GOLDEN["official"]["info_gain"], atol=1e-6)
    np.testing.assert_allclose(redundancy, GOLDEN["official"]["redundancy"], atol=1e-6)


def test_each_search_is_rewarded_on_its_turn(episode: Episode) -> None:
    (group,) = transformed([Group("g", {"gold_documents": GOLD}, (episode,), 1)], [StepSearch(scale=0.6)])
    step = np.array([*GOLDEN["official"]["step_reward"], 0.0])
    np.testing.assert_allclose(to_batch([group]).turns.reward, 0.6 * step, atol=1e-6)
    assert to_batch([group]).turns.outcome.tolist() == [1.0] * 4


def test_calls_that_failed_and_other_tools_give_no_documents() -> None:
    one = searching((search("search", ["x"], status="error"), search("calculator", ["y"])), (search("search", ["y"]),))
    assert [name for name, _, _ in StepSearch(tool="search").steps(one, ["y"])] == ["1"]
    assert [redundancy for _, _, redundancy in StepSearch().steps(one, ["y"])] == [0.0, 1.0]
    plain = searching((replace(search("search", []), data={}, output="the page"),))
    assert [name for name, _, _ in StepSearch().steps(plain, ["page"])] == ["0"]


def test_lost_episodes_and_tasks_without_right_documents_stay_as_they_are(episode: Episode) -> None:
    lost = replace(episode, status="failed")
    group = Group("g", {"gold_documents": GOLD}, (lost,), 1)
    assert StepSearch()(group).episodes == (lost,)
    none = Group("g", {"gold_documents": []}, (episode,), 1)
    assert StepSearch()(none) is none
    with pytest.raises(UserError, match=r"StepSearch needs the right documents of a task as its 'gold_documents'"):
        StepSearch()(Group("g", {"text": "?"}, (episode,), 1))
