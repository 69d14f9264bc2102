"""Training while episodes go on: bounded lag, groups in the order in which they end, and nothing lost by a crash."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from agentrl.engines.local import LocalEngine
from agentrl.engines.specs import Local
from agentrl.errors import UserError
from agentrl.learning.replay import relearn
from agentrl.metrics import StepMetrics
from agentrl.run import Run
from agentrl.setup import open_learners
from agentrl.store.contract import EpisodeFilter
from tests.train.small import small
from tests.train.test_kills import killed
from tests.train.test_train import Kept, run, weights

NAMED = [
    "model.done:30", "tool.done:11", "store.mid_commit:9", "learn.begun:3", "learn.done:2", "publish.begun:3", "publish.done:2",
    "checkpoint.written:2",
]  # fmt: skip


class Holding(LocalEngine):
    """The last member of some groups waits, before its first token, until the weights have been pushed so many times more."""

    holds: Mapping[str, int] = {}

    async def generate(self, request: Any) -> Any:
        for group, pushes in self.holds.items():
            if request.id.startswith(f"{group}.3"):
                began = self.version(request.policy).step
                while self.version(request.policy).step < began + pushes and not self.released:
                    self.pushed.clear()
                    await self.pushed.wait()
                self.released = True
        return await super().generate(request)

    async def __aenter__(self) -> Any:
        self.pushed, self.released = asyncio.Event(), False
        return await super().__aenter__()

    async def publish(self, policy: str, weights: Any, version: Any) -> None:
        await super().publish(policy, weights, version)
        self.pushed.set()


@dataclass(frozen=True)
class HoldingSpec(Local):
    group: str = ""
    pushes: int = 0

    def open(self, models: Mapping[str, Path], renderers: Any, lineage: str) -> Any:
        engine = Holding(models, slots=self.slots, threads=self.threads, lineage=lineage)
        engine.holds = {self.group: self.pushes} if self.group else {}
        return engine


def uneven(model: Path, pushes: int, **changes: Any) -> Any:
    """A run whose first group is held back for some pushes."""
    experiment = small(model, **({"steps": 8, "eval_every": 0, "checkpoint_every": 0} | changes))
    return replace(experiment, engine=HoldingSpec(group="s000000.000", pushes=pushes))


def trained_groups(folder: Path) -> list[list[str]]:
    """By batch the groups it was made of."""
    with Run.find(folder).store(read_only=True) as store:
        return [list(dict.fromkeys(row.episode.rpartition(".")[0] for row in step.rows)) for step in store.steps("searcher")]


def lags(folder: Path) -> list[int]:
    with Run.find(folder).store(read_only=True) as store:
        return [
            step.before.step - span.version.step
            for step in store.steps("searcher")
            for row in step.rows
            for turn in store.episode(row.episode).turns
            for span in turn.versions
        ]


def relearned(experiment: Any, folder: Path) -> dict[str, Any]:
    run_ = Run.find(folder)
    learner = open_learners(experiment, run_.lineage)["searcher"]
    with run_.store(read_only=True) as store:
        relearn(store, "searcher", learner)
    return {name: tensor.numpy().tobytes() for name, tensor in learner.weights().items()}


@pytest.fixture(scope="module")
def stale(warm: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Kept, Any]:
    experiment = uneven(warm, 1, max_staleness=2)
    result, kept = run(experiment, tmp_path_factory.mktemp("stale") / "run")
    return result, kept, experiment


def test_the_lag_is_bounded_and_there_is_some(stale: Any) -> None:
    found = lags(stale[0].run)
    assert 0 < max(found) <= 2


def test_a_batch_is_what_has_ended_and_no_group_is_trained_twice(stale: Any) -> None:
    batches = trained_groups(stale[0].run)
    groups = [group for batch in batches for group in batch]
    assert len(groups) == len(set(groups))
    assert "s000000.000" not in batches[0], "the group that was held back was waited for"
    assert "s000000.000" in groups
    assert all(batch == sorted(batch) for batch in batches)


def test_learning_again_over_the_recorded_batches_gives_the_same_weights(stale: Any) -> None:
    result, _, experiment = stale
    assert relearned(experiment, result.run) == weights(result)


def test_the_lag_of_trained_tokens_and_refused_groups_are_metrics(stale: Any) -> None:
    result, kept, _ = stale
    steps = [step.values for step in kept.steps if "loss" in step.values]
    assert len(steps) == 8
    assert max(values["staleness/max"] for values in steps) == max(lags(result.run))
    assert all(values["staleness/mean"] <= values["staleness/max"] for values in steps)
    assert all(values["stale/dropped"] >= 0 for values in steps)


def heads(folder: Path) -> list[Any]:
    with Run.find(folder).store(read_only=True) as store:
        return list(store.heads(EpisodeFilter(split="train")))


def test_what_is_refused_stays_in_the_store(warm: Path, tmp_path: Path) -> None:
    result, kept = run(uneven(warm, 2, max_staleness=1), tmp_path / "run")
    dropped = sum(step.values["stale/dropped"] for step in kept.steps if "loss" in step.values)
    assert max(lags(result.run)) <= 1
    trained = {group for batch in trained_groups(result.run) for group in batch}
    with Run.find(result.run).store(read_only=True) as store:
        ended = {e.group for e in store.episodes(EpisodeFilter(split="train")) if e.status != "running"}
    assert "s000000.000" in ended - trained
    assert len(ended - trained) >= dropped > 0


def test_weights_are_pushed_every_few_batches_and_before_all_would_be_refused(warm: Path, tmp_path: Path) -> None:
    pushes: list[int] = []

    class Counted(LocalEngine):
        async def publish(self, policy: str, weights: Any, version: Any) -> None:
            pushes.append(version.step)
            await super().publish(policy, weights, version)

    class Spec(Local):
        def open(self, models: Mapping[str, Path], renderers: Any, lineage: str) -> Any:
            return Counted(models, lineage=lineage)

    def pushed(**changes: Any) -> list[int]:
        pushes.clear()
        folder = tmp_path / "-".join(f"{name}{value}" for name, value in changes.items())
        result, _ = run(replace(small(warm, eval_every=0, checkpoint_every=0, **changes), engine=Spec()), folder)
        assert max(lags(result.run), default=0) <= changes["max_staleness"]
        return pushes.copy()

    assert pushed(max_staleness=0, push_every=4) == [0, 1, 2, 3, 4, 5, 6]
    assert pushed(max_staleness=1, push_every=4) == [0, 2, 4, 6]
    assert pushed(max_staleness=4, push_every=3) == [0, 3, 6]


def test_pushing_never_is_refused(warm: Path) -> None:
    with pytest.raises(UserError, match="push_every must be >= 1, got 0"):
        small(warm, push_every=0)


def test_stopped_and_gone_on_with_every_batch_is_learned_once(warm: Path, tmp_path: Path) -> None:
    experiment = uneven(warm, 1, max_staleness=2)
    stop = asyncio.Event()

    class StopsAt3(Kept):
        def write(self, metrics: StepMetrics) -> None:
            super().write(metrics)
            if metrics.step == 3 and "loss" in metrics.values:
                stop.set()

    asyncio.run(train_stopped(experiment, tmp_path / "run", StopsAt3(), stop))
    before = {head.id for head in heads(tmp_path / "run")}
    result, _ = run(experiment, tmp_path / "run")
    assert result.batches == 8
    groups = [group for batch in trained_groups(result.run) for group in batch]
    assert len(groups) == len(set(groups))
    assert max(lags(result.run)) <= 2
    assert relearned(experiment, result.run) == weights(result)
    with Run.find(result.run).store(read_only=True) as store:
        tails = {name: store.tail(name) for name in before}
    assert all(tails.values()), "an episode that was suspended was never gone on with"


async def train_stopped(experiment: Any, out: Path, sink: Any, stop: asyncio.Event) -> None:
    from agentrl import train

    result = await train(experiment, out=out, sinks=[sink], stop=stop)
    assert result.stopped and result.batches == 3


@pytest.mark.timeout(400)
def test_killed_anywhere_it_goes_on_and_loses_no_finished_episode(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AGENTRL_KILL_STALENESS", "2")
    reports = killed(tmp_path, NAMED + [f"@{seed}" for seed in range(4)])
    assert len(reports) == len(NAMED) + 4
    for report in reports:
        assert report["killed"] or report["case"].startswith("@"), f"{report} - the point was never reached"
        assert report["resumed"] and report["lost"] == 0 and report["relearned"], json.dumps(report)
