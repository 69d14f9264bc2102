"""Rollouts of a reference beside those that learn, on the real engine: measured once, copied, compared with, never trained."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import os
import subprocess
import sys
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from agentrl import Agent, Experiment, Policy, Team, UserError, train, workflow
from agentrl.config import apply_settings
from agentrl.credit import PVPO, assign
from agentrl.credit.compare import read_steps
from agentrl.engines.specs import Demonstrations, OpenAI, Several
from agentrl.episode import Episode, Group
from agentrl.evaluate import fork, replay
from agentrl.meter import episode_metrics
from agentrl.run import Run
from agentrl.runtime.runtime import Runtime
from agentrl.setup import check
from agentrl.store.contract import EpisodeFilter
from agentrl.tasks import Uniform, from_store
from tests.rendering.conftest import FAMILIES, TEMPLATES, write_folder
from tests.train.small import graded, small

ROOT = Path(__file__).resolve().parents[2]
PVPO_RUN = ("credit=pvpo", "rollout=referenced", "rollout.plan.size=3", "rollout.samples=2", "reference=on")
STEPS = 4


def pvpo(warm: Path, *settings: str, tasks: int = 2, **changes: Any) -> Experiment[Any, Any]:
    """Each batch has every task."""
    plain = small(warm, eval_every=0, held_out=(), **{"steps": STEPS} | changes)
    given = (*PVPO_RUN, f"reference.model={warm}", *settings)
    return apply_settings(replace(plain, tasks=plain.tasks[:tasks]), given)


@pytest.fixture(scope="module")
def run(warm: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Experiment[Any, Any], Path]:
    experiment, out = pvpo(warm), tmp_path_factory.mktemp("pvpo") / "run"
    asyncio.run(train(experiment, out=out, sinks=[]))
    return experiment, out


def steps_of(out: Path) -> Sequence[Sequence[Group]]:
    with Run.find(out).store(read_only=True) as store:
        return read_steps(store, EpisodeFilter(split="train"), tokens=True)


def measured(out: Path) -> dict[str, list[Episode]]:
    """The reference's own episodes by task, copies left out."""
    with Run.find(out).store(read_only=True) as store:
        found: defaultdict[str, list[Episode]] = defaultdict(list)
        for episode in store.episodes(EpisodeFilter(source="reference")):
            if episode.fork_of is None:
                found[json.dumps(episode.task)].append(episode)
    return found


def test_a_task_is_measured_once_and_its_later_groups_hold_copies_that_pay_nothing(run: Any) -> None:
    by_task = measured(run[1])
    assert [len(episodes) for episodes in by_task.values()] == [2, 2]
    originals = {episode.id: episode for episodes in by_task.values() for episode in episodes}
    assert all(episode.ledger.sampled_tokens > 0 for episode in originals.values())
    copies = 0
    for group in (group for step in steps_of(run[1])[1:] for group in step):
        assert [episode.source for episode in group.episodes].count("reference") == 2 and group.wanted == 5
        for episode in (episode for episode in group.episodes if episode.source == "reference"):
            of = originals[episode.fork_of or ""]
            assert [turn.digest for turn in episode.turns] == [turn.digest for turn in of.turns]
            assert (episode.reward, episode.output, episode.status) == (of.reward, of.output, of.status)
            assert (episode.ledger.sampled_tokens, episode.ledger.model_calls, episode.ledger.tool_calls) == (0, 0, 0)
            copies += 1
    assert copies == 4 * (STEPS - 1)


def test_the_stored_credit_is_the_reward_against_what_the_reference_earned_before(run: Any) -> None:
    values = {task: np.mean([episode.reward for episode in episodes]) for task, episodes in measured(run[1]).items()}
    with Run.find(run[1]).store(read_only=True) as store:
        stored = list(store.steps("searcher"))
    assert len(stored) == STEPS
    moved = 0
    for step, groups in zip(stored, steps_of(run[1]), strict=True):
        batch, credit = assign(groups, PVPO())
        by_id = {episode.id: episode for episode in batch.episodes}
        for row in step.rows:
            episode = by_id[row.episode]
            assert episode.source == "policy"
            for packed in row.advantages:
                wanted = np.float32(episode.reward - values[json.dumps(episode.task)])
                assert (np.frombuffer(packed, "<f4") == wanted).all()
                moved += wanted != 0
        assert {row.episode for row in step.rows} == {name for name, each in by_id.items() if each.source == "policy"}
        ours = np.array([batch.episodes[e].source == "policy" for e in batch.turns.episode])
        assert credit.weight is not None and (credit.weight == ours).all()
    assert moved > 0


def test_the_reference_draws_with_its_own_weights_which_never_change(run: Any) -> None:
    drew: defaultdict[str, set[str]] = defaultdict(set)
    for episode in (episode for step in steps_of(run[1]) for group in step for episode in group.episodes):
        assert {turn.policy for turn in episode.turns} == {"reference" if episode.source == "reference" else "searcher"}
        for turn in episode.turns:
            drew[turn.policy].update(span.version.digest for span in turn.versions)
    assert len(drew["searcher"]) == STEPS and len(drew["reference"]) == 1 and drew["reference"] < drew["searcher"]


def test_references_are_paid_for_and_in_no_mean_of_the_policys(run: Any) -> None:
    first = steps_of(run[1])[0]
    metrics = episode_metrics(first)
    by_source = {
        source: [episode for group in first for episode in group.episodes if episode.source == source]
        for source in ("policy", "reference")
    }
    means = {source: np.mean([episode.reward for episode in episodes]) for source, episodes in by_source.items()}
    assert means["policy"] != means["reference"]
    assert metrics["reward/mean"] == pytest.approx(means["policy"]) and metrics["reward/reference"] == pytest.approx(
        means["reference"]
    )
    assert metrics["episodes/done"] == 6 and metrics["episodes/lost"] == 0
    assert metrics["turns_per_episode"] == pytest.approx(np.mean([len(episode.turns) for episode in by_source["policy"]]))
    paid = sum(episode.ledger.sampled_tokens for episodes in by_source.values() for episode in episodes)
    assert metrics["tokens/sampled"] == paid


def test_measurements_and_copies_replay_to_the_bit(run: Any) -> None:
    with Run.find(run[1]).store(read_only=True) as store:
        names = [head.id for head in store.heads(EpisodeFilter(source="reference"))]
    for name in (*names[:3], *names[-3:]):
        assert asyncio.run(replay(*run, name)).differences == ()


def test_a_fork_of_a_reference_episode_is_played_by_the_reference(run: Any) -> None:
    episode = asyncio.run(fork(*run, next(iter(measured(run[1]).values()))[0].id, 0))
    assert (
        episode.status == "done" and episode.source == "reference" and {turn.policy for turn in episode.turns} == {"reference"}
    )


def test_groups_of_one_task_in_flight_together_measure_it_once(warm: Path, tmp_path: Path) -> None:
    asyncio.run(train(pvpo(warm, tasks=1, steps=1), out=tmp_path / "run", sinks=[]))
    ((episodes),) = measured(tmp_path / "run").values()
    groups = steps_of(tmp_path / "run")[0]
    assert len(groups) == 2 and len(episodes) == 2
    assert [[episode.fork_of is None for episode in group.episodes[3:]] for group in groups] == [[True] * 2, [False] * 2]


def test_a_measurement_lasts_as_many_steps_as_it_is_asked_to(warm: Path, tmp_path: Path) -> None:
    asyncio.run(train(pvpo(warm, "rollout.refresh=2", tasks=1, tasks_per_step=1), out=tmp_path / "run", sinks=[]))
    ((episodes),) = measured(tmp_path / "run").values()
    assert [episode.group for episode in episodes] == ["s000000.000"] * 2 + ["s000002.000"] * 2
    assert len({turn.seed for episode in episodes for turn in episode.turns[:1]}) == 4, "drawn anew"


def test_a_lost_measurement_is_made_again_by_the_next_group(warm: Path, tmp_path: Path) -> None:
    def reward(task: Any, output: str, episode: Episode) -> float:
        if episode.id == "s000000.000.4":
            raise ValueError("no grade")
        return graded(task, output, episode)

    experiment = pvpo(warm, tasks=1, tasks_per_step=1, steps=3, reward=reward)
    asyncio.run(train(experiment, out=tmp_path / "run", sinks=[]))
    members = [[(e.status, e.fork_of) for e in group.episodes[3:]] for (group,) in steps_of(tmp_path / "run")]
    assert members[0] == [("done", None), ("failed", None)]
    assert members[1] == [("done", "s000000.000.3"), ("done", None)]
    assert members[2] == [("done", "s000000.000.3"), ("done", "s000001.000.4")]
    metrics = [episode_metrics(groups) for groups in steps_of(tmp_path / "run")]
    assert [step["episodes/lost"] for step in metrics] == [1, 0, 0]


@pytest.mark.timeout(300)
def test_killed_a_run_with_references_ends_as_if_never_stopped(warm: Path, tmp_path: Path) -> None:
    (tmp_path / "warm").symlink_to(warm.parents[2])
    settings = " ".join((*PVPO_RUN, f"reference.model={warm}", "tasks=tests.train.small:few"))
    paths = os.pathsep.join([str(ROOT), str(ROOT / "tools"), str(ROOT / "workflows")])
    environment = {**os.environ, "PYTHONPATH": paths, "AGENTRL_KILL_SET": settings}
    cases = ["model.done:9", "store.mid_commit:9", "learn.begun:2"]
    command = [sys.executable, "-m", "tests.train.kill_runs", str(tmp_path), *cases]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    reports = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert len(reports) == len(cases)
    for report in reports:
        assert report["killed"] and report["resumed"], report
        assert report["same_weights"] and report["same_episodes"] and report["lost"] == 0 and report["relearned"], report


def said(experiment: Experiment[Any, Any]) -> str:
    with pytest.raises(UserError) as error:
        check(experiment)
    return str(error.value)


def test_pvpo_needs_a_plan_or_tasks_that_know_the_reference(warm: Path) -> None:
    plain = replace(small(warm, steps=1), credit=PVPO())
    assert said(plain) == (
        "PVPO needs what a reference policy earned on each task, and nothing measures it; --set rollout=referenced "
        "--set reference=on --set reference.model=FOLDER, or tasks with reference_rewards, a list of numbers"
    )

    @dataclass(frozen=True)
    class Measured(type(plain.tasks[0])):  # pyright: ignore[reportUntypedBaseClass]
        reference_rewards: tuple[float, ...] = ()

    fields = [{f.name: getattr(task, f.name) for f in dataclasses.fields(task)} for task in plain.tasks[:4]]
    known = [Measured(**each, reference_rewards=(0.5, 1.0)) for each in fields]
    check(replace(plain, tasks=known))
    source = Uniform(known)
    check(replace(plain, tasks=source))
    assert source.state() == {"taken": 0}
    assert "nothing measures it" in said(replace(plain, tasks=[*known, Measured(**fields[0])]))


def test_references_that_cannot_play_are_refused_before_the_first_token(warm: Path, tmp_path: Path) -> None:
    experiment = pvpo(warm)
    assert said(replace(experiment, reference=None)) == (
        "Referenced has rollouts of a reference, and there is none; --set reference=on --set reference.model=FOLDER"
    )
    assert said(apply_settings(experiment, ["credit=grpo"])).endswith("--credit pvpo, or --set rollout=independent")
    assert "has no model; --set reference.model=FOLDER" in said(replace(experiment, reference=Policy("reference", frozen=True)))
    nowhere = replace(experiment, reference=Policy("reference", tmp_path, frozen=True))
    assert said(nowhere) == f"reference 'reference': {tmp_path} is no model folder (it has no config.json)"
    told = replace(experiment, engine=Demonstrations(lambda prompt, rng: ""))
    assert "plays with token ids, which Demonstrations does not give" in said(told)
    chat = replace(experiment, engine=Several({"reference": OpenAI("some-model", key_env="")}))
    assert "plays with token ids, which Several does not give" in said(chat)
    with pytest.raises(UserError, match=r"a reference is frozen, this one is not: Policy\('reference', \.\.\., frozen=True\)"):
        replace(experiment, reference=Policy("reference", warm))
    same_name = replace(experiment, reference=Policy("searcher", warm, frozen=True))
    with pytest.raises(UserError, match="two different policies are called 'searcher'; give the reference another name"):
        _ = same_name.served


def test_a_reference_with_another_tokenizer_is_refused(warm: Path, tmp_path: Path) -> None:
    template = (TEMPLATES / "qwen2_5.jinja").read_text("utf-8")
    other = write_folder(tmp_path / "other", template, *FAMILIES["qwen2_5"])
    experiment = pvpo(warm)
    assert experiment.reference is not None
    experiment = replace(experiment, reference=replace(experiment.reference, model=other))

    async def enter() -> None:
        async with Runtime(experiment):
            raise AssertionError("it was not refused")

    with pytest.raises(UserError, match=r"the reference 'reference' has another tokenizer .* in whose place it plays"):
        asyncio.run(enter())


def test_a_plan_that_asks_for_a_reference_that_is_not_served_is_told(warm: Path) -> None:
    async def ask() -> None:
        experiment = small(warm, steps=1)
        async with Runtime(experiment) as runtime:
            await runtime.reference(experiment.tasks[0], group="g", member=0)

    with pytest.raises(UserError, match="no reference policy is served here; --set reference=on"):
        asyncio.run(ask())


def test_the_reference_plays_the_roles_that_learn_and_no_other() -> None:
    @workflow(Agent("writer"), Agent("judge"))
    async def two(task: str, team: Team) -> str:
        return (await team["writer"].run(task)).text

    judge = Policy("judge", "models/judge", frozen=True)
    reference = Policy("reference", "models/start", frozen=True)
    experiment = Experiment(two, {"writer": Policy("writer", "models/start"), "judge": judge}, reference=reference)
    assert experiment.by_reference == {"writer": reference, "judge": judge}
    assert experiment.served == experiment.by_name, "nobody has it play"
    assert apply_settings(experiment, ["rollout=referenced"]).served == {**experiment.by_name, "reference": reference}


def test_tasks_that_the_reference_always_solves_can_be_left_out_of_another_run(run: Any) -> None:
    kind = type(run[0].tasks[0])
    unsolved = {task for task, episodes in measured(run[1]).items() if any(episode.reward < 0.8 for episode in episodes)}
    kept = from_store(run[1], kind, where=lambda episode: episode.source == "reference" and episode.reward < 0.8)
    assert {json.dumps(dataclasses.asdict(task)) for task in kept} == unsolved
