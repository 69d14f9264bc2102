"""What a report tells, read from a run's folder: metrics.jsonl and the store, both of which may still be written."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from agentrl.episode import FINISHED, Episode, Ledger, ToolCall
from agentrl.errors import UserError
from agentrl.metrics import StepMetrics, read_metrics
from agentrl.metrics.lag import percentile
from agentrl.metrics.record import read_sessions
from agentrl.store.contract import EpisodeHead
from agentrl.store.sqlite import SQLiteStore

STAGES = ("rollout", "credit", "learn", "publish", "evaluate", "store", "other")


@dataclass(frozen=True, slots=True)
class Seen:
    """What a report needs of one episode. Seconds of model and tools are summed over calls, which may run side by side."""

    id: str
    split: str
    step: int
    status: str
    seconds: float
    turns: int
    model_seconds: float
    tool_seconds: float


@dataclass(slots=True)
class ToolUse:
    """All calls of one tool."""

    seconds: list[float] = field(default_factory=list[float])
    by_status: Counter[str] = field(default_factory=Counter[str])

    @property
    def errors(self) -> float:
        """Share of the calls that did not end well."""
        return 1 - self.by_status["ok"] / max(1, self.by_status.total())


@dataclass(frozen=True, slots=True)
class Lost:
    """Episodes that were lost by one cause, and what the first of them says."""

    cause: str
    count: int
    id: str
    message: str


@dataclass(slots=True)
class Episodes:
    """What the store tells. Times, tools and tokens are of all splits; an episode that runs has no time and no tokens yet."""

    seen: list[Seen] = field(default_factory=list[Seen])
    statuses: Counter[str] = field(default_factory=Counter[str])
    splits: Counter[str] = field(default_factory=Counter[str])
    stops: Counter[str] = field(default_factory=Counter[str])
    tools: dict[str, ToolUse] = field(default_factory=dict[str, ToolUse])
    lost: dict[str, Lost] = field(default_factory=dict[str, Lost])
    untrained: Counter[str] = field(default_factory=Counter[str])
    """Turns that are never trained, by reason."""
    paid: Ledger = field(default_factory=Ledger)

    def add(self, head: EpisodeHead, episode: Episode) -> None:
        """Counts an episode."""
        calls = [call for turn in episode.turns for call in turn.tool_calls]
        model = sum(max(0.0, turn.ended - turn.started) for turn in episode.turns)
        tool = sum(max(0.0, call.ended - call.started) for call in calls)
        self.seen.append(Seen(head.id, head.split, head.step, episode.status, episode.seconds, len(episode.turns), model, tool))
        self.statuses[episode.status] += 1
        self.splits[head.split] += 1
        self.stops.update(reason for _, reason in episode.stops)
        self.untrained.update(turn.untrained for turn in episode.turns if turn.untrained)
        self.paid = _sum(self.paid, episode.ledger)
        for call in calls:
            self._add_call(call)
        if episode.status not in (*FINISHED, "running"):
            cause = episode.failure.fault if episode.failure else episode.status
            message = episode.failure.message if episode.failure else episode.status
            known = self.lost[cause] if cause in self.lost else Lost(cause, 0, head.id, message)
            self.lost[cause] = Lost(cause, known.count + 1, known.id, known.message)

    def _add_call(self, call: ToolCall) -> None:
        use = self.tools.setdefault(call.name, ToolUse())
        use.seconds.append(max(0.0, call.ended - call.started))
        use.by_status[call.status] += 1

    def ended(self) -> list[Seen]:
        """Those that have ended, the slowest first."""
        return sorted((each for each in self.seen if each.status != "running"), key=lambda each: -each.seconds)

    def seconds_by_step(self, split: str) -> dict[int, tuple[float, float, float]]:
        """Median, 99th percentile and maximum of the episodes' seconds."""
        by_step: dict[int, list[float]] = {}
        for each in self.seen:
            if each.split == split and each.status != "running":
                by_step.setdefault(each.step, []).append(each.seconds)
        return {
            step: (percentile(seconds, 0.5), percentile(seconds, 0.99), max(seconds))
            for step, seconds in sorted(by_step.items())
        }


@dataclass(frozen=True, slots=True)
class Gathered:
    """All that a report tells of a run."""

    folder: Path
    described: Mapping[str, Any]
    """experiment.json; empty if there is none."""
    sessions: tuple[Mapping[str, Any], ...]
    """The first line of each call's metrics: when, and with which versions."""
    steps: tuple[StepMetrics, ...]
    episodes: Episodes
    sizes: Mapping[str, int]
    """Bytes on the disk by part."""

    def series(self, name: str) -> list[tuple[float, float]]:
        """(step, value) of a metric, where it was measured."""
        return [(step.step, step.values[name]) for step in self.steps if name in step.values]

    def policies(self, metric: str) -> list[str]:
        """What stands before the name of a learner's metric: nothing, or with several policies "NAME/" for each."""
        names = dict.fromkeys(name for step in self.steps for name in step.values)
        return [name.removesuffix(metric) for name in names if name == metric or name.endswith(f"/{metric}")]

    def total(self, name: str) -> float:
        """Sum of a metric over all steps."""
        return sum(value for _, value in self.series(name) if value == value)

    def stage_seconds(self) -> dict[str, float]:
        """Seconds of the learned steps by stage; stages that took none are left out."""
        spent = {stage: self.total(f"time/{stage}") for stage in STAGES}
        return {stage: seconds for stage, seconds in spent.items() if seconds > 0}

    def lags(self) -> list[tuple[float, float, float, float]]:
        """(step, mean, 99th percentile, maximum) of the event loop's lag in seconds."""
        measured = (step for step in self.steps if math.isfinite(step.values.get("loop_lag/max", math.nan)))
        found = [(float(step.step), step.values) for step in measured]
        return [(step, at["loop_lag/mean"], at["loop_lag/p99"], at["loop_lag/max"]) for step, at in found]


def gather(folder: str | Path) -> Gathered:
    """Reads a run's folder and changes nothing in it. `UserError` if it holds no run."""
    folder = Path(folder)
    files = {name: folder / name for name in ("experiment.json", "metrics.jsonl", "store.db")}
    if not any(file.is_file() for file in files.values()):
        raise UserError(f"{folder} holds no run (no {', no '.join(files)}); give the --out folder of a training")
    described = json.loads(files["experiment.json"].read_text()) if files["experiment.json"].is_file() else {}
    metrics = files["metrics.jsonl"]
    episodes = Episodes()
    if files["store.db"].is_file():
        with SQLiteStore(files["store.db"], read_only=True) as store:
            for head, episode in store.skim():
                episodes.add(head, episode)
    return Gathered(
        folder,
        described,
        read_sessions(metrics) if metrics.is_file() else (),
        read_metrics(metrics) if metrics.is_file() else (),
        episodes,
        {
            "store": _size(folder.glob("store.db*")),
            "checkpoints": _size(folder.glob("checkpoints/**/*")),
            "metrics": _size(folder.glob("metrics.jsonl")),
        },
    )


def _size(files: Iterable[Path]) -> int:
    """Bytes of files, some of which may go meanwhile."""
    total = 0
    for file in files:
        try:
            total += file.stat().st_size if file.is_file() else 0
        except FileNotFoundError:
            continue
    return total


def _sum(left: Ledger, right: Ledger) -> Ledger:
    costs = dict(left.costs)
    for name, cost in right.costs.items():
        costs[name] = costs[name] + cost if name in costs else cost
    return Ledger(
        left.sampled_tokens + right.sampled_tokens, left.lost_tokens + right.lost_tokens,
        left.probe_tokens + right.probe_tokens, left.prompt_tokens + right.prompt_tokens,
        left.cached_tokens + right.cached_tokens, left.tool_calls + right.tool_calls, left.model_calls + right.model_calls,
        costs,
    )  # fmt: skip
