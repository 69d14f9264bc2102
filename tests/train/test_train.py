"""The loop as a whole: what is claimed of bits, resuming, replay and the record, on a run of seconds."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from agentrl import Runtime, UserError, evaluate, train
from agentrl.episode import digest_ids
from agentrl.evaluate import fork, replay, rollout
from agentrl.learning.replay import relearn
from agentrl.metrics import StepMetrics
from agentrl.run import Run
from agentrl.setup import open_learners
from agentrl.store.contract import EpisodeFilter
from agentrl.transformer.weights import load_weights
from tests.conftest import drifted
from tests.train.small import small, tiny_model


class Kept:
    """A sink that keeps what it is given."""

    def __init__(self) -> None:
        self.steps: list[StepMetrics] = []

    def write(self, metrics: StepMetrics) -> None:
        self.steps.append(metrics)

    def note(self, text: str) -> None: ...

    def close(self) -> None: ...

    @property
    def losses(self) -> list[tuple[int, float]]:
        return [(step.step, step.values["loss"]) for step in self.steps if "loss" in step.values]


def run(experiment: Any, out: Path, **more: Any) -> tuple[Any, Kept]:
    kept = Kept()
    return asyncio.run(train(experiment, out=out, sinks=[kept], **more)), kept


def weights(result: Any) -> dict[str, Any]:
    return {name: tensor.numpy().tobytes() for name, tensor in load_weights(result.policies["searcher"]).items()}


@pytest.fixture(scope="module")
def finished(warm: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Kept, Any]:
    """A run of six batches, never stopped."""
    experiment = small(warm)
    result, kept = run(experiment, tmp_path_factory.mktemp("run") / "whole")
    return result, kept, experiment


def test_the_same_seed_gives_the_same_losses_to_the_bit(finished: Any, warm: Path, tmp_path: Path) -> None:
    result, kept, _ = finished
    again, kept_again = run(small(warm), tmp_path / "again")
    assert len(kept.losses) == 6
    assert kept.losses == kept_again.losses
    assert weights(again) == weights(result)


def test_learning_moves_the_weights(finished: Any, warm: Path) -> None:
    before = {name: tensor.numpy().tobytes() for name, tensor in load_weights(warm).items()}
    assert weights(finished[0]) != before


def test_another_seed_gives_other_episodes(finished: Any, warm: Path, tmp_path: Path) -> None:
    _, kept, experiment = finished
    _, other = run(replace(experiment, seed=1, steps=2), tmp_path / "other")
    assert other.losses[:2] != kept.losses[:2]


def test_a_run_stopped_and_gone_on_with_ends_with_the_weights_of_one_never_stopped(
    finished: Any, warm: Path, tmp_path: Path
) -> None:
    result, kept, experiment = finished
    stop = asyncio.Event()

    class StopsAt3(Kept):
        def write(self, metrics: StepMetrics) -> None:
            super().write(metrics)
            if metrics.step == 3 and "loss" in metrics.values:
                stop.set()

    first = StopsAt3()
    stopped = asyncio.run(train(experiment, out=tmp_path / "run", sinks=[first], stop=stop))
    assert stopped.stopped and stopped.batches == 3
    resumed, second = run(experiment, tmp_path / "run")
    assert resumed.batches == 6
    assert first.losses + second.losses == kept.losses
    assert weights(resumed) == weights(result)


def test_learning_again_over_the_recorded_batches_gives_the_same_weights(finished: Any, warm: Path) -> None:
    result, _, experiment = finished
    run_ = Run.find(result.run)
    learner = open_learners(experiment, run_.lineage)["searcher"]
    with run_.store(read_only=True) as store:
        relearn(store, "searcher", learner)
    assert {name: tensor.numpy().tobytes() for name, tensor in learner.weights().items()} == weights(result)


def test_every_stored_episode_replays_without_a_model(finished: Any) -> None:
    result, _, experiment = finished
    with Run.find(result.run).store(read_only=True) as store:
        ids = [head.id for head in store.heads() if "+fork" not in head.id]  # another test forks here
    assert len(ids) == 6 * 2 * 4 + 3 * 4
    for name in ids:
        replayed = asyncio.run(replay(experiment, result.run, name))
        assert replayed.differences == (), (name, replayed.differences)


def test_the_digest_inside_the_engine_is_that_of_the_stored_path(finished: Any) -> None:
    with Run.find(finished[0].run).store(read_only=True) as store:
        turns = 0
        for episode in store.episodes():
            for turn in episode.turns:
                assert digest_ids(episode.path(turn)) == turn.digest
                assert turn.untrained == ""
                turns += 1
    assert turns > 60


def test_the_gap_between_engine_and_learner_is_that_of_rounding(finished: Any) -> None:
    gaps = [step.values["gap/max"] for step in finished[1].steps if "gap/max" in step.values]
    assert len(gaps) == 6
    assert max(gaps) < 1e-4


def test_no_turn_is_trained_twice_and_every_batch_is_recorded(finished: Any) -> None:
    with Run.find(finished[0].run).store(read_only=True) as store:
        steps = list(store.steps("searcher"))
        assert [step.step for step in steps] == list(range(6))
        trained = [(row.episode, turn) for step in steps for row in step.rows for turn in row.turns]
    assert len(trained) == len(set(trained)) > 0


def test_a_fork_shares_the_past_and_goes_on_by_itself(finished: Any) -> None:
    result, _, experiment = finished
    with Run.find(result.run).store(read_only=True) as store:
        parent = next(episode for episode in store.episodes(EpisodeFilter(split="train")) if len(episode.turns) > 1)
    child = asyncio.run(fork(experiment, result.run, parent.id, 1))
    assert child.status == "done"
    assert child.fork_of == parent.id
    assert child.turns[0].digest == parent.turns[0].digest
    assert np.array_equal(child.turns[0].logprobs, parent.turns[0].logprobs)
    assert child.turns[1].seed != parent.turns[1].seed
    replayed = asyncio.run(replay(experiment, result.run, child.id))
    assert replayed.differences == ()


def test_evaluation_of_a_run_takes_its_last_weights(finished: Any) -> None:
    result, kept, experiment = finished
    last = next(step.values["held_out/success"] for step in reversed(kept.steps) if "held_out/success" in step.values)
    assert asyncio.run(evaluate(experiment, policies=result.run)).success == last


def test_rollouts_are_stored_where_asked(finished: Any, tmp_path: Path) -> None:
    result, _, experiment = finished
    episodes = asyncio.run(rollout(experiment, 3, policies=result.run, out=tmp_path / "rollouts"))
    assert [episode.status for episode in episodes] == ["done"] * 3


def test_asynchronous_training_can_be_learned_again_to_the_bit(warm: Path, tmp_path: Path) -> None:
    experiment = small(warm, steps=4, max_staleness=2, eval_every=0)
    result, _ = run(experiment, tmp_path / "async")
    run_ = Run.find(result.run)
    learner = open_learners(experiment, run_.lineage)["searcher"]
    with run_.store(read_only=True) as store:
        relearn(store, "searcher", learner)
        lags = [
            step.before.step - span.version.step
            for step in store.steps("searcher")
            for row in step.rows
            for turn in store.episode(row.episode).turns
            for span in turn.versions
        ]
    assert {name: tensor.numpy().tobytes() for name, tensor in learner.weights().items()} == weights(result)
    assert max(lags) <= 2


def test_a_run_folder_of_another_experiment_is_refused(finished: Any, warm: Path) -> None:
    result, _, experiment = finished
    with pytest.raises(UserError, match=r"another experiment.*tasks_per_step"):
        run(replace(experiment, tasks_per_step=3), result.run)


def test_served_episodes_take_feedback_later(warm: Path, tmp_path: Path) -> None:
    from agentrl.store.sqlite import SQLiteStore

    async def serve() -> str:
        with SQLiteStore(tmp_path / "store.db") as store:
            async with Runtime(small(warm), store=store) as runtime:
                task = small(warm).tasks[0]  # pyright: ignore
                episode = await runtime.run(task, deadline=60)
                await runtime.reward(episode.id, 1.0, name="merged")
                return episode.id

    name = asyncio.run(serve())
    with SQLiteStore(tmp_path / "store.db", read_only=True) as store:
        assert ("merged", 1.0) in [(reward.name, reward.value) for reward in store.episode(name).rewards]


def test_a_model_folder_that_is_none_is_refused_before_anything_runs(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no model folder.*config\.json"):
        run(small(tmp_path / "nowhere"), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_tiny_models_are_made_once(tmp_path: Path) -> None:
    tiny_model(tmp_path / "model")
    with pytest.raises(UserError, match="already holds a model"):
        tiny_model(tmp_path / "model")


def test_a_renderer_that_loses_a_token_is_caught(warm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from agentrl.rendering.template import TemplateRenderer

    extend = TemplateRenderer.extend

    def forgetful(self: TemplateRenderer, conversation: Any) -> Any:
        if conversation.path:
            del conversation.path[-2]
        return extend(self, conversation)

    monkeypatch.setattr(TemplateRenderer, "extend", forgetful)
    result, kept = run(small(warm, steps=1, eval_every=0, min_group=1), tmp_path / "run")
    later = [turn for episode in episodes_of(result.run) for turn in episode.turns[1:]]
    assert later, "nothing had a second turn"
    assert all("renderer's path" in turn.untrained and turn.parent is None for turn in later)
    assert kept.steps[-1].values["drift"] == len(later)


@pytest.mark.drifts
def test_an_engine_that_sees_other_tokens_is_caught(warm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from agentrl.engines.local import LocalEngine

    generate = LocalEngine.generate

    async def deaf(self: LocalEngine, request: Any) -> Any:
        return await generate(self, replace(request, parts=(request.prompt[1:],)))

    monkeypatch.setattr(LocalEngine, "generate", deaf)
    result, kept = run(small(warm, steps=1, eval_every=0, min_group=1), tmp_path / "run")
    turns = [turn for episode in episodes_of(result.run) for turn in episode.turns]
    assert all("engine saw other token ids" in turn.untrained for turn in turns)
    assert len(drifted(Path(result.run) / "store.db")) == len(turns) == kept.steps[-1].values["drift"]


def episodes_of(run: Path) -> list[Any]:
    with Run.find(run).store(read_only=True) as store:
        return list(store.episodes())
