"""The loop with LoRA: the same claims of bits as with all weights."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from agentrl import evaluate, train
from agentrl.learning.replay import relearn
from agentrl.metrics import StepMetrics
from agentrl.run import Run
from agentrl.setup import open_learners
from agentrl.transformer.weights import load_weights
from tests.train.small import small
from tests.train.test_train import Kept, run, weights


def lora_run(model: Path, **changes: Any) -> Any:
    experiment = small(model, **({"steps": 4, "eval_every": 4} | changes))
    return replace(experiment, policies=replace(experiment.by_name["searcher"], lora=4))


@pytest.fixture(scope="module")
def finished(warm: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Kept, Any]:
    """A run of four batches, never stopped."""
    experiment = lora_run(warm)
    result, kept = run(experiment, tmp_path_factory.mktemp("run") / "whole")
    return result, kept, experiment


def test_the_same_seed_gives_the_same_losses_to_the_bit(finished: Any, warm: Path, tmp_path: Path) -> None:
    result, kept, _ = finished
    again, kept_again = run(lora_run(warm), tmp_path / "again")
    assert len(kept.losses) == 4
    assert kept.losses == kept_again.losses
    assert weights(again) == weights(result)


def test_a_resumed_run_is_one_that_was_never_stopped(finished: Any, warm: Path, tmp_path: Path) -> None:
    result, kept, _ = finished
    stop = asyncio.Event()

    class StopsAt3(Kept):
        def write(self, metrics: StepMetrics) -> None:
            super().write(metrics)
            if metrics.step == 3 and "loss" in metrics.values:
                stop.set()

    first = StopsAt3()
    stopped = asyncio.run(train(lora_run(warm), out=tmp_path / "run", sinks=[first], stop=stop))
    assert stopped.stopped and stopped.batches == 3
    resumed, second = run(lora_run(warm), tmp_path / "run")
    assert first.losses + second.losses == kept.losses
    assert weights(resumed) == weights(result)


def test_learning_again_over_the_recorded_batches_gives_the_same_weights(finished: Any) -> None:
    result, _, experiment = finished
    run_ = Run.find(result.run)
    learner = open_learners(experiment, run_.lineage)["searcher"]
    with run_.store(read_only=True) as store:
        relearn(store, "searcher", learner)
    assert {name: tensor.numpy().tobytes() for name, tensor in learner.weights().items()} == weights(result)


def test_the_gap_between_engine_and_learner_is_that_of_rounding(finished: Any) -> None:
    gaps = [step.values["gap/max"] for step in finished[1].steps if "gap/max" in step.values]
    assert len(gaps) == 4
    assert max(gaps) < 1e-4


def test_evaluation_of_a_run_takes_its_last_weights(finished: Any, warm: Path) -> None:
    result, kept, experiment = finished
    last = next(step.values["held_out/success"] for step in reversed(kept.steps) if "held_out/success" in step.values)
    assert asyncio.run(evaluate(experiment, policies=result.run)).success == last
    assert weights(result) != {name: tensor.numpy().tobytes() for name, tensor in load_weights(warm).items()}
