"""An estimator or a transform that goes wrong stops the run with a clear line; mended, the same command goes on."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

from agentrl import UserError, train
from agentrl.credit import GRPO, Batch, Credit, Needs
from agentrl.episode import Group
from agentrl.run import Run
from agentrl.transforms import CodeSimilarity
from tests.train.small import small

BROKEN: list[str] = []
"""How the plug-ins below are broken: what a person would mend in their file."""


@dataclass(frozen=True)
class Mine:
    needs: ClassVar[Needs] = Needs(group=2)

    def __call__(self, batch: Batch) -> Any:
        credit = GRPO()(batch)
        late = batch.groups[0].id.startswith("s000001")
        if late and "nan" in BROKEN:
            return Credit(batch.turns, np.full(len(batch.turns), np.nan))
        if late and "shape" in BROKEN:
            return Credit(batch.turns, np.zeros(len(batch.episodes) + 100))
        if late and "raises" in BROKEN:
            raise ZeroDivisionError("mine")
        return credit


@dataclass(frozen=True)
class Doubled:
    def __call__(self, group: Group) -> Group:
        if "transform" in BROKEN and group.id.startswith("s000001"):
            return replace(group, episodes=())
        return group


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("nan", r"estimator Mine gave advantage nan for turn 0 of agent searcher .* in episode s000001\.000"),
        ("shape", r"estimator Mine gave advantage of shape \(\d+,\), wanted \(\d+,\)"),
        ("raises", r"estimator Mine failed at .*test_bad_estimator.py:\d+: ZeroDivisionError: mine"),
        ("transform", r"transform Doubled: group s000001\.000 came back with other episodes"),
    ],
)
def test_it_is_refused_and_nothing_is_lost(how: str, said: str, warm: Path, tmp_path: Path) -> None:
    experiment = small(warm, steps=2, eval_every=0, checkpoint_every=0, credit=Mine(), transforms=(Doubled(),))
    whole = run(experiment, tmp_path / "whole")
    BROKEN.append(how)
    try:
        with pytest.raises(UserError, match=said):
            run(experiment, tmp_path / "run")
    finally:
        BROKEN.clear()
    with Run.find(tmp_path / "run").store(read_only=True) as store:
        assert [step.step for step in store.steps("searcher")] == [0], (
            "the step before is learned, the bad one is not committed"
        )
        before = {episode.id: episode.seconds for episode in store.episodes() if episode.status == "done"}
    assert len(before) > 8, "what was sampled for the bad step is kept"
    resumed = run(experiment, tmp_path / "run")
    with Run.find(tmp_path / "run").store(read_only=True) as store:
        after = {episode.id: episode.seconds for episode in store.episodes()}
    assert before.items() <= after.items(), "no finished episode is sampled again"
    assert weights(resumed) == weights(whole)


def test_a_run_learns_from_what_transforms_make_of_rewards(warm: Path, tmp_path: Path) -> None:
    plain = small(warm, steps=1, eval_every=0, checkpoint_every=0, tasks_per_step=6)
    shaped = replace(plain, transforms=(CodeSimilarity(correct=0.5, similarity=alike),))
    results = [run(experiment, tmp_path / name) for name, experiment in (("plain", plain), ("shaped", shaped))]
    stored = [recorded(result.run) for result in results]
    assert stored[0].keys() == stored[1].keys() and stored[0] != stored[1]
    assert weights(results[0]) != weights(results[1])
    with Run.find(tmp_path / "shaped").store(read_only=True) as store:
        names = {reward.name for episode in store.episodes() for reward in episode.rewards}
    assert "code_similarity" not in names, "the record keeps the rewards as they were given"


def alike(a: str, b: str) -> float:
    return 0.7


def run(experiment: Any, out: Path) -> Any:
    return asyncio.run(train(experiment, out=out, sinks=[]))


def weights(result: Any) -> bytes:
    return (result.policies["searcher"] / "model.safetensors").read_bytes()


def recorded(folder: Path) -> dict[Any, Any]:
    with Run.find(folder).store(read_only=True) as store:
        return {(row.episode, row.leaf): row.advantages for step in store.steps("searcher") for row in step.rows}
