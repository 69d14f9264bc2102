"""Runs whose loss looks at a frozen reference, or leaves tokens out: the same claims of bits as without."""

from __future__ import annotations

import asyncio
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from agentrl import Policy, UserError, train
from agentrl.config import apply_settings
from agentrl.credit import DecisionMasked
from agentrl.credit.compare import compare, read_recorded, read_steps
from agentrl.learning.replay import relearn
from agentrl.objectives import Clipped
from agentrl.run import Run
from agentrl.setup import check, open_learners
from agentrl.store.contract import EpisodeFilter
from tests.train.small import small
from tests.train.test_train import Kept, run, weights


def anchored(model: Path, **changes: Any) -> Any:
    settings: dict[str, Any] = {
        "steps": 3, "eval_every": 0, "objective": Clipped(kl=0.05, kl_form="k2"),
        "reference": Policy("reference", model=model, frozen=True),
    }  # fmt: skip
    return small(model, **(settings | changes))


@pytest.fixture(scope="module")
def finished(warm: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Kept]:
    """A run of three batches against the policy that it began from."""
    return run(anchored(warm), tmp_path_factory.mktemp("run") / "whole")


def test_the_kl_grows_from_nothing_as_the_policy_leaves_its_reference(finished: Any) -> None:
    seen = [step.values["kl/reference"] for step in finished[1].steps if "kl/reference" in step.values]
    assert len(seen) == 3
    assert seen[0] == pytest.approx(0.0, abs=1e-9) and all(value > 1e-6 for value in seen[1:])


def test_learning_again_over_the_recorded_batches_gives_the_same_weights(finished: Any, warm: Path) -> None:
    run_ = Run.find(finished[0].run)
    learner = open_learners(anchored(warm), run_.lineage)["searcher"]
    with run_.store(read_only=True) as store:
        relearn(store, "searcher", learner)
    assert {name: tensor.numpy().tobytes() for name, tensor in learner.weights().items()} == weights(finished[0])


def test_a_resumed_run_is_one_that_was_never_stopped(finished: Any, warm: Path, tmp_path: Path) -> None:
    stop = asyncio.Event()

    class StopsAt1(Kept):
        def write(self, metrics: Any) -> None:
            super().write(metrics)
            if metrics.step == 1 and "loss" in metrics.values:
                stop.set()

    first = StopsAt1()
    asyncio.run(train(anchored(warm), out=tmp_path / "run", sinks=[first], stop=stop))
    resumed, second = run(anchored(warm), tmp_path / "run")
    assert first.losses + second.losses == finished[1].losses
    assert weights(resumed) == weights(finished[0])


def test_kl_without_a_reference_is_refused_before_anything_is_made(warm: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"Clipped has a KL term against a reference policy, and the experiment has none; --"):
        asyncio.run(train(anchored(warm, reference=None), out=tmp_path / "run", sinks=[]))
    assert not (tmp_path / "run").exists()
    check(anchored(warm, reference=None, objective=Clipped(kl=0.05, kl_to="behaviour")))


def test_a_reference_of_other_tokens_is_refused(warm: Path, tmp_path: Path) -> None:
    strange = Path(shutil.copytree(warm, tmp_path / "strange"))
    words = {"version": "1.0", "model": {"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "a"}}
    (strange / "tokenizer.json").write_text(json.dumps(words))
    with pytest.raises(UserError, match=r"strange has another vocabulary than .*of the same family, or no KL"):
        check(anchored(warm, reference=Policy("reference", model=strange, frozen=True)))


def test_a_reference_without_a_model_is_refused(warm: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"reference 'reference': .* is no model folder \(it has no config.json\)"):
        check(anchored(warm, reference=Policy("reference", model=tmp_path, frozen=True)))
    with pytest.raises(UserError, match=r"'reference' without a model; --set reference=on --set reference.model=FOLDER"):
        check(apply_settings(small(warm), ["objective=grpo", "reference=on"]))
    check(apply_settings(small(warm), ["objective=grpo", "reference=on", f"reference.model={warm}"]))


def test_masked_tokens_are_stored_as_such_and_learned_again_to_the_bit(warm: Path, tmp_path: Path) -> None:
    experiment = small(warm, steps=2, eval_every=0, credit=DecisionMasked())
    result, kept = run(experiment, tmp_path / "run")
    run_ = Run.find(result.run)
    with run_.store(read_only=True) as store:
        stored = [packed for step in store.steps("searcher") for row in step.rows for packed in row.advantages]
        learner = open_learners(experiment, run_.lineage)["searcher"]
        relearn(store, "searcher", learner)
    firsts = [np.isnan(np.frombuffer(packed, "<f4")) for packed in stored]
    assert firsts and all(out[0] and not out[1:].any() for out in firsts if len(out) > 1)
    assert {name: tensor.numpy().tobytes() for name, tensor in learner.weights().items()} == weights(result)
    assert len(kept.losses) == 2
    with run_.store(read_only=True) as store:
        found = compare(read_steps(store, EpisodeFilter(split="train"), tokens=True), DecisionMasked(), read_recorded(store))
    trained = np.isfinite(found.second)
    assert trained.sum() == len(stored) and np.abs(found.first - found.second)[trained].max() < 1e-6
