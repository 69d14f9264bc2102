"""Rollouts that begin inside demonstrations, on the real engine: led there by the workflow's own code, given, never trained."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from agentrl import Experiment, UserError, train
from agentrl.config import apply_settings
from agentrl.credit import GRPO, Forest, TreeOPO, assign
from agentrl.credit.compare import read_steps
from agentrl.episode import Episode, Group
from agentrl.evaluate import replay
from agentrl.exchange import entries_of, export_episodes
from agentrl.learning.packing import plan
from agentrl.learning.rows import to_rows
from agentrl.run import Run
from agentrl.runtime.runtime import Runtime
from agentrl.setup import check
from agentrl.store.contract import EpisodeFilter
from agentrl.store.sqlite import SQLiteStore
from agentrl.workflow import Workflow
from tests.train.small import graded, small

ROOT = Path(__file__).resolve().parents[2]
CUTS = ("same", "random", "each")


def on_two_tasks(warm: Path, *settings: str, **changes: Any) -> Experiment[Any, Any]:
    plain = small(warm, eval_every=0, held_out=(), **{"steps": 2} | changes)
    return apply_settings(replace(plain, tasks=plain.tasks[:2]), settings)


@pytest.fixture(scope="module")
def shown(warm: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with a few episodes of each task, some of them of several turns."""
    out = tmp_path_factory.mktemp("shown") / "run"
    asyncio.run(train(on_two_tasks(warm, "rollout.size=6", steps=1), out=out, sinks=[]))
    return out


def reset(warm: Path, shown: Path, cuts: str, *settings: str, **changes: Any) -> Experiment[Any, Any]:
    given = ("rollout=dataset_reset", f"rollout.episodes={shown}", "rollout.size=4", f"rollout.cuts={cuts}", *settings)
    return on_two_tasks(warm, *given, **changes)


@pytest.fixture(scope="module", params=CUTS)
def run(request: Any, warm: Path, shown: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    settings = ("credit=tree_opo",) if request.param == "each" else ()
    experiment, out = reset(warm, shown, request.param, *settings), tmp_path_factory.mktemp("reset") / "run"
    asyncio.run(train(experiment, out=out, sinks=[]))
    return experiment, out


def groups_of(out: Path) -> list[Group]:
    with Run.find(out).store(read_only=True) as store:
        return [group for step in read_steps(store, EpisodeFilter(split="train"), tokens=True) for group in step]


def episodes_of(out: Path, **where: Any) -> dict[str, Episode]:
    with Run.find(out).store(read_only=True) as store:
        return {episode.id: episode for episode in store.episodes(EpisodeFilter(**where))}


def test_demonstrations_are_walked_through_again_token_by_token_at_no_cost(run: Any, shown: Path) -> None:
    originals = {tuple(turn.digest for turn in episode.turns): episode for episode in episodes_of(shown).values()}
    led = episodes_of(run[1], split="demonstration")
    assert 2 <= len(led) <= 4
    for episode in led.values():
        of = originals[tuple(turn.digest for turn in episode.turns)]
        assert (episode.task, episode.output, episode.stops) == (of.task, of.output, of.stops)
        assert [turn.tool_calls for turn in episode.turns] == [turn.tool_calls for turn in of.turns]
        assert episode.source == "demonstration" and episode.ledger.sampled_tokens == 0
        assert all(turn.forced == len(turn.sampled_ids) and not turn.trainable for turn in episode.turns)


def test_rollouts_begin_with_the_demonstrations_tokens_and_train_and_pay_only_their_own(run: Any) -> None:
    experiment, out = run
    led = episodes_of(out, split="demonstration")
    inside = behind = 0
    for group in groups_of(out):
        assert len(group.finished) == 4
        for episode in group.episodes:
            of = led[episode.fork_of or ""]
            assert of.task == episode.task
            cut = next(at for at, turn in enumerate(episode.turns) if turn.trainable)
            first = episode.turns[cut]
            for mine, theirs in zip(episode.turns[:cut], of.turns, strict=False):
                assert mine.digest == theirs.digest and mine.forced == len(mine.sampled_ids)
            assert first.sampled_ids[: first.forced].tolist() == of.by_id[first.id].sampled_ids[: first.forced].tolist()
            own = episode.turns[cut:]
            assert episode.ledger.sampled_tokens == sum(len(turn.sampled_ids) - turn.forced for turn in own)
            assert episode.ledger.tool_calls == sum(len(turn.tool_calls) for turn in own), (
                "no tool of the prefix is called again"
            )
            inside, behind = inside + (first.forced > 0), behind + cut
        batch, credit = assign([group], experiment.credit)
        rows = to_rows(batch, credit, "searcher")
        drawn = sum(len(turn.turn.sampled_ids) - turn.turn.forced for row in rows for turn in row.trained)
        assert len(plan(rows, 8192).entries) == drawn == sum(episode.ledger.sampled_tokens for episode in group.episodes)
    assert behind > 0
    assert (inside > 0) == (experiment.rollout.cuts != "each")


def test_demonstrations_and_what_began_in_them_replay_to_the_bit(run: Any) -> None:
    for name in [*episodes_of(run[1], split="demonstration"), *episodes_of(run[1], split="train", step=1)]:
        assert asyncio.run(replay(*run, name)).differences == ()


def test_the_stored_credit_is_the_estimators(run: Any) -> None:
    experiment, out = run
    with Run.find(out).store(read_only=True) as store:
        stored = list(store.steps("searcher"))
        steps = read_steps(store, EpisodeFilter(split="train"), tokens=True)
    moved = 0
    for step, groups in zip(stored, steps, strict=True):
        batch, credit = assign(groups, experiment.credit)
        wanted = {
            (batch.episodes[e].id, turn.id): np.float32(advantage)
            for e, turn, advantage in zip(batch.turns.episode.tolist(), batch.turns.turn, credit.advantage, strict=True)
        }
        for row in step.rows:
            for turn, packed in zip(row.turns, row.advantages, strict=True):
                assert (np.frombuffer(packed, "<f4") == wanted[row.episode, turn]).all()
                moved += bool(wanted[row.episode, turn])
    assert moved > 0


def test_tree_opo_values_each_prefix_by_the_rollouts_below_it(warm: Path, shown: Path, tmp_path: Path) -> None:
    long = max(episodes_of(shown).values(), key=lambda episode: len(episode.turns))
    assert len(long.turns) >= 2
    kind = type(on_two_tasks(warm).tasks[0])
    with SQLiteStore(tmp_path / "long.db") as store, Run.find(shown).store(read_only=True) as there:
        head = next(head for head in there.heads() if head.id == long.id)
        store.begin(head)
        store.append(head.id, there.journal(head.id))
        tail = there.tail(head.id)
        assert tail is not None
        store.finish(head.id, tail)
    depths = len(long.turns)
    experiment = reset(warm, tmp_path / "long.db", "each", "credit=tree_opo", tasks_per_step=1, steps=1)
    experiment = apply_settings(experiment, [f"rollout.size={3 * depths}"])
    experiment = replace(
        experiment, tasks=[task for task in experiment.tasks if isinstance(task, kind) and task.answer == long.task["answer"]]
    )
    asyncio.run(train(experiment, out=tmp_path / "run", sinks=[]))
    (group,) = groups_of(tmp_path / "run")
    begun = [sum(turn.forced > 0 for turn in episode.turns) for episode in group.episodes]
    assert begun == [member % depths for member in range(3 * depths)]
    batch, credit = assign([group], TreeOPO())
    rewards = np.array([episode.reward for episode in group.episodes])
    at_or_below = [rewards[[other >= depth for other in begun]].mean() for depth in range(depths)]
    gains = rewards - np.array([at_or_below[depth] for depth in begun])
    wanted = gains - gains.mean()
    assert np.allclose(credit.advantage, wanted[batch.turns.episode], atol=1e-12)
    assert len(set(np.round(np.array(at_or_below), 9).tolist())) > 1 and Forest.of(batch).tree.max() == 0


def test_an_exported_file_shows_what_the_run_shows(warm: Path, shown: Path, tmp_path: Path) -> None:
    with Run.find(shown).store(read_only=True) as store:
        export_episodes(entries_of(store), tmp_path / "shown.jsonl")
    outs: list[dict[str, Episode]] = []
    for number, source in enumerate((shown, tmp_path / "shown.jsonl")):
        experiment = reset(warm, source, "random", steps=1)
        asyncio.run(train(experiment, out=tmp_path / f"run{number}", sinks=[]))
        outs.append(episodes_of(tmp_path / f"run{number}"))
    assert outs[0].keys() == outs[1].keys()
    for one, other in zip(outs[0].values(), outs[1].values(), strict=True):
        assert [turn.digest for turn in one.turns] == [turn.digest for turn in other.turns]
        assert (one.reward, one.fork_of, one.fork_cut) == (other.reward, other.fork_of, other.fork_cut)


def test_least_leaves_poor_demonstrations_out(warm: Path, shown: Path, tmp_path: Path) -> None:
    rewards = sorted(episode.reward for episode in episodes_of(shown).values())
    least = rewards[-2]
    experiment = reset(warm, shown, "same", f"rollout.least={least}", steps=1)
    asyncio.run(train(experiment, out=tmp_path / "run", sinks=[]))
    led = episodes_of(tmp_path / "run", split="demonstration")
    assert led and all(episode.reward >= least for episode in led.values())


@pytest.mark.timeout(300)
def test_killed_a_run_with_resets_ends_as_if_never_stopped(warm: Path, shown: Path, tmp_path: Path) -> None:
    (tmp_path / "warm").symlink_to(warm.parents[2])
    settings = ["rollout=dataset_reset", f"rollout.episodes={shown}", "rollout.cuts=random", "tasks=tests.train.small:few"]
    paths = os.pathsep.join([str(ROOT), str(ROOT / "tools"), str(ROOT / "workflows")])
    environment = {**os.environ, "PYTHONPATH": paths, "AGENTRL_KILL_SET": " ".join(settings)}
    cases = ["model.done:1", "tool.begun:1", "store.mid_commit:3", "model.done:40"]
    command = [sys.executable, "-m", "tests.train.kill_runs", str(tmp_path), *cases]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    reports = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert len(reports) == len(cases)
    for report in reports:
        assert report["killed"] and report["resumed"], report
        assert report["same_weights"] and report["same_episodes"] and report["lost"] == 0 and report["relearned"], report


def changed(experiment: Experiment[Any, Any]) -> Experiment[Any, Any]:
    """The same workflow with another instruction to its agent."""
    own: Workflow[Any, Any] = experiment.workflow
    agents = {name: replace(agent, system=f"{agent.system} Be brief.") for name, agent in own.agents.items()}
    return replace(experiment, workflow=replace(own, agents=agents, code_hash="another"))


def test_a_demonstration_that_the_code_cannot_be_led_through_is_named_once_and_the_task_has_plain_rollouts(
    warm: Path, shown: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    experiment, sink = changed(reset(warm, shown, "same")), Kept()
    with caplog.at_level(logging.WARNING, "agentrl.runtime.demonstrations"):
        asyncio.run(train(experiment, out=tmp_path / "run", sinks=[sink]))
    groups = groups_of(tmp_path / "run")
    assert all(episode.fork_of is None and episode.status == "done" for group in groups for episode in group.episodes)
    lines = [record.getMessage() for record in caplog.records]
    assert len(lines) == 1, "of all the demonstrations that failed"
    assert f"of {shown} cannot be walked through by this workflow (its code has changed since)" in lines[0]
    assert "so its task has plain rollouts: its prompt is not the demonstration's" in lines[0]
    assert [metrics.values["episodes/reset"] for metrics in sink.metrics] == [0.0, 0.0]


class Kept:
    """A sink that keeps what it is given."""

    def __init__(self) -> None:
        self.metrics: list[Any] = []

    def write(self, metrics: Any) -> None:
        self.metrics.append(metrics)

    def note(self, text: str) -> None:
        """Nothing to keep."""

    def close(self) -> None:
        """Nothing to close."""


def test_how_many_began_inside_is_a_metric(warm: Path, shown: Path, tmp_path: Path) -> None:
    sink = Kept()
    plain = on_two_tasks(warm)
    other = next(task for task in small(warm).tasks[2:])
    experiment = replace(reset(warm, shown, "same", steps=1), tasks=[plain.tasks[0], other])
    asyncio.run(train(experiment, out=tmp_path / "run", sinks=[sink]))
    assert [metrics.values["episodes/reset"] for metrics in sink.metrics] == [4.0], "one of two tasks has a demonstration"


def test_a_team_effect_is_answered_from_the_demonstration_and_once_each(warm: Path, tmp_path: Path) -> None:
    asked: list[int] = []

    def draw(number: int) -> int:
        asked.append(number)
        return len(asked)

    plain = on_two_tasks(warm, "credit=grpo", "rollout.size=2", steps=1, tasks_per_step=1)

    async def drawing(task: Any, team: Any) -> str:
        numbers = [await team.effect("draw", draw, 7) for _ in range(2)]
        said = " ".join([task.text] * (1 + numbers[1] % 3 + team.random().randrange(3)))  # what it asks depends on both
        return (await team["searcher"].run(said)).text

    experiment = replace(plain, workflow=replace(plain.workflow, function=drawing), reward=graded)
    asyncio.run(train(experiment, out=tmp_path / "first", sinks=[]))
    assert len(asked) == 4
    settings = ("rollout=dataset_reset", f"rollout.episodes={tmp_path / 'first'}", "rollout.size=3", "rollout.cuts=random")
    asyncio.run(train(apply_settings(experiment, settings), out=tmp_path / "second", sinks=[]))
    assert len(asked) == 4, "what it gave was in the record"
    ((group),) = groups_of(tmp_path / "second")
    assert len(group.finished) == 3 and all(episode.fork_of for episode in group.episodes)


def test_a_demonstration_cut_off_while_it_was_led_goes_on(warm: Path, shown: Path, tmp_path: Path) -> None:
    experiment = reset(warm, shown, "random")
    task = experiment.tasks[0]

    async def group(file: Path) -> tuple[Episode, ...]:
        with SQLiteStore(file) as store:
            async with Runtime(experiment, store=store) as runtime:
                return (await runtime.group(task, "g")).episodes

    whole = asyncio.run(group(tmp_path / "whole.db"))
    with SQLiteStore(tmp_path / "whole.db", read_only=True) as store:
        head = next(head for head in store.heads() if head.split == "demonstration")
        journal = store.journal(head.id)
    for kept in range(len(journal)):
        file = tmp_path / f"cut{kept}.db"
        with SQLiteStore(file) as store:
            store.begin(head)
            store.append(head.id, journal[:kept])
        again = asyncio.run(group(file))
        assert [[turn.digest for turn in episode.turns] for episode in again] == [
            [turn.digest for turn in episode.turns] for episode in whole
        ]


def said(experiment: Experiment[Any, Any]) -> str:
    with pytest.raises(UserError) as error:
        check(experiment)
    return str(error.value)


def test_demonstrations_that_are_none_are_refused_before_the_first_token(warm: Path, shown: Path, tmp_path: Path) -> None:
    nowhere = reset(warm, tmp_path / "nowhere", "same")
    assert (
        said(nowhere)
        == f"there is no {tmp_path / 'nowhere'} to take demonstrations from; give a run, a store or an exported file"
    )
    torn = tmp_path / "torn.jsonl"
    with Run.find(shown).store(read_only=True) as store:
        export_episodes(entries_of(store), torn)
    torn.write_text(torn.read_text()[:-200])
    assert "torn.jsonl" in said(reset(warm, torn, "same"))
    best = max(episode.reward for episode in episodes_of(shown).values())
    high = said(reset(warm, shown, "same", f"rollout.least={best + 1}"))
    assert high.startswith(f"{shown} holds finished episodes of 2 tasks, and none that DatasetReset can begin inside")
    others = replace(reset(warm, shown, "same"), tasks=small(warm).tasks[2:6])
    assert "give a run on the same tasks, --set rollout.episodes=RUN" in said(others)
    with SQLiteStore(tmp_path / "empty.db"):
        pass
    assert "holds finished episodes of 0 tasks" in said(reset(warm, tmp_path / "empty.db", "same"))


def test_without_a_path_the_plan_cannot_run(warm: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"DatasetReset cannot run here: it has no demonstrations; --set rollout\.episodes=RUN"):
        asyncio.run(train(on_two_tasks(warm, "rollout=dataset_reset"), out=tmp_path / "run", sinks=[]))


def test_the_groups_of_a_cut_are_compared_by_any_group_method(warm: Path, shown: Path, tmp_path: Path) -> None:
    experiment = reset(warm, shown, "same", steps=1)
    asyncio.run(train(experiment, out=tmp_path / "run", sinks=[]))
    for group in groups_of(tmp_path / "run"):
        places: Sequence[Any] = [
            (episode.fork_of, episode.fork_cut, next(turn.forced for turn in episode.turns if turn.trainable))
            for episode in group.episodes
        ]
        assert len(set(places)) == 1
        batch, credit = assign([group], GRPO(std=None))
        rewards = np.array([episode.reward for episode in batch.episodes])
        assert np.allclose(credit.advantage, (rewards - rewards.mean())[batch.turns.episode])
