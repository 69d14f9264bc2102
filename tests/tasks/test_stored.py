"""Tasks out of a store: what was served becomes what is trained on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from agentrl import Agent, Experiment, Policy, Runtime, Team, from_store, workflow
from agentrl.engines.scripted import Scripted
from agentrl.episode import Reward, Status
from agentrl.errors import UserError
from agentrl.rollout import Independent
from agentrl.store.contract import EpisodeHead, EpisodeTail
from agentrl.store.sqlite import SQLiteStore
from agentrl.tasks import Uniform
from tests.agents import renderer, script


@dataclass(frozen=True)
class Question:
    text: str
    hints: tuple[str, ...] = ()


def fill(path: Path, episodes: Sequence[tuple[Any, str, Status | None]]) -> Path:
    """A store with an episode for each (task, split, status); without a status it still runs."""
    with SQLiteStore(path / "store.db") as store:
        for number, (task, split, status) in enumerate(episodes):
            store.begin(EpisodeHead(f"e{number}", f"g{number}", 0, 1, task, 1, "w", split=split))
            if status is not None:
                store.finish(f"e{number}", EpisodeTail(status, rewards=(Reward("right", float(number % 2)),)))
    return path


def asks(*texts: str, split: str = "serve", status: Status | None = "done") -> list[tuple[Any, str, Status | None]]:
    return [({"text": text, "hints": []}, split, status) for text in texts]


def texts(tasks: Sequence[Question]) -> str:
    return "".join(task.text for task in tasks)


def test_each_task_is_given_once_in_the_order_of_the_store(tmp_path: Path) -> None:
    run = fill(tmp_path, asks(*"cabacd"))
    tasks = from_store(run, Question)
    assert tasks == tuple(Question(text) for text in "cabd")
    assert from_store(run / "store.db", Question) == tasks
    assert texts(from_store(run, Question, unique=False)) == "cabacd"


def test_a_task_comes_back_as_it_was_with_tuples_for_lists(tmp_path: Path) -> None:
    run = fill(tmp_path, [({"text": "é?", "hints": ["x", "y"]}, "serve", "done")])
    assert from_store(run, Question) == (Question("é?", ("x", "y")),)


def test_equal_tasks_are_one_whatever_the_order_of_their_fields(tmp_path: Path) -> None:
    run = fill(tmp_path, [({"text": "a", "hints": []}, "s", "done"), ({"hints": [], "text": "a"}, "s", "done")])
    assert from_store(run, Question) == (Question("a"),)


def test_newest_and_limit_choose_the_last_ones(tmp_path: Path) -> None:
    run = fill(tmp_path, asks(*"cabacd"))
    assert texts(from_store(run, Question, newest=True)) == "dcab"
    assert texts(from_store(run, Question, newest=True, limit=2)) == "dc"
    assert texts(from_store(run, Question, limit=2)) == "ca"


def test_split_status_and_where_choose_episodes(tmp_path: Path) -> None:
    run = fill(tmp_path, [*asks("a", "b"), *asks("c", split="train"), *asks("d", status="failed"), *asks("e", status=None)])
    assert texts(from_store(run, Question)) == "abcde"
    assert texts(from_store(run, Question, split="train")) == "c"
    assert texts(from_store(run, Question, status="failed")) == "d"
    assert texts(from_store(run, Question, status=("failed", "running"))) == "de"
    assert texts(from_store(run, Question, where=lambda episode: episode.reward > 0)) == "bd"


def test_where_sees_the_rewards_that_came_later(tmp_path: Path) -> None:
    run = fill(tmp_path, asks("a", "b"))
    with SQLiteStore(run / "store.db") as store:
        store.reward("e0", Reward("feedback", -1.0))
    disliked = from_store(run, Question, where=lambda e: any(r.name == "feedback" and r.value < 0 for r in e.rewards))
    assert texts(disliked) == "a"


def test_a_task_is_given_if_any_of_its_episodes_is_chosen(tmp_path: Path) -> None:
    run = fill(tmp_path, asks("a", "a"))  # rewards 0 and 1
    assert texts(from_store(run, Question, where=lambda episode: episode.reward > 0)) == "a"


async def test_a_store_that_is_being_written_is_only_read(tmp_path: Path) -> None:
    fill(tmp_path, asks("a"))
    with SQLiteStore(tmp_path / "store.db") as writer:
        writer.begin(EpisodeHead("later", "g", 0, 1, {"text": "b"}, 1, "w", split="serve"))
        await writer.flush()
        assert texts(from_store(tmp_path, Question)) == "ab"
        writer.finish("later", EpisodeTail("done"))


def test_a_store_without_such_an_episode_is_told(tmp_path: Path) -> None:
    run = fill(tmp_path, asks("a", split="train"))
    with pytest.raises(UserError, match="no such episode to take a task from; its splits are train"):
        from_store(run, Question, split="serve")
    with pytest.raises(UserError, match="there is no store"):
        from_store(tmp_path / "nowhere", Question)


@dataclass(frozen=True)
class Patch:
    repository: str


WRONG = [
    (
        {"text": "a"},
        Patch,
        r"episode e0 has text, which Patch has not; Patch has repository; give the dataclass it was made of",
    ),
    ({}, Patch, r"episode e0 makes no Patch: .*missing.*repository"),
    ("a", Question, r"episode e0 is no Question but \"a\"; Question has text, hints"),
    (None, Question, r"is no Question but null"),
]


@pytest.mark.parametrize(("task", "kind", "said"), WRONG)
def test_a_task_of_another_class_is_told_with_its_fields(tmp_path: Path, task: Any, kind: Any, said: str) -> None:
    with pytest.raises(UserError, match=said):
        from_store(fill(tmp_path, [(task, "serve", "done")]), kind)


@pytest.mark.parametrize("kind", [dict, "Question", Question("a")])
def test_only_a_dataclass_is_read_into(tmp_path: Path, kind: Any) -> None:
    with pytest.raises(UserError, match="needs the dataclass of the tasks"):
        from_store(tmp_path, kind)


def test_a_limit_of_none_at_all_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="limit >= 1"):
        from_store(tmp_path, Question, limit=0)


async def test_served_tasks_become_new_groups(tmp_path: Path) -> None:
    @workflow(Agent("agent"), name="answer")
    async def answer(task: Question, team: Team) -> str:
        return (await team["agent"].run(task.text)).text

    def experiment(**more: Any) -> Experiment[Question, str]:
        return Experiment(answer, policies=Policy("policy"), rollout=Independent(3), **more)

    engine, renderers = Scripted(script("yes"), renderer=renderer()), {"policy": renderer()}
    with SQLiteStore(tmp_path / "store.db") as store:
        async with Runtime(experiment(), store=store, engine=engine, renderers=renderers) as runtime:
            served = [await runtime.run(Question(text)) for text in "aab"]
            await runtime.reward(served[0].id, -1.0)
    disliked = from_store(tmp_path, Question, split="serve", where=lambda episode: episode.reward < 0)
    again = experiment(tasks=disliked)
    async with Runtime(again, engine=engine, renderers=renderers) as runtime:
        (task,) = Uniform(disliked).take(1)
        group = await runtime.group(task, "g0")
    assert disliked == (Question("a"),)
    assert [episode.task for episode in group.finished] == [Question("a")] * 3
