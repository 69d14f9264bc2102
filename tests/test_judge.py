"""A judge with a rubric version: what it says becomes a reward, is replayed, and has a named end when it says nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from agentrl.agent import Agent
from agentrl.credit import GRPO, assign
from agentrl.engines.scripted import Scripted
from agentrl.episode import Episode, Group
from agentrl.errors import EngineError, UserError
from agentrl.judge import Rubric, judge
from agentrl.store.contract import EpisodeTail
from agentrl.store.fold import fold
from agentrl.team import Team
from agentrl.transforms import RubricVersions, transformed
from tests.agents import renderer, seat
from tests.runtime.harness import HEAD, play

RUBRIC = Rubric(("The facts are right.", "The sources are named."), version=3)
GOOD = "The facts hold.\nScore 1: 8\nNo source is named.\nScore 2: 1"


class Spoken:
    """A judge that says one thing after the other, and counts how often it was asked."""

    def __init__(self, *said: str | Exception) -> None:
        self.said, self.asked = said, list[str]()

    def __call__(self, prompt: str, rng: Any) -> str:
        self.asked.append(prompt)
        said = self.said[min(len(self.asked), len(self.said)) - 1]
        if isinstance(said, Exception):
            raise said
        return said


async def judged(spoken: Spoken, rubric: Rubric = RUBRIC, name: str = "e", **options: Any) -> tuple[Episode, EpisodeTail]:
    """An episode with a writer and a judge; played again from its record, it must be the same and ask nobody."""
    agents = {"writer": Agent("writer"), "judge": Agent("judge", "You are strict.", max_turns=1)}
    writer = Scripted(lambda prompt, rng: "Bern is the capital.", renderer=renderer())
    seats = {"writer": seat(writer), "judge": seat(Scripted(spoken, renderer=renderer()))}

    async def workflow(task: Any, team: Team) -> float:
        work = await team["writer"].run("Write.")
        give = {"turn": work.turn} if options.get("turn") else {}
        return (await judge(team, "judge", rubric, work.text, **(options | give))).score

    effects, tail = await play(workflow, agents=agents, seats=seats)
    asked = len(spoken.asked)
    again, same = await play(workflow, effects, mode="replay", agents=agents, seats=seats)
    assert (same.status, same.output, len(again), len(spoken.asked)) == (tail.status, tail.output, len(effects), asked)
    return replace(fold(HEAD, effects, tail), id=name), tail


def rewards(episode: Episode) -> dict[str, float]:
    return {reward.name: reward.value for reward in episode.rewards}


async def test_the_share_of_all_points_is_a_reward_that_names_the_version() -> None:
    spoken = Spoken(GOOD)
    episode, tail = await judged(spoken)
    assert (tail.status, tail.output) == ("done", 0.45) and rewards(episode) == {"rubric@3": 0.45}
    assert episode.metrics == {"judge/unreadable": 0.0}
    (prompt,) = spoken.asked
    assert "You are strict." in prompt and "Bern is the capital." in prompt and "2. The sources are named." in prompt
    assert [turn.agent for turn in episode.turns] == ["writer", "judge"] and episode.turns[1].text.startswith(GOOD)


async def test_a_score_may_be_a_turns_or_an_agents() -> None:
    of_turn, _ = await judged(Spoken(GOOD), turn=True)
    assert not of_turn.rewards and [reward.value for reward in of_turn.turns[0].rewards] == [0.45]
    of_agent, _ = await judged(Spoken(GOOD), agent="writer")
    assert [(reward.agent, reward.value) for reward in of_agent.rewards] == [("writer", 0.45)] and of_agent.reward == 0.0


async def test_a_verdict_that_cannot_be_read_is_asked_for_again() -> None:
    spoken = Spoken("Splendid!", GOOD)
    episode, tail = await judged(spoken)
    assert tail.status == "done" and rewards(episode) == {"rubric@3": 0.45} and len(spoken.asked) == 2


async def test_without_a_verdict_the_episode_is_lost_by_the_rewards_fault_and_not_worth_nothing() -> None:
    episode, tail = await judged(Spoken("Splendid!"), tries=3)
    assert tail.status == "failed" and tail.failure is not None and tail.failure.fault == "reward"
    assert "agent judge gave no verdict by rubric@3 that can be read in 3 tries" in tail.failure.message
    assert "for each of 2 items, got []; it stopped for answered and said 'Splendid!'" in tail.failure.message
    assert not rewards(episode)


async def test_a_score_for_what_cannot_be_read_is_given_where_it_is_asked_for() -> None:
    episode, tail = await judged(Spoken("Splendid!"), unreadable=0.0)
    assert tail.status == "done" and rewards(episode) == {"rubric@3": 0.0} and episode.metrics == {"judge/unreadable": 1.0}


async def test_a_judge_that_fails_is_the_engines_fault() -> None:
    episode, tail = await judged(Spoken(EngineError("no connection")), unreadable=0.0)
    assert tail.status == "failed" and tail.failure is not None and tail.failure.fault == "engine"
    assert "no connection" in tail.failure.message and not rewards(episode)


@pytest.mark.parametrize(
    ("said", "points"),
    [
        ("**Score 1:** 7\n- score 2 = 3.5", (7.0, 3.5)),
        ("Score 2: 0\nScore 1: 10/10", (10.0, 0.0)),
        ("I would say: Score 1: 5\nScore 1: 4\nScore 2: 4\nScore 2: 4", (4.0, 4.0)),
    ],
)
def test_points_are_read_from_lines_of_their_own(said: str, points: Sequence[float]) -> None:
    assert RUBRIC.read(said) == points


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ("Score 1: 7", r"each of 2 items, got \[1\]"),
        ("Score 1: 7\nScore 2:\n3. is no score", r"got \[1\]"),
        ("Score 1: 7\nScore 2: 7\nScore 3: 7", r"got \[1, 2, 3\]"),
        ("Score 1: 7\nScore 2: 7\nScore 2: 10", "item 2 has 7 points and 10 points"),
        ("Score 1: 7\nScore 2: 11", r"0 to 10 points an item, got \[7.0, 11.0\]"),
        ("Score 1: -1\nScore 2: 7", r"got \[-1.0, 7.0\]"),
    ],
)
def test_a_verdict_that_is_not_one_says_why(said: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RUBRIC.read(said)


async def test_scores_by_two_versions_are_each_held_against_their_own() -> None:
    later = replace(RUBRIC, items=("All is right.",), version=4)
    verdicts = [(RUBRIC, GOOD), (RUBRIC, "Score 1: 10\nScore 2: 10"), (later, "Score 1: 10"), (later, "Score 1: 0")]
    episodes = [(await judged(Spoken(said), rubric, name=f"e{n}"))[0] for n, (rubric, said) in enumerate(verdicts)]
    group = Group("g", None, tuple(episodes), 4)
    (apart,) = transformed([group], [RubricVersions()])
    assert [round(episode.reward, 9) for episode in apart.finished] == [-0.275, 0.275, 0.5, -0.5]
    with pytest.raises(UserError, match=r"several rubric versions \(rubric@3, rubric@4\)"):
        transformed([group], [RubricVersions(mixed="refuse")])
    batch, credit = assign([group], GRPO(std=None), [RubricVersions()])
    assert {batch.agents[agent] for agent in batch.turns.agent} == {"writer", "judge"}
    assert sum(map(float, credit.advantage)) == pytest.approx(0.0)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"items": ()}, "a rubric needs items"),
        ({"items": "Be right."}, "a rubric needs items, each a text"),
        ({"items": ("",)}, "a rubric needs items"),
        ({"name": "a@b"}, "a name without '@'"),
        ({"best": 0}, "best >= 1"),
    ],
)
def test_what_is_no_rubric_is_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        Rubric(**({"items": ("Be right.",), "version": 1} | fields))


async def test_options_of_a_judge_that_cannot_be_are_refused() -> None:
    for options in ({"tries": 0}, {"unreadable": 2.0}):
        _, tail = await judged(Spoken(GOOD), **options)
        assert tail.failure is not None and "judge needs tries >= 1 and unreadable between 0 and 1" in tail.failure.message
