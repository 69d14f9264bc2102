"""A training that searches outside is recorded once, and repeated to the bit with the search server gone."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from agentrl import Agent, Experiment, Team, train, workflow
from agentrl.metrics import StepMetrics
from agentrl.store.contract import EpisodeFilter
from agentrl.store.sqlite import SQLiteStore
from agentrl.tool import Tool
from agentrl_tools.recorded import recorded
from agentrl_tools.retriever import Retriever
from agentrl_workflows.search_qa.questions import Question
from tests.tools.servers import serving
from tests.train.small import small, warmed


class Losses:
    """A sink that keeps the losses."""

    def __init__(self) -> None:
        self.seen: list[tuple[int, float]] = []

    def write(self, metrics: StepMetrics) -> None:
        if "loss" in metrics.values:
            self.seen.append((metrics.step, metrics.values["loss"]))

    def note(self, text: str) -> None: ...

    def close(self) -> None: ...


def searching(model: Path, search: Tool) -> Experiment[Any, Any]:
    """Reinforcement learning with one tool, the given one."""

    @workflow(Agent("searcher", tools=[search], max_turns=3, max_tokens=12), name="outside")
    async def answer(task: Question, team: Team) -> str:
        return (await team["searcher"].run(task.text)).text

    return replace(small(model, steps=3), workflow=answer, eval_every=0)


def learned(experiment: Experiment[Any, Any], out: Path) -> tuple[list[tuple[int, float]], list[str]]:
    """The losses, and what the searches gave."""
    losses = Losses()
    asyncio.run(train(experiment, out=out, sinks=[losses]))
    with SQLiteStore(out / "store.db", read_only=True) as store:
        episodes = list(store.episodes(EpisodeFilter(split="train")))
    assert {episode.status for episode in episodes} == {"done"}
    said = [call.output for episode in episodes for turn in episode.turns for call in turn.tool_calls if call.status == "ok"]
    return losses.seen, said


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return warmed(tmp_path_factory.mktemp("warm"), steps=30)


def test_a_recorded_run_repeats_to_the_bit_with_the_server_gone(model: Path, tmp_path: Path) -> None:
    tape = tmp_path / "tape.db"

    async def once() -> tuple[Any, list[Any]]:
        async with serving() as served:
            tool = Retriever(served.url, topk=1)
            experiment = searching(model, recorded(tool, tape))
            given = await asyncio.to_thread(learned, experiment, tmp_path / "first")
        return given, served.asked

    (losses, said), asked = asyncio.run(once())
    assert len(losses) == 3
    assert asked
    assert said
    gone = Retriever("http://127.0.0.1:9/retrieve", topk=1)
    again, said_again = learned(searching(model, recorded(gone, tape, mode="replay")), tmp_path / "again")
    assert again == losses
    assert said_again == said
