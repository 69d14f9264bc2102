"""What a training tells of itself: numbers of each batch, to every sink."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from agentrl.credit.values import CRITIC
from agentrl.episode import EMPTY_MAP, FINISHED, Episode, Group
from agentrl.errors import UserError, capture, describe
from agentrl.experiment import Experiment
from agentrl.learning.contract import StepStats
from agentrl.metrics import Sink, StepMetrics
from agentrl.metrics.lag import LoopLag, percentile
from agentrl.metrics.trend import Trend
from agentrl.runtime.demonstrations import begins_inside

logger = logging.getLogger(__name__)

_STAGES: tuple[str, ...] = ("rollout", "credit", "learn", "publish", "evaluate", "store")


class Meter:
    """Times the stages of the loop and turns groups and learner steps into metrics.

    As a context it looks at the event loop's lag as well. A sink that fails is named once and asked again at the next step.
    """

    def __init__(self, experiment: Experiment[Any, Any], sinks: Sequence[Sink], batch: int) -> None:
        self.held_out: list[tuple[int, float]] = []
        self._experiment = experiment
        self._sinks = sinks
        self._first = batch
        self._began = self._last = time.monotonic()
        self._cpu = time.process_time()
        self._seconds: dict[str, float] = dict.fromkeys(_STAGES, 0.0)
        self._evaluation: dict[str, float] = {}
        self._lag: LoopLag | None = None
        self._failed: set[int] = set()
        self._refused = 0
        self._gaps: dict[str, Trend] = {}

    def __enter__(self) -> Meter:
        self._lag = LoopLag()
        return self

    def __exit__(self, *exc: object) -> None:
        if self._lag is not None:
            self._lag.close()

    @contextmanager
    def time(self, stage: str) -> Generator[None]:
        """Adds the block's seconds to a stage."""
        began = time.monotonic()
        try:
            yield
        finally:
            self._seconds[stage] += time.monotonic() - began

    def evaluated(self, batch: int, groups: Sequence[Group]) -> None:
        """An evaluation on held-out tasks."""
        self._evaluation = {f"held_out/{name}": value for name, value in success_of(groups).items()}
        self.held_out.append((batch, self._evaluation["held_out/success"]))
        if batch == self._first:
            self._write(batch, self._evaluation)
            self._evaluation = {}

    def step(self, batch: int, groups: Sequence[Group], stats: Mapping[str, StepStats], *, refused: int = 0) -> None:
        """A batch has been learned from. `refused` counts the groups of this call that were too old for any."""
        now = time.monotonic()
        elapsed = now - self._last
        self._last = now
        done = batch - self._first
        values = episode_metrics(groups)
        values["stale/dropped"] = float(refused - self._refused)
        self._refused = refused
        values["tokens_per_second"] = values["tokens/sampled"] / elapsed
        values["seconds"] = now - self._began
        values["cpu_seconds"] = time.process_time() - self._cpu
        values["left_seconds"] = (now - self._began) / done * (self._experiment.steps - batch)
        accounted = sum(self._seconds.values())
        values |= {f"time/{stage}": seconds for stage, seconds in self._seconds.items()}
        values["time/other"] = max(0.0, elapsed - accounted)
        late = self._lag.take() if self._lag is not None else ()
        if late:
            values["loop_lag/mean"] = sum(late) / len(late)
            values |= {"loop_lag/p99": percentile(late, 0.99), "loop_lag/max": max(late)}
        alone = len(stats.keys() - {CRITIC}) == 1
        for name, step in stats.items():
            prefix = "" if alone and name != CRITIC else f"{name}/"
            values |= {f"{prefix}loss": step.loss, f"{prefix}tokens/trained": float(step.trained_tokens)}
            values |= {f"{prefix}{key}": value for key, value in step.metrics.items()}
            if "gap/mean" in step.metrics:
                trend = self._gaps.setdefault(name, Trend())
                trend.add(batch, step.metrics["gap/mean"])
                if trend.known:
                    values |= {f"{prefix}gap/trend": trend.slope, f"{prefix}gap/trend_error": trend.error}
        values |= self._evaluation
        self._evaluation = {}
        self._seconds = dict.fromkeys(_STAGES, 0.0)
        sampled = [e for group in groups for e in group.episodes if e.source != "reference"]
        slowest = max(sampled, key=lambda e: e.seconds, default=None)
        self._write(batch, values, {} if slowest is None else {"episodes/slowest": slowest.id})
        for line in losses(groups):
            self._tell(lambda sink, line=line: sink.note(f"batch {batch}: {line}"))

    def _write(self, batch: int, values: Mapping[str, float], texts: Mapping[str, str] = EMPTY_MAP) -> None:
        self._tell(lambda sink: sink.write(StepMetrics(batch, values, texts)))

    def _tell(self, what: Callable[[Sink], None]) -> None:
        """Metrics are no reason to end a training: whatever a sink raises is a line in the log, once a sink."""
        for number, sink in enumerate(self._sinks):
            with capture() as caught:
                what(sink)
            if caught.error is not None and number not in self._failed:
                self._failed.add(number)
                logger.warning("the sink %s failed and the training goes on: %s", type(sink).__name__, describe(caught.error))


def episode_metrics(groups: Sequence[Group]) -> dict[str, float]:
    """Means over the finished episodes of these groups, and what became of the others, by cause.

    Episodes of a reference are paid for and can be lost like any other, and are in no mean of the policy's; nor are those that
    a rollout plan stopped, which have no outcome.
    """
    episodes = [episode for group in groups for episode in group.episodes]
    ours = [episode for group in groups for episode in group.finished if episode.source != "reference"]
    finished = [episode for episode in ours if episode.status != "stopped"]
    measured = [episode for group in groups for episode in group.finished if episode.source == "reference"]
    count = max(1, len(finished))
    stops = Counter(reason for episode in finished for _, reason in episode.stops)
    causes = Counter(_cause(episode) for episode in episodes if episode.status not in FINISHED)
    names = {name for episode in finished for name in episode.metrics}
    drift = sum(1 for episode in episodes for turn in episode.turns if turn.untrained)
    seconds = [episode.seconds for episode in episodes if episode.source != "reference"] or [0.0]
    paid = [episode.ledger for episode in episodes]
    prompts = sum(ledger.prompt_tokens for ledger in paid)
    cached = sum(ledger.cached_tokens for ledger in paid)
    return {
        "reward/mean": sum(episode.reward for episode in finished) / count,
        "turns_per_episode": sum(len(episode.turns) for episode in finished) / count,
        "tool_calls_per_episode": sum(episode.ledger.tool_calls for episode in finished) / count,
        "tokens/sampled": float(sum(ledger.sampled_tokens + ledger.lost_tokens for ledger in paid)),
        "tokens/lost": float(sum(ledger.lost_tokens for ledger in paid)),
        "tokens/prompt": float(prompts),
        "tokens/cached": float(cached),
        "tokens/probe": float(sum(ledger.probe_tokens for ledger in paid)),
        "cache_hit_rate": cached / max(1, prompts),
        "episodes/done": float(len(finished)),
        "episodes/lost": float(sum(max(group.wanted, len(group.episodes)) - len(group.finished) for group in groups)),
        "episodes/stopped": float(len(ours) - len(finished)),
        "episodes/reset": float(sum(begins_inside(episode) for episode in finished)),
        "groups/short": float(sum(1 for group in groups if len(group.finished) < group.wanted)),
        "episodes/seconds_p50": percentile(seconds, 0.5),
        "episodes/seconds_p99": percentile(seconds, 0.99),
        "episodes/seconds_max": max(seconds),
        "drift": float(drift),
        **({"reward/reference": sum(episode.reward for episode in measured) / len(measured)} if measured else {}),
        **{f"stop/{reason}": number / count for reason, number in sorted(stops.items())},
        **{f"lost/{cause}": float(number) for cause, number in sorted(causes.items())},
        **{f"metric/{name}": sum(e.metrics.get(name, 0.0) for e in finished) / count for name in sorted(names)},
    }


def losses(groups: Sequence[Group]) -> list[str]:
    """One line for each cause by which episodes were lost: how many, and what the first of them says."""
    lost = [episode for group in groups for episode in group.episodes if episode.status not in FINISHED]
    by_cause: dict[str, list[Episode]] = {}
    for episode in lost:
        by_cause.setdefault(_cause(episode), []).append(episode)
    asked = sum(len(group.episodes) for group in groups)
    return [
        f"{len(episodes)} of {asked} episodes lost ({cause}): {episodes[0].id}: "
        f"{episodes[0].failure.message if episodes[0].failure else episodes[0].status}"
        for cause, episodes in sorted(by_cause.items())
    ]


def refuse_hopeless(groups: Sequence[Group]) -> None:
    """`UserError` if all episodes were lost by how the run was set up: the next ones would be, too."""
    episodes = [episode for group in groups for episode in group.episodes]
    if episodes and all(episode.failure is not None and episode.failure.fault == UserError.fault for episode in episodes):
        raise UserError("; ".join(losses(groups)))


def _cause(episode: Episode) -> str:
    return episode.failure.fault if episode.failure else episode.status


def success_of(groups: Sequence[Group]) -> dict[str, float]:
    """Mean reward over the finished episodes of an evaluation; lost ones are counted apart, never as failures."""
    finished: list[Episode] = [episode for group in groups for episode in group.finished]
    count = max(1, len(finished))
    return {
        "success": sum(episode.reward for episode in finished) / count,
        "episodes": float(len(finished)),
        "lost": float(sum(len(group.episodes) for group in groups) - len(finished)),
        "turns": sum(len(episode.turns) for episode in finished) / count,
        "tool_calls": sum(episode.ledger.tool_calls for episode in finished) / count,
    }
