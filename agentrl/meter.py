"""What a training tells of itself: numbers of each batch, to every sink."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from agentrl.episode import FINISHED, Episode, Group
from agentrl.experiment import Experiment
from agentrl.learning.contract import StepStats
from agentrl.metrics import Sink, StepMetrics

_STAGES: tuple[str, ...] = ("rollout", "credit", "learn", "publish", "evaluate", "store")


class Meter:
    """Times the stages of the loop and turns groups and learner steps into metrics."""

    def __init__(self, experiment: Experiment[Any, Any], sinks: Sequence[Sink], batch: int) -> None:
        self.held_out: list[tuple[int, float]] = []
        self._experiment = experiment
        self._sinks = sinks
        self._first = batch
        self._began = self._last = time.monotonic()
        self._cpu = time.process_time()
        self._seconds: dict[str, float] = dict.fromkeys(_STAGES, 0.0)
        self._evaluation: dict[str, float] = {}

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

    def step(self, batch: int, groups: Sequence[Group], stats: Mapping[str, StepStats]) -> None:
        """A batch has been learned from."""
        now = time.monotonic()
        elapsed = now - self._last
        self._last = now
        done = batch - self._first
        values = episode_metrics(groups)
        values["tokens_per_second"] = values["tokens/sampled"] / elapsed
        values["seconds"] = now - self._began
        values["cpu_seconds"] = time.process_time() - self._cpu
        values["left_seconds"] = (now - self._began) / done * (self._experiment.steps - batch)
        accounted = sum(self._seconds.values())
        values |= {f"time/{stage}": seconds for stage, seconds in self._seconds.items()}
        values["time/other"] = max(0.0, elapsed - accounted)
        for name, step in stats.items():
            prefix = "" if len(stats) == 1 else f"{name}/"
            values |= {f"{prefix}loss": step.loss, f"{prefix}tokens/trained": float(step.trained_tokens)}
            values |= {f"{prefix}{key}": value for key, value in step.metrics.items()}
        values |= self._evaluation
        self._evaluation = {}
        self._seconds = dict.fromkeys(_STAGES, 0.0)
        self._write(batch, values)
        for line in losses(groups):
            for sink in self._sinks:
                sink.note(f"batch {batch}: {line}")

    def _write(self, batch: int, values: Mapping[str, float]) -> None:
        for sink in self._sinks:
            sink.write(StepMetrics(batch, values))


def episode_metrics(groups: Sequence[Group]) -> dict[str, float]:
    """Means over the finished episodes of these groups, and what became of the others, by cause."""
    episodes = [episode for group in groups for episode in group.episodes]
    finished = [episode for group in groups for episode in group.finished]
    count = max(1, len(finished))
    stops = Counter(reason for episode in finished for _, reason in episode.stops)
    causes = Counter(_cause(episode) for episode in episodes if episode.status not in FINISHED)
    names = {name for episode in finished for name in episode.metrics}
    drift = sum(1 for episode in episodes for turn in episode.turns if turn.untrained)
    return {
        "reward/mean": sum(episode.reward for episode in finished) / count,
        "turns_per_episode": sum(len(episode.turns) for episode in finished) / count,
        "tool_calls_per_episode": sum(episode.ledger.tool_calls for episode in finished) / count,
        "tokens/sampled": float(sum(e.ledger.sampled_tokens + e.ledger.lost_tokens for e in episodes)),
        "tokens/cached": float(sum(e.ledger.cached_tokens for e in episodes)),
        "episodes/done": float(len(finished)),
        "episodes/lost": float(sum(max(group.wanted, len(group.episodes)) - len(group.finished) for group in groups)),
        "groups/short": float(sum(1 for group in groups if len(group.finished) < group.wanted)),
        "drift": float(drift),
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
