"""The study of learning curves: runs end at equal tokens by the ledger, also when they were stopped before."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from agentrl.metrics import read_metrics
from agentrl.resolve import load_file
from agentrl.run import Run
from agentrl.store.contract import EpisodeFilter
from tests.train.small import small

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture
def study(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return load_file(BENCHMARKS / "credit_curves.py")


def test_a_run_ends_with_the_batch_that_pays_its_last_token_wherever_it_was_stopped(
    study: Any, warm: Path, tmp_path: Path
) -> None:
    experiment = small(warm, steps=100, eval_every=0, held_out=(), checkpoint_every=1)
    for tokens in (150, 400):
        asyncio.run(study.spend(experiment, tmp_path, tokens))
        paid = [study.paid(step) for step in read_metrics(tmp_path / "metrics.jsonl")]
        assert sum(paid[:-1]) < tokens <= sum(paid)
    with Run.find(tmp_path).store(read_only=True) as store:
        ended = [episode for _, episode in store.skim(EpisodeFilter(split="train")) if episode.status == "done"]
    ledgers = [episode.ledger for episode in ended]
    assert sum(ledger.sampled_tokens + ledger.lost_tokens for ledger in ledgers[: 8 * len(paid)]) == sum(paid)


def test_every_family_is_an_experiment(study: Any, warm: Path) -> None:
    from agentrl.setup import check

    for family in study.FAMILIES:
        check(study.experiment_of(family, 0, warm))


def test_a_table_tells_mean_range_and_gain_over_the_group_family(study: Any) -> None:
    runs = [
        study.Outcome(family, seed, [[0.0, 0.25], [100.0, 0.75]], 0.25, after, 100.0, 5, 2.0)
        for family, seed, after in (("group", 0, 0.5), ("group", 1, 0.75), ("tree", 0, 0.75), ("tree", 1, 0.75))
    ]
    *_, group, tree = study.table(runs).splitlines()
    assert group.startswith("| group | `credit=grpo` | 0.250 | 0.625 | 0.500 to 0.750 | +0.000 | 100 | 5 | 2 |")
    assert "| 0.250 | 0.750 | 0.750 to 0.750 | +0.125 | 100 | 5 | 2 |" in tree
    assert study.averaged(runs, 100, parts=2)["tree"] == [(0.0, 0.25), (50.0, 0.5), (100.0, 0.75)]
