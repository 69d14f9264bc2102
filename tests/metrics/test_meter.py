"""What is measured of each step: the loop's lag, stragglers, tokens; and sinks that fail."""

from __future__ import annotations

import asyncio
import logging
import math
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from agentrl.episode import Episode, Failure, Group, Ledger
from agentrl.learning.contract import StepStats
from agentrl.meter import Meter, episode_metrics
from agentrl.metrics import StepMetrics
from agentrl.metrics.lag import EVERY, LoopLag, percentile
from agentrl.metrics.trend import Trend
from agentrl.resolve import resolve
from agentrl.setup import open_sinks
from agentrl_workflows.search_qa.experiment import search_qa


def an_episode(name: str, seconds: float, **changes: Any) -> Episode:
    values: dict[str, Any] = {
        "id": name, "group": "g", "task": None, "seed": 0, "workflow": "", "source": "policy", "status": "done", "turns": (),
        "seconds": seconds,
        "ledger": Ledger(sampled_tokens=10, lost_tokens=2, probe_tokens=3, prompt_tokens=40, cached_tokens=10),
    }  # fmt: skip
    return Episode(**(values | changes))


def a_group(*episodes: Episode) -> Group:
    return Group("g", None, episodes, len(episodes))


async def test_a_loop_that_was_held_up_says_for_how_long() -> None:
    lag = LoopLag()
    await asyncio.sleep(4 * EVERY)
    quiet = lag.take()
    began = time.monotonic()
    time.sleep(6 * EVERY)  # noqa: ASYNC251 - this is what holds a loop up
    held = lag.take()
    lag.close()
    stood = time.monotonic() - began
    assert len(quiet) >= 4
    assert 5 * EVERY <= max(held) <= stood
    # each moment that it slept through counts, later ones for less
    assert abs(len(held) - stood / EVERY) <= 1
    assert held == sorted(held, reverse=True)


async def test_a_closed_one_looks_no_more() -> None:
    lag = LoopLag()
    await asyncio.sleep(0)
    lag.close()
    seen = len(lag._late)
    await asyncio.sleep(2 * EVERY)
    assert len(lag._late) == seen


def test_percentiles_are_values_that_were_seen() -> None:
    values = [float(n) for n in range(1, 101)]
    assert (percentile(values, 0.5), percentile(values, 0.99), percentile(values, 1.0)) == (50.0, 99.0, 100.0)
    assert percentile([7.0], 0.01) == 7.0
    assert percentile([], 0.5) != percentile([], 0.5)


def test_stragglers_and_tokens_are_numbers_of_all_episodes() -> None:
    lost = an_episode("b", 9.0, status="failed", failure=Failure("tool", "it hung"))
    values = episode_metrics([a_group(an_episode("a", 1.0), lost, an_episode("c", 2.0))])
    assert (values["episodes/seconds_p50"], values["episodes/seconds_p99"], values["episodes/seconds_max"]) == (2.0, 9.0, 9.0)
    assert (values["tokens/sampled"], values["tokens/lost"], values["tokens/probe"]) == (36.0, 6.0, 9.0)
    assert (values["tokens/prompt"], values["tokens/cached"], values["cache_hit_rate"]) == (120.0, 30.0, 0.25)
    assert values["lost/tool"] == 1.0


def test_no_episodes_have_no_stragglers() -> None:
    values = episode_metrics([])
    assert values["episodes/seconds_max"] == 0.0
    assert values["cache_hit_rate"] == 0.0


class Kept:
    """A sink that keeps what it is given."""

    def __init__(self) -> None:
        self.written: list[StepMetrics] = []
        self.notes: list[str] = []

    def write(self, metrics: StepMetrics) -> None:
        self.written.append(metrics)

    def note(self, text: str) -> None:
        self.notes.append(text)

    def close(self) -> None: ...


class Broken(Kept):
    """A sink whose server is away at first."""

    def write(self, metrics: StepMetrics) -> None:
        if metrics.step < 3:
            raise OSError("no route to host")
        super().write(metrics)

    def note(self, text: str) -> None:
        raise OSError("no route to host")


class Steps:
    steps = 3


async def test_the_meter_tells_the_lag_the_slowest_and_goes_on_without_a_sink(caplog: pytest.LogCaptureFixture) -> None:
    broken, kept = Broken(), Kept()
    lost = an_episode("slow", 5.0, status="failed", failure=Failure("tool", "it hung"))
    experiment: Any = Steps()
    with Meter(experiment, [broken, kept], 0) as meter, caplog.at_level(logging.WARNING):
        for batch in (1, 2, 3):
            time.sleep(0.12)  # noqa: ASYNC251
            meter.step(batch, [a_group(an_episode("fast", 1.0), lost)], {})
    assert [metrics.step for metrics in kept.written] == [1, 2, 3]
    assert [metrics.step for metrics in broken.written] == [3]  # it is asked again, for it may have come back
    assert caplog.text.count("the sink Broken failed and the training goes on: OSError: no route to host") == 1
    assert "Kept" not in caplog.text
    for metrics in kept.written:
        assert metrics.texts == {"episodes/slowest": "slow"}
        assert 0.05 <= metrics.values["loop_lag/max"] >= metrics.values["loop_lag/p99"] >= metrics.values["loop_lag/mean"]
    assert kept.notes == [f"batch {batch}: 1 of 2 episodes lost (tool): slow: it hung" for batch in (1, 2, 3)]


def test_given_sinks_stay_open_and_named_ones_are_closed(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "ENDED = []\n"
        "class Mine:\n"
        "    def begin(self, folder, described): self.folder, self.seed = folder, described['seed']\n"
        "    def write(self, metrics): ...\n"
        "    def note(self, text): ...\n"
        "    def close(self): ENDED.append((self.folder, self.seed))\n"
    )
    name = f"{tmp_path / 'mine.py'}:Mine"
    mine = resolve(name)
    given = mine()
    experiment = search_qa(tmp_path / "model")
    with open_sinks(experiment, tmp_path / "run", [given, name]) as opened:
        assert [type(sink) for sink in opened] == [mine, mine]
        assert opened[0] is given
    ended = resolve(f"{tmp_path / 'mine.py'}:ENDED")
    assert ended == [(tmp_path / "run", experiment.seed)]
    assert given.folder == tmp_path / "run"
    with open_sinks(experiment, tmp_path / "run", None) as opened:
        assert {"Console", "JSONL"} <= {type(sink).__name__ for sink in opened}


def test_a_trend_is_the_line_of_least_squares_and_its_error() -> None:
    rng = np.random.default_rng(0)
    x = np.arange(1, 31, dtype=float)
    y = 0.01 * x + 3 + rng.normal(0, 0.05, 30)
    trend = Trend(zip(x, y, strict=True))
    (slope, intercept), covariance = np.polyfit(x, y, 1, cov="unscaled")
    left = ((y - slope * x - intercept) ** 2).sum() / 28
    assert trend.slope == pytest.approx(slope, rel=1e-9)
    assert trend.error == pytest.approx(math.sqrt(covariance[0, 0] * left), rel=1e-9)
    assert not trend.flat
    assert Trend(zip(x, rng.normal(0, 1, 30), strict=True)).flat
    assert Trend([(1, 2.0), (2, 2.0), (3, 2.0)]).flat


@pytest.mark.parametrize("points", [[], [(1, 1.0), (2, 2.0)], [(1, 1.0)] * 4, [(1, 1.0), (2, math.nan), (3, 2.0)]])
def test_too_few_points_have_no_trend(points: list[tuple[float, float]]) -> None:
    assert not Trend(points).known


def test_the_gap_has_a_trend_from_the_third_step_and_refused_groups_are_counted_by_step() -> None:
    kept: list[StepMetrics] = []
    sink: Any = SimpleNamespace(write=kept.append, note=lambda text: None, close=lambda: None)
    meter = Meter(search_qa("model"), [sink], 0)
    group = a_group(an_episode("a", 1.0))
    for batch, (gap, refused) in enumerate([(1e-5, 0), (2e-5, 3), (3e-5, 3), (4e-5, 7)], start=1):
        stats = StepStats(0.0, 1, 1, 1, {"gap/mean": gap})
        meter.step(batch, [group], {"p": stats}, refused=refused)
    assert [step.values["stale/dropped"] for step in kept] == [0.0, 3.0, 0.0, 4.0]
    assert ["gap/trend" in step.values for step in kept] == [False, False, True, True]
    assert kept[-1].values["gap/trend"] == pytest.approx(1e-5)
    assert kept[-1].values["gap/trend_error"] == pytest.approx(0.0, abs=1e-12)
