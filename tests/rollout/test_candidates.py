"""Candidates and backtracks: led episodes over a scripted policy, a real store and a real journal."""

from __future__ import annotations

import asyncio
import random
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from agentrl import Agent, Experiment, Policy, Runtime, Team, workflow
from agentrl.credit import ATGRPO, GRPO, THOR, assign
from agentrl.credit.compare import read_steps
from agentrl.engines.scripted import Scripted
from agentrl.episode import Group
from agentrl.errors import ToolError, UserError
from agentrl.evaluate import differences
from agentrl.limits import Limits
from agentrl.rollout import Backtrack, Candidates
from agentrl.store.contract import EpisodeFilter
from agentrl.store.sqlite import SQLiteStore
from tests.agents import call, renderer

ROUNDS = 3


def say_a_number(prompt: str, rng: random.Random) -> str:
    return str(rng.randrange(100))


def number(text: str) -> int:
    found = re.search(r"\d+", text)
    return int(found.group()) if found else 0


def game(plan: Any, *, rewarded: bool = True, **more: Any) -> Experiment[Any, Any]:
    """Three rounds, each worth the number that was said; the sum is the output."""

    @workflow(Agent("player"), name="game")
    async def play(task: str, team: Team) -> int:
        total = 0
        for _ in range(ROUNDS):
            reply = await team["player"].run(f"{task} {total}")
            total += number(reply.text)
            if rewarded:
                team.reward(number(reply.text) / 100, turn=reply.turn)
        return total

    settings: dict[str, Any] = {"policies": Policy("policy"), "rollout": plan, "limits": Limits(grace=1.0)}
    if not rewarded:
        settings["reward"] = lambda task, output, episode: output / 100
    return Experiment(play, **(settings | more))


@asynccontextmanager
async def opened(
    path: Path, experiment: Any, respond: Any = say_a_number
) -> AsyncIterator[tuple[Runtime[Any, Any], SQLiteStore]]:
    engine = Scripted(respond, renderer=renderer())
    with SQLiteStore(path / "store.db") as store:
        async with Runtime(experiment, store=store, engine=engine, renderers={"policy": renderer()}) as runtime:
            yield runtime, store


def numbers(episode: Any) -> list[int]:
    return [number(turn.text) for turn in episode.turns]


async def test_each_turn_is_drawn_several_times_and_the_best_goes_on(tmp_path: Path) -> None:
    plan = Candidates(candidates=4, turns=ROUNDS)
    async with opened(tmp_path, game(plan)) as (runtime, _):
        group = await runtime.group("Go", "g0")
    assert len(group.finished) == len(group.episodes) == plan.size == 10
    assert sorted(episode.status for episode in group.episodes) == ["done"] * 4 + ["stopped"] * 6
    drawn = [[episode for episode in group.episodes if len(episode.turns) == depth] for depth in (1, 2, 3)]
    assert [len(episodes) for episodes in drawn] == [3, 3, 4]
    best: list[int] = []
    for depth, episodes in enumerate(drawn):
        last = [numbers(episode)[-1] for episode in episodes]
        assert all(numbers(episode)[:depth] == best for episode in episodes)
        going_on = numbers(drawn[2][0])[depth] if depth < 2 else max(last)
        assert going_on >= max(last), "a loser said more"
        best.append(going_on)
    assert sum(episode.ledger.model_calls for episode in group.episodes) == 4 + 4 + 4, "nothing was drawn twice"


async def test_credit_compares_the_turns_of_one_place_and_trains_each_once(tmp_path: Path) -> None:
    async with opened(tmp_path, game(Candidates(candidates=4, turns=ROUNDS))) as (runtime, _):
        group = await runtime.group("Go", "g0")
    batch, credit = assign([group], ATGRPO(std=None))
    trained = {}
    for t, turn in enumerate(batch.turns.turn):
        assert credit.weight is not None
        if credit.weight[t]:
            assert (turn.id, turn.seed) not in trained
            trained[turn.id, turn.seed] = (number(turn.text) / 100, float(np.asarray(credit.advantage[t])))
    assert len(trained) == 12
    for place in {name for name, _ in trained}:
        pairs = [pair for (name, _), pair in trained.items() if name == place]
        mean = np.mean([said for said, _ in pairs])
        assert len(pairs) == 4
        np.testing.assert_allclose([said - mean for said, _ in pairs], [given for _, given in pairs], atol=1e-12)
    assert credit.metrics["credit/compared"] == 1.0


async def test_a_stored_group_reads_and_replays_as_it_was(tmp_path: Path) -> None:
    async with opened(tmp_path, game(Candidates(candidates=3, turns=2))) as (runtime, store):
        group = await runtime.group("Go", "g0")
        await store.flush()
        for head in store.heads(EpisodeFilter(group="g0")):
            stored = store.episode(head.id)
            ran = next(episode for episode in group.episodes if episode.id == head.id)
            assert differences(stored, ran) == []
            again = await runtime.replay(head, store.journal(head.id), store.tail(head.id), "Go")
            assert differences(stored, again) == [] and again.status == ran.status
        ((read,),) = list(read_steps(store, EpisodeFilter(split="train"), tokens=True))
        assert [episode.status for episode in read.episodes] == [episode.status for episode in group.episodes]


@pytest.mark.parametrize("calls", [1, 2, 4, 6, 8])
async def test_a_group_that_was_cut_off_goes_on_to_the_same_end(calls: int, tmp_path: Path) -> None:
    """It is cancelled at the n-th model call, as a process that ends does it; what was decided before is decided again."""
    experiment = game(Candidates(candidates=3, turns=ROUNDS))
    (tmp_path / "whole").mkdir()
    async with opened(tmp_path / "whole", experiment) as (runtime, _):
        whole = await runtime.group("Go", "g0")
    (tmp_path / "cut").mkdir()
    running: list[asyncio.Task[Group]] = []
    asked = 0

    def cut_off(prompt: str, rng: random.Random) -> str:
        nonlocal asked
        asked += 1
        if asked > calls:
            running[0].cancel()
        return say_a_number(prompt, rng)

    async with opened(tmp_path / "cut", experiment, cut_off) as (runtime, _), asyncio.TaskGroup() as tasks:
        running.append(tasks.create_task(runtime.group("Go", "g0")))
    assert running[0].cancelled()
    async with opened(tmp_path / "cut", experiment) as (runtime, _):
        resumed = await runtime.group("Go", "g0")
    assert [differences(one, other) for one, other in zip(resumed.episodes, whole.episodes, strict=True)] == [[]] * 7


async def test_without_a_reward_on_the_way_candidates_are_whole_rollouts(tmp_path: Path) -> None:
    async with opened(tmp_path, game(Candidates(candidates=3), rewarded=False)) as (runtime, _):
        group = await runtime.group("Go", "g0")
    assert [episode.status for episode in group.episodes] == ["done"] * 3
    batch, credit = assign([group], ATGRPO(std=None))
    totals = {episode.id: sum(numbers(episode)) / 100 for episode in group.episodes}
    mean = sum(totals.values()) / 3
    for t, number_of in enumerate(batch.turns.episode.tolist()):
        np.testing.assert_allclose(credit.advantage[t], totals[batch.episodes[number_of].id] - mean, atol=1e-12)


async def test_a_candidate_that_is_lost_never_wins(tmp_path: Path) -> None:
    plan = Candidates(candidates=4, turns=1)

    @workflow(Agent("player"), name="fragile")
    async def fragile(task: str, team: Team) -> int:
        said = number((await team["player"].run(task)).text)
        if said > 50:
            raise ToolError("too much")
        team.reward(said)
        return said

    async with opened(tmp_path, Experiment(fragile, policies=Policy("policy"), rollout=plan)) as (runtime, _):
        groups = [await runtime.group("Go", f"g{n}") for n in range(4)]
    statuses = {episode.status for group in groups for episode in group.episodes}
    assert statuses == {"done", "failed"}
    for group in groups:
        assert all(max(numbers(episode)) <= 50 for episode in group.finished)


async def test_two_calls_at_once_are_no_turn_to_choose(tmp_path: Path) -> None:
    @workflow(Agent("player"), name="crowd")
    async def crowd(task: str, team: Team) -> str:
        async with asyncio.TaskGroup() as tasks:
            for _ in range(2):
                tasks.create_task(team["player"].run(task))
        return "done"

    experiment = Experiment(crowd, policies=Policy("policy"), rollout=Candidates(candidates=2))
    async with opened(tmp_path, experiment) as (runtime, _):
        group = await runtime.group("Go", "g0")
    assert not group.finished
    failure = group.episodes[0].failure
    assert failure is not None and "two model calls at once" in failure.message and "rollout=independent" in failure.message


async def test_rewards_of_no_turn_count_where_they_were_given(tmp_path: Path) -> None:
    """As the program with two roles gives them: to an agent, behind its step."""

    @workflow(Agent("coder"), Agent("tester"), name="pair")
    async def pair(task: str, team: Team) -> int:
        for _ in range(2):
            for role in ("coder", "tester"):
                said = number((await team[role].run(task)).text)
                team.reward(said / 100, agent=role)
            team.reward(0.5, name="round")
        return 0

    plan = Candidates(candidates=3, turns=4, alpha=0.5)
    experiment = Experiment(pair, policies=Policy("policy"), rollout=plan)
    async with opened(tmp_path, experiment) as (runtime, store):
        group = await runtime.group("Go", "g0")
        await store.flush()
        ((read,),) = list(read_steps(store, EpisodeFilter(split="train"), tokens=True))
    assert read.episodes[0].rewards == group.episodes[0].rewards and group.episodes[0].rewards[0].after is not None
    batch, credit = assign([group], ATGRPO(alpha=0.5, std=None))
    assert credit.weight is not None and credit.metrics["credit/compared"] == 1.0
    places: dict[str, list[tuple[float, float]]] = {}
    for t in np.flatnonzero(credit.weight).tolist():
        turn = batch.turns.turn[t]
        places.setdefault(turn.id, []).append((number(turn.text) / 100, float(np.asarray(credit.advantage[t]))))
    assert [len(drawn) for drawn in places.values()] == [3, 3, 3, 3]
    for drawn in places.values():
        mean = np.mean([said for said, _ in drawn])
        np.testing.assert_allclose([given for _, given in drawn], [said - mean for said, _ in drawn], atol=1e-12)


def test_plans_that_stop_rollouts_are_refused_where_whole_ones_are_compared(tmp_path: Path) -> None:
    from agentrl.setup import check
    from tests.train.small import small, tiny_model

    experiment = small(tiny_model(tmp_path / "model"), rollout=Candidates(), credit=GRPO())
    with pytest.raises(UserError, match=r"Candidates stops rollouts.*GRPO compares whole ones.*--credit at_grpo"):
        check(experiment)


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (lambda: Candidates(candidates=1), "candidates must be >= 2, got 1"),
        (lambda: Candidates(turns=0), "turns must be >= 1, got 0"),
        (lambda: Backtrack(retries=1), "retries must be >= 2, got 1"),
        (lambda: Backtrack(drop=-1), "drop must be >= 0, got -1"),
        (lambda: Backtrack(opening=""), "what a tool call begins with"),
    ],
)
def test_numbers_that_make_no_plan_are_refused(made: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        made()


# --- backtrack ---------------------------------------------------------------------------------------------------------------


def add(left: int, right: int) -> int:
    """Adds."""
    if left + right > 60:
        raise ValueError("out of range")
    return left + right


def sums(plan: Any) -> Experiment[Any, Any]:
    @workflow(Agent("adder", tools=[add]), name="sums")
    async def run(task: str, team: Team) -> str:
        return (await team["adder"].run(task)).text

    return Experiment(
        run, policies=Policy("policy"), rollout=plan, reward=lambda task, output, episode: float(number(output) > 30)
    )


def adding(prompt: str, rng: random.Random) -> str:
    said = prompt.rpartition("<|im_start|>assistant\n")[2]
    if prompt.count("<|im_start|>assistant") > 1:
        return f"It is {rng.randrange(60)}."
    thought = "" if "add" in said or "So" in said else "So I add two numbers now: "
    whole = thought + call("add", left=rng.randrange(60), right=rng.randrange(60))
    return whole if not said else whole[len(thought) :]


async def test_a_failed_call_is_taken_again_from_before_it_until_its_tool_answers(tmp_path: Path) -> None:
    plan = Backtrack(rollouts=4, retries=6, drop=2)
    async with opened(tmp_path, sums(plan), adding) as (runtime, store):
        group = await runtime.group("Go", "g0")
        await store.flush()
        for head in store.heads(EpisodeFilter(group="g0")):
            again = await runtime.replay(head, store.journal(head.id), store.tail(head.id), "Go")
            assert differences(store.episode(head.id), again) == []
    whole, retries = group.episodes[:4], group.episodes[4:]
    assert [episode.status for episode in group.episodes] == ["done"] * 4 + ["stopped"] * 6
    (parent,) = {episode.fork_of for episode in retries}
    failed = next(episode for episode in whole if episode.id == parent).turns[0]
    assert failed.tool_calls[0].status == "error"
    for retry in retries:
        (turn,) = retry.turns
        assert turn.id == failed.id and turn.seed != failed.seed and turn.tool_calls and turn.forced > 0
        assert turn.sampled_ids[: turn.forced].tolist() == failed.sampled_ids[: turn.forced].tolist()
        assert renderer().decode(failed.sampled_ids[: turn.forced + 2]) == failed.text.partition("<tool_call>")[0]
    batch, credit = assign([group], THOR(min_tokens=1))
    passed = [float(retry.turns[0].tool_calls[0].status == "ok") for retry in retries]
    assert 0 < sum(passed) < 6
    mean, std = np.mean(passed), np.std(passed, ddof=1)
    found = [float(credit.advantage[t]) for t, e in enumerate(batch.turns.episode.tolist()) if batch.episodes[e].fork_of]
    np.testing.assert_allclose(found, (np.array(passed) - mean) / (std + 1e-6), atol=1e-9)


async def test_a_group_without_calls_is_not_taken_again(tmp_path: Path) -> None:
    async with opened(tmp_path, sums(Backtrack(rollouts=3, retries=2))) as (runtime, _):
        group = await runtime.group("Go", "g0")
    assert [episode.status for episode in group.episodes] == ["done"] * 3


async def test_without_the_opening_the_whole_turn_is_drawn_anew(tmp_path: Path) -> None:
    async with opened(tmp_path, sums(Backtrack(rollouts=2, retries=2, opening="```python")), adding) as (runtime, _):
        group = await runtime.group("Go", "g0")
    assert [turn.forced for episode in group.episodes[2:] for turn in episode.turns] == [0, 0]
