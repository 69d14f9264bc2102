"""A run with a critic: what it learns, what is recorded of it, that it resumes to the bit, and what is refused."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from agentrl import UserError, train
from agentrl.cli import main
from agentrl.config import apply_settings
from agentrl.credit import GAE, assign
from agentrl.credit.compare import compare, read_recorded, read_steps
from agentrl.credit.values import CRITIC, read_values
from agentrl.episode import Group
from agentrl.learning import AdamW, Critic
from agentrl.learning.checkpoint import load
from agentrl.learning.critic import critic_rows
from agentrl.learning.replay import relearn, to_stored
from agentrl.learning.rows import to_rows
from agentrl.prepare import prepare
from agentrl.run import Run
from agentrl.setup import check, open_learners
from agentrl.store.contract import EpisodeFilter
from agentrl_workflows.search_qa.questions import train_questions
from tests.train.small import graded, small
from tests.train.test_train import Kept, run

HERE = f"{Path(__file__).resolve()}:questions"


def critical(warm: Path, *settings: str, **changes: Any) -> Any:
    plain = small(warm, **({"eval_every": 0, "held_out": (), "checkpoint_every": 2} | changes))
    return apply_settings(plain, ["credit=gae", "critic=on", "critic.optimiser.lr=0.003", *settings])


def questions() -> Any:
    """The target of the command lines below."""
    return small(Path("models/warm"), steps=2, eval_every=0, held_out=(), checkpoint_every=0)


def saved(result: Any) -> dict[str, str]:
    """The versions of the last checkpoints, digests and all."""
    folders = {"critic": sorted((result.run / "checkpoints" / CRITIC).glob("step-*"))[-1], **result.policies}
    return {name: str(load(folder).version) for name, folder in folders.items()}


def critics(kept: Kept, metric: str) -> list[float]:
    return [step.values[f"critic/{metric}"] for step in kept.steps if f"critic/{metric}" in step.values]


@pytest.fixture(scope="module", params=["turn", "token"])
def finished(request: Any, warm: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Kept, Any]:
    """A run of six batches, never stopped."""
    experiment = critical(warm, f"credit.over={request.param}", "critic.epochs=2")
    result, kept = run(experiment, tmp_path_factory.mktemp("critic") / "run")
    return result, kept, experiment


def test_the_same_seed_gives_the_same_losses_of_policy_and_critic(finished: Any, tmp_path: Path) -> None:
    result, kept, experiment = finished
    again, kept_again = run(experiment, tmp_path / "again")
    assert kept_again.losses == kept.losses and critics(kept_again, "loss") == critics(kept, "loss")
    assert saved(again) == saved(result)
    assert len(critics(kept, "loss")) == 6 and list(result.policies) == ["searcher"]


def test_stopped_and_gone_on_with_it_ends_as_if_never_stopped(finished: Any, tmp_path: Path) -> None:
    result, kept, experiment = finished
    stop = asyncio.Event()

    class StopsAt3(Kept):
        def write(self, metrics: Any) -> None:
            super().write(metrics)
            if metrics.step == 3:
                stop.set()

    first = StopsAt3()
    assert asyncio.run(train(experiment, out=tmp_path / "run", sinks=[first], stop=stop)).batches == 3
    resumed, second = run(experiment, tmp_path / "run")
    assert critics(first, "loss") + critics(second, "loss") == critics(kept, "loss")
    assert saved(resumed) == saved(result)


def test_learning_again_over_the_recorded_batches_gives_the_same_critic_and_policy(finished: Any) -> None:
    result, _, experiment = finished
    learners = open_learners(experiment, Run.find(result.run).lineage)
    with Run.find(result.run).store(read_only=True) as store:
        for name, learner in learners.items():
            relearn(store, name, learner)
    assert {name: str(learner.version) for name, learner in learners.items()} == saved(result)


def test_stored_values_give_the_credit_and_the_returns_that_were_learned(finished: Any) -> None:
    result, _, experiment = finished
    with Run.find(result.run).store(read_only=True) as store:
        values = read_values(store)
        steps = read_steps(store, EpisodeFilter(split="train"), tokens=True)
        learned = list(store.steps("searcher"))
        targets = list(store.steps(CRITIC))
    first = [episode.id for group in steps[0] for episode in group.episodes]
    assert all((found == 0).all() == (episode in first) for (episode, _), found in values.items())
    for groups, policy, critic in zip(steps, learned, targets, strict=True):
        batch, credit = assign(groups, experiment.credit)
        assert to_stored(to_rows(batch, credit, "searcher")) == policy.rows
        assert to_stored(critic_rows(batch, experiment.credit.returns(batch), "path")) == critic.rows


def test_credit_over_the_stored_episodes_is_what_was_recorded(finished: Any, capsys: pytest.CaptureFixture[str]) -> None:
    result, _, experiment = finished
    with Run.find(result.run).store(read_only=True) as store:
        found = compare(read_steps(store, EpisodeFilter(split="train")), experiment.credit, read_recorded(store))
    assert found.second is not None and not np.isnan(found.second).any() and np.abs(found.first).max() > 0
    np.testing.assert_allclose(found.first, found.second, atol=1e-6)
    over = ["--set", f"with.over={experiment.credit.over}"]
    assert main(["credit", str(result.run), "--with", "gae", *over]) == 0
    assert "correlation 1.000; the sign differs on 0.0% of the turns" in capsys.readouterr().out


def easy(task: Any, output: str, episode: Any) -> float:
    """Mostly known from the question, and a little from what was drawn."""
    return float(task.hops == 1) + 0.2 * graded(task, output, episode)


def test_a_critic_learns_which_questions_are_worth_more(warm: Path, tmp_path: Path) -> None:
    tasks = train_questions(64, hops=(1, 2), worlds=(1, 2), seed=3)
    experiment = critical(warm, "credit.lam=1.0", reward=easy, tasks=tasks, tasks_per_step=8, steps=30, checkpoint_every=0)
    _, kept = run(replace(experiment, critic=Critic(optimiser=AdamW(1e-3))), tmp_path / "run")
    loss, explained = critics(kept, "loss"), critics(kept, "explained_variance")
    assert np.mean(loss[-5:]) < 0.25 * np.mean(loss[:5]), loss
    assert np.mean(explained[:2]) < 0.1 and np.mean(explained[-5:]) > 0.5, explained


def test_a_centralised_critic_trains_and_resumes(warm: Path, tmp_path: Path) -> None:
    whole, kept = run(critical(warm, "critic.sees=episode", steps=4), tmp_path / "whole")
    run(critical(warm, "critic.sees=episode", steps=2), tmp_path / "run")
    resumed, _ = run(critical(warm, "critic.sees=episode", steps=4), tmp_path / "run")
    assert saved(resumed) == saved(whole) and len(critics(kept, "loss")) == 4


def test_an_episode_that_was_cut_off_has_values_and_is_not_learned_from(finished: Any, warm: Path) -> None:
    result, _, experiment = finished
    with Run.find(result.run).store(read_only=True) as store:
        groups = read_steps(store, EpisodeFilter(split="train"), tokens=True)[0]
    cut = replace(groups[0].episodes[0], status="overlong")
    groups = [Group(groups[0].id, None, (cut, *groups[0].episodes[1:]), 4), *groups[1:]]
    learners = open_learners(experiment, "x")
    prepared = prepare(experiment, groups, learners)
    assert cut.id in {row.episode.id for row in prepared.values}
    for name in ("searcher", CRITIC):
        assert cut.id not in {row.episode.id for row in prepared.rows[name]}
    trained = prepare(replace(experiment, train_overlong=True), groups, learners)
    assert cut.id in {row.episode.id for row in trained.rows[CRITIC]}


def test_a_batch_of_which_nothing_ended_is_a_step_without_rows(finished: Any) -> None:
    _, _, experiment = finished
    learners = open_learners(experiment, "x")
    prepared = prepare(experiment, [Group("g", None, (), 4)], learners)
    assert prepared.values == [] and prepared.rows == {"searcher": [], CRITIC: []}
    assert [step.policy for step in prepared.stored(0, learners, None)] == ["searcher", CRITIC]


REFUSED: Sequence[tuple[Sequence[str], str]] = (
    (("credit=gae",), r"GAE needs a value before each turn, and nothing gives one; --set critic=on, or Experi"),
    (("critic=on",), r"GiGPO reads no values, so that a critic has nothing to learn; --credit gae, or --set critic=none"),
    (("credit=gae", "critic=on", "critic.model=no/such"), r"critic: no/such is no model folder \(it has no config.json\)"),
    (("credit=gae", "critic=on", "critic.epochs=0"), r"critic.epochs=0: Critic\(epochs=...\) must be at least 1, got 0"),
    (("credit=gae", "critic.epochs=2"), r"critic is None, which has no field 'epochs'"),
    (("credit=gae", "critic=on", "policies.name=critic"), r"a policy is called 'critic', and so is the critic of a run"),
)


@pytest.mark.parametrize(("settings", "said"), REFUSED)
def test_a_run_that_lacks_what_it_needs_is_refused_before_the_first_token(
    settings: Sequence[str], said: str, warm: Path, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=said):
        asyncio.run(train(apply_settings(small(warm, steps=1), settings), out=tmp_path / "run", sinks=[]))
    assert not (tmp_path / "run").exists()


def test_two_sources_of_values_are_refused(warm: Path) -> None:
    class Values:
        name = "value"

    with pytest.raises(UserError, match=r"both a critic and the probe 'value' give values; drop one"):
        check(replace(critical(warm), probes=(Values(),)))


def test_a_critic_of_another_vocabulary_is_refused(warm: Path, tmp_path: Path) -> None:
    shutil.copytree(warm, tmp_path / "other")
    file = tmp_path / "other" / "tokenizer.json"
    file.write_text(file.read_text().replace('"Manila"', '"Elsewhere"'))
    assert file.read_text() != (warm / "tokenizer.json").read_text()
    with pytest.raises(UserError, match=r"other has not the vocabulary of policy 'searcher'; Critic\(model=FOLDER\)"):
        check(critical(warm, f"critic.model={tmp_path / 'other'}"))


def test_it_is_one_word_on_the_command_line(warm: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    command = ["train", HERE, "--out", str(out), "--credit", "gae", "--set", "critic=on", "--set", f"policies.model={warm}"]
    assert main([*command, "--set", "critic.epochs=2"]) == 0
    assert sorted(folder.name for folder in (out / "checkpoints").iterdir()) == [CRITIC, "searcher"]
    assert isinstance(critical(warm).credit, GAE)
