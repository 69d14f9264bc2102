"""Rubrics that are rewritten while a policy learns: versions in a folder, the model that writes them, and what judged what."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from agentrl import Agent, Experiment, Policy, Team, train, workflow
from agentrl.effect import Effect
from agentrl.engines.scripted import Scripted
from agentrl.errors import UserError
from agentrl.evaluate import replay
from agentrl.judge import Rubric, judge
from agentrl.rollout import Independent
from agentrl.rubrics import Rubrics, refine
from agentrl.run import Run
from agentrl.store.contract import EpisodeFilter, EpisodeTail
from agentrl.transformer.tiny import make_tiny_model
from tests.agents import renderer, seat
from tests.runtime.harness import play

FIRST = Rubric(("It is long.",), version=0)


async def refined(*said: str, tries: int = 2) -> tuple[Rubric | None, EpisodeTail, tuple[Effect, ...]]:
    """What a model that says these things makes of `FIRST`; played again, it must come to the same."""
    left = list(said)
    found: list[Rubric] = []
    engine = Scripted(lambda prompt, rng: left.pop(0), renderer=renderer())

    async def rewrite(task: Any, team: Team) -> list[str]:
        found.append(await refine(team, "meta", FIRST, ["aaaa\nScore 1: 10", "The proof.\nScore 1: 2"], tries=tries))
        return list(found[-1].items)

    common: dict[str, Any] = {"agents": {"meta": Agent("meta", max_turns=1)}, "seats": {"meta": seat(engine)}}
    effects, tail = await play(rewrite, **common)
    _, again = await play(rewrite, effects, mode="replay", **common)
    assert (again.status, again.output) == (tail.status, tail.output)
    return (found[0] if found else None), tail, effects


async def test_a_model_writes_the_next_version() -> None:
    rubric, tail, _ = await refined("Length is no merit.\n\n**Item 1:** It is right.\n- Item 2: It says why.")
    assert tail.status == "done" and rubric == Rubric(("It is right.", "It says why."), version=1)


@pytest.mark.parametrize("said", ["It is fine.", "Item 2: It is right.", "Item 1: a\nItem 1: b", "Item 1:\nItem 2: b"])
async def test_what_is_no_rubric_is_asked_for_again_and_then_the_old_one_stays(said: str) -> None:
    rubric, tail, _ = await refined(said, "Item 1: It is right.")
    assert rubric is not None and rubric.items == ("It is right.",) and tail.status == "done"
    rubric, tail, _ = await refined(said, said)
    assert rubric is None and tail.failure is not None and tail.failure.fault == "workflow"
    assert "agent meta wrote no rubric behind rubric@0 that can be read in 2 tries" in tail.failure.message


async def test_a_rubric_is_not_refined_from_nothing() -> None:
    with pytest.raises(UserError, match="rubric@0 cannot be refined from nothing; give a few works"):
        await refine(None, "meta", FIRST, [])  # type: ignore[arg-type]


def test_versions_are_kept_and_only_grow(tmp_path: Path) -> None:
    rubrics = Rubrics(tmp_path / "rubrics", FIRST)
    later = replace(FIRST, items=("It is right.",), version=1)
    rubrics.add(later)
    again = Rubrics(tmp_path / "rubrics", FIRST)
    assert again.latest() == later and again.of(0) == FIRST
    for wrong in (later, FIRST, replace(later, version=2, name="style")):
        with pytest.raises(UserError, match=r"holds rubric@1, got .*; a changed rubric has a greater version"):
            rubrics.add(wrong)
    with pytest.raises(UserError, match=r"there is no rubric@7.json in .*; it holds the versions \[0, 1\]"):
        rubrics.of(7)


def stretches(updates: int, interval: int) -> Iterator[int]:
    """After how many updates a rubric is rewritten."""
    yield from range(interval, updates + 1, interval)


def test_the_rubric_is_rewritten_when_the_authors_rewrite_it(tmp_path: Path) -> None:
    data = json.loads((Path(__file__).parent / "golden" / "mpo_meta.json").read_text())
    rubrics, last, used = Rubrics(tmp_path, FIRST), max(data["inputs"]["updates"]), dict[int, int]()
    refined_at = list(stretches(last, data["inputs"]["interval"]))
    for before, steps in zip([0, *refined_at], refined_at, strict=False):
        used |= dict.fromkeys(range(before, steps), rubrics.latest().version)
        rubrics.add(replace(rubrics.latest(), items=(f"Version {steps}.",), version=rubrics.latest().version + 1))
    assert refined_at == data["expected"]["refine_at"]
    assert used[45] == data["expected"]["rubric_version_used_at_update_45"]


@workflow(Agent("writer", max_tokens=4, max_turns=1), Agent("judge", max_tokens=8, max_turns=1))
async def essay(task: dict[str, str], team: Team) -> str:
    work = await team["writer"].run(task["text"])
    rubric = await Rubrics(task["rubrics"], FIRST).current(team)
    await judge(team, "judge", rubric, work.text, tries=1, unreadable=0.0)
    return rubric.reward


@pytest.mark.timeout(120)
def test_a_run_that_refines_between_its_stretches_judges_by_the_version_of_each_and_replays_by_it(tmp_path: Path) -> None:
    model = make_tiny_model(tmp_path / "model", ["alpha", "beta"], [], hidden=32, layers=1, heads=1, ff=32)
    rubrics = Rubrics(tmp_path / "rubrics", FIRST)
    task = {"text": "alpha", "rubrics": str(rubrics.folder)}
    experiment: Experiment[Any, Any] = Experiment(
        essay,
        {"writer": Policy("writer", model=model), "judge": Policy("judge", model=model, frozen=True)},
        reward=lambda task, output, episode: float(episode.turns[0].sampled_ids.sum() % 3),
        tasks=[task],
        rollout=Independent(2),
        tasks_per_step=1,
        eval_every=0,
    )
    interval, updates = 2, 6
    for steps in stretches(updates, interval):
        asyncio.run(train(replace(experiment, steps=steps), out=tmp_path / "run", sinks=[]))
        rubrics.add(replace(rubrics.latest(), items=(f"Version {steps}.",), version=rubrics.latest().version + 1))
    with Run.find(tmp_path / "run").store(read_only=True) as store:
        episodes = [(head.step, store.episode(head.id)) for head in store.heads(EpisodeFilter(split="train"))]
    assert {step for step, _ in episodes} == set(range(updates))
    for step, episode in episodes:
        assert episode.status == "done", episode.failure
        assert episode.output == f"rubric@{step // interval}" and episode.rewards[0].name == episode.output
    first = episodes[0][1]
    again = asyncio.run(replay(experiment, tmp_path / "run", first.id))
    assert again.differences == () and again.again.output == "rubric@0" and rubrics.latest().version == 3
